"""The picture of accuracy against time: dense, every plan that was built and judged on the way, and the chosen one."""

from __future__ import annotations

from ..records import Accuracy, BuildReport, Probe
from . import svg, words
from .times import TimeUnit, measured_us, plan_unit

HEIGHT = 380.0
LEFT, RIGHT, TOP, BOTTOM = 52.0, 16.0, 38.0, 48.0

LEGEND = (
    ("dense", "dense network"),
    ("kept", "a plan that was built, within the budget"),
    ("lossy", "a plan that was built, too lossy"),
    ("below", "the same, below the picture"),
    ("predicted", "the chosen plan, at its predicted time"),
    ("chosen", "the chosen plan, at its measured time with the 95 % interval"),
)


def marks(report: BuildReport) -> tuple[str, ...]:
    """The shapes that appear, for the legend."""
    found = {"dense", "predicted", *(_shape(probe, _least_shown(report)) for probe in report.plan.probes)}
    if measured_us(report) is not None:
        found.add("chosen")
    return tuple(shape for shape, _ in LEGEND if shape in found)


def tradeoff(report: BuildReport, width: float) -> str:
    """Accuracy on the images the plan was judged by, over the time that was predicted for it."""
    plan, unit = report.plan, plan_unit(report)
    dense, chosen = report.validation["dense"], report.validation["compressed"]
    measured = measured_us(report)
    right = width - RIGHT
    times = [unit.of(plan.dense_us), unit.of(plan.predicted_us), *(unit.of(probe.predicted_us) for probe in plan.probes)]
    if measured is not None:
        times.append(unit.of(measured))
    floor = None if plan.budget.max_drop is None else 100 * dense.value - plan.budget.max_drop
    least = _least_shown(report)
    shares = [_percent(dense), _percent(chosen), *(max(least, _percent(probe.accuracy)) for probe in plan.probes)]
    x = svg.spread_scale(times, LEFT, right)
    y = svg.Scale(*svg.span([*shares, *([] if floor is None else [floor])], 0.12), HEIGHT - BOTTOM, TOP)
    parts = [
        svg.x_axis(x, TOP, HEIGHT - BOTTOM, unit.axis, most=5 if width < 500 else 9),
        svg.y_axis(y, LEFT, right, _judged(dense)),
    ]
    if floor is not None:
        parts.append(svg.line(LEFT, y(floor), right, y(floor), "budget"))
        parts.append(svg.label(right - 4, y(floor) + 15, f"budget: {plan.budget.max_drop:g} points", "end", "budget-text"))
    points = [(unit.of(plan.dense_us), _percent(dense))]
    points += [
        (unit.of(each.predicted_us), _percent(each.accuracy)) for each in plan.probes if _percent(each.accuracy) >= least
    ]
    parts.append(svg.polyline([(x(time), y(share)) for time, share in _staircase(points, x.high)], "frontier"))
    for probe in plan.probes:
        shape = _shape(probe, least)
        at_y = HEIGHT - BOTTOM - 10 if shape == "below" else y(_percent(probe.accuracy))
        tip = f"{words.times(plan.dense_us / probe.predicted_us)} predicted, {words.right(probe.accuracy)}"
        parts.append(svg.mark(shape, x(unit.of(probe.predicted_us)), at_y, tip))
    dense_at = x(unit.of(plan.dense_us)), y(_percent(dense))
    parts.append(_named("dense", "dense", *dense_at, right, words.right(dense)))
    at = x(unit.of(plan.predicted_us)), y(_percent(chosen))
    below = abs(at[1] - dense_at[1]) < 20 and dense_at[0] - at[0] < 150  # there the names would meet
    gain = words.times(plan.dense_us / plan.predicted_us)
    if measured is None:
        said = f"chosen, {gain} {plan.provenance}"
        parts.append(_named("predicted", said, *at, right, words.right(chosen), below))
    else:
        assert report.receipt is not None
        parts.append(svg.mark("predicted", *at, f"predicted {gain}, {words.right(chosen)}"))
        low, high = (x(unit.of(end * plan.dense_us)) for end in report.receipt.ratios[0].ci95)
        if low >= LEFT and high <= right:
            parts.append(svg.line(low, at[1], high, at[1], "interval"))
        said = f"chosen, {words.times(report.receipt.ratios[0].speedup)} measured"
        parts.append(_named("chosen", said, x(unit.of(measured)), at[1], right, words.right(chosen), below))
    return svg.chart(width, HEIGHT, "Accuracy against time", _described(report, unit), *parts)


def _named(shape: str, said: str, x: float, y: float, right: float, tip: str, below: bool = False) -> str:
    """A mark with its name above (or below) it, within the picture."""
    room = svg.text_width(said)
    anchor = "middle"
    if x + room / 2 > right:
        x_text, anchor = right, "end"
    elif x - room / 2 < LEFT:
        x_text, anchor = LEFT + 3, "start"
    else:
        x_text = x
    return svg.mark(shape, x, y, tip) + svg.label(x_text, y + (26 if below else -14), said, anchor, "name")


def _staircase(points: list[tuple[float, float]], end: float) -> list[tuple[float, float]]:
    """The best accuracy that is to be had within each time, from the fastest point to the right edge."""
    path: list[tuple[float, float]] = []
    best = float("-inf")
    for time, share in sorted(points, key=lambda point: (point[0], -point[1])):
        if share > best:
            if path:
                path.append((time, best))
            path.append((time, share))
            best = share
    return [*path, (end, best)]


def _least_shown(report: BuildReport) -> float:
    """Plans far beyond the budget would squeeze those around it into one line: below this they are only pointed at."""
    plan, dense = report.plan, _percent(report.validation["dense"])
    kept = [_percent(probe.accuracy) for probe in plan.probes if probe.accepted] + [_percent(report.validation["compressed"])]
    room = 6 * (plan.budget.max_drop or 0.0) or 100.0
    return min(dense - room, *kept)


def _shape(probe: Probe, least: float) -> str:
    return "kept" if probe.accepted else "lossy" if _percent(probe.accuracy) >= least else "below"


def _percent(found: Accuracy) -> float:
    return 100 * found.value


def _judged(found: Accuracy) -> str:
    what = {"accuracy": "right answers", "agreement": "agreement with dense", "score": "score x 100"}[found.metric]
    return what if found.metric == "score" else f"{what} on {found.total:,} {found.split} images, %"


def _described(report: BuildReport, unit: TimeUnit) -> str:
    plan = report.plan
    return (
        f"{unit.axis}. Dense: {unit.said(plan.dense_us)}, {words.right(report.validation['dense'])}. "
        f"Chosen: {unit.said(plan.predicted_us)} predicted, {words.right(report.validation['compressed'])}. "
        f"{len(plan.probes)} plans were built and judged."
    )
