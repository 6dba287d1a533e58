"""Exporter ``onnx``: a torch network as one self-contained ONNX file that any runtime of the asked opset can load.

trace → constants, transposes and BN folded → onnxsim where it helps and changes nothing → checked → written whole.
Same network and job, same bytes. Layer names survive: see onnx_graph.py for the promise.
"""

from __future__ import annotations

import hashlib
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorita_deploy.errors import BadNetwork, BadTarget, ExporterUnavailable
from lorita_deploy.ports import ExportJob, Session
from lorita_deploy.records import Artifact, Precision, write_atomically

from .onnx_file import first_line, open_bytes, open_file, tensor_specs

if TYPE_CHECKING:
    import numpy as np
    import onnx

PRODUCER = "lorita-deploy"


class OnnxExporter:
    """Implements `lorita_deploy.ports.Exporter`."""

    name = "onnx"
    summary = "ONNX file for ONNX Runtime, and the starting point for engines built on a device"
    source = "network"
    suffix = ".onnx"
    precisions: tuple[Precision, ...] = ("fp32", "fp16", "int8")

    def check(self) -> list[str]:
        needed = ("torch", "onnx", "onnxruntime", "onnxsim")
        return [f"{package} is missing: pip install {package}" for package in needed if find_spec(package) is None]

    def export(self, job: ExportJob) -> Artifact:
        """Write ``job.folder / job.filename``.

        The artifact's precision is fp32 where every layer had to stay so. Raises `ExporterUnavailable` (package missing),
        `BadTarget` (opset and IR version that do not go together), `BadData` (nothing to calibrate a lower precision on),
        `BadNetwork` (cannot be traced, more than 2 GB), `OutOfResource` (disk full).
        """
        if missing := self.check():
            raise ExporterUnavailable("; ".join(missing), where="exporter onnx", fix="install what is named, then run again")
        _check_versions(job)
        from .onnx_batch_norm import fold_batch_norms
        from .onnx_graph import name_layers, strip, tidy
        from .onnx_simplify import simplify
        from .onnx_trace import trace

        model = trace(job)
        tidy(model)
        fold_batch_norms(model)
        name_layers(model)
        strip(model)
        _set_versions(model, job)
        note, error = None, None
        if job.simplify:
            model, note, error = simplify(model, _feeds(job), open_bytes)
            strip(model)
        unnamed = _unnamed_layers(model, job)
        precision, kept = job.precision, ()
        if precision != "fp32":
            from .onnx_precision import lower

            exact = model
            model, kept = lower(exact, job)
            precision = "fp32" if model is exact else precision
            strip(model)
            model.ir_version = job.ir_version
        _sign(model, job)
        _check_model(model, job)
        content = model.SerializeToString(deterministic=True)
        path = Path(job.folder) / job.filename
        write_atomically(path, content)
        return Artifact(
            role=job.role,
            path=job.filename,
            exporter=self.name,
            sha256=hashlib.sha256(content).hexdigest(),
            size_bytes=len(content),
            opset=job.opset,
            ir_version=job.ir_version,
            precision=precision,
            batch=job.batch,
            dynamic_batch=job.dynamic_batch,
            rung=job.rung,
            simplified=error is not None,
            inputs=tensor_specs(model.graph.input),
            outputs=tensor_specs(model.graph.output),
            notes=tuple(each for each in (note, unnamed) if each),
            simplify_error=error,
            kept_fp32=kept if precision != "fp32" else (),
        )

    def for_timing(self, content: bytes, precision: Precision, runtime: str) -> bytes:
        """A serialized fp32 model as it would be in another precision, for timing alone: its numbers are made up."""
        import onnx

        from .onnx_precision import for_timing

        return for_timing(onnx.ModelProto.FromString(content), precision, runtime).SerializeToString()

    def open(self, path: Path) -> Session:
        """Load with ONNX Runtime on the CPU, one thread. Raises `BadArtifact` for a file that is not a whole, valid ONNX."""
        return open_file(path)


