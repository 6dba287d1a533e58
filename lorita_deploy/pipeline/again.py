"""Proof again, on what a build folder or a bundle holds: the files, their golden outputs, and the race."""

from __future__ import annotations

import itertools
import os
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..bundle.archive import is_plain
from ..bundle.manifest import MANIFEST, check_bundle, read_manifest, unpack
from ..devices.local import LocalDevice
from ..devices.look import is_target, kind_of
from ..devices.ssh import SshDevice
from ..errors import BadArtifact, BadRecord, LoritaDeployError
from ..measure.fidelity import TOLERANCES, compare_outputs, run_session
from ..measure.latency import artifact_name, race
from ..ports import Device, find_exporter
from ..records import (
    Artifact,
    ArtifactList,
    BuildReport,
    Fidelity,
    FidelityReport,
    Receipt,
    Settings,
    schema_name,
    write_atomically,
)
from ..targets import all_targets, is_local, load_target, this_host
from .carried import bundled, called_by_its_name, is_carried, load_receipt, not_of, require_same_artifacts
from .folder import sha256_of

if TYPE_CHECKING:
    import numpy as np

GZIP = b"\x1f\x8b"
BUNDLE_S = 7200.0
"""Longest that a bundle may run on a board: a small one takes many minutes for each engine that it builds."""


def verify_again(folder: Path) -> FidelityReport:
    """Every artifact of ``folder`` on its golden inputs, against what torch computed when it was exported.

    Nothing is run before every hash is right. Differences are reported, not raised: see `require_passed`. Raises what
    `held_artifacts` raises, and `BadArtifact` for golden data that cannot be read.
    """
    artifacts = held_artifacts(folder)
    _require_of_these(folder)
    inputs = read_golden(folder / "golden" / "inputs.npz")
    return FidelityReport(artifacts=artifacts, checks=tuple(_check(folder, artifact, inputs) for artifact in artifacts))


def _require_of_these(folder: Path) -> None:
    """That the file which ships from a build folder is one of its artifacts. Raises `BadArtifact`."""
    shipped, listed = folder / "model.onnx", folder / "artifacts.json"
    if not (shipped.exists() and listed.exists()):
        return
    held = ArtifactList.load(listed)
    if sha256_of(shipped) not in {each.sha256 for each in (*held.artifacts, *held.reference)}:
        raise BadArtifact("it is none of the artifacts that lie beside it", where=shipped, fix="run the same build again")


def _check(folder: Path, artifact: Artifact, inputs: dict[str, np.ndarray[Any, Any]]) -> Fidelity:
    session = find_exporter(artifact.exporter).open(folder / artifact.path)
    outputs = run_session(session, inputs, artifact.batch)
    golden = read_golden(folder / "golden" / f"outputs-{artifact_name(artifact)}.npz")
    tolerance = TOLERANCES[artifact.precision]
    return compare_outputs(list(golden.values()), outputs, role=artifact.role, inputs="real", tolerance=tolerance)


