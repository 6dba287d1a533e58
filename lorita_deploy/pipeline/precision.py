"""Stage precision: what artifacts are written in. Asked for and kept within the budget, or found by racing the dense network.

A lower precision is chosen only where it is right often enough and, on a target that can be timed, proven to be faster.
Plans, prices and the final race are then of that precision, with the fp32 networks raced along.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from ..measure.latency import race
from ..records import Artifact, LatencyRatio, Precision, PrecisionRecord, PrecisionTrial, Receipt
from ..report import words
from .acceptance import allowed_drop, judge
from .calibrated import calibrated_on
from .context import Build, Stage
from .exporting import export
from .races import kept_race

RACE_SECONDS = 8.0
"""Between precisions of one network, which differ by far more than rungs of one precision do."""


def _precision_key(build: Build) -> dict[str, Any]:
    options = build.options
    if build.asked_precision == "fp32":
        return {"asked": "fp32"}
    return {
        "asked": build.asked_precision,
        "network": build.collapsed.weights_sha256,
        "images": calibrated_on(build),
        "target": build.target.model_dump(),
        "opset": build.opset,
        "batch": (options.batch, options.dynamic_batch),
        "simplify": options.simplify,
        "drop": allowed_drop(build),
        "timed": {"host": build.host_key, "settings": build.settings.model_dump()} if build.on_target else None,
    }


def _run_precision(build: Build) -> str:
    asked = build.asked_precision
    if asked == "fp32":
        PrecisionRecord(asked=asked, chosen="fp32", trials=()).save(build.folder / "precision.json")
        return "fp32"
    folder = build.folder / "precisions"
    shutil.rmtree(folder, ignore_errors=True)
    tried: tuple[Precision, ...] = build.target.limits.precisions if asked == "auto" else (asked,)
    made = {precision: _export(build, precision, folder) for precision in ("fp32", *tried)}
    ratios = _race(build, folder, made) if build.on_target else {}
    trials = tuple(_trial(build, folder, artifact, precision, ratios) for precision, artifact in made.items())
    chosen = choose(trials, asked)
    shutil.rmtree(folder, ignore_errors=True)
    record = PrecisionRecord(asked=asked, chosen=chosen, trials=trials)
    record.save(build.folder / "precision.json")
    for trial in trials:
        if trial.precision != chosen and trial.refused:
            build.watch.note(f"{trial.precision} is not chosen: {trial.refused}")
    return f"{chosen}{_gain(next(trial for trial in trials if trial.precision == chosen))}"


def choose(trials: tuple[PrecisionTrial, ...], asked: Precision | str) -> Precision:
    """The fastest trial that nothing speaks against; fp32 where there is none."""
    fit = [trial for trial in trials if not trial.refused and trial.precision != "fp32"]
    if asked != "auto":
        return fit[0].precision if fit else "fp32"
    quickest = min(fit, key=lambda trial: trial.relative_time, default=None)
    return quickest.precision if quickest and quickest.relative_time < 1 else "fp32"


def _gain(trial: PrecisionTrial) -> str:
    if trial.ratio is not None:
        return f", dense {words.speed(trial.ratio)} than in fp32"
    if trial.precision != "fp32" and trial.estimated is not None:
        return f", dense estimated {words.estimated(trial.estimated, 'fp32', named=True)}"
    return ""


def _export(build: Build, precision: Precision, folder: Path) -> Artifact:
    build.watch.progress(0, 1, f"writing {precision}")
    return export(build, build.dense, "dense", folder, metadata={}, precision=precision, filename=f"dense-{precision}.onnx")


def _race(build: Build, folder: Path, made: dict[Precision, Artifact]) -> dict[str, LatencyRatio]:
    build.watch.progress(0, 1, "racing precisions")
    kept: dict[str, Artifact] = {name: artifact for name, artifact in made.items() if artifact.precision == name}
    if len(kept) < 2:
        return {}

    def measure() -> Receipt:
        way: dict[str, Any] = {"baseline": "fp32", "settings": build.settings, "max_seconds": RACE_SECONDS, "kind": build.kind}
        return race(build.board, folder, kept, **way)

    receipt = kept_race(build, {"precisions": {name: artifact.sha256 for name, artifact in kept.items()}}, measure)
    return {found.candidate: found for found in receipt.ratios}


def _trial(
    build: Build, folder: Path, artifact: Artifact, precision: Precision, ratios: dict[str, LatencyRatio]
) -> PrecisionTrial:
    ratio = ratios.get(precision)
    session = build.exporter.open(folder / artifact.path)
    found = build.validation() if precision == "fp32" else judge(build, session)
    refused = None
    if artifact.precision != precision:
        refused = f"no layer can be {precision} within {allowed_drop(build):g} points"
    elif ratio is not None and not ratio.faster:
        refused = f"it is not faster here than fp32 ({words.speed(ratio)})"
    return PrecisionTrial(
        precision=precision,
        accuracy=found,
        kept_fp32=artifact.kept_fp32,
        size_bytes=artifact.size_bytes,
        ratio=ratio,
        estimated=None if build.on_target else _estimate(build, precision, folder),
        refused=refused,
    )


def _estimate(build: Build, precision: Precision, folder: Path) -> float:
    """Time over that of fp32, by the roofline."""
    from ..measure.roofline import RooflinePricer

    def network_us(each: Precision) -> float:
        pricer = RooflinePricer(
            folder / "dense-fp32.onnx",
            batch=build.options.batch,
            layers=build.geometries,
            network_sha256=build.collapsed.weights_sha256,
            target=build.target,
            precision=each,
        )
        return pricer.price(()).network_us

    return network_us(precision) / network_us("fp32")


PRECISION = Stage("precision", lambda build: ("precision.json",), _precision_key, _run_precision)
