"""Edits of an ONNX graph that keep what it computes: constants, names, nothing left behind.

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
        remove_nodes(graph, dead)
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
    remove_nodes(graph, gone)


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
    remove_nodes(graph, gone)
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
        if attribute_of(node, "perm", [1, 0]) != [1, 0]:
            continue
        name = f"{source.name}.T"
        if name not in initializers:
            initializers[name] = numpy_helper.from_array(np.ascontiguousarray(numpy_helper.to_array(source).T), name)
            graph.initializer.append(initializers[name])
        stored[node.output[0]] = name
        gone.append(node)
    remove_nodes(graph, gone)
    for each in _graphs(graph):
        for node in each.node:
            for position, read in enumerate(node.input):
                node.input[position] = stored.get(read, read)


def _is_weight(name: str) -> bool:
    return name.removesuffix(".T").endswith("weight")


def _graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """The graph and those inside its nodes (branches, loops)."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _graphs(inner)


def attribute_of(node: NodeProto, name: str, default: Any) -> Any:
    """The value of a node's attribute, or ``default`` where it is not written down."""
    return next((onnx.helper.get_attribute_value(each) for each in node.attribute if each.name == name), default)


def _copy(tensor: TensorProto) -> TensorProto:
    copy = TensorProto()
    copy.CopyFrom(tensor)
    return copy


def remove_nodes(graph: GraphProto, nodes: list[NodeProto]) -> None:
    """Take ``nodes`` out in one pass (protobuf's own ``remove`` compares contents, and is quadratic)."""
    gone = {id(node) for node in nodes}
    if not gone:
        return
    for position in reversed([place for place, node in enumerate(graph.node) if id(node) in gone]):
        del graph.node[position]
