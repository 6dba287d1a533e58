"""Two receipts side by side: what changed, by how much, and whether they may be compared at all."""

from __future__ import annotations

import math

from ..records import Change, Comparison, LatencySeries, Receipt

BYSTANDERS = ("lorita-deploy", "onnx", "torch")
"""Packages whose version takes no part while an artifact is timed."""


def compare(before: Receipt, after: Receipt, *, names: tuple[str, str] = ("A", "B"), tolerance: float = 0.05) -> Comparison:
    """Every artifact that both receipts timed, ``after`` over ``before``.

    The runs were not interleaved, so the interval is that of a ratio of two independent medians (`ratio_interval`); a drift
    of the machine between the runs is not in it.
    """
    series = {each.name: each for each in after.series}
    changes = [_change(each, series[each.name], tolerance) for each in before.series if each.name in series]
    return Comparison(
        before=names[0],
        after=names[1],
        tolerance=tolerance,
        differences=tuple(environment_differences(before, after)),
        changes=tuple(changes),
    )


def environment_differences(before: Receipt, after: Receipt) -> list[str]:
    """What about host and settings is not the same, each as ``what: A -> B``."""
    pairs = {
        "machine": (before.host.machine, after.host.machine),
        "cores": (before.host.cores, after.host.cores),
        "system": (before.host.system, after.host.system),
        **{key: (value, getattr(after.settings, key)) for key, value in before.settings.model_dump().items()},
    }
    versions = (before.host.versions, after.host.versions)
    for package in sorted({*versions[0], *versions[1]} - {*BYSTANDERS}):
        pairs[package] = (versions[0].get(package, "none"), versions[1].get(package, "none"))
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


def _change(before: LatencySeries, after: LatencySeries, tolerance: float) -> Change:
    low, high = ratio_interval(before.median_ms, before.median_ci95_ms, after.median_ms, after.median_ci95_ms)
    change = after.median_ms / before.median_ms - 1
    if low <= 1 <= high:
        verdict = "same"
    elif high < 1:
        verdict = "faster"
    else:
        verdict = "regression" if change > tolerance else "slower"
    return Change(
        name=before.name,
        before_ms=before.median_ms,
        after_ms=after.median_ms,
        change=change,
        ci95=(low - 1, high - 1),
        verdict=verdict,  # type: ignore[arg-type]
    )
