"""What an ONNX file holds, counted without running it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from ..records import ArtifactSummary, Quantization, TensorSpec
from .onnx_macs import count_macs
from .onnx_reading import (
    STANDARD,
    dtype_name,
    external_files,
    graphs_of,
    nodes_of,
    numbers_in,
    opset_of,
    outside_bytes,
    read_onnx,
    tensors_of,
)
from .weights import sha256_of

if TYPE_CHECKING:
    from onnx import ModelProto, TensorProto, ValueInfoProto


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
        external_bytes=outside_bytes(model),
        metadata={entry.key: entry.value for entry in model.metadata_props},
        domains=tuple(sorted({node.domain for node in nodes_of(model)} - set(STANDARD))),
        weights=dict(types.most_common()),
        macs=count_macs(model),
        quantization=quantization_of(model),
        notes=notes,
    )


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


def _spec(value: ValueInfoProto) -> TensorSpec:
    kind = value.type.tensor_type
    shape = tuple(extent.dim_value or extent.dim_param or "?" for extent in kind.shape.dim)
    return TensorSpec(name=value.name, dtype=dtype_name(kind.elem_type), shape=shape)
