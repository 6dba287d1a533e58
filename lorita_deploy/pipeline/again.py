"""Proof again, on what a build folder or a bundle holds: the files, their golden outputs, and the race."""

from __future__ import annotations

import time
from pathlib import Path

from ..devices.local import LocalDevice
from ..errors import BadRecord, LoritaDeployError
from ..measure.latency import race
from ..records import Artifact, ArtifactList, BuildReport, Manifest, Receipt, Settings, schema_name

TOLERANCE = 1e-3


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
