"""The unit in which a plan's times may be shown: an estimate never appears in a unit of time."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..records import BuildReport, Plan, Probe
from . import shipped, svg


@dataclass(frozen=True)
class TimeUnit:
    """Microseconds times ``factor`` are in the unit ``name``."""

    factor: float
    name: str
    axis: str
    """Title of an axis in this unit, provenance included."""

    def of(self, us: float) -> float:
        return us * self.factor

    def said(self, us: float, signed: bool = False) -> str:
        shown = svg.number(abs(self.of(us)) if signed else self.of(us))
        sign = ("−" if us < 0 else "+") if signed else ""
        return f"{sign}{shown} {self.name}"


def plan_unit(report: BuildReport) -> TimeUnit:
    """That of the report's plan."""
    plan = report.plan
    if plan.provenance == "estimated":
        return TimeUnit(100 / plan.dense_us, "%", f"time on {report.target}, % of dense, ESTIMATED")
    return _by_size(plan.dense_us, f"time of one call on {report.target}", f", {plan.provenance}")


def receipt_unit(largest_ms: float, kind: str) -> TimeUnit:
    """That of a receipt's samples."""
    return _by_size(1e3 * largest_ms, f"time of one call on {kind}", ", measured")


def _by_size(us: float, what: str, how: str) -> TimeUnit:
    name, factor = ("ms", 1e-3) if us >= 1e3 else ("µs", 1.0)
    return TimeUnit(factor, name, f"{what}, {name}{how}")


def probe_us(plan: Plan, probe: Probe) -> tuple[float, bool]:
    """The time of a plan that was built on the way, and whether it was measured: what was predicted of it at the prices of its
    round need not be comparable to what was predicted later, after a race had put the prices right."""
    for each in plan.predictions:
        if math.isclose(each.predicted_us, probe.predicted_us, rel_tol=1e-9):
            return each.measured_us, True
    return probe.predicted_us, False


def measured_us(report: BuildReport) -> float | None:
    """What the compressed network took in the race on the target itself, as the plan counts: the ratio of the race times
    the dense network's time. None where the target was not timed."""
    if report.provenance != "measured" or report.receipt is None or not shipped.raced_there(report):
        return None
    return report.receipt.ratios[0].ratio * report.plan.dense_us
