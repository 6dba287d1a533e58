"""Edits of an ONNX graph that keep what it computes: constants, batch normalisation, names, nothing left behind.

The promise that others build on (quantisers, per-layer profiles, channel surgery): the weight of a Linear or Conv is the
initializer ``<module path>.weight`` (``<module path>.weight.T`` where it is stored transposed), its bias
``<module path>.bias``, and the node that reads the weight is called ``<module path>``; a second node that reads the
same weight is ``<module path>#2``. Parameters with names of their own keep them: ``attn.in_proj_weight`` is read by
``attn.in_proj``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Operators whose second input is a layer's weight."""


def tidy(model: ModelProto) -> None:
    """Constants and copies of constants become initializers, transposed weights are stored so; then the dead is removed."""
    _constants_to_initializers(model.graph)
    _remove_identities(model.graph)
    _transpose_initializers(model.graph)
    remove_dead(model.graph)


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
        if norm.op_type != "BatchNormalization" or _attribute(norm, "training_mode", 0):
            continue
        layer = writers.get(norm.input[0])
        if layer is None or readers[norm.input[0]] != 1 or not all(name in initializers for name in norm.input[1:]):
            continue
        axis = _output_axis(layer, ranks)
        own = [name for name in layer.input[1:] if name]
        if axis is None or not all(name in initializers and readers[name] == 1 for name in own):
            continue
        gamma, beta, mean, var = (_float64(initializers[name]) for name in norm.input[1:])
        scale = gamma / np.sqrt(var + _attribute(norm, "epsilon", 1e-5))
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
    _remove(graph, folded)
    remove_dead(graph)
    return len(folded)


def name_layers(model: ModelProto) -> None:
    """Call every node that reads a layer's weight by its module path."""
    initializers = {tensor.name for tensor in model.graph.initializer}
    taken: Counter[str] = Counter()
    for node in model.graph.node:
        if node.op_type in WEIGHTED and node.input[1] in initializers and _is_weight(node.input[1]):
            path = stem(node.input[1]) or node.op_type
            taken[path] += 1
            node.name = path if taken[path] == 1 else f"{path}#{taken[path]}"


def layer_tensors(model: ModelProto) -> set[str]:
    """Names of the weights and biases of layers: what a rewrite of the graph must leave standing."""
    initializers = {tensor.name for tensor in model.graph.initializer}
    weights = {
        node.input[1] for node in model.graph.node if node.op_type in WEIGHTED and _is_weight(node.input[1])
    } & initializers
    return weights | ({f"{stem(weight)}.bias" for weight in weights} & initializers)


def stem(weight: str) -> str:
    """The module path in the name of a weight: ``a.b`` for ``a.b.weight.T``; ``a.in_proj`` for ``a.in_proj_weight``."""
    return weight.removesuffix(".T").removesuffix("weight").rstrip("._")


def strip(model: ModelProto) -> None:
    """Take out what tells of the machine and not of the network: doc strings, stack traces, inferred shapes."""
    model.doc_string = ""
    del model.metadata_props[:]
    del model.functions[:]
    for graph in _graphs(model.graph):
        graph.doc_string = ""
        del graph.metadata_props[:]
        del graph.value_info[:]
        for part in (*graph.node, *graph.initializer, *graph.input, *graph.output):
            part.doc_string = ""
            del part.metadata_props[:]


def remove_dead(graph: GraphProto) -> None:
    """Remove nodes and initializers that no output depends on."""
    while True:
        readers = count_readers(graph)
        dead = [node for node in graph.node if not any(readers[name] for name in node.output)]
        if not dead:
            break
        _remove(graph, dead)
    kept = [tensor for tensor in graph.initializer if readers[tensor.name]]
    if len(kept) < len(graph.initializer):
        kept = [_copy(tensor) for tensor in kept]
        del graph.initializer[:]
        graph.initializer.extend(kept)


def count_readers(graph: GraphProto) -> Counter[str]:
    """How often each value is read, by nodes (those of inner graphs included) and as an output of the graph."""
    readers: Counter[str] = Counter()
    for each in _graphs(graph):
        readers.update(name for node in each.node for name in node.input if name)
        readers.update(output.name for output in each.output)
    return readers


# ---------------------------------------------------------------------------------------------- single edits


