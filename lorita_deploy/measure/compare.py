"""Two receipts side by side: what changed, by how much, and whether they may be compared at all."""

from __future__ import annotations

import math

from ..errors import PlanMismatch
from ..records import Change, Comparison, GpuTimes, LatencySeries, Receipt

BYSTANDERS = ("lorita-deploy", "onnx", "torch")
"""Packages whose version takes no part while an artifact is timed."""


def compare(before: Receipt, after: Receipt, *, names: tuple[str, str] = ("A", "B"), tolerance: float = 0.05) -> Comparison:
    """Every artifact that both receipts timed, ``after`` over ``before``.

    The runs were not interleaved, so the interval is that of a ratio of two independent medians (`ratio_interval`); a drift
    of the machine between the runs is not in it. Raises `PlanMismatch` for receipts of two models, or with no artifact in
    common.
    """
    if before.model and after.model and before.model != after.model:
        raise PlanMismatch(
            f"{names[0]} is of {before.model}, {names[1]} of {after.model}: times of two models say nothing of one another",
            where=" and ".join(names),
            fix="compare two receipts of the same model",
        )
    first, second = _medians(before), _medians(after)
    if not first.keys() & second.keys():
        raise PlanMismatch(
            f"no artifact is in both: {', '.join(first)} against {', '.join(second)}",
            where=" and ".join(names),
            fix="compare two receipts of the same artifacts",
        )
    changes = [_change(name, first[name], second[name], tolerance) for name in first if name in second]
    return Comparison(
        before=names[0],
        after=names[1],
        tolerance=tolerance,
        differences=tuple(environment_differences(before, after)),
        changes=tuple(changes),
        unmatched=tuple(name for name in (*first, *second) if (name in first) != (name in second)),
    )


def _medians(receipt: Receipt) -> dict[str, LatencySeries | GpuTimes]:
    """What can be compared, by the name it goes under."""
    found: dict[str, LatencySeries | GpuTimes] = {}
    for each in receipt.series:
        found[each.name] = each
        if each.gpu:
            found[f"{each.name} (GPU alone)"] = each.gpu
    return found


def environment_differences(before: Receipt, after: Receipt) -> list[str]:
    """What about host, settings, power mode and clock limits is not the same, each as ``what: A -> B``."""
    pairs = {
        "machine": (before.host.machine, after.host.machine),
        "cores": (before.host.cores, after.host.cores),
        "system": (before.host.system, after.host.system),
        **{key: (value, getattr(after.settings, key)) for key, value in before.settings.model_dump().items()},
    }
    versions = (before.host.versions, after.host.versions)
    for package in sorted({*versions[0], *versions[1]} - {*BYSTANDERS}):
        pairs[package] = (versions[0].get(package, "none"), versions[1].get(package, "none"))
    if before.conditions and after.conditions:  # else one of them is from before these were recorded
        for what in sorted({*before.environment, *after.environment}):
            pairs[what] = (before.environment.get(what, "unknown"), after.environment.get(what, "unknown"))
    return [f"{what}: {a} -> {b}" for what, (a, b) in pairs.items() if a != b]


def ratio_interval(
    before: float, before_ci95: tuple[float, float], after: float, after_ci95: tuple[float, float]
) -> tuple[float, float]:
    """95 % interval of after / before from the two intervals, by MOVER on the logarithms (Zou and Donner, 2008):
    distances from the estimate to the relevant ends, added in quadrature."""
    estimate = math.log(after / before)
    down = math.hypot(math.log(after / after_ci95[0]), math.log(before_ci95[1] / before))
    up = math.hypot(math.log(after_ci95[1] / after), math.log(before / before_ci95[0]))
    return math.exp(estimate - down), math.exp(estimate + up)


def _change(name: str, before: LatencySeries | GpuTimes, after: LatencySeries | GpuTimes, tolerance: float) -> Change:
    low, high = ratio_interval(before.median_ms, before.median_ci95_ms, after.median_ms, after.median_ci95_ms)
    change = after.median_ms / before.median_ms - 1
    if low <= 1 <= high:
        verdict = "same"
    elif high < 1:
        verdict = "faster"
    else:
        verdict = "regression" if change > tolerance else "slower"
    return Change(
        name=name,
        before_ms=before.median_ms,
        after_ms=after.median_ms,
        change=change,
        ci95=(low - 1, high - 1),
        verdict=verdict,  # type: ignore[arg-type]
    )
