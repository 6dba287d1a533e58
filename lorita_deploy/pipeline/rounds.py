"""Predicted against measured: a plan is built as a draft, raced against dense, and prices that misled are corrected."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from ..compress.rewrite import rewrite
from ..devices.local import LocalDevice
from ..measure.latency import race
from ..records import Candidate, Choice, LatencyRatio, LayerTime, Prediction, PriceTable
from .context import Build
from .exporting import export, export_dense

if TYPE_CHECKING:
    from torch import nn

DRAFT_SECONDS = 4.0
"""Enough to tell a wrong prediction from noise; the race that decides what ships is the bench stage's."""


def rewritten(build: Build, choices: Iterable[Choice]) -> nn.Module:
    """The dense network with the layers of ``choices`` in their new forms (a copy)."""
    return rewrite(build.dense, tuple(choices), build.calibration.moments, criterion=build.calibration.record.criterion)


def draft_race(build: Build, changed: Sequence[Choice]) -> LatencyRatio:
    """The time of a planned network over that of dense, measured through the exporter that ships."""
    folder = build.folder / "draft"
    shutil.rmtree(folder, ignore_errors=True)
    build.watch.progress(0, 1, "racing a draft")
    artifacts = (export(build, rewritten(build, changed), "compressed", folder, metadata={}), export_dense(build, folder))
    receipt = race(LocalDevice(), folder, artifacts, settings=build.settings, max_seconds=DRAFT_SECONDS)
    shutil.rmtree(folder, ignore_errors=True)
    return receipt.ratios[0]


def corrected(
    prices: PriceTable, candidates: Iterable[Candidate], changed: Sequence[Choice], prediction: Prediction
) -> PriceTable:
    """The prices with every form that the plan chose scaled so that the plan's prediction would have been right.

    What the layers of the plan that stay dense cost, and the rest of the network, was measured as a whole and is believed.
    """
    off_us = prediction.measured_us - prediction.predicted_us
    changed_us = sum(choice.us for choice in changed)
    scale = max(0.1, (changed_us + off_us) / changed_us)
    forms = {choice.form for choice in changed}
    touched = {candidate.key for candidate in candidates if candidate.form in forms}
    times = tuple(
        LayerTime(candidate=price.candidate, us=price.us * scale, provenance=price.provenance)
        if price.candidate in touched
        else price
        for price in prices.times
    )
    return prices.model_copy(update={"times": times})
