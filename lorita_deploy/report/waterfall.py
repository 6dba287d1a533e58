"""The picture of where the time went: from the dense network, layer by layer, to what was predicted and what was measured."""

from __future__ import annotations

from dataclasses import dataclass

from ..records import BuildReport, Choice
from . import svg, words
from .table import Table
from .times import TimeUnit, measured_us, plan_unit

MOST = 20
"""Layers with a row of their own; the smaller changes of larger networks are drawn as one."""
ROW = 23.0
TOP, BOTTOM, VALUES = 26.0, 48.0, 82.0


@dataclass(frozen=True)
class Step:
    """One row: a total that starts at zero, or a change of the running total."""

    name: str
    us: float
    kind: str
    """``dense``, ``predicted`` or ``measured`` (totals), ``change`` or ``unforeseen``."""


def steps(report: BuildReport) -> list[Step]:
    """From dense to what was predicted, and on to what was measured where the target was timed."""
    plan = report.plan
    changed = [choice for choice in plan.changed() if choice.us != choice.dense_us]
    largest = sorted(changed, key=lambda choice: -abs(choice.us - choice.dense_us))[:MOST]
    shown = [choice for choice in changed if choice in largest]
    found = [Step("dense network", plan.dense_us, "dense")]
    found += [Step(f"{choice.layer} · {_becomes(choice)}", choice.us - choice.dense_us, "change") for choice in shown]
    if more := len(changed) - len(shown):
        change = sum(choice.us - choice.dense_us for choice in changed if choice not in largest)
        found.append(Step(f"{more} more layer{'s' if more > 1 else ''}", change, "change"))
    between = plan.predicted_us - sum(step.us for step in found)
    if abs(between) > 1e-3 * plan.dense_us:
        found.append(Step("between layers, as priced", between, "change"))
    found.append(Step("predicted", plan.predicted_us, "predicted"))
    measured = measured_us(report)
    if measured is not None:
        found.append(Step("layout, launches, the rest", measured - plan.predicted_us, "unforeseen"))
        found.append(Step("compressed, measured", measured, "measured"))
    return found


def waterfall(report: BuildReport, width: float) -> str:
    """Horizontal bars, one row a step, its time at the right."""
    found, unit = steps(report), plan_unit(report)
    names = min(max(svg.text_width(step.name) for step in found) + 10, 0.36 * width)
    height = TOP + ROW * len(found) + BOTTOM
    running, ends = 0.0, []
    for step in found:
        start = running if step.kind in ("change", "unforeseen") else 0.0
        running = start + step.us
        ends.append((start, running))
    low, high = min(0.0, *map(min, ends)), max(map(max, ends))
    x = svg.Scale(unit.of(low), unit.of(high), names, width - VALUES)
    parts = [svg.x_axis(x, TOP, height - BOTTOM, unit.axis, most=4 if width < 500 else 8)]
    for place, (step, (start, end)) in enumerate(zip(found, ends, strict=True)):
        y = TOP + ROW * place
        from_x, to_x = sorted((x(unit.of(start)), x(unit.of(end))))
        change = step.kind in ("change", "unforeseen")
        said = unit.said(step.us, signed=change)
        kind = ("gain" if step.us <= 0 else "loss") if change else step.kind
        parts.append(svg.label(names - 8, y + 15, svg.shortened(step.name, names - 10), "end", "row"))
        parts.append(svg.rectangle(from_x, y + 4, max(1.0, to_x - from_x), ROW - 8, f"bar {kind}", f"{step.name}: {said}"))
        if place + 1 < len(found):
            at = x(unit.of(end))
            parts.append(svg.line(at, y + ROW - 4, at, y + ROW + 4, "link"))
        parts.append(svg.label(width - 4, y + 15, said, "end", f"value {kind}"))
    title = "Where the time went"
    return svg.chart(width, height, title, "; ".join(f"{step.name}: {unit.said(step.us)}" for step in found), *parts)


def table(report: BuildReport) -> Table:
    """The same figures."""
    unit = plan_unit(report)
    rows = [(step.name, _figure(step, unit)) for step in steps(report)]
    return Table("Where the time went", ("step", f">{unit.name}"), tuple(rows), f"times {report.plan.provenance}")


def _figure(step: Step, unit: TimeUnit) -> str:
    return unit.said(step.us, signed=step.kind in ("change", "unforeseen")).removesuffix(f" {unit.name}")


def _becomes(choice: Choice) -> str:
    return f"{choice.form} {words.rank(choice)}" if choice.form != "dense" else "dense"
