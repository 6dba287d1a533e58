"""What is in a file, and would it load on a target? Read here, without the runtime that the file is for.

files.py          any file or folder: which reader it needs
weights.py        .safetensors, .pt
onnx_file.py      .onnx: counted                         onnx_reading.py   parsed and checked; onnx_macs.py   multiply-adds
engine_file.py    .engine, .plan: the header TensorRT writes, and what stands before it
loading.py        an engine or an ONNX file against a target, finding by finding
onnx_loading.py   versions, operators, shapes, files     onnx_numbers.py   types, precision, quantization
"""
