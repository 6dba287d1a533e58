"""The numbers of an ONNX file against a target: element types, precision, quantization."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from ..profiles import dtypes_of, number
from ..records import Finding
from ..targets import Target
from .onnx_file import quantization_of
from .onnx_reading import dtype_name, nodes_of, tensors_of

if TYPE_CHECKING:
    from onnx import ModelProto

INPUT_ONLY = "uint8"
"""TensorRT takes this type for inputs and outputs of the network, and nowhere else."""
UNSIGNED_ZERO_POINTS = (10, 10)
"""Since this TensorRT a zero point may be stored as uint8 (onnx-tensorrt's docs/Changelog.md), all 0 like any other."""
NAMED = 6
"""So many offenders are named in a finding."""


def check_types(model: ModelProto, target: Target) -> Iterator[Finding]:
    """Element types of weights, inputs, outputs and casts."""
    stored = {dtype_name(tensor.data_type) for tensor in tensors_of(model)}
    made = {
        dtype_name(attribute.i)
        for node in nodes_of(model)
        if node.op_type == "Cast"
        for attribute in node.attribute
        if attribute.name == "to"
    }
    ends = {dtype_name(value.type.tensor_type.elem_type) for value in (*model.graph.input, *model.graph.output)}
    inside = stored | made
    if target.profile is not None:
        tensorrt = target.profile.tensorrt
        known = dtypes_of(tensorrt)
        within = known - {INPUT_ONLY}
        weights = known if number(tensorrt) >= UNSIGNED_ZERO_POINTS else within
        strange = sorted((stored - weights) | (made - within) | (ends - known))
        if strange:
            found = f"{', '.join(strange)}: not taken by TensorRT {tensorrt}"
            fix = "export it as fp32 or fp16, or quantize to int8 (symmetric)"
            yield Finding(subject="types", state="wrong", found=found, fix=fix)
        if "double" in inside | ends:
            yield Finding(subject="types", state="note", found="double: cast down to float", fix="export it as fp32")
    half = "float16" in inside
    if half and "fp16" not in target.limits.precisions:
        found = f"fp16 weights; {target.spelled} runs {', '.join(target.limits.precisions)}"
        yield Finding(subject="precision", state="note", found=f"{found}, so they are cast and not faster", fix="use fp32")
    elif half:
        yield Finding(subject="precision", state="ok", found="fp16")


def check_quantization(model: ModelProto, target: Target) -> Iterator[Finding]:
    """Zero points, what is dequantized, and whether the board computes in 8 bits at all."""
    found = quantization_of(model)
    if found is None:
        return
    what = f"{found.quantize} QuantizeLinear, {found.dequantize} DequantizeLinear, {found.per_channel} per channel"
    if "int8" not in target.limits.precisions:
        told = f"{what}; {target.spelled} has no int8 arithmetic ({', '.join(target.limits.precisions)})"
        yield Finding(subject="quantization", state="wrong", found=told, fix="use --precision fp16 or fp32")
        return
    symmetric = "quantize symmetrically: signed 8-bit, every zero point 0"
    if target.profile is None:
        yield Finding(subject="quantization", state="ok", found=what)
    elif integers := _dequantized_integers(model):
        told = f"{what}; DequantizeLinear of {some(integers)}, stored as int32: TensorRT takes 8-bit numbers only"
        fix = "keep biases in floating point (onnxruntime's quantizer: QuantizeBias=False)"
        yield Finding(subject="quantization", state="wrong", found=told, fix=fix)
    elif found.nonzero:
        told = f"{what}; {found.nonzero} zero points are not 0, and TensorRT takes no others"
        yield Finding(subject="quantization", state="wrong", found=told, fix=symmetric)
    elif found.unknown:
        told = f"{what}; {found.unknown} zero points cannot be read from the file"
        yield Finding(subject="quantization", state="note", found=told, fix="store the zero points as initializers, all 0")
    else:
        yield Finding(subject="quantization", state="ok", found=f"{what}; zero points are 0")


def _dequantized_integers(model: ModelProto) -> list[str]:
    """Weights of 32 bit under a DequantizeLinear: biases, as some quantizers store them."""
    wide = {tensor.name for tensor in tensors_of(model) if dtype_name(tensor.data_type) == "int32"}
    nodes = [node for node in nodes_of(model) if node.op_type == "DequantizeLinear"]
    return [node.input[0] for node in nodes if node.input and node.input[0] in wide]


def some(names: Iterable[str]) -> str:
    """A few names, in order, without repetition."""
    each = list(dict.fromkeys(str(name)[:60] for name in names))
    return ", ".join(each[:NAMED]) + (f" and {len(each) - NAMED} more" if len(each) > NAMED else "")
