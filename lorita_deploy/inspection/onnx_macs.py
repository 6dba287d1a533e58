"""Multiply-accumulates of an ONNX graph, from the shapes that ONNX itself infers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from .onnx_reading import STANDARD, nodes_of

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

Shape = tuple[int, ...]
COUNTED = frozenset(("Conv", "ConvTranspose", "Gemm", "MatMul"))
UNCOUNTED = frozenset("Attention ConvInteger DeformConv Einsum GRU LSTM MatMulInteger QLinearConv QLinearMatMul RNN".split())
"""They multiply too, in ways that are not worked out here."""


def count_macs(model: ModelProto) -> int | None:
    """Of convolutions and matrix products in the main graph, open dimensions counted as 1; None where a shape is not known, or
    where others multiply: those of `UNCOUNTED`, of inner graphs and functions, and operators outside the standard."""
    own = {(function.domain, function.name) for function in model.functions}
    every = [node for node in nodes_of(model) if (node.domain, node.op_type) not in own]
    nodes = [node for node in model.graph.node if node.domain in STANDARD and node.op_type in COUNTED]
    if len(nodes) < sum(node.domain not in STANDARD or node.op_type in COUNTED | UNCOUNTED for node in every):
        return None
    if not nodes:
        return 0
    shapes = _shapes(model)
    total = 0
    for node in nodes:
        names = (node.input[0], node.input[1], node.output[0]) if len(node.input) > 1 and node.output else ()
        if not names or not all(name in shapes for name in names):
            return None
        found = _macs(node, *(shapes[name] for name in names))
        if found is None:
            return None
        total += found
    return total


def _macs(node: NodeProto, x: Shape, weight: Shape, y: Shape) -> int | None:
    """Numbers written times products for each: input channels per group times kernel, or the inner dimension."""
    if node.op_type == "Conv" and len(weight) > 2:
        return math.prod(y) * math.prod(weight[1:])
    if node.op_type == "ConvTranspose" and len(weight) > 2:
        return math.prod(x) * math.prod(weight[1:])
    if node.op_type == "Gemm" and len(x) == 2:
        transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
        return math.prod(y) * x[0 if transposed else 1]
    if node.op_type == "MatMul" and x:
        return math.prod(y) * x[-1]
    return None


def _shapes(model: ModelProto) -> dict[str, Shape]:
    """Of every tensor whose rank is known."""
    import onnx

    shapes: dict[str, Shape] = {}
    try:
        graph = onnx.shape_inference.infer_shapes(model).graph
    except Exception:  # a graph that does not fit together has no shapes to count by; the checker says what is wrong
        graph = model.graph
    for value in (*graph.value_info, *graph.input, *graph.output):
        if value.type.tensor_type.HasField("shape"):
            shapes[value.name] = tuple(max(1, extent.dim_value) for extent in value.type.tensor_type.shape.dim)
    return shapes | {tensor.name: tuple(max(0, extent) for extent in tensor.dims) for tensor in graph.initializer}
