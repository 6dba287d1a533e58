"""BatchNormalization folded into the layer before it, under the layer's own names."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from .onnx_graph import attribute_of, count_readers, remove_dead, remove_nodes, stem


def fold_batch_norms(model: ModelProto) -> int:
    """Fold BatchNormalization into the Conv, ConvTranspose, Gemm or MatMul before it; returns how many were folded.

    y = g (W x + b - mean) / sqrt(var + eps) + beta is the same layer with scale = g / sqrt(var + eps),
    W' = scale W (per output) and b' = scale (b - mean) + beta, worked out in float64. Only where nothing else reads the
    layer's output or shares its weight.
    """
    graph = model.graph
    ranks = _ranks(model)
    readers = count_readers(graph)
    initializers = {tensor.name: tensor for tensor in graph.initializer}
    writers = {name: node for node in graph.node for name in node.output}
    folded: list[NodeProto] = []
    for norm in graph.node:
        if norm.op_type != "BatchNormalization" or attribute_of(norm, "training_mode", 0):
            continue
        layer = writers.get(norm.input[0])
        if layer is None or readers[norm.input[0]] != 1 or not all(name in initializers for name in norm.input[1:]):
            continue
        axis = _output_axis(layer, ranks)
        own = [name for name in layer.input[1:] if name]
        if axis is None or not all(name in initializers and readers[name] == 1 for name in own):
            continue
        gamma, beta, mean, var = (_float64(initializers[name]) for name in norm.input[1:])
        scale = gamma / np.sqrt(var + attribute_of(norm, "epsilon", 1e-5))
        weight = _float64(initializers[own[0]])
        bias = np.broadcast_to(_float64(initializers[own[1]]), mean.shape) if len(own) > 1 else np.zeros_like(mean)
        along = [1] * weight.ndim
        along[axis] = -1
        _store(initializers[own[0]], weight * scale.reshape(along))
        if len(own) == 1:
            name = f"{stem(own[0])}.bias" if stem(own[0]) else "bias"
            if name in initializers or name in writers:
                name = f"{norm.output[0]}.bias"
            initializers[name] = graph.initializer.add(name=name)
            readers[name] = 1
            del layer.input[2:]
            layer.input.append(name)
            own.append(name)
            if layer.op_type == "MatMul":
                layer.op_type = "Gemm"
        _store(initializers[own[1]], scale * (bias - mean) + beta)
        layer.output[0] = norm.output[0]
        writers[norm.output[0]] = layer
        folded.append(norm)
    remove_nodes(graph, folded)
    remove_dead(graph)
    return len(folded)


def _output_axis(layer: NodeProto, ranks: dict[str, int]) -> int | None:
    """Which axis of the layer's weight counts outputs; None where a scale per channel cannot be folded into it."""
    if layer.op_type == "Conv":
        return 0
    if layer.op_type == "ConvTranspose":
        return 1 if attribute_of(layer, "group", 1) == 1 else None
    if layer.op_type == "Gemm" and attribute_of(layer, "alpha", 1.0) == 1.0 == attribute_of(layer, "beta", 1.0):
        return 0 if attribute_of(layer, "transB", 0) else 1
    if layer.op_type == "MatMul" and ranks.get(layer.output[0]) == 2 and ranks.get(layer.input[1]) == 2:
        return 1
    return None


def _ranks(model: ModelProto) -> dict[str, int]:
    graph = onnx.shape_inference.infer_shapes(model).graph
    ranks = {
        value.name: len(value.type.tensor_type.shape.dim)
        for value in (*graph.value_info, *graph.input, *graph.output)
        if value.type.tensor_type.HasField("shape")
    }
    return ranks | {tensor.name: len(tensor.dims) for tensor in graph.initializer}


def _float64(tensor: TensorProto) -> np.ndarray[Any, Any]:
    values: np.ndarray[Any, Any] = numpy_helper.to_array(tensor).astype(np.float64)
    return values


def _store(tensor: TensorProto, values: np.ndarray[Any, Any]) -> None:
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values, dtype=np.float32), tensor.name))
