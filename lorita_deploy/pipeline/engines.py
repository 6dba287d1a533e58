"""What further exporters make of the ONNX files: here where this machine can build it, else marked as built on the device.

Artifacts of an exporter that says how they are run (`ForRunning`) are verified, raced and shipped beside the ONNX files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ..bundle.runtimes import file_of
from ..devices.local import LocalDevice
from ..measure.fidelity import TOLERANCES
from ..measure.latency import artifact_name, race
from ..ports import Exporter, ExportJob, ForRunning, find_exporter
from ..records import Artifact, Receipt, write_atomically
from ..targets import is_local
from .races import kept_race

if TYPE_CHECKING:
    from .context import Build

WORKSPACE_SHARE = 16
"""A board's memory over what an engine's builder may use for scratch: 256 MB of a 4 GB board, which has to hold everything."""


def engines(build: Build, artifacts: tuple[Artifact, ...]) -> tuple[Artifact, ...]:
    """An engine of each artifact by every exporter of the target that can build here."""
    able = [exporter for exporter, missing in _chained(build) if not missing]
    return tuple(_built(build, exporter, artifact) for exporter in able for artifact in artifacts)


def own_runners(build: Build) -> dict[str, Path]:
    """The runtime file of every further exporter of the target that has one, by the exporter's name."""
    found = [find_exporter(name) for name in build.target.exporters if name != build.exporter.name]
    return {exporter.name: exporter.runner for exporter in found if isinstance(exporter, ForRunning)}


def run_otherwise(build: Build) -> dict[str, tuple[Artifact, ...]]:
    """The artifacts of exporters that say how they are run, by the exporter's name."""
    engines = build.exported.engines
    named = {name: tuple(each for each in engines if each.exporter == name) for name in own_runners(build)}
    return {name: artifacts for name, artifacts in named.items() if artifacts}


def race_otherwise(build: Build) -> dict[str, Receipt]:
    """Compressed against dense in each runtime that came with an exporter, where this machine is the target.

    Files ``receipt-<exporter>.json``. Raises what `Device.run` raises.
    """
    receipts = {}
    for name, artifacts in run_otherwise(build).items() if build.here and build.on_target else ():
        runner = own_runners(build)[name].read_bytes()
        write_atomically(build.folder / file_of(name), runner)

        def measure(name: str = name, artifacts: tuple[Artifact, ...] = artifacts) -> Receipt:
            return race(
                LocalDevice(),
                build.folder.path,
                artifacts,
                settings=build.settings.model_copy(update={"runtime": name}),
                golden=build.folder / "golden",
                tolerance=max(TOLERANCES[each.precision] for each in artifacts),
                kind=build.kind,
                model=build.options.model,
                result=f"receipt-{name}.json",
            )

        what = {artifact_name(each): each.sha256 for each in artifacts} | {"runner": hashlib.sha256(runner).hexdigest()}
        receipts[name] = kept_race(build, {"otherwise": what, "exporter": name}, measure)
        receipts[name].save(build.folder / f"receipt-{name}.json")
    return receipts


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