def _constants_to_initializers(graph: GraphProto) -> None:
    outputs = {output.name for output in graph.output}
    gone = []
    for node in graph.node:
        if node.op_type != "Constant" or node.output[0] in outputs or len(node.attribute) != 1:
            continue
        attribute = node.attribute[0]
        if attribute.name == "value":
            tensor = _copy(attribute.t)
        elif attribute.name in ("value_int", "value_ints"):
            tensor = numpy_helper.from_array(np.array(onnx.helper.get_attribute_value(attribute), dtype=np.int64))
        elif attribute.name in ("value_float", "value_floats"):
            tensor = numpy_helper.from_array(np.array(onnx.helper.get_attribute_value(attribute), dtype=np.float32))
        else:
            continue
        tensor.name = node.output[0]
        graph.initializer.append(tensor)
        gone.append(node)
    _remove(graph, gone)


def _remove_identities(graph: GraphProto) -> None:
    """Copies of a tensor get a tensor of their own: the tracer writes equal tensors once, whichever layers they are of."""
    initializers = {tensor.name: tensor for tensor in graph.initializer}
    outputs = {output.name for output in graph.output}
    same: dict[str, str] = {}
    gone = []
    for node in graph.node:  # in order, so that chains of identities resolve
        if node.op_type != "Identity" or node.output[0] in outputs:
            continue
        source = same.get(node.input[0], node.input[0])
        if source in initializers:
            tensor = _copy(initializers[source])
            tensor.name = node.output[0]
            graph.initializer.append(tensor)
            initializers[tensor.name] = tensor
        else:
            same[node.output[0]] = source
        gone.append(node)
    _remove(graph, gone)
    for each in _graphs(graph):
        for node in each.node:
            for position, name in enumerate(node.input):
                node.input[position] = same.get(name, name)


def _transpose_initializers(graph: GraphProto) -> None:
    initializers = {tensor.name: tensor for tensor in graph.initializer}
    outputs = {output.name for output in graph.output}
    stored: dict[str, str] = {}
    gone = []
    for node in graph.node:
        source = initializers.get(node.input[0]) if node.op_type == "Transpose" else None
        if source is None or len(source.dims) != 2 or node.output[0] in outputs:
            continue
        if _attribute(node, "perm", [1, 0]) != [1, 0]:
            continue
        name = f"{source.name}.T"
        if name not in initializers:
            initializers[name] = numpy_helper.from_array(np.ascontiguousarray(numpy_helper.to_array(source).T), name)
            graph.initializer.append(initializers[name])
        stored[node.output[0]] = name
        gone.append(node)
    _remove(graph, gone)
    for each in _graphs(graph):
        for node in each.node:
            for position, read in enumerate(node.input):
                node.input[position] = stored.get(read, read)


def _output_axis(layer: NodeProto, ranks: dict[str, int]) -> int | None:
    """Which axis of the layer's weight counts outputs; None where a scale per channel cannot be folded into it."""
    if layer.op_type == "Conv":
        return 0
    if layer.op_type == "ConvTranspose":
        return 1 if _attribute(layer, "group", 1) == 1 else None
    if layer.op_type == "Gemm" and _attribute(layer, "alpha", 1.0) == 1.0 == _attribute(layer, "beta", 1.0):
        return 0 if _attribute(layer, "transB", 0) else 1
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


def _is_weight(name: str) -> bool:
    return name.removesuffix(".T").endswith("weight")


def _graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """The graph and those inside its nodes (branches, loops)."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _graphs(inner)


def _attribute(node: NodeProto, name: str, default: Any) -> Any:
    return next((onnx.helper.get_attribute_value(each) for each in node.attribute if each.name == name), default)


def _float64(tensor: TensorProto) -> np.ndarray[Any, Any]:
    return numpy_helper.to_array(tensor).astype(np.float64)


def _store(tensor: TensorProto, values: np.ndarray[Any, Any]) -> None:
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values, dtype=np.float32), tensor.name))


def _copy(tensor: TensorProto) -> TensorProto:
    copy = TensorProto()
    copy.CopyFrom(tensor)
    return copy


def _remove(graph: GraphProto, nodes: list[NodeProto]) -> None:
    """Take ``nodes`` out in one pass (protobuf's own ``remove`` compares contents, and is quadratic)."""
    gone = {id(node) for node in nodes}
    if not gone:
        return
    for position in reversed([place for place, node in enumerate(graph.node) if id(node) in gone]):
        del graph.node[position]
