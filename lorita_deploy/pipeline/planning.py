"""From prices to the plan: searched by true accuracy, its time predicted, measured, and where it misled priced again.

Accuracy and draft races are remembered per set of choices, so that a round that arrives at plans it has seen costs nothing.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..compress.plan import Solution, check_plan, make_plan, solve
from ..measure.latency import race
from ..records import (
    Accuracy,
    Candidate,
    Choice,
    GroupChoice,
    LatencyRatio,
    LayerTime,
    Plan,
    Prediction,
    PriceTable,
    Probe,
    Receipt,
)
from .acceptance import judge
from .exporting import export, export_dense
from .folder import key_of, sha256_of
from .search import Search

if TYPE_CHECKING:
    from torch import nn

    from .context import Build

ROUNDS = 3
"""How often a plan whose time was predicted wrongly is priced and solved again."""
CLOSE_ENOUGH = 0.05
DRAFT_SECONDS = 4.0
"""Enough to tell a wrong prediction from noise; the race that decides what ships is the bench stage's."""

Shape = tuple[tuple[str, int | None, int, int], ...]
"""What a set of choices makes of the network: (layer, rank, k_in, k_out) of every layer that changes."""


def given_plan(build: Build, path: Path) -> Plan:
    """A plan from a file. Raises `BadRecord`, `PlanMismatch`."""
    plan = Plan.load(path)
    groups = build.calibration.record.groups
    check_plan(plan, build.collapsed.layers, build.collapsed.weights_sha256, build.target.name, groups)
    return plan


def searched_plan(build: Build) -> Plan:
    """The plan within the build's budget."""
    return _Planning(build).plan()


class _Planning:
    """The rounds of one plan, and what they have seen."""

    def __init__(self, build: Build) -> None:
        self.build = build
        self.accuracies: dict[Shape, Accuracy] = {}
        self.races: dict[Shape, LatencyRatio] = {}

    def plan(self) -> Plan:
        build, prices = self.build, self.build.prices
        predictions: list[Prediction] = []
        probes: list[Probe] = []
        notes: list[str] = []
        for _ in range(ROUNDS if build.on_target else 1):
            solution, found = self._solve(prices)
            probes += [probe for probe in found if probe not in probes]
            changed = _changed(solution)
            if not build.on_target or not changed or _shape(changed) in self.races:
                break
            measured = self.races[_shape(changed)] = draft_race(build, changed, solution.groups)
            prediction = Prediction(predicted_us=solution.predicted_us, measured_us=measured.ratio * prices.network_us)
            predictions.append(prediction)
            if not measured.never_slower:
                notes.append(f"a plan that changes {len(changed)} layers was measured, and was not faster")
            if abs(prediction.error) <= CLOSE_ENOUGH:
                break
            prices = corrected(prices, build.candidates, changed, prediction)
        if solution.note:
            notes.append(solution.note)
        for note in notes:
            build.watch.note(note)
        return make_plan(
            solution,
            model=build.options.model,
            network_sha256=build.collapsed.weights_sha256,
            target=build.target.name,
            precision=build.precision,
            budget=build.budget,
            prices=prices,
            probes=probes,
            predictions=predictions,
            notes=notes,
        )

    def _solve(self, prices: PriceTable) -> tuple[Solution, list[Probe]]:
        """The best solution at these prices, and what was built and judged on the way."""
        build, budget = self.build, self.build.budget
        if budget.max_drop is None:
            limit_us = budget.max_latency_ms * 1e3 if budget.max_latency_ms else prices.network_us / (budget.speedup or 1.0)
            widths = build.offered.widths
            solution = solve(build.candidates, prices, budget_us=limit_us, objective=budget.objective, widths=widths)
            return solution, []
        search = Search(
            candidates=build.candidates,
            widths=build.offered.widths,
            prices=prices,
            judge=self._judge,
            dense_accuracy=build.validation(),
            max_drop=budget.max_drop,
            objective=budget.objective,
            progress=build.watch.progress,
        )
        return search.run(), search.probes

    def _judge(self, solution: Solution) -> Accuracy:
        changed = _changed(solution)
        if _shape(changed) not in self.accuracies:
            network = self.build.compressor.network(changed, solution.groups)
            self.accuracies[_shape(changed)] = accuracy_of(self.build, network)
        return self.accuracies[_shape(changed)]


def accuracy_of(build: Build, network: nn.Module) -> Accuracy:
    """On the images that plans are judged by: of the network, or of its artifact where that is of a lower precision."""
    if build.precision == "fp32":
        return build.task.evaluate(network)
    folder = build.folder / "probe"
    artifact = export(build, network, "compressed", folder, metadata={}, accepting=False)
    found = judge(build, build.exporter.open(folder / artifact.path))
    shutil.rmtree(folder, ignore_errors=True)
    return found


def draft_race(build: Build, changed: Sequence[Choice], groups: Sequence[GroupChoice] = ()) -> LatencyRatio:
    """The time of a planned network over that of dense, measured through the exporter that ships.

    The receipt is kept: a plan that is searched again, after a kill or with another budget, decides by the same measurement.
    """
    network = {name: sha256_of(build.folder / f"{name}.safetensors") for name in ("collapsed", "calibration")}
    way = {"host": build.host_key, "settings": build.settings.model_dump(), "opset": build.opset}
    kept = build.folder / "drafts" / f"{key_of({'shape': _shape(changed), **network, **way})[:16]}.json"
    if kept.exists():
        return Receipt.load(kept).ratios[0]
    folder = build.folder / "draft"
    shutil.rmtree(folder, ignore_errors=True)
    build.watch.progress(0, 1, "racing a draft")
    artifacts = (
        export(build, build.compressor.network(changed, groups), "compressed", folder, metadata={}),
        export_dense(build, folder),
    )
    receipt = race(build.board, folder, artifacts, settings=build.settings, max_seconds=DRAFT_SECONDS, kind=build.kind)
    receipt.save(kept)
    shutil.rmtree(folder, ignore_errors=True)
    return receipt.ratios[0]


def corrected(
    prices: PriceTable, candidates: Iterable[Candidate], changed: Sequence[Choice], prediction: Prediction
) -> PriceTable:
    """The prices with every form that the plan chose scaled so that the plan's prediction would have been right.

    What the layers that stay dense cost, and the rest of the network, was measured as a whole and is believed.
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


def _changed(solution: Solution) -> tuple[Choice, ...]:
    return tuple(choice for choice in solution.choices if choice.form != "dense")


def _shape(changed: Iterable[Choice]) -> Shape:
    return tuple((choice.layer, choice.rank, choice.k_in, choice.k_out) for choice in changed)
