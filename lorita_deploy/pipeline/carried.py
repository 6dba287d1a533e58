"""A receipt that somebody carried here by hand: is it of these artifacts, and what does it teach about the prices?"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..bundle.archive import unpack_files
from ..bundle.manifest import MANIFEST, read_manifest
from ..errors import BadArtifact, BadRecord, EnvironmentDiffers, LoritaDeployError, PlanMismatch
from ..measure.latency import artifact_name
from ..measure.trtexec import is_trtexec, read_trtexec
from ..records import Artifact, ArtifactList, Candidate, Choice, Host, LayerTime, Plan, Prediction, PriceTable, Receipt
from ..targets import Target, all_targets, matches
from .planning import corrected

if TYPE_CHECKING:
    from .context import Build


TRTEXEC = "trtexec"
"""The folder that a bundle's ``run.sh`` writes, packed or not."""


def load_receipt(path: Path) -> Receipt:
    """The receipt in a file, or the one that follows from what a bundle's ``run.sh`` wrote: its folder, or that packed.

    Raises `BadRecord`, `PlanMismatch` (times of another bundle), `BadArtifact` (an archive that is damaged or unsafe).
    """
    if path.is_dir():
        return read_trtexec(path)
    if not path.name.endswith(".tar.gz"):
        return Receipt.load(path)
    with tempfile.TemporaryDirectory(prefix="lorita-") as aside:
        if not path.is_file():
            raise BadArtifact("there is no such file", where=path)
        unpack_files(path, Path(aside) / TRTEXEC, top=TRTEXEC)
        return read_trtexec(Path(aside) / TRTEXEC)


def carried_file(path: Path) -> Path:
    """The file by which what `load_receipt` reads is known."""
    return path / "race.txt" if path.is_dir() else path


def is_carried(path: Path) -> bool:
    """Whether ``path`` is what ``run.sh`` wrote rather than a folder that holds a receipt."""
    return path.name.endswith(".tar.gz") or (path.is_dir() and is_trtexec(path))


def bundled(folder: Path) -> tuple[Artifact, ...]:
    """What the bundle of the build in ``folder`` holds: rungs of its ladder too, and where it went back to fp32, that."""
    inside = folder / "bundle"
    return read_manifest(inside).artifacts if (inside / MANIFEST).exists() else ()


def require_same_artifacts(receipt: Receipt, artifacts: Iterable[Artifact], where: object) -> None:
    """Raises `PlanMismatch` for a receipt of other artifacts (another model, or an earlier plan of this one)."""
    expected = {(artifact_name(artifact), artifact.sha256) for artifact in artifacts}
    strange = [each.name for each in receipt.series if (each.name, each.sha256) not in expected]
    if strange or not receipt.series:
        raise PlanMismatch(
            f"this receipt is of other artifacts: {', '.join(strange) or 'none'}",
            where=where,
            fix="give the receipt that the board wrote for this very bundle, or run the bundle there again",
        )


def require_same_race(receipt: Receipt, runtime: str, batch: int, threads: int, where: object) -> None:
    """Raises `EnvironmentDiffers` for times of another runtime, batch or (on a processor) number of threads than those that a
    build is about: a board without TensorRT for Python falls back to its processor."""
    there = "tensorrt" if receipt.settings.runtime == "trtexec" else receipt.settings.runtime
    if there != runtime:
        raise EnvironmentDiffers(
            f"this receipt has times of {there}, and the build is for {runtime}",
            where=where,
            fix=f"run the bundle where {runtime} is installed (sh run.sh needs trtexec alone)",
        )
    if receipt.settings.batch != batch:
        raise EnvironmentDiffers(
            f"this receipt has times of batches of {receipt.settings.batch}, and the build is for {batch}",
            where=where,
            fix=f"build with --batch {receipt.settings.batch}, or race a bundle whose batch is not left open",
        )
    if runtime == "onnxruntime" and receipt.settings.threads != threads:
        raise EnvironmentDiffers(
            f"this receipt has times of {receipt.settings.threads} thread(s), and the build is for {threads}",
            where=where,
            fix=f"build with --threads {receipt.settings.threads}, or race the bundle that --threads {threads} makes",
        )


def require_same_target(receipt: Receipt, target: Target, where: object) -> None:
    """Raises `EnvironmentDiffers` for a receipt from a machine that is not ``target``."""
    host = receipt.host
    if not _is_a(host, target):
        raise EnvironmentDiffers(
            f"this receipt was written on another machine than a {target.name}: {host.machine}",
            where=where,
            fix="run the bundle on the target, or say --trust-times",
        )


def called_by_its_name(receipt: Receipt) -> Receipt:
    """A bundle's runner takes for granted that it runs on the bundle's target. Where it did not, the receipt says what it
    ran on, and a warning: no time of a workstation passes for one of a board."""
    kind = receipt.host.kind
    if not any(target.name == kind and not _is_a(receipt.host, target) for target in all_targets()):
        return receipt
    boards = (target.name for target in all_targets() if target.identify.device_tree_model and _is_a(receipt.host, target))
    return not_of(receipt, kind, next(boards, "cpu"))