def read_golden(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """The arrays of golden data, by name. Raises `BadArtifact`."""
    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except Exception as error:  # zipfile, zlib and numpy have many words for damage
        raise BadArtifact(
            f"golden data cannot be read: {error}", where=path, fix="build again, or copy the folder again"
        ) from error


def bench_again(
    path: Path, *, threads: int | None = None, device: Device | None = None, deadline_ms: float | None = None
) -> tuple[Receipt, Path]:
    """Race what ``path`` holds again on ``device``; the new receipt and where it was written.

    A build folder is raced as it was the last time. What goes to another machine is the bundle (unpacked, packed, or the one in
    a build folder), which is run there by its own runner, as a person would run it. With ``deadline_ms``, the runner says which
    network is the most accurate one whose p99 is at most that. Raises what `held_artifacts` and `Device.run` raise.
    """
    device = device or LocalDevice()
    _require_there(path)
    folder = path.parent if path.is_file() else path
    where = _unused(folder, f"receipt-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}")
    if path.is_file():
        with tempfile.TemporaryDirectory(prefix="lorita-") as aside:
            receipt, written = bench_again(unpack(path, Path(aside)), threads=threads, device=device, deadline_ms=deadline_ms)
            write_atomically(where, written.read_bytes())
        return receipt, where
    artifacts = held_artifacts(folder)
    bundle = _bundle_of(folder, artifacts)
    if isinstance(device, SshDevice) and threads is None and bundle is not None:
        more = () if deadline_ms is None else ("--deadline", str(deadline_ms))
        device.run_bundle(bundle, where, arguments=more, timeout_s=BUNDLE_S)
        return _called_by_its_name(where, device, read_manifest(bundle).target), where
    if deadline_ms is not None:
        raise LoritaDeployError(
            "a deadline is judged by the bundle's own runner, on a device",
            where="--deadline",
            fix="give --device ssh://... and a bundle, or run python3 run.py --deadline MS in the bundle",
        )
    settings = _settings(folder, artifacts)
    if threads is not None:
        settings = settings.model_copy(update={"threads": threads})
    golden = folder / "golden"
    receipt = race(
        device,
        folder,
        artifacts,
        settings=settings,
        golden=golden if (golden / "inputs.npz").exists() else None,
        tolerance=max(TOLERANCES[artifact.precision] for artifact in artifacts),
        kind=kind_of(device.look) if isinstance(device, SshDevice) else _kind_here(folder),
        model=_model(folder),
        result=where.name,
    )
    return receipt, where


def _bundle_of(folder: Path, artifacts: tuple[Artifact, ...]) -> Path | None:
    """The bundle that ``folder`` is, or that a build ended with there, if it holds what lies there now."""
    if (folder / MANIFEST).exists():
        return folder
    here = {each.sha256 for each in (*artifacts, *ArtifactList.load(folder / "artifacts.json").reference)}
    plain = [each for each in bundled(folder) if not each.rung]
    return folder / "bundle" if plain and all(each.sha256 in here for each in plain) else None


def _require_there(path: Path) -> None:
    if not os.path.exists(path):  # of a name that is too long as well
        fix = "name a build folder, or a bundle (unpacked or .tar.gz)"
        raise LoritaDeployError("there is no such file or folder", where=path, fix=fix)
    if path.is_file():
        with path.open("rb") as file:
            packed = file.read(2) == GZIP
        if not packed:
            fix = "name the bundle.tar.gz, or the build folder that it is of"
            raise LoritaDeployError("neither a bundle nor a build folder", where=path, fix=fix)


def _unused(folder: Path, stem: str) -> Path:
    """A name for a record that is not there yet: two in one second, or after the clock was set back, overwrite nothing."""
    paths = (folder / f"{stem}{f'-{count}' if count > 1 else ''}.json" for count in itertools.count(1))
    return next(path for path in paths if not path.exists())


def _called_by_its_name(path: Path, device: SshDevice, target: str) -> Receipt:
    """The receipt of a bundle for ``target``, which its runner takes for granted. On another machine it is not: the receipt
    is written again with the machine's own kind, and a warning."""
    receipt = Receipt.load(path)
    if target in [each.name for each in all_targets()] and is_target(device.look, load_target(target)):
        return receipt
    receipt = not_of(receipt, target, kind_of(device.look))
    receipt.save(path)
    return receipt


def keep_receipt(file: Path, path: Path) -> tuple[Receipt, Path]:
    """The receipt in ``file`` (or of the times of ``run.sh`` there), kept in the build folder or bundle ``path`` that it is of.

    Raises `PlanMismatch` for a receipt of other artifacts, `BadRecord`, and what `held_artifacts` raises.
    """
    receipt = load_receipt(file)
    _require_there(path)
    if path.is_file():
        with tempfile.TemporaryDirectory(prefix="lorita-") as aside:
            artifacts = held_artifacts(unpack(path, Path(aside)))
    else:
        artifacts = (*held_artifacts(path), *bundled(path))
    require_same_artifacts(receipt, artifacts, file)
    receipt = called_by_its_name(receipt)
    stamp = "".join(letter for letter in receipt.started if letter.isalnum())
    folder = path.parent if path.is_file() else path
    of_that_second = folder.glob(f"receipt-{stamp}*.json")  # of other boards too
    brought_before = next((path for path in of_that_second if Receipt.load(path) == receipt), None)
    return receipt, brought_before or receipt.save(_unused(folder, f"receipt-{stamp}"))


def held_artifacts(folder: Path) -> tuple[Artifact, ...]:
    """What a build folder or a bundle holds, every file checked against its hash.

    Raises `BadArtifact` for files that are missing, changed or lead out of the folder, `BadRecord`, `LoritaDeployError`.
    """
    if os.path.exists(folder / MANIFEST):
        return check_bundle(folder).artifacts
    if not os.path.exists(folder):  # of a name that is too long as well
        raise LoritaDeployError("there is no such file or folder", where=folder, fix="check the path")
    if folder.is_file():
        raise LoritaDeployError(
            "a build folder or an unpacked bundle is wanted, and this is a file",
            where=folder,
            fix="unpack a bundle first: tar xf bundle.tar.gz; of a single artifact, name the folder it lies in",
        )
    if not (folder / "artifacts.json").exists():
        raise LoritaDeployError(
            "there are no artifacts here: neither a build folder that got as far as export nor an unpacked bundle",
            where=folder,
            fix="lorita-deploy export or build writes them",
        )
    found_here = ArtifactList.load(folder / "artifacts.json")
    for artifact in (*found_here.artifacts, *found_here.reference):
        found = sha256_of(folder / artifact.path) if is_plain(artifact.path) else None
        if found != artifact.sha256:
            what = "is missing" if found is None else f"was changed (its sha256 is {found}, expected {artifact.sha256})"
            raise BadArtifact(f"{artifact.path} {what}; nothing was run", where=folder, fix="run the same build again")
    return found_here.artifacts


def read_receipt(path: Path) -> Receipt:
    """The receipt in a file, a report, a build folder or a bundle, or that of the times that ``run.sh`` took.

    Raises `BadRecord`, and what `load_receipt` raises.
    """
    if not os.path.exists(path) and not path.name.endswith(".tar.gz"):  # who unpacks those says so
        raise BadRecord("there is no such file or folder", where=path, fix="check the path")
    if is_carried(path):
        return load_receipt(path)
    file = _receipt_in(path) if path.is_dir() else path
    if file is None:
        fix = "lorita-deploy bench measures them"
        raise BadRecord("there are no measured times here: no receipt.json", where=path, fix=fix)
    if schema_name(file) != BuildReport.SCHEMA:
        return Receipt.load(file)
    receipt = BuildReport.load(file).receipt
    if receipt is None:
        raise BadRecord("this report has no times in it", where=file, fix="lorita-deploy bench measures them")
    return receipt


def _receipt_in(folder: Path) -> Path | None:
    """That of the build, or else the last one that ``bench`` has put there."""
    built = folder / "receipt.json"
    return (
        built if built.exists() else max(folder.glob("receipt-*.json"), key=lambda path: path.stat().st_mtime_ns, default=None)
    )


def _settings(folder: Path, artifacts: tuple[Artifact, ...]) -> Settings:
    if (folder / "receipt.json").exists():
        return Receipt.load(folder / "receipt.json").settings
    threads = read_manifest(folder).threads if (folder / MANIFEST).exists() else 1
    return Settings(runtime="onnxruntime", threads=threads, graph_level="all", spinning=False, batch=artifacts[0].batch)


def _kind_here(folder: Path) -> str:
    """What this machine is called in records: the target that the bundle is made for, or that the last race in the build folder
    was on, if this is one."""
    if (folder / MANIFEST).exists():
        target = read_manifest(folder).target
        return target if any(each.name == target and is_local(each) for each in all_targets()) else "cpu"
    last = Receipt.load(folder / "receipt.json").host if (folder / "receipt.json").exists() else None
    return last.kind if last and last.machine == this_host().machine else "cpu"


def _model(folder: Path) -> str:
    """The model's name, as far as the last race or the manifest tells it."""
    if (folder / MANIFEST).exists():
        return read_manifest(folder).model
    return Receipt.load(folder / "receipt.json").model if (folder / "receipt.json").exists() else ""
