"""Engines from the ONNX files: built where this machine is the target, marked as built on the device everywhere else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ..ports import Exporter, ExportJob, find_exporter
from ..records import Artifact
from ..targets import is_local

if TYPE_CHECKING:
    from .context import Build

WORKSPACE_SHARE = 16
"""A board's memory over what an engine's builder may use for scratch: 256 MB of a 4 GB board, which has to hold everything."""


def engines(build: Build, artifacts: tuple[Artifact, ...]) -> tuple[Artifact, ...]:
    """An engine of each artifact by every exporter of the target that can build here."""
    able = [exporter for exporter, missing in _chained(build) if not missing]
    return tuple(_built(build, exporter, artifact) for exporter in able for artifact in artifacts)


def mark_engines(build: Build, artifacts: tuple[Artifact, ...]) -> tuple[Artifact, ...]:
    """With a note for every engine that is not built here, and what is missing for it."""
    elsewhere = [(exporter.name, "; ".join(missing)) for exporter, missing in _chained(build) if missing]
    notes = tuple(f"{name} engine: built on the device ({missing})" for name, missing in elsewhere)
    return tuple(artifact.model_copy(update={"notes": (*artifact.notes, *notes)}) for artifact in artifacts)


def _chained(build: Build) -> Iterator[tuple[Exporter, list[str]]]:
    """The target's exporters that start from ONNX files, each with what keeps it from building here."""
    for name in build.target.exporters:
        exporter = find_exporter(name)
        if exporter.source != build.exporter.name:
            continue
        missing = exporter.check()
        if not missing and build.target.identify.machine and not is_local(build.target):
            missing = [f"this machine is not {build.target.title}"]
        yield exporter, missing


def _built(build: Build, exporter: Exporter, artifact: Artifact) -> Artifact:
    capability, memory = build.target.limits.compute_capability, build.target.limits.memory_bytes
    return exporter.export(
        ExportJob(
            folder=build.folder.path,
            filename=f"{Path(artifact.path).stem}{exporter.suffix}",
            role=artifact.role,
            network=None,
            examples=(),
            opset=artifact.opset,
            ir_version=artifact.ir_version,
            precision=artifact.precision,
            batch=artifact.batch,
            dynamic_batch=artifact.dynamic_batch,
            source=artifact,
            workspace_bytes=memory // WORKSPACE_SHARE if memory else None,
            capabilities=(f"SM{capability.replace('.', '')}",) if capability else (),
            timing_caches=Path.home() / ".cache" / "lorita-deploy" / "timing",
        )
    )
