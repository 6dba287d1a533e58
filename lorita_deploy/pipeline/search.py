"""The loops that go back: bisect on the time budget with true accuracy.

Predicted loss only ranks; what a plan really costs is found by building it and counting right answers on the validation
split. The budget between the fastest plan and the dense network is bisected on a logarithmic scale; every plan that was
built stands in the `Plan` as a `Probe`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from ..compress.plan import Objective, Solution, dense, fastest, solve
from ..records import Accuracy, Candidate, PriceTable, Probe, WidthOffer

MOST_PROBES = 9
RESOLUTION = 1.01
"""Eight steps of bisection resolve a ten-fold speed-up to 1 %; the staircase of aligned ranks is coarser than that."""
MOST_RECOVERIES = 5
"""Each is a training. They resolve a four-fold range to 5 %."""


@dataclass
class Search:
    """The fastest plan that loses at most ``max_drop`` points, and how it was found."""

    candidates: tuple[Candidate, ...]
    widths: tuple[WidthOffer, ...]
    prices: PriceTable
    judge: Callable[[Solution, int], Accuracy]
    """Of a plan's network after so many epochs of recovery; 0: as it is cut."""
    dense_accuracy: Accuracy
    max_drop: float
    objective: Objective = "latency"
    recover_epochs: int = 0
    progress: Callable[[float, float, str], None] = lambda done, total, text: None
    probes: list[tuple[Solution, Probe]] = field(default_factory=list)

    def run(self) -> Solution:
        """Bisect on the cost (microseconds, or a count for other objectives). The dense network is always acceptable.

        Recovery is tried only on plans beyond the fastest that needs none.
        """
        best = dense(self.candidates, self.prices, self.objective, self.widths)
        quickest = fastest(self.candidates, self.prices, self.objective, self.widths)
        if self._accepts(quickest.cost, quickest, 0):
            return quickest
        best = self._bisect(quickest.cost, best, 0, MOST_PROBES - 1)
        if not self.recover_epochs:
            return best
        return self._bisect(quickest.cost, best, self.recover_epochs, MOST_RECOVERIES)

    def _bisect(self, low: float, best: Solution, epochs: int, most: int) -> Solution:
        """The fastest acceptable plan between the cost ``low`` and ``best``, after judging ``most`` plans."""
        high = best.cost
        for _ in range(most):
            if high / low <= RESOLUTION:
                break
            middle = math.sqrt(low * high)
            solution = solve(self.candidates, self.prices, budget_us=middle, objective=self.objective, widths=self.widths)
            if self._accepts(middle, solution, epochs):
                best, high = solution, min(middle, solution.cost)
            else:
                low = middle
        return best

    def _accepts(self, budget: float, solution: Solution, epochs: int) -> bool:
        said = f"{self.prices.network_us / solution.predicted_us:.2f}x predicted" + (", recovering" if epochs else "")
        self.progress(len(self.probes), MOST_PROBES + (MOST_RECOVERIES if self.recover_epochs else 0), said)
        found = self.judge(solution, epochs)
        accepted = found.value >= self.dense_accuracy.value - self.max_drop / 100 - 1e-12
        probe = Probe(
            budget_us=budget if self.objective == "latency" else solution.predicted_us,
            predicted_us=solution.predicted_us,
            predicted_loss=solution.predicted_loss,
            accuracy=found,
            accepted=accepted,
            recovered=epochs,
        )
        self.probes.append((solution, probe))
        return accepted
