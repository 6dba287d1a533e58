"""Proof again, on what a build folder or a bundle holds: the files, their golden outputs, and the race."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..devices.local import LocalDevice
from ..errors import BadArtifact, BadRecord, LoritaDeployError
from ..measure.fidelity import TOLERANCE, compare_outputs, run_session
from ..measure.latency import artifact_name, race
from ..ports import find_exporter
from ..records import Artifact, ArtifactList, BuildReport, Fidelity, FidelityReport, Manifest, Receipt, Settings, schema_name
from .folder import sha256_of

if TYPE_CHECKING:
    import numpy as np


def verify_again(folder: Path) -> FidelityReport:
    """Every artifact of ``folder`` on its golden inputs, against what torch computed when it was exported.

    Nothing is run before every hash is right. Differences are reported, not raised: see `require_passed`. Raises
    `BadArtifact` for files that are missing, changed, or outside the folder.
    """
    artifacts = held_artifacts(folder)
    for path, expected in _held_files(folder, artifacts):
        found = sha256_of(_inside(folder, path))
        if found != expected:
            what = "is missing" if found is None else f"was changed: its sha256 is {found}, expected {expected}"
            raise BadArtifact(
                f"{path} {what}; nothing was run", where=folder, fix="build again, or copy the folder again, complete"
            )
    inputs = _arrays(folder / "golden" / "inputs.npz")
    return FidelityReport(artifacts=artifacts, checks=tuple(_check(folder, artifact, inputs) for artifact in artifacts))


def _check(folder: Path, artifact: Artifact, inputs: dict[str, np.ndarray[Any, Any]]) -> Fidelity:
    session = find_exporter(artifact.exporter).open(_inside(folder, artifact.path))
    outputs = run_session(session, inputs, artifact.batch)
    golden = _arrays(folder / "golden" / f"outputs-{artifact_name(artifact)}.npz")
    return compare_outputs(list(golden.values()), outputs, role=artifact.role, inputs="real", tolerance=TOLERANCE)


def _held_files(folder: Path, artifacts: tuple[Artifact, ...]) -> list[tuple[str, str]]:
    """(path, sha256) of all files of a bundle, or of the artifacts of a build folder."""
    if (folder / "manifest.json").exists():
        return [(file.path, file.sha256) for file in Manifest.load(folder / "manifest.json").files]
    return [(artifact.path, artifact.sha256) for artifact in artifacts]


def _inside(folder: Path, path: str) -> Path:
    found = (folder / path).resolve()
    if not found.is_relative_to(folder.resolve()):
        raise BadArtifact("this path leads out of the folder", where=path, fix="do not use this folder: somebody made it so")
    return found


def _arrays(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    import zipfile

    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise BadArtifact(
            f"golden data cannot be read: {error}", where=path, fix="build again, or copy the folder again"
        ) from error


def bench_again(folder: Path, *, threads: int | None = None) -> tuple[Receipt, Path]:
    """Race the artifacts of ``folder`` again, set as the last race was; the new receipt and where it was written."""
    artifacts = held_artifacts(folder)
    settings = _settings(folder, artifacts)
    if threads is not None:
        settings = settings.model_copy(update={"threads": threads})
    where = folder / f"receipt-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}.json"
    golden = folder / "golden"
    receipt = race(
        LocalDevice(),
        folder,
        artifacts,
        settings=settings,
        golden=golden if (golden / "inputs.npz").exists() else None,
        tolerance=TOLERANCE,
        result=where.name,
    )
    return receipt, where


def held_artifacts(folder: Path) -> tuple[Artifact, ...]:
    """What a build folder or a bundle holds. Raises `LoritaDeployError`, `BadRecord`."""
    if (folder / "manifest.json").exists():
        return Manifest.load(folder / "manifest.json").artifacts
    if (folder / "artifacts.json").exists():
        return ArtifactList.load(folder / "artifacts.json").artifacts
    raise LoritaDeployError(
        "there are no artifacts here: neither a build folder that got as far as export nor an unpacked bundle",
        where=folder,
        fix="lorita-deploy export or build writes them",
    )


def read_receipt(path: Path) -> Receipt:
    """The receipt in a file, a report, a build folder or a bundle. Raises `BadRecord`."""
    file = path / "receipt.json" if path.is_dir() else path
    if schema_name(file) != BuildReport.SCHEMA:
        return Receipt.load(file)
    receipt = BuildReport.load(file).receipt
    if receipt is None:
        raise BadRecord("this report has no times in it", where=file, fix="lorita-deploy bench measures them")
    return receipt


def _settings(folder: Path, artifacts: tuple[Artifact, ...]) -> Settings:
    if (folder / "receipt.json").exists():
        return Receipt.load(folder / "receipt.json").settings
    return Settings(runtime="onnxruntime", threads=1, graph_level="all", spinning=False, batch=artifacts[0].batch)