def not_of(receipt: Receipt, target: str, kind: str) -> Receipt:
    """``receipt`` as one of a machine of this ``kind``, with the warning that it is not the ``target`` of the bundle."""
    host = receipt.host.model_copy(update={"kind": kind})
    warning = f"this machine is not a {target}, which the bundle is made for"
    return receipt.model_copy(update={"host": host, "warnings": (*receipt.warnings, warning)})


def _is_a(host: Host, target: Target) -> bool:
    """Whether a receipt's machine is an instance of ``target``, as far as the receipt tells."""
    architecture, cuda = host.system.split()[-1], target.identify.cuda
    return matches(target, architecture=architecture, board=host.machine, cuda=cuda, memory_bytes=host.memory_bytes)


def require_of_this_build(build: Build) -> None:
    """What a receipt that the options name tells by itself, before anything is computed: is it of this model and target, and
    is there a build that it could be of? (Of which artifacts it is, `bettered` looks at: later builds have others.)

    Raises `PlanMismatch`, `EnvironmentDiffers`, `LoritaDeployError`, and what `load_receipt` raises.
    """
    path = Path(str(build.options.receipt))
    receipt = load_receipt(path)
    if receipt.model and receipt.model != build.options.model:
        raise PlanMismatch(
            f"this receipt is of {receipt.model}, not of {build.options.model}",
            where=path,
            fix=f"name its model, --model {receipt.model}, or give the receipt of a bundle of {build.options.model}",
        )
    if not build.options.trust_times:
        require_same_target(receipt, build.target, path)
    require_same_race(receipt, build.target.runtime, build.options.batch, build.options.threads, path)
    if not build.folder.record("price"):  # a build that goes on may have taken it into account already
        _require_a_build(build)


def _require_a_build(build: Build) -> None:
    if not (build.folder / "plan.json").exists() or not (build.folder / "artifacts.json").exists():
        raise LoritaDeployError(
            "there is no build here that a receipt could be of",
            where=build.folder.path,
            fix="build first, run the bundle on the board, then come back with its receipt",
        )


def bettered(build: Build, prices: PriceTable, candidates: Sequence[Candidate]) -> PriceTable:
    """``prices`` corrected by the receipt that the build's options name: it measured the plan that lies in the folder.

    Two numbers are learnt: what the dense network takes on the board, to which all prices are scaled; and what the planned
    one takes, to which the forms that the plan chose are scaled. Provenance stays that of the prices. Raises
    `PlanMismatch`, `EnvironmentDiffers`, `BadRecord`, `LoritaDeployError`.
    """
    path = Path(str(build.options.receipt))
    receipt = load_receipt(path)
    _require_a_build(build)
    artifacts = ArtifactList.load(build.folder / "artifacts.json").artifacts
    rungs = (each for each in bundled(build.folder.path) if each.rung)
    require_same_artifacts(receipt, (*artifacts, *rungs), path)
    if not build.options.trust_times:
        require_same_target(receipt, build.target, path)
    medians_ms = {each.name: each.median_ms for each in receipt.series}
    ratios = {each.candidate: each.ratio for each in receipt.ratios}
    if "dense" not in medians_ms or "compressed" not in ratios:
        raise BadRecord("this receipt has no race of compressed against dense", where=path, fix="run the bundle again")
    plan = Plan.load(build.folder / "plan.json")
    prices = scaled(prices, 1e3 * medians_ms["dense"] / prices.network_us)
    changed = priced(plan.changed(), prices, candidates)
    if changed:
        predicted_us = prices.network_us + sum(choice.us - choice.dense_us for choice in changed)
        found = Prediction(predicted_us=predicted_us, measured_us=ratios["compressed"] * prices.network_us)
        prices = corrected(prices, candidates, changed, found)
    method = f"{prices.method}; corrected by a race on {receipt.host.machine}, {receipt.started}"
    return prices.model_copy(update={"method": method})


def scaled(prices: PriceTable, factor: float) -> PriceTable:
    """All of ``prices`` times ``factor``."""
    times = tuple(LayerTime(candidate=each.candidate, us=each.us * factor, provenance=each.provenance) for each in prices.times)
    whole = {"network_us": prices.network_us * factor, "rest_us": prices.rest_us * factor}
    return prices.model_copy(update={"times": times, **whole})


def priced(choices: Iterable[Choice], prices: PriceTable, candidates: Sequence[Candidate]) -> tuple[Choice, ...]:
    """``choices`` at today's prices. Raises `PlanMismatch` where one of them is no longer on offer."""
    us = {each.candidate: each.us for each in prices.times}
    keys = {_form(candidate): candidate.key for candidate in candidates}
    dense = {candidate.layer: candidate.key for candidate in candidates if candidate.form == "dense"}
    found = []
    for choice in choices:
        if _form(choice) not in keys:
            raise PlanMismatch(
                f"what the plan made of {choice.layer} is no longer on offer", where="plan.json", fix="build again"
            )
        times = {"us": us[keys[_form(choice)]], "dense_us": us[dense[choice.layer]]}
        found.append(choice.model_copy(update=times))
    return tuple(found)


def _form(each: Candidate | Choice) -> tuple[str, str, int, int, int | None]:
    return (each.layer, each.form, each.k_in, each.k_out, each.rank)