EXPORTER = OnnxExporter()


def _check_versions(job: ExportJob) -> None:
    import onnx

    try:
        least = onnx.helper.find_min_ir_version_for([onnx.helper.make_opsetid("", job.opset)])
    except ValueError as error:
        raise BadTarget(
            f"opset {job.opset} is newer than the installed onnx {onnx.__version__} knows", fix="pip install --upgrade onnx"
        ) from error
    if not least <= job.ir_version <= onnx.IR_VERSION:
        raise BadTarget(
            f"opset {job.opset} needs IR version {least} to {onnx.IR_VERSION}, the target asks for {job.ir_version}",
            fix="set [limits] opset and ir_version in the target file so that they go together",
        )


def _set_versions(model: onnx.ModelProto, job: ExportJob) -> None:
    used = {node.domain for node in model.graph.node} - {"", "ai.onnx"}
    if used:
        raise BadNetwork(
            f"the network needs operators outside the ONNX standard: {', '.join(sorted(used))}", where=job.filename
        )
    kept = {each.domain: each.version for each in model.opset_import if each.domain in ("", "ai.onnx")}
    del model.opset_import[:]
    model.opset_import.add(domain="", version=max(kept.values(), default=0))
    model.ir_version = job.ir_version


def _sign(model: onnx.ModelProto, job: ExportJob) -> None:
    try:
        own_version = version("lorita-deploy")
    except PackageNotFoundError:
        own_version = "unknown"
    model.producer_name, model.producer_version = PRODUCER, own_version
    model.domain, model.model_version = "", 0
    model.graph.name = "network"
    del model.metadata_props[:]
    for key, value in sorted({"producer": f"{PRODUCER} {own_version}", "role": job.role, **job.metadata}.items()):
        model.metadata_props.add(key=key, value=value)


def _check_model(model: onnx.ModelProto, job: ExportJob) -> None:
    """The full checker, strict shape inference, and the versions that were asked for."""
    import onnx

    written = {each.domain: each.version for each in model.opset_import}
    if written != {"": job.opset} or model.ir_version != job.ir_version:
        raise BadNetwork(
            f"opset {written}, IR {model.ir_version} came out; opset {job.opset}, IR {job.ir_version} were asked for",
            where=job.filename,
            fix=f"take a target with opset {max(written.values())}, or set its [limits]",
        )
    try:
        onnx.checker.check_model(model, full_check=True)
        onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    except Exception as error:
        raise BadNetwork(f"the exported graph is not valid ONNX: {first_line(error)}", where=job.filename) from error


def _feeds(job: ExportJob) -> list[dict[str, np.ndarray[Any, Any]]]:
    """The examples, and twice random inputs like them; with a dynamic batch in batches of 1, 2 and 3."""
    import numpy as np

    from .onnx_trace import repeat

    random = np.random.default_rng(0)
    feeds = []
    for attempt in range(3):
        feed = {}
        for name, example in zip(
            job.input_names, repeat(job.examples, attempt + 1 if job.dynamic_batch else job.batch), strict=True
        ):
            values = example.numpy()
            if attempt and values.dtype.kind == "f":
                values = random.normal(values.mean(), values.std() + 1e-3, values.shape).astype(values.dtype)
            elif attempt:
                values = random.permuted(values.reshape(-1)).reshape(values.shape)
            feed[name] = values
        feeds.append(feed)
    return feeds


def _unnamed_layers(model: onnx.ModelProto, job: ExportJob) -> str | None:
    """A note where the promise of names could not be kept (weights computed on the fly, shared, or never used)."""
    from torch import nn

    assert job.network is not None
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d)
    present = {tensor.name.removesuffix(".T") for tensor in model.graph.initializer}
    layers = [name for name, layer in job.network.named_modules() if isinstance(layer, kinds)]
    lost = [name for name in layers if (f"{name}.weight" if name else "weight") not in present]
    return f"no weight of its own in the graph: {', '.join(lost)}" if lost else None
