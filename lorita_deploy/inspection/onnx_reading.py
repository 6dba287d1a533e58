"""ONNX files, parsed and checked whatever made them, and ways to walk through them. A damaged file is `BadArtifact`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import BadArtifact
from .engine_file import begins_like_an_engine

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, TensorProto

STANDARD = ("", "ai.onnx")
"""Both spell the domain of the standard's own operators."""
LARGEST_BYTES = 2**31 - 1
"""A protobuf message ends here; whatever reads ONNX files stops there too."""
PACKED = {"int4": 4, "uint4": 4, "float4e2m1": 4, "int2": 2, "uint2": 2}
"""Bits of the types of which several share a byte."""
AGAIN = "export or copy it again; it may have been cut short"


def read_onnx(path: Path) -> tuple[ModelProto, tuple[str, ...]]:
    """The model without external data, and what ONNX's checker could not judge. Raises `BadArtifact`.

    A model that is newer than the installed onnx is read all the same: saying so is what inspecting is for.
    """
    import onnx

    try:
        size = path.stat().st_size
        if size > LARGEST_BYTES:
            raise BadArtifact(
                f"{size / 1e9:.1f} GB: an ONNX file holds at most 2 GiB", where=path, fix="save its weights as external data"
            )
        content = path.read_bytes()
    except OSError as error:
        raise BadArtifact(f"cannot read: {error.strerror}", where=path, fix="check the path and its permissions") from error
    if begins_like_an_engine(content):
        raise BadArtifact("this is a TensorRT engine, not ONNX", where=path, fix="call it .engine and inspect it again")
    model = onnx.ModelProto()
    try:
        model.ParseFromString(content)
        summable = model.HasField("graph") and bool(model.graph.node or model.graph.output)
    except Exception as error:
        raise BadArtifact(f"not a whole ONNX file: {_line(error)}", where=path, fix=AGAIN) from error
    if not summable:
        raise BadArtifact("not a whole ONNX file: there is no graph in it", where=path, fix=AGAIN)
    if not _is_text(model):
        raise BadArtifact("not a whole ONNX file: a name in it is not UTF-8", where=path, fix=AGAIN)
    newest = onnx.defs.onnx_opset_version()
    if model.ir_version > onnx.IR_VERSION or opset_of(model) > newest:
        return model, (f"newer than the installed onnx {onnx.__version__} (opset {newest}), which cannot check it",)
    notes: tuple[str, ...] = ()
    if (order := _order(model)) is not None:
        nodes = [onnx.NodeProto.FromString(model.graph.node[place].SerializeToString()) for place in order]
        del model.graph.node[:]
        model.graph.node.extend(nodes)
        notes = ("its nodes do not stand in the order of computation; runtimes sort them",)
    try:
        onnx.checker.check_model(_self_contained(model))
    except Exception as error:
        raise BadArtifact(f"not a whole ONNX file: {_line(error)}", where=path, fix=AGAIN) from error
    return model, notes


def _order(model: ModelProto) -> list[int] | None:
    """Places of the main graph's nodes in an order that computes; None where they stand in one, or where there is none.

    onnxruntime's quantizer writes nodes out of order, and every runtime loads them.
    """
    makers = {name: place for place, node in enumerate(model.graph.node) for name in node.output if name}
    needs: dict[int, set[int]] = {}
    for place, node in enumerate(model.graph.node):
        inner = (name for graph in _graphs_below([node]) for each in graph.node for name in each.input)
        needs[place] = {makers[name] for name in (*node.input, *inner) if name in makers}
    if all(before < place for place, each in needs.items() for before in each):
        return None
    try:
        return list(TopologicalSorter(needs).static_order())
    except CycleError:
        return None


