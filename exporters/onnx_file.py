"""Reading ONNX files and running them with ONNX Runtime. Damaged files are `BadArtifact`, never a crash."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorita_deploy.errors import BadArtifact
from lorita_deploy.ports import Session
from lorita_deploy.records import TensorSpec

if TYPE_CHECKING:
    import numpy as np
    import onnx


def open_file(path: Path | str) -> Session:
    """Load with ONNX Runtime on the CPU, one thread. Raises `BadArtifact` for a file that is not a whole, valid ONNX."""
    content = read(path)
    try:
        return open_bytes(content, str(path))
    except Exception as error:
        raise BadArtifact(f"ONNX Runtime does not load it: {first_line(error)}", where=path) from error


def read(path: Path | str) -> bytes:
    """The bytes of a whole, valid ONNX model that holds all of its weights. Raises `BadArtifact`."""
    import onnx

    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise BadArtifact(f"cannot read: {error.strerror}", where=path) from error
    fix = "copy the file again, or export it again; it may have been cut short"
    model = onnx.ModelProto()
    try:
        model.ParseFromString(content)
        outside = any(tensor.external_data for tensor in _tensors(model.graph))
        if not outside:
            onnx.checker.check_model(model)
    except Exception as error:
        raise BadArtifact(f"not a whole, valid ONNX file: {first_line(error)}", where=path, fix=fix) from error
    if outside:
        raise BadArtifact("its weights lie in other files", where=path, fix="save the model with its weights inside")
    return content


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


def first_line(error: Exception) -> str:
    """The first line of an error that has something to say, cut to a readable length."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)[:300]
