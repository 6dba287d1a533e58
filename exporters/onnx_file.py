"""Reading ONNX files: open one with ONNX Runtime, or say what is in it. Damaged files are `BadArtifact`, never a crash."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorita_deploy.errors import BadArtifact
from lorita_deploy.ports import Session
from lorita_deploy.records import TensorSpec

if TYPE_CHECKING:
    import numpy as np
    import onnx

FLOATING = (1, 10, 11, 16)
"""ONNX element types float, float16, double and bfloat16: weights, where integers are shapes and indices."""


def open_file(path: Path | str) -> Session:
    """Load with ONNX Runtime on the CPU, one thread. Raises `BadArtifact` for a file that is not a whole, valid ONNX."""
    content, _ = read(path)
    try:
        return open_bytes(content, str(path))
    except Exception as error:
        raise BadArtifact(f"ONNX Runtime does not load it: {first_line(error)}", where=path) from error


def describe(path: Path | str) -> dict[str, Any]:
    """What an ONNX file says of itself, weights unread: versions, operators, inputs and outputs, metadata, size, digest.

    Raises `BadArtifact`.
    """
    content, model = read(path, whole=False)
    graph = model.graph
    return {
        "format": "onnx",
        "size_bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "ir_version": model.ir_version,
        "opset": {each.domain or "ai.onnx": each.version for each in model.opset_import},
        "producer": f"{model.producer_name} {model.producer_version}".strip(),
        "operators": dict(sorted(Counter(node.op_type for node in graph.node).items())),
        "params": sum(math.prod(tensor.dims) for tensor in graph.initializer if tensor.data_type in FLOATING),
        "inputs": [spec.model_dump(mode="json") for spec in tensor_specs(graph.input)],
        "outputs": [spec.model_dump(mode="json") for spec in tensor_specs(graph.output)],
        "metadata": {each.key: each.value for each in model.metadata_props},
        "external_data": sorted(_external_files(model)),
    }


def read(path: Path | str, *, whole: bool = True) -> tuple[bytes, onnx.ModelProto]:
    """The bytes and the model in them. ``whole``: also valid, and with all weights inside the file."""
    import onnx

    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise BadArtifact(f"cannot read: {error.strerror}", where=path) from error
    fix = "copy the file again, or export it again; it may have been cut short"
    model = onnx.ModelProto()
    try:
        model.ParseFromString(content)
    except Exception as error:
        raise BadArtifact("not a whole ONNX file", where=path, fix=fix) from error
    if not model.HasField("graph") or not model.opset_import or not model.graph.output:
        raise BadArtifact("not an ONNX model: it has no graph, opset or output", where=path, fix=fix)
    if whole:
        if _external_files(model):
            raise BadArtifact("its weights lie in other files", where=path, fix="save the model with its weights inside")
        try:
            onnx.checker.check_model(model)
        except Exception as error:
            raise BadArtifact(f"not a valid ONNX model: {first_line(error)}", where=path, fix=fix) from error
    return content, model


def open_bytes(content: bytes, where: str = "the exported model") -> Session:
    """A session over a serialized model; running it raises `BadArtifact` on inputs of another name, type or shape."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    def run(inputs: Mapping[str, np.ndarray[Any, Any]]) -> list[np.ndarray[Any, Any]]:
        try:
            return list(session.run(None, dict(inputs)))
        except Exception as error:
            wanted = ", ".join(f"{each.name} {each.type} {each.shape}" for each in session.get_inputs())
            raise BadArtifact(
                f"it cannot run these inputs: {first_line(error)}", where=where, fix=f"it takes {wanted}"
            ) from error

    return run


def tensor_specs(values: Any) -> tuple[TensorSpec, ...]:
    """Names, numpy types and shapes of a graph's inputs or outputs; symbolic dimensions by their name."""
    import onnx

    def dtype(value: Any) -> str:
        kind = value.type.tensor_type.elem_type
        try:
            return str(onnx.helper.tensor_dtype_to_np_dtype(kind).name)
        except KeyError:
            return f"type {kind}"

    return tuple(
        TensorSpec(
            name=value.name,
            dtype=dtype(value),
            shape=tuple(dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim),
        )
        for value in values
    )


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Initializers and constants, those of inner graphs included."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            yield from (*([attribute.t] if attribute.HasField("t") else []), *attribute.tensors)
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _tensors(inner)


def _external_files(model: onnx.ModelProto) -> set[str]:
    return {
        next((entry.value for entry in tensor.external_data if entry.key == "location"), "?")
        for tensor in _tensors(model.graph)
        if tensor.data_location == tensor.EXTERNAL or tensor.external_data
    }


def first_line(error: Exception) -> str:
    """The first line of an error that has something to say, cut to a readable length."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)[:300]
