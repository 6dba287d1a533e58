"""A small network written as ONNX by hand, for tests that need an artifact but no exporter."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def write_small_onnx(path: Path, width: int = 16, seed: int = 0, opset: int = 17) -> Path:
    """A network (1, 3, 16, 16) -> (1, 10), named as the exporter names things.

    Layers ``stem``, ``body.0`` and ``body.1`` (3x3 convolutions, the last strided, a residual sum over ``body.0``), ``tokens``
    (a linear layer on sequences: a MatMul, its weight stored transposed) and ``head`` (a linear layer on vectors: a Gemm).
    """
    rng = np.random.default_rng(seed)
    nodes, weights = [], []

    def weight(name: str, *shape: int) -> str:
        scale = 1.0 / np.sqrt(max(1, int(np.prod(shape[1:]))))
        weights.append(numpy_helper.from_array((rng.standard_normal(shape) * scale).astype(np.float32), name))
        return name

    def add(op: str, inputs: list[str], output: str, **attributes: object) -> str:
        nodes.append(helper.make_node(op, inputs, [output], name=f"/{output}/{op}", **attributes))
        return output

    def conv(name: str, x: str, out: int, inp: int, stride: int = 1) -> str:
        inputs = [x, weight(f"{name}.weight", out, inp, 3, 3), weight(f"{name}.bias", out)]
        return add("Conv", inputs, f"{name}_out", kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[stride, stride])

    x = add("Relu", [conv("stem", "input", width, 3)], "stem_relu")
    y = add("Add", [conv("body.0", x, width, width), x], "sum")
    y = add("Relu", [y], "sum_relu")
    y = add("Relu", [conv("body.1", y, width, width, stride=2)], "body_relu")
    y = add("Reshape", [y, "tokens_shape"], "sequence")
    weights.append(numpy_helper.from_array(np.array([0, 64, width], np.int64), "tokens_shape"))
    y = add("MatMul", [y, weight("tokens.weight.T", width, 48)], "tokens_out")
    y = add("Add", [y, weight("tokens.bias", 48)], "tokens_biased")
    y = add("ReduceMean", [y], "pooled", axes=[1], keepdims=0)
    add("Gemm", [y, weight("head.weight", 10, 48), weight("head.bias", 10)], "output", transB=1)
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, 16, 16])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [1, 10])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = 8 if opset > 15 else 7
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path
