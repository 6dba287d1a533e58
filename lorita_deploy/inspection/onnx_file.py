"""ONNX files: read without running them, whatever made them. A damaged file is `BadArtifact`, never a crash."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import BadArtifact
from ..records import ArtifactSummary, Quantization, TensorSpec
from .engine_file import begins_like_an_engine
from .onnx_macs import count_macs
from .weights import sha256_of

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto

STANDARD = ("", "ai.onnx")
"""Both spell the domain of the standard's own operators."""
LARGEST_BYTES = 2**31 - 1
"""A protobuf message ends here; whatever reads ONNX files stops there too."""
AGAIN = "export or copy it again; it may have been cut short"


def look_at_onnx(path: Path) -> ArtifactSummary:
    """Versions, inputs, outputs, operators and weights of an ONNX file. Raises `BadArtifact`."""
    model, notes = read_onnx(path)
    graph = model.graph
    weights = {tensor.name for tensor in graph.initializer}
    stored = list(tensors_of(model))
    types: Counter[str] = Counter()
    for tensor in stored:
        types[dtype_name(tensor.data_type)] += numbers_in(tensor)
    return ArtifactSummary(
        path=str(path),
        size_bytes=path.stat().st_size,
        sha256=sha256_of(path),
        opset=opset_of(model),
        ir_version=model.ir_version,
        producer=f"{model.producer_name} {model.producer_version}".strip(),
        inputs=tuple(_spec(value) for value in graph.input if value.name not in weights),
        outputs=tuple(_spec(value) for value in graph.output),
        operators=dict(Counter(node.op_type for node in nodes_of(model)).most_common()),
        params=sum(numbers_in(tensor) for tensor in graph.initializer),
        external_data=external_files(model),
        metadata={entry.key: entry.value for entry in model.metadata_props},
        domains=tuple(sorted({node.domain for node in nodes_of(model)} - set(STANDARD))),
        weights=dict(types.most_common()),
        macs=count_macs(model),
        quantization=quantization_of(model),
        notes=notes,
    )


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
    try:
        onnx.checker.check_model(_self_contained(model))
    except Exception as error:
        raise BadArtifact(f"not a whole ONNX file: {_line(error)}", where=path, fix=AGAIN) from error
    return model, ()


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
    waiting = [model.graph]
    while waiting:
        graph = waiting.pop()
        yield graph
        waiting += _graphs_in(graph.node)


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


def _graphs_in(nodes: Iterable[NodeProto]) -> list[GraphProto]:
    attributes = [attribute for node in nodes for attribute in node.attribute]
    return [graph for each in attributes for graph in (*([each.g] if each.HasField("g") else []), *each.graphs)]


def external_files(model: ModelProto) -> tuple[str, ...]:
    """Files beside the model that hold its weights, as the model names them."""
    entries = (entry for tensor in tensors_of(model) for entry in tensor.external_data)
    return tuple(sorted({entry.value for entry in entries if entry.key == "location"}))


def quantization_of(model: ModelProto) -> Quantization | None:
    """Scales and zero points of the QuantizeLinear and DequantizeLinear nodes; None where there are none."""
    nodes = [node for node in nodes_of(model) if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    if not nodes:
        return None
    stored = _stored_by_name(model)
    dtypes, nonzero, unknown, per_channel = set(), 0, 0, 0
    for node in nodes:
        scale = stored.get(node.input[1]) if len(node.input) > 1 else None
        per_channel += scale is not None and numbers_in(scale) > 1
        name = node.input[2] if len(node.input) > 2 else ""
        if not name:
            dtypes.add("none")
        elif name in stored:
            dtypes.add(dtype_name(stored[name].data_type))
            zero = is_zero(stored[name])
            nonzero += zero is False
            unknown += zero is None
        else:
            unknown += 1
    kinds = Counter(node.op_type for node in nodes)
    return Quantization(
        quantize=kinds["QuantizeLinear"],
        dequantize=kinds["DequantizeLinear"],
        per_channel=per_channel,
        dtypes=tuple(sorted(dtypes)),
        nonzero=nonzero,
        unknown=unknown,
    )


def _stored_by_name(model: ModelProto) -> dict[str, TensorProto]:
    stored = {tensor.name: tensor for graph in graphs_of(model) for tensor in graph.initializer}
    for node in nodes_of(model):
        if node.op_type == "Constant" and node.output:
            stored.update((node.output[0], attribute.t) for attribute in node.attribute if attribute.HasField("t"))
    return stored


def is_zero(tensor: TensorProto) -> bool | None:
    """Whether every number in it is 0; None where the numbers lie elsewhere or cannot be read."""
    if tensor.external_data:
        return None
    if tensor.raw_data:
        return not any(tensor.raw_data)
    values = [*tensor.int32_data, *tensor.int64_data, *tensor.float_data, *tensor.double_data, *tensor.uint64_data]
    return not any(values)


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


def _spec(value: ValueInfoProto) -> TensorSpec:
    kind = value.type.tensor_type
    shape = tuple(extent.dim_value or extent.dim_param or "?" for extent in kind.shape.dim)
    return TensorSpec(name=value.name, dtype=dtype_name(kind.elem_type), shape=shape)


def _line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
