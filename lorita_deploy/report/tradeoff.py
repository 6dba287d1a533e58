"""The picture of accuracy against time: dense, every plan that was built and judged on the way, and the chosen one."""

from __future__ import annotations

from ..records import Accuracy, BuildReport, Probe
from . import svg, words
from .times import TimeUnit, measured_us, plan_unit, probe_us

HEIGHT = 380.0
LEFT, RIGHT, TOP, BOTTOM = 52.0, 16.0, 38.0, 54.0

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
    plan, unit, least = report.plan, plan_unit(report), _least_shown(report)
    dense, chosen = report.validation["dense"], report.validation["compressed"]
    measured, right, bottom = measured_us(report), width - RIGHT, HEIGHT - BOTTOM
    times = [plan.dense_us, plan.predicted_us, measured or plan.dense_us, *(probe_us(plan, probe)[0] for probe in plan.probes)]
    shares = [_percent(dense), _percent(chosen), *(max(least, _percent(probe.accuracy)) for probe in plan.probes)]
    floor = None if plan.budget.max_drop is None else 100 * dense.value - plan.budget.max_drop
    x = svg.spread_scale([unit.of(us) for us in times], LEFT, right)
    y = svg.Scale(*svg.span(shares if floor is None else [*shares, floor], 0.12), bottom, TOP)
    names = _Names(right)
    parts = [
        svg.x_axis(x, TOP, bottom, unit.axis, most=5 if width < 500 else 9),
        svg.y_axis(y, LEFT, right, names.taking(_judged(dense), 2, TOP - 12)),
    ]
    # Where networks are recovered, what was too lossy as it was cut is nothing to be had.
    recovering = any(each.recovered for each in plan.probes)
    final = [each for each in plan.probes if each.accepted or each.recovered or not recovering]
    points = [(plan.dense_us, _percent(dense)), *((probe_us(plan, each)[0], _percent(each.accuracy)) for each in final)]
    stairs = _staircase([(unit.of(us), share) for us, share in points if share >= least], x.high)
    parts.append(svg.polyline([(x(time), y(share)) for time, share in stairs], "frontier"))
    for probe in plan.probes:
        shape = _shape(probe, least)
        at_y = bottom - 10 if shape == "below" else y(_percent(probe.accuracy))
        us, known = probe_us(plan, probe)
        tip = f"{words.times(plan.dense_us / us)} {'measured' if known else 'predicted'}, {words.judged(probe)}"
        parts.append(svg.mark(shape, x(unit.of(us)), at_y, tip))
    at = x(unit.of(plan.dense_us)), y(_percent(dense))
    parts += [svg.mark("dense", *at, words.right(dense)), names.put("dense", *at)]
    at, gain = (x(unit.of(plan.predicted_us)), y(_percent(chosen))), words.times(plan.dense_us / plan.predicted_us)
    parts.append(svg.mark("predicted", *at, f"predicted {gain}, {words.right(chosen)}"))
    said = f"chosen, {gain} {plan.provenance}"
    if measured is not None and report.receipt is not None:
        low, high = (x(unit.of(end * plan.dense_us)) for end in report.receipt.ratios[0].ci95)
        at, said = (x(unit.of(measured)), at[1]), f"chosen, {words.times(report.receipt.ratios[0].speedup)} measured"
        parts.append(svg.line(max(low, LEFT), at[1], min(high, right), at[1], "interval"))
        parts.append(svg.mark("chosen", *at, words.right(chosen)))
    parts.append(names.put(said, *at))
    if floor is not None:
        parts.append(svg.line(LEFT, y(floor), right, y(floor), "budget"))
        parts.append(
            names.put(f"budget: {plan.budget.max_drop:g} points", right, y(floor), "budget-text", (15, -6), (right, LEFT))
        )
    return svg.chart(width, HEIGHT, "Accuracy against time", _described(report, unit), *parts)


class _Names:
    """Puts names where they cover no other."""

    def __init__(self, right: float) -> None:
        self.right = right
        self.taken: list[tuple[float, float, float]] = []
        """(left end, right end, base line)"""

    def taking(self, said: str, x: float, y: float) -> str:
        """``said``, which will be written from ``x`` on by somebody else."""
        self.taken.append((x, x + svg.text_width(said), y))
        return said

    def put(
        self,
        said: str,
        x: float,
        y: float,
        class_: str = "name",
        offsets: tuple[int, ...] = (-14, 26, -32),
        others: tuple[float, ...] = (),
    ) -> str:
        """A label about ``x``, at the first free of ``offsets`` from ``y``; at one of ``others`` where there is none."""
        half = svg.text_width(said) / 2
        spots = [
            (min(max(place, LEFT + half + 3), self.right - half - 3), y + off) for place in (x, *others) for off in offsets
        ]
        free = (spot for spot in spots if TOP - 4 <= spot[1] <= HEIGHT - BOTTOM - 4 and not self._covers(*spot, half))
        middle, base = next(free, spots[0])
        self.taken.append((middle - half, middle + half, base))
        return svg.label(middle, base, said, "middle", class_)

    def _covers(self, x: float, y: float, half: float) -> bool:
        return any(abs(y - base) < 16 and x + half + 4 > left and x - half - 4 < right for left, right, base in self.taken)


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
    what = words.JUDGED[found.metric]
    return what if found.metric == "score" else f"{what} on {found.total:,} {found.split} images, %"


def _described(report: BuildReport, unit: TimeUnit) -> str:
    plan = report.plan
    return (
        f"{unit.axis}. Dense: {unit.said(plan.dense_us)}, {words.right(report.validation['dense'])}. "
        f"Chosen: {unit.said(plan.predicted_us)} predicted, {words.right(report.validation['compressed'])}. "
        f"{len(plan.probes)} plans were built and judged."
    )
