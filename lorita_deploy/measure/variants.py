"""Whole-network variants made by editing one ONNX file: layers become pairs with random weights, for timing only.

The exporter's promise makes this possible: the weight of the layer ``a.b`` is the initializer ``a.b.weight``, or
``a.b.weight.T`` where it is stored transposed. Every node and tensor is renamed to a token, ``@17@``, because runtimes
build the names of fused nodes from the names they find; `owner` reads the token back.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from onnx import ModelProto, NodeProto

    Array = np.ndarray[Any, Any]

WEIGHTED = frozenset({"Conv", "Gemm", "MatMul"})
"""Operators whose second input is a layer's weight."""
ELEMENTWISE = frozenset(
    (
        *("Add", "Sub", "Mul", "Div", "BatchNormalization", "Clip", "Relu", "LeakyRelu", "PRelu", "Elu"),
        *("Gelu", "Erf", "Mish", "HardSigmoid", "HardSwish", "Sigmoid", "Tanh"),
    )
)
"""Operators that a runtime may fuse into the layer before them; fused or not, their time is that layer's."""
FOLLOWING = ELEMENTWISE | {"MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "Flatten"}
"""Operators whose time is charged to the layer before them: it falls with the layer's width."""
MOVING = frozenset({"Reshape", "Squeeze", "Transpose", "Unsqueeze"})
"""Operators that arrange a layer's outputs anew; charged to it as well."""


@dataclass
class Variant:
    """A network for timing, and whose every node is."""

    model: ModelProto
    owners: dict[int, str | None] = field(default_factory=dict)
    """Token to layer; None for what belongs to no layer."""

    def owner(self, executed: str, before: str | None) -> str | None:
        """The layer that the node called ``executed`` is charged to.

        Nodes that the runtime put in by itself (changes of layout) bear no token and go with the layer ``before`` them.
        """
        found = re.search(r"@(\d+)@", executed)
        return self.owners.get(int(found[1])) if found else before


def find_layers(model: ModelProto, layers: Collection[str]) -> set[str]:
    """Those of ``layers`` whose weight stands in the graph under its promised name."""
    read = {node.input[1] for node in model.graph.node if node.op_type in WEIGHTED and len(node.input) > 1}
    return {layer for layer in layers if f"{layer}.weight" in read or f"{layer}.weight.T" in read}


def ladder_variants(ranks: Mapping[str, Sequence[int]], most: int = 24) -> list[dict[str, int]]:
    """The ranks of each layer in each variant: the dense network first, then every rank of every layer at least once.

    Neighbouring layers start on different rungs, so that no variant is small, or large, throughout. With more than
    ``most`` variants to make, the ladders are thinned out, keeping their ends.
    """
    thinned = {layer: thin(rungs, min(most, 24) - 1) for layer, rungs in ranks.items() if rungs}
    count = max((len(rungs) for rungs in thinned.values()), default=0)
    variants: list[dict[str, int]] = [{}]
    for v in range(count):
        variants.append({layer: rungs[(v + 7 * place) % len(rungs)] for place, (layer, rungs) in enumerate(thinned.items())})
    return variants


def thin(rungs: Sequence[int], most: int) -> list[int]:
    """At most ``most`` of ``rungs``, evenly spread, with both ends."""
    if len(rungs) <= most:
        return list(rungs)
    return [rungs[round(place * (len(rungs) - 1) / (most - 1))] for place in range(most)]


def make_variant(model: ModelProto, layers: Collection[str], ranks: Mapping[str, int], seed: int = 0) -> Variant:
    """``model`` with every layer in ``ranks`` as a pair of that rank; the other ``layers`` stay as they are."""
    import numpy as np
    import onnx

    rng = np.random.default_rng(seed)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    weights = {each.name: each for each in graph.initializer}
    nodes: list[NodeProto] = []
    layer_of: dict[int, str] = {}
    for node in graph.node:
        layer = _layer_of(node, layers)
        parts = [node]
        if layer is not None and layer in ranks:
            name = node.input[1]
            matrices = _factors(onnx.numpy_helper.to_array(weights[name]), node, ranks[layer], rng)
            parts = _pair(node, [f"{name}/{place}" for place in (1, 2)])
            for part, matrix in zip(parts, matrices, strict=True):
                if part.input[1] not in weights:
                    weights[part.input[1]] = onnx.numpy_helper.from_array(matrix, part.input[1])
        for part in parts:
            if layer is not None:
                layer_of[len(nodes)] = layer
            nodes.append(part)
    del graph.node[:]
    graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    del graph.initializer[:]
    graph.initializer.extend(weight for name, weight in weights.items() if name in used)
    owners = _owners(
        nodes, layer_of, {name for name, weight in weights.items() if len(weight.dims) > 2 and weight.dims[1] == 1}
    )
    _name_by_tokens(copy)
    return Variant(copy, owners)


def _layer_of(node: NodeProto, layers: Collection[str]) -> str | None:
    if node.op_type not in WEIGHTED or len(node.input) < 2:
        return None
    name = node.input[1].removesuffix(".T").removesuffix(".weight")
    return name if name in layers and name != node.input[1] else None


def _factors(weight: Array, node: NodeProto, rank: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Random weights of the two nodes, of a scale that keeps activations near 1: no overflow, no denormal numbers."""
    import numpy as np

    def draw(fan_in: int, *shape: int) -> Array:
        drawn: Array = rng.standard_normal(shape) / np.sqrt(fan_in)
        return drawn.astype(weight.dtype)

    if node.op_type == "Conv":
        out, inp, *kernel = weight.shape
        point = [1] * len(kernel)
        return draw(inp * int(np.prod(kernel)), rank, inp, *kernel), draw(rank, out, rank, *point)
    if node.op_type == "Gemm" and any(attribute.name == "transB" and attribute.i for attribute in node.attribute):
        out, inp = weight.shape
        return draw(inp, rank, inp), draw(rank, out, rank)
    inp, out = weight.shape
    return draw(inp, inp, rank), draw(rank, rank, out)


def _pair(node: NodeProto, names: list[str]) -> list[NodeProto]:
    """The two nodes in place of ``node``, as the exporter writes a pair: the bias in the second, strides in the first."""
    import onnx

    first, second = onnx.NodeProto(), onnx.NodeProto()
    first.CopyFrom(node)
    second.CopyFrom(node)
    between = f"{node.output[0]}/between"
    del first.input[1:], first.output[:]
    first.input.append(names[0])
    first.output.append(between)
    second.input[0], second.input[1] = between, names[1]
    if node.op_type == "Conv":
        del second.attribute[:]
    return [first, second]


def _owners(nodes: list[NodeProto], layer_of: Mapping[int, str], single: Collection[str]) -> dict[int, str | None]:
    """Whose each node is: a layer's own nodes, and what works on each of its channels and follows it.

    That may be a depthwise convolution; ``single`` names the weights that read one channel. Of an attention's two products the
    first goes with its keys and the second with its values: with their widths they fall.
    """
    producer = {name: place for place, node in enumerate(nodes) for name in node.output}
    owners: dict[int, str | None] = {}
    for place, node in enumerate(nodes):  # in topological order
        before = [owners[producer[name]] if name in producer else None for name in node.input]
        follows = next((owner for owner in before if owner is not None), None)
        if node.op_type == "MatMul" and len(before) == 2:
            owners[place] = layer_of.get(place, before[1])
        else:
            by_channel = node.op_type in FOLLOWING | MOVING or (node.op_type == "Conv" and node.input[1] in single)
            owners[place] = layer_of.get(place, follows if by_channel else None)
    return owners


def empty_chain(length: int) -> ModelProto:
    """``length`` nodes that do next to nothing: what they cost is what a node costs, and what the profiler adds to it."""
    from onnx import TensorProto, helper

    nodes = [helper.make_node("Neg", [f"x{place}"], [f"x{place + 1}"], name=f"@{place}@") for place in range(length)]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x0", f"x{length}")]
    graph = helper.make_graph(nodes, "empty", ends[:1], ends[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7)


def _name_by_tokens(model: ModelProto) -> None:
    graph = model.graph
    token: dict[str, str] = {}
    for place, node in enumerate(graph.node):
        node.name = f"@{place}@"
        for number, name in enumerate(node.output):
            if name:
                token[name] = f"@{place}@" + (f".{number}" if number else "")
    for node in graph.node:
        for names in (node.input, node.output):
            for number, name in enumerate(names):
                names[number] = token.get(name, name)
    for output in graph.output:
        output.name = token.get(output.name, output.name)
    del graph.value_info[:]
