"""From prices to the plan: searched by true accuracy, its time predicted, measured, and where it misled priced again.

Accuracy and draft races are remembered per set of choices, so that a round that arrives at plans it has seen costs nothing.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from ..compress.plan import Shape, Solution, make_plan, shape_of, solve
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
from .acceptance import allowed_drop, judge
from .calibrated import calibration_key
from .exporting import export, export_dense
from .races import kept_race
from .recovery import planned_network
from .search import Search
from .true_losses import true_loss, with_true_losses

if TYPE_CHECKING:
    from torch import nn

    from .context import Build

ROUNDS = 3
"""How often a plan whose time was predicted wrongly is priced and solved again."""
CLOSE_ENOUGH = 0.05
AIM = 0.97
"""Share of a budget of time that a plan to be measured aims at: times repeat to two or three per cent, and a plan that aims at
the budget itself would miss it every other time."""
DRAFT_SECONDS = 4.0
"""Enough to tell a wrong prediction from noise; the race that decides what ships is the bench stage's."""


def searched_plan(build: Build) -> Plan:
    """The plan within the build's budget."""
    return _Planning(build).plan()


class _Planning:
    """The rounds of one plan, and what they have seen."""

    def __init__(self, build: Build) -> None:
        self.build = build
        self.accuracies: dict[tuple[Shape, int], Accuracy] = {}
        """Of a plan's network after so many epochs of recovery."""
        self.races: dict[Shape, LatencyRatio] = {}
        self.offered = build.offered
        self.dense_us = build.prices.network_us
        self.predictions: list[Prediction] = []
        self.probes: dict[tuple[Shape, int], Probe] = {}
        self.notes: list[str] = []

    def plan(self) -> Plan:
        build, prices = self.build, self.build.prices
        found: list[tuple[Solution, LatencyRatio | None]] = []
        for _ in range(ROUNDS if build.on_target else 1):
            solution = self._solve(prices)
            changed = solution.changed()
            raced = bool(changed) and shape_of(changed) in self.races
            measured = self._race(solution, prices) if build.on_target and changed else None
            found.append((solution, measured))
            if measured is None or raced or self._as_wanted(measured):
                break
            prices = corrected(prices, build.candidates, changed, self.predictions[-1])
        for _ in range(build.options.local_search):
            self.offered = with_true_losses(build, found[-1][0], self.offered)
            solution = self._solve(prices)
            measured = self._race(solution, prices) if build.on_target and solution.changed() else None
            found.append((solution, measured))
        solution = self._best(found)
        if solution.note:
            self.notes.append(solution.note)
        for note in self.notes:
            build.watch.note(note)
        return make_plan(
            solution,
            model=build.options.model,
            network_sha256=build.collapsed.weights_sha256,
            target=build.target.name,
            precision=build.precision,
            budget=build.budget,
            prices=prices,
            probes=tuple(self.probes.values()),
            predictions=self.predictions,
            notes=self.notes,
        )

    def _best(self, found: Sequence[tuple[Solution, LatencyRatio | None]]) -> Solution:
        """Within a budget of accuracy the fastest as measured (or the smallest, where that is the objective); within one of
        time the least loss among those that fit, by true loss where rounds of local search are to be compared."""

        def ratio(pair: tuple[Solution, LatencyRatio | None]) -> float:
            """What was not measured is dense itself where plans are measured, elsewhere what was predicted."""
            solution, measured = pair
            return measured.ratio if measured else 1.0 if self.build.on_target else solution.predicted_us / self.dense_us

        limit_us = self._limit_us()
        if limit_us is None and self.build.budget.objective != "latency":
            return min(found, key=lambda pair: pair[0].cost)[0]
        if limit_us is None:
            return min(found, key=ratio)[0]
        fitting = [pair for pair in found if not self.build.on_target or ratio(pair) <= limit_us / self.dense_us]
        if not fitting:
            return min(found, key=ratio)[0]
        if not self.build.options.local_search:
            return fitting[-1][0]
        return min(fitting, key=lambda pair: true_loss(self.build, self._network(pair[0])))[0]

    def _limit_us(self) -> float | None:
        """A budget of time, for the whole network; None where the budget is one of accuracy."""
        budget = self.build.budget
        if budget.max_latency_ms:
            return budget.max_latency_ms * 1e3
        return self.dense_us / budget.speedup if budget.speedup else None

    def _as_wanted(self, measured: LatencyRatio) -> bool:
        """Whether the last prediction was right, and a budget of time is kept."""
        limit_us = self._limit_us()
        kept = limit_us is None or measured.ratio <= limit_us / self.dense_us
        return kept and abs(self.predictions[-1].error) <= CLOSE_ENOUGH

    def _race(self, solution: Solution, prices: PriceTable) -> LatencyRatio:
        """The draft's time over dense, measured; what was predicted of it is remembered beside it."""
        changed = solution.changed()
        if shape_of(changed) not in self.races:
            measured = self.races[shape_of(changed)] = draft_race(self.build, changed, solution.groups)
            self.predictions.append(
                Prediction(predicted_us=solution.predicted_us, measured_us=measured.ratio * prices.network_us)
            )
            if not measured.never_slower:
                self.notes.append(f"a plan that changes {len(changed)} layers was measured, and was not faster")
        return self.races[shape_of(changed)]

    def _solve(self, prices: PriceTable) -> Solution:
        """The best solution at these prices; what was built and judged on the way is remembered."""
        budget, offered, limit_us = self.build.budget, self.offered, self._limit_us()
        if limit_us is not None:
            aimed = solve(
                offered.candidates,
                prices,
                budget_us=AIM * limit_us if self.build.on_target else limit_us,
                widths=offered.widths,
            )
            return aimed if aimed.feasible else solve(offered.candidates, prices, budget_us=limit_us, widths=offered.widths)
        assert budget.max_drop is not None
        search = Search(
            candidates=offered.candidates,
            widths=offered.widths,
            prices=prices,
            judge=self._accuracy,
            dense_accuracy=self.build.validation(),
            max_drop=budget.max_drop,
            objective=budget.objective,
            recover_epochs=self.build.options.recover_epochs,
            progress=self.build.watch.progress,
        )
        solution = search.run()
        self.probes |= {(shape_of(each.choices), probe.recovered): probe for each, probe in search.probes}
        return solution

    def _network(self, solution: Solution) -> nn.Module:
        return self.build.compressor.network(solution.changed(), solution.groups)

    def _accuracy(self, solution: Solution, epochs: int) -> Accuracy:
        key = shape_of(solution.choices), epochs
        if key not in self.accuracies:
            network_of = partial(planned_network, self.build) if epochs else self.build.compressor.network
            self.accuracies[key] = accuracy_of(self.build, network_of(solution.changed(), solution.groups))
        return self.accuracies[key]


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
    network = {"collapsed": build.collapsed.weights_sha256, "calibration": calibration_key(build)}
    options = build.options
    written: tuple[object, ...] = (build.opset, build.precision, options.dynamic_batch, options.simplify)
    if build.precision != "fp32":
        written += (options.recover_epochs, allowed_drop(build))
    what = {"draft": shape_of(changed), "written": written, **network}
    return kept_race(build, what, lambda: _raced_draft(build, changed, groups)).ratios[0]


def _raced_draft(build: Build, changed: Sequence[Choice], groups: Sequence[GroupChoice]) -> Receipt:
    folder = build.folder / "draft"
    shutil.rmtree(folder, ignore_errors=True)
    build.watch.progress(0, 1, "racing a draft")
    # In fp32 a layer takes its time whatever its weights are; in a lower precision they decide which layers stay fp32.
    network_of = build.compressor.network if build.precision == "fp32" else partial(planned_network, build)
    artifacts = (
        export(build, network_of(changed, groups), "compressed", folder, metadata={}),
        export_dense(build, folder),
    )
    receipt = race(build.board, folder, artifacts, settings=build.settings, max_seconds=DRAFT_SECONDS, kind=build.kind)
    shutil.rmtree(folder, ignore_errors=True)
    return receipt


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
