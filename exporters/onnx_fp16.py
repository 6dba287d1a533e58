"""A typed fp16 graph with fp32 inputs and outputs, fp32 kept where a node overflows or loses.

Both are looked for on real calibration data, in the fp32 graph and in the fp16 graph itself:

    overflows   an input or output of the node comes within a factor of two of the largest fp16 number, 65504
    loses       the node adds a relative error (root mean square, over its output) beyond `LOSS` of its own
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

Arrays = Mapping[str, "np.ndarray[Any, Any]"]
Run = Callable[[Arrays], "list[np.ndarray[Any, Any]]"]

LARGEST = 65504.0 / 2
LOSS = 0.01
"""Twenty units in the last place of fp16 (2^-11): rounding alone stays below it, even through a long sum."""
ROUNDS = 8
NEVER = frozenset({"Resize", "Range", "QuantizeLinear", "DequantizeLinear", "If", "Loop", "Scan", "NonMaxSuppression"})
"""Operators with float inputs that stand for sizes or scales, or with graphs of their own."""


def to_fp16(
    model: ModelProto, feeds: Sequence[Arrays], open_bytes: Callable[[bytes], Run], keep: Collection[str] = ()
) -> tuple[ModelProto, tuple[str, ...]]:
    """The fp16 graph and the names of the nodes that stayed fp32, those of ``keep`` among them. Every node needs a name."""
    kept, never = set(keep) | overflowing(model, feeds, open_bytes), never_half(model)
    reference = next(_values(model, feeds[:1], open_bytes))
    for _ in range(ROUNDS):
        typed = retype(model, kept)
        found = next(_values(typed, feeds[:1], open_bytes, names=list(reference)))
        if (loser := _first_loser(model, reference, found, kept | never)) is None:
            break
        kept.add(loser)
    order = [node.name for node in model.graph.node]
    return retype(model, kept), tuple(name for name in order if name in kept)


def retype(model: ModelProto, kept: Collection[str] = ()) -> ModelProto:
    """Every node in fp16 but ``kept`` and `never_half`, with casts in between; inputs and outputs stay as they are."""
    typed = ModelProto()
    typed.CopyFrom(model)
    graph = typed.graph
    floats = float_values(model)
    kept = {*kept, *never_half(model)}
    stored = {each.name: each for each in graph.initializer if each.data_type == TensorProto.FLOAT}
    halves: dict[str, str] = {}
    """Float value to the name under which it is there in fp16; and the other way round."""
    singles: dict[str, str] = {}
    produced_half: set[str] = set()
    outputs = {each.name for each in graph.output}
    nodes: list[NodeProto] = []

    def read(name: str, half: bool) -> str:
        is_half = name in produced_half
        if half == is_half:
            return name
        known = halves if half else singles
        if name in known:
            return known[name]
        known[name] = f"{name}/fp16" if half else f"{name}/fp32"
        if name in stored:
            values = numpy_helper.to_array(stored[name]).astype(np.float16)
            graph.initializer.append(numpy_helper.from_array(values, known[name]))
        else:
            to = TensorProto.FLOAT16 if half else TensorProto.FLOAT
            nodes.append(helper.make_node("Cast", [name], [known[name]], name=f"{known[name]}/Cast", to=to))
        return known[name]

    for node in list(graph.node):
        half = node.name not in kept
        for place, name in enumerate(node.input):
            if name in floats:
                node.input[place] = read(name, half)
        nodes.append(node)
        if half:
            _retype_attributes(node)
            for place, name in enumerate(node.output):
                if name not in floats:
                    continue
                produced_half.add(name)
                if name in outputs:
                    node.output[place] = halves[name] = f"{name}/fp16"
                    nodes.append(_cast_back(name, f"{name}/fp16"))
                    produced_half.discard(name)
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    _drop_unread(graph)
    return typed


def never_half(model: ModelProto) -> set[str]:
    """Names of the nodes whose operator takes no fp16 (`NEVER`, or at the model's opset), and of those that a subgraph (of an
    If, a Loop) reads from, by a name that must keep its type."""
    opsets = {each.domain: each.version for each in model.opset_import}
    read_inside = {name for node in model.graph.node for inner in _subgraphs(node) for name in _read_in(inner)}
    found = {node.name for node in model.graph.node if node.op_type in NEVER}
    for node in model.graph.node:
        try:
            schema = onnx.defs.get_schema(node.op_type, opsets.get(node.domain, 1), node.domain)
        except onnx.defs.SchemaError:  # another domain's
            continue
        types = [set(each.allowed_type_strs) for each in schema.type_constraints]
        takes = all("tensor(float16)" in each for each in types if "tensor(float)" in each)
        if not takes or read_inside.intersection(node.output):
            found.add(node.name)
    return found


def _subgraphs(node: NodeProto) -> Iterator[GraphProto]:
    for attribute in node.attribute:
        yield from ([attribute.g] if attribute.HasField("g") else attribute.graphs)


def _read_in(graph: GraphProto) -> Iterator[str]:
    """What the nodes of ``graph`` and of graphs within it read, and what it hands out."""
    yield from (each.name for each in graph.output)
    for node in graph.node:
        yield from node.input
        for inner in _subgraphs(node):
            yield from _read_in(inner)


def _cast_back(name: str, half: str) -> NodeProto:
    return helper.make_node("Cast", [half], [name], name=f"{name}/fp32/Cast", to=TensorProto.FLOAT)


def float_values(model: ModelProto) -> set[str]:
    """Names of all fp32 values: inputs, initializers, and what nodes make."""
    inferred = onnx.shape_inference.infer_shapes(model).graph
    values = (*inferred.input, *inferred.value_info, *inferred.output)
    found = {each.name for each in values if each.type.tensor_type.elem_type == TensorProto.FLOAT}
    return found | {each.name for each in inferred.initializer if each.data_type == TensorProto.FLOAT}


def overflowing(model: ModelProto, feeds: Sequence[Arrays], open_bytes: Callable[[bytes], Run]) -> set[str]:
    """Names of the nodes that read or make a number beyond `LARGEST`."""
    largest = {each.name: float(np.abs(numpy_helper.to_array(each)).max(initial=0)) for each in _float_initializers(model)}
    for found in _values(model, feeds, open_bytes):
        for name, values in found.items():
            largest[name] = max(largest.get(name, 0.0), float(np.abs(values).max(initial=0)))
    return {
        node.name for node in model.graph.node if any(largest.get(name, 0) > LARGEST for name in (*node.input, *node.output))
    }


def _first_loser(model: ModelProto, reference: Arrays, found: Arrays, kept: Collection[str]) -> str | None:
    """The first node whose output errs by more than `LOSS`, and by more than twice what it read."""
    errors = {name: _relative_error(reference[name], found[name]) for name in reference}
    for node in model.graph.node:
        if node.name in kept:
            continue
        made = max((errors.get(name, 0.0) for name in node.output), default=0.0)
        given = max((errors.get(name, 0.0) for name in node.input), default=0.0)
        if not made <= max(LOSS, 2 * given):
            return node.name
    return None


def _relative_error(expected: np.ndarray[Any, Any], found: np.ndarray[Any, Any]) -> float:
    expected, found = expected.astype(np.float64), found.astype(np.float64)
    scale = float(np.sqrt(np.mean(expected**2))) if expected.size else 0.0
    with np.errstate(invalid="ignore", over="ignore"):
        error = float(np.sqrt(np.mean((found - expected) ** 2))) if expected.size else 0.0
    return error / scale if scale else error


def _values(
    model: ModelProto, feeds: Sequence[Arrays], open_bytes: Callable[[bytes], Run], names: Sequence[str] | None = None
) -> Iterator[dict[str, np.ndarray[Any, Any]]]:
    """What every node makes (fp32 values, or those called ``names``), for each of ``feeds``."""
    shown = ModelProto()
    shown.CopyFrom(model)
    if names is None:
        floats = float_values(model)
        names = [name for node in model.graph.node for name in node.output if name in floats]
    made = {name for node in shown.graph.node for name in node.output}
    wanted = {name: name if name in made else f"{name}/fp16" for name in names}
    del shown.graph.output[:]
    shown.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted.values())
    run = open_bytes(shown.SerializeToString())
    for feed in feeds:
        yield dict(zip(wanted, run(feed), strict=True))


def _float_initializers(model: ModelProto) -> list[TensorProto]:
    return [each for each in model.graph.initializer if each.data_type == TensorProto.FLOAT]


def _retype_attributes(node: NodeProto) -> None:
    """Casts to fp32 and constants in fp32 become fp16."""
    for attribute in node.attribute:
        if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
            attribute.i = TensorProto.FLOAT16
        elif attribute.HasField("t") and attribute.t.data_type == TensorProto.FLOAT:
            attribute.t.CopyFrom(
                numpy_helper.from_array(numpy_helper.to_array(attribute.t).astype(np.float16), attribute.t.name)
            )


def _drop_unread(graph: GraphProto) -> None:
    read = {name for node in graph.node for name in node.input} | {each.name for each in graph.output}
    kept = [each for each in graph.initializer if each.name in read]
    copies = [TensorProto.FromString(each.SerializeToString()) for each in kept]
    del graph.initializer[:]
    graph.initializer.extend(copies)
