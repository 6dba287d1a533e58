"""Pictures of dense against compressed: the distribution of every timed call, and memory and size."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..records import BuildReport, LatencySeries, Receipt
from . import shipped, svg, words
from .times import TimeUnit, receipt_unit

LEFT, RIGHT = 12.0, 12.0
RIDGE, GAP, TOP, BOTTOM = 74.0, 34.0, 30.0, 54.0
BINS = 72
BEYOND = 0.995
"""The slowest calls, beyond this share, are counted in words; they would squeeze the rest."""


def distributions(receipt: Receipt, width: float) -> str:
    """One histogram under the other on one axis, the median and its interval marked."""
    series = sorted(receipt.series, key=lambda each: not each.name.startswith("dense"))
    shown = {each.name: sorted(each.samples_ms)[: max(1, round(BEYOND * len(each.samples_ms)))] for each in series}
    ends = [value for values in shown.values() for value in (values[0], values[-1])]
    unit = receipt_unit(max(each.median_ms for each in series), receipt.host.kind)
    x = svg.spread_scale([unit.of(1e3 * value) for value in ends], LEFT, width - RIGHT)
    height = TOP + len(series) * (RIDGE + GAP) + BOTTOM - GAP + 10
    parts = [svg.x_axis(x, TOP - 8, height - BOTTOM, unit.axis, most=5 if width < 500 else 9)]
    for place, each in enumerate(series):
        base = TOP + (RIDGE + GAP) * place + RIDGE
        parts.append(_ridge(each, shown[each.name], x, base, unit, width))
    described = "; ".join(f"{each.name}: median {unit.said(1e3 * each.median_ms)}, {each.n:,} samples" for each in series)
    return svg.chart(width, height, "Distribution of the timed calls", described, *parts)


def _ridge(each: LatencySeries, values: Sequence[float], x: svg.Scale, base: float, unit: TimeUnit, width: float) -> str:
    kind = "dense" if each.name.startswith("dense") else "measured"
    size = (x.end - x.start) / BINS
    counts = [0] * BINS
    for value in values:
        counts[min(BINS - 1, max(0, int((x(unit.of(1e3 * value)) - x.start) / size)))] += 1
    tallest = max(counts)
    first = next(place for place, count in enumerate(counts) if count)
    last = next(place for place in reversed(range(BINS)) if counts[place])
    outline = [(x.start + first * size, base)]
    for place in range(first, last + 1):
        top = base - RIDGE * counts[place] / tallest
        outline += [(x.start + place * size, top), (x.start + (place + 1) * size, top)]
    outline.append((x.start + (last + 1) * size, base))
    points = " ".join(f"{a:.1f},{b:.1f}" for a, b in outline)
    middle = x(unit.of(1e3 * each.median_ms))
    low, high = (min(max(x(unit.of(1e3 * end)), x.start), x.end) for end in each.median_ci95_ms)
    said = f"{each.name}: median {unit.said(1e3 * each.median_ms)}"
    beyond = each.n - len(values)
    tail = f", {beyond} of {each.n:,} calls beyond the axis" if beyond else f", {each.n:,} calls"
    whole = said + tail if svg.text_width(said + tail) < width - 20 else said
    on_right = middle > (x.start + x.end) / 2
    at = min(x.end, max(middle, x.start + svg.text_width(whole))) if on_right else middle
    at = at if on_right or middle + svg.text_width(whole) < x.end else x.end - svg.text_width(whole)
    return (
        svg.element("polygon", svg.element("title", svg.escape(said + tail)), points=points, class_=f"ridge {kind}")
        + svg.line(x.start, base, x.end, base, "axis")
        + svg.line(middle, base - RIDGE - 4, middle, base + 5, "median")
        + svg.line(low, base + 5, high, base + 5, "interval")
        + svg.label(at, base - RIDGE - 9, whole, "end" if on_right else "start", "name")
    )


def sizes(report: BuildReport, width: float) -> str:
    """What ships as a share of dense: parameters, multiply-adds, file, peak memory, loading."""
    rows = size_rows(report)
    labels = [(said_dense, f"{said_other}, {_factor(dense / other)}") for _, dense, other, said_dense, said_other in rows]
    names, row, top = 104.0, 42.0, 6.0
    room = width - names - max((svg.text_width(said) for pair in labels for said in pair), default=0.0) - 10
    parts = []
    for place, ((name, dense, other, *_), said) in enumerate(zip(rows, labels, strict=True)):
        y, most = top + row * place, max(dense, other)
        parts.append(svg.label(names - 10, y + 20, name, "end", "row"))
        for offset, kind, value, text in ((0.0, "dense", dense, said[0]), (15.0, "measured", other, said[1])):
            length = max(2.0, room * value / most)
            parts.append(svg.rectangle(names, y + 2 + offset, length, 13, f"bar {kind}", f"{name}: {text}"))
            parts.append(svg.label(names + length + 6, y + 13 + offset, text, "start", "value"))
    described = "; ".join(f"{name}: dense {before}, shipped {after}" for name, _, _, before, after in rows)
    return svg.chart(width, top + row * len(rows), "Memory and size, dense above shipped", described, *parts)


def size_rows(report: BuildReport) -> list[tuple[str, float, float, str, str]]:
    """(name, dense, shipped, dense in words, shipped in words); what is unknown of either is left out."""
    found: list[tuple[str, float | None, float | None, Callable[[float], str]]] = [
        ("parameters", *report.params, words.amount),
        ("multiply-adds", *report.macs, words.amount),
    ]
    if files := shipped.artifacts(report):
        found.append(("file", files[0].size_bytes, files[1].size_bytes, words.size))
    if pair := shipped.series(report):
        before, after = pair
        found.append(("peak memory", before.peak_memory_bytes, after.peak_memory_bytes, words.size))
        found.append(("first answer", before.first_ms, after.first_ms, _milliseconds))
    return [(name, dense, other, said(dense), said(other)) for name, dense, other, said in found if dense and other]


def _factor(ratio: float) -> str:
    """Of dense over shipped."""
    if 0.995 < ratio < 1.005:
        return "the same"
    return f"÷ {words.number(ratio)}" if ratio > 1 else f"× {words.number(1 / ratio)}"


def _milliseconds(value: float) -> str:
    return f"{words.number(value)} ms"
