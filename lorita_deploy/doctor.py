"""Two questions a person has before anything runs: what is this file, and is this machine fit to build on?"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from . import records
from .errors import BadArtifact, BadRecord, LoritaDeployError
from .networks import read_weights
from .ports import EXPORTERS, find_exporter, names
from .records import ArtifactSummary, CheckpointSummary, Document, Finding, Health, TensorSpec, schema_name
from .targets import all_targets, is_local, this_host

OLDEST_PYTHON = (3, 11)
LEAST_MEMORY_BYTES = 4 * 2**30
"""A default build of VGG16 stays below 6 GB; small networks need less."""
LEAST_DISK_BYTES = 2 * 2**30
WEIGHTS = (".safetensors", ".pt", ".pth")

# ---------------------------------------------------------------------------------------------- files


def look_at(path: Path) -> Document:
    """What a file is: a record, a weight file, an ONNX file, or the report of a build folder.

    Raises `BadRecord`, `BadCheckpoint`, `BadArtifact`, `LoritaDeployError`.
    """
    if path.is_dir():
        return _of_folder(path)
    if not path.is_file():
        raise LoritaDeployError("there is no such file or folder", where=path)
    if path.suffix == ".onnx":
        return look_at_onnx(path)
    if path.suffix in WEIGHTS:
        return look_at_weights(path)
    if path.suffix == ".json":
        return read_record(path)
    raise LoritaDeployError(
        f"cannot tell what a {path.suffix or 'file without ending'} file is",
        where=path,
        fix="give a .json record, .safetensors or .pt weights, an .onnx file, or a build folder",
    )


def read_record(path: Path) -> Document:
    """Any record, by its schema line. Raises `BadRecord`."""
    name = schema_name(path)
    kinds: dict[str, type[Document]] = {kind.SCHEMA: kind for kind in vars(records).values() if _is_kind_of_document(kind)}
    if name not in kinds:
        raise BadRecord(f"no record of this version is called {name!r}", where=path, fix="pip install --upgrade lorita-deploy")
    return kinds[name].load(path)


def _is_kind_of_document(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, Document) and value is not Document


def _of_folder(folder: Path) -> Document:
    """What a build folder came to: its report, or the last record it got to; of a bundle, the manifest."""
    for name in ("report", "manifest", "receipt", "artifacts", "compressed", "plan", "collapsed", "trained", "data"):
        if (folder / f"{name}.json").exists():
            return read_record(folder / f"{name}.json")
    raise LoritaDeployError("neither a build folder nor a bundle: there are no records in it", where=folder)


def look_at_weights(path: Path) -> CheckpointSummary:
    """Names, shapes and types of the tensors in a weight file. Raises `BadCheckpoint`."""
    tensors = read_weights(path)
    factors = [name for name in tensors if ".parametrizations." in name and name.rsplit("original", 1)[-1].isdigit()]
    return CheckpointSummary(
        path=str(path),
        size_bytes=path.stat().st_size,
        sha256=_sha256(path),
        tensors=tuple(
            TensorSpec(name=name, dtype=str(tensor.dtype).removeprefix("torch."), shape=tuple(tensor.shape))
            for name, tensor in tensors.items()
        ),
        params=sum(tensor.numel() for tensor in tensors.values()),
        depth=max((int(name.rsplit("original", 1)[-1]) for name in factors), default=-1) + 1 or None,
        metadata=_safetensors_metadata(path),
    )


def _safetensors_metadata(path: Path) -> dict[str, str]:
    if path.suffix != ".safetensors":
        return {}
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        return dict(file.metadata() or {})


def look_at_onnx(path: Path) -> ArtifactSummary:
    """Versions, inputs, outputs and operators of an ONNX file. Raises `BadArtifact`."""
    import onnx

    try:
        model = onnx.load(path, load_external_data=False)
        onnx.checker.check_model(model)
    except Exception as error:
        raise BadArtifact(
            f"not a whole ONNX file: {str(error).strip().splitlines()[0][:200]}", where=path, fix="export or copy it again"
        ) from error
    graph = model.graph
    weights = {tensor.name for tensor in graph.initializer}
    external = {entry.value for tensor in graph.initializer for entry in tensor.external_data if entry.key == "location"}
    return ArtifactSummary(
        path=str(path),
        size_bytes=path.stat().st_size,
        sha256=_sha256(path),
        opset=max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0),
        ir_version=model.ir_version,
        producer=f"{model.producer_name} {model.producer_version}".strip(),
        inputs=tuple(_spec(value) for value in graph.input if value.name not in weights),
        outputs=tuple(_spec(value) for value in graph.output),
        operators=dict(Counter(node.op_type for node in graph.node).most_common()),
        params=sum(_size(tensor.dims) for tensor in graph.initializer),
        external_data=tuple(sorted(external)),
        metadata={entry.key: entry.value for entry in model.metadata_props},
    )


def _spec(value: object) -> TensorSpec:
    from onnx import TensorProto

    kind = value.type.tensor_type  # type: ignore[attr-defined]
    shape = tuple(extent.dim_value or extent.dim_param or "?" for extent in kind.shape.dim)
    dtype = TensorProto.DataType.Name(kind.elem_type).lower()
    return TensorSpec(name=value.name, dtype=dtype, shape=shape)  # type: ignore[attr-defined]


def _size(dims: object) -> int:
    total = 1
    for extent in dims:  # type: ignore[attr-defined]
        total *= extent
    return total


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---------------------------------------------------------------------------------------------- the machine


def check_machine(folder: Path | None = None) -> Health:
    """Everything a build here would depend on; ``folder`` is where it would write."""
    findings = [*_python(), *_packages(), *_resources(folder or Path()), *_cuda(), *_exporters(), *_targets()]
    return Health(host=this_host(), findings=tuple(findings))


def _python() -> Iterator[Finding]:
    found = platform.python_version()
    if sys.version_info >= OLDEST_PYTHON:
        yield Finding(subject="python", state="ok", found=found)
    else:
        yield Finding(subject="python", state="missing", found=found, fix="use Python 3.11 or newer")


def _packages() -> Iterator[Finding]:
    """What our own package says it needs, and what of that is there."""
    for requirement in requires("lorita-deploy") or []:
        wanted, _, condition = requirement.partition(";")
        name = wanted.strip().split("[")[0].rstrip("<>=!~.0123456789 ")
        if "extra" in condition:
            continue
        try:
            yield Finding(subject=name, state="ok", found=version(name))
        except PackageNotFoundError:
            yield Finding(subject=name, state="missing", found="not installed", fix=f"pip install '{wanted.strip()}'")


def _resources(folder: Path) -> Iterator[Finding]:
    cores = os.cpu_count() or 1
    yield Finding(subject="cores", state="ok", found=str(cores))
    load = os.getloadavg()[0]
    busy = load > cores / 2
    yield Finding(
        subject="load",
        state="note" if busy else "ok",
        found=f"{load:.1f}",
        fix="times measured now will scatter: wait until other work is done (uptime)" if busy else None,
    )
    memory = _available_memory_bytes()
    scarce = memory is not None and memory < LEAST_MEMORY_BYTES
    yield Finding(
        subject="memory",
        state="note" if scarce else "ok",
        found="unknown" if memory is None else f"{memory / 2**30:.1f} GiB available",
        fix="close other programs, or lower --batch-size and --calibration-samples" if scarce else None,
    )
    existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    full = free < LEAST_DISK_BYTES
    yield Finding(
        subject="disk",
        state="note" if full else "ok",
        found=f"{free / 2**30:.1f} GiB free",
        fix="build on another disk: --out FOLDER" if full else None,
    )


def _available_memory_bytes() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def _cuda() -> Iterator[Finding]:
    try:
        import torch
    except Exception as error:  # a broken installation fails in many ways
        fix = "pip install --force-reinstall torch torchvision"
        yield Finding(subject="torch import", state="missing", found=str(error).splitlines()[0], fix=fix)
        return
    if torch.cuda.is_available():
        yield Finding(subject="cuda", state="ok", found=f"{torch.cuda.get_device_name(0)}, CUDA {torch.version.cuda}")
    else:
        yield Finding(subject="cuda", state="note", found="no CUDA device; everything runs on the processor")


def _exporters() -> Iterator[Finding]:
    for name in names(EXPORTERS):
        try:
            problems = find_exporter(name).check()
        except Exception as error:  # a plug-in may fail in any way; one that does must not hide the rest
            problems = [f"cannot be loaded: {error}"]
        state = "missing" if problems and name == "onnx" else "note" if problems else "ok"
        yield Finding(subject=f"exporter {name}", state=state, found="ready" if not problems else "; ".join(problems))  # type: ignore[arg-type]


def _targets() -> Iterator[Finding]:
    here = ", ".join(target.name for target in all_targets() if is_local(target))
    yield Finding(subject="targets here", state="ok", found=f"{here} (times on others are estimates, until a board is asked)")
