"""Proof again, on what a build folder or a bundle holds: the files, their golden outputs, and the race."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..bundle.archive import is_plain
from ..bundle.manifest import check_bundle
from ..devices.local import LocalDevice
from ..errors import BadArtifact, BadRecord, LoritaDeployError
from ..measure.fidelity import TOLERANCE, compare_outputs, run_session
from ..measure.latency import artifact_name, race
from ..ports import find_exporter
from ..records import Artifact, ArtifactList, BuildReport, Fidelity, FidelityReport, Receipt, Settings, schema_name
from .folder import sha256_of

if TYPE_CHECKING:
    import numpy as np


def verify_again(folder: Path) -> FidelityReport:
    """Every artifact of ``folder`` on its golden inputs, against what torch computed when it was exported.

    Nothing is run before every hash is right. Differences are reported, not raised: see `require_passed`. Raises what
    `held_artifacts` raises, and `BadArtifact` for golden data that cannot be read.
    """
    artifacts = held_artifacts(folder)
    inputs = _arrays(folder / "golden" / "inputs.npz")
    return FidelityReport(artifacts=artifacts, checks=tuple(_check(folder, artifact, inputs) for artifact in artifacts))


def _check(folder: Path, artifact: Artifact, inputs: dict[str, np.ndarray[Any, Any]]) -> Fidelity:
    session = find_exporter(artifact.exporter).open(folder / artifact.path)
    outputs = run_session(session, inputs, artifact.batch)
    golden = _arrays(folder / "golden" / f"outputs-{artifact_name(artifact)}.npz")
    return compare_outputs(list(golden.values()), outputs, role=artifact.role, inputs="real", tolerance=TOLERANCE)


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
    """What a build folder or a bundle holds, every file checked against its hash.

    Raises `BadArtifact` for files that are missing, changed or lead out of the folder, `BadRecord`, `LoritaDeployError`.
    """
    if (folder / "manifest.json").exists():
        return check_bundle(folder).artifacts
    if not (folder / "artifacts.json").exists():
        raise LoritaDeployError(
            "there are no artifacts here: neither a build folder that got as far as export nor an unpacked bundle",
            where=folder,
            fix="lorita-deploy export or build writes them",
        )
    artifacts = ArtifactList.load(folder / "artifacts.json").artifacts
    for artifact in artifacts:
        found = sha256_of(folder / artifact.path) if is_plain(artifact.path) else None
        if found != artifact.sha256:
            what = "is missing" if found is None else f"was changed (its sha256 is {found}, expected {artifact.sha256})"
            raise BadArtifact(f"{artifact.path} {what}; nothing was run", where=folder, fix="run the same build again")
    return artifacts


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