def _is_text(model: ModelProto) -> bool:
    """Whether every string is one: protobuf hands over damaged ones as bytes, which no later step expects."""
    waiting: list[Any] = [model]
    while waiting:
        for field, value in waiting.pop().ListFields():
            values = [value] if isinstance(value, str | bytes) or not isinstance(value, Iterable) else value
            if field.type == field.TYPE_MESSAGE:
                waiting += values
            elif field.type == field.TYPE_STRING and not all(isinstance(each, str) for each in values):
                return False
    return True


def _self_contained(model: ModelProto) -> ModelProto:
    """For the checker, which wants every weight at hand: those in other files become inputs of a copy."""
    import onnx

    outside = [tensor.name for tensor in model.graph.initializer if tensor.external_data]
    if not outside:
        return model
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    given = {value.name for value in copy.graph.input}
    kept = []
    for tensor in copy.graph.initializer:
        if tensor.name not in outside:
            kept.append(tensor)
        elif tensor.name not in given:
            copy.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    kept = [onnx.TensorProto.FromString(tensor.SerializeToString()) for tensor in kept]
    del copy.graph.initializer[:]
    copy.graph.initializer.extend(kept)
    return copy


def opset_of(model: ModelProto) -> int:
    """Of the standard's operators; 0 where the file names none."""
    return max((entry.version for entry in model.opset_import if entry.domain in STANDARD), default=0)


def graphs_of(model: ModelProto) -> Iterator[GraphProto]:
    """The main graph, and those inside its If, Loop and Scan nodes."""
    yield model.graph
    yield from _graphs_below(model.graph.node)


def nodes_of(model: ModelProto) -> Iterator[NodeProto]:
    """Every node: of the main graph, of inner graphs, and of the model's own functions."""
    for graph in graphs_of(model):
        yield from graph.node
    for function in model.functions:
        yield from function.node


def tensors_of(model: ModelProto) -> Iterator[TensorProto]:
    """Every stored tensor: initializers and constants."""
    for graph in graphs_of(model):
        yield from graph.initializer
    for node in nodes_of(model):
        for attribute in node.attribute:
            yield from (*([attribute.t] if attribute.HasField("t") else []), *attribute.tensors)


def _graphs_below(nodes: Iterable[NodeProto]) -> Iterator[GraphProto]:
    """Every graph inside these nodes, however deep."""
    waiting = _graphs_in(nodes)
    while waiting:
        graph = waiting.pop()
        yield graph
        waiting += _graphs_in(graph.node)


def _graphs_in(nodes: Iterable[NodeProto]) -> list[GraphProto]:
    attributes = [attribute for node in nodes for attribute in node.attribute]
    return [graph for each in attributes for graph in (*([each.g] if each.HasField("g") else []), *each.graphs)]


def external_files(model: ModelProto) -> tuple[str, ...]:
    """Files beside the model that hold its weights, as the model names them."""
    entries = (entry for tensor in tensors_of(model) for entry in tensor.external_data)
    return tuple(sorted({entry.value for entry in entries if entry.key == "location"}))


def dtype_name(number: int) -> str:
    """ONNX's name of an element type, in small letters."""
    from onnx import TensorProto

    try:
        return str(TensorProto.DataType.Name(number)).lower()
    except ValueError:
        return f"type {number}"


def numbers_in(tensor: TensorProto) -> int:
    """How many numbers a tensor holds, by its shape."""
    total = 1
    for extent in tensor.dims:
        total *= max(0, extent)
    return total


def outside_bytes(model: ModelProto) -> int:
    """What the weights take that lie in other files, by their shapes and types."""
    total = sum(_bytes_in(tensor) for tensor in tensors_of(model) if tensor.external_data)
    return min(total, 2**63 - 1)  # a damaged shape may say more than can be counted with


def _bytes_in(tensor: TensorProto) -> int:
    import onnx

    kind = dtype_name(tensor.data_type)
    if kind in PACKED:
        return -(-numbers_in(tensor) * PACKED[kind] // 8)
    try:
        return numbers_in(tensor) * int(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)
    except (KeyError, ValueError, TypeError):  # younger than the installed onnx
        return numbers_in(tensor) * 4


def _line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
