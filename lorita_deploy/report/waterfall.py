"""The picture of where the time went: from the dense network, layer by layer, to what was predicted and what was measured."""

from __future__ import annotations

from dataclasses import dataclass

from ..records import BuildReport
from . import svg, words
from .table import Table
from .times import TimeUnit, measured_us, plan_unit

MOST = 20
"""Layers with a row of their own; the smaller changes of larger networks are drawn as one."""
ROW = 23.0
TOP, BOTTOM = 26.0, 54.0


@dataclass(frozen=True)
class Step:
    """One row: a total that starts at zero, or a change of the running total."""

    name: str
    us: float
    kind: str
    """``dense``, ``predicted`` or ``measured`` (totals), ``change`` or ``unforeseen``."""
    becomes: str = ""
    """A layer's new form."""

    @property
    def changes(self) -> bool:
        return self.kind in ("change", "unforeseen")

    @property
    def look(self) -> str:
        """Class of its bar: a total's kind, else whether time was saved or paid back."""
        return self.kind if not self.changes else "gain" if self.us <= 0 else "loss"


def steps(report: BuildReport) -> list[Step]:
    """From dense to what was predicted, and on to what was measured where the target was timed."""
    plan = report.plan
    changed = [choice for choice in plan.changed() if choice.us != choice.dense_us]
    largest = sorted(changed, key=lambda choice: -abs(choice.us - choice.dense_us))[:MOST]
    shown = [choice for choice in changed if choice in largest]
    found = [Step("dense", plan.dense_us, "dense")]
    found += [Step(choice.layer, choice.us - choice.dense_us, "change", words.becomes(choice)) for choice in shown]
    if more := len(changed) - len(shown):
        change = sum(choice.us - choice.dense_us for choice in changed if choice not in largest)
        found.append(Step(f"{more} more layer{'s' if more > 1 else ''}", change, "change"))
    between = plan.predicted_us - sum(step.us for step in found)
    if abs(between) > 1e-3 * plan.dense_us:
        found.append(Step("between layers", between, "change"))
    found.append(Step("predicted", plan.predicted_us, "predicted"))
    measured = measured_us(report)
    if measured is not None:
        found.append(Step("layout, launches", measured - plan.predicted_us, "unforeseen"))
        found.append(Step("measured", measured, "measured"))
    return found


def waterfall(report: BuildReport, width: float) -> str:
    """Horizontal bars, one row a step, its time at the right."""
    found, unit = steps(report), plan_unit(report)
    wide = width > 500
    most = (0.45 if 500 < width < 800 else 0.38) * width  # names with their forms need room, bars scale
    short = svg.distinct([step.name for step in found if step.becomes], most - (130 if wide else 10))
    labels = [short.get(step.name, step.name) + (f" · {step.becomes}" if wide and step.becomes else "") for step in found]
    names = min(max(map(svg.text_width, labels)) + 10, most)
    values = max(svg.text_width(unit.said(step.us, signed=True)) for step in found) + 12
    height = TOP + ROW * len(found) + BOTTOM
    running, ends = 0.0, []
    for step in found:
        start = running if step.changes else 0.0
        running = start + step.us
        ends.append((start, running))
    low, high = min(0.0, *map(min, ends)), max(map(max, ends))
    x = svg.Scale(unit.of(low), unit.of(high), names, width - values)
    parts = [svg.x_axis(x, TOP, height - BOTTOM, unit.axis, most=8 if wide else 4)]
    for place, (step, (start, end)) in enumerate(zip(found, ends, strict=True)):
        y = TOP + ROW * place
        from_x, to_x = sorted((x(unit.of(start)), x(unit.of(end))))
        said = unit.said(step.us, signed=step.changes)
        parts.append(svg.label(names - 8, y + 15, svg.shortened(labels[place], names - 10), "end", "row"))
        parts.append(
            svg.rectangle(from_x, y + 4, max(1.0, to_x - from_x), ROW - 8, f"bar {step.look}", f"{labels[place]}: {said}")
        )
        if place + 1 < len(found):
            at = x(unit.of(end))
            parts.append(svg.line(at, y + ROW - 4, at, y + ROW + 4, "link"))
        parts.append(svg.label(width - 4, y + 15, said, "end", f"value {step.look}"))
    title = "Where the time went"
    return svg.chart(width, height, title, "; ".join(f"{step.name}: {unit.said(step.us)}" for step in found), *parts)


def table(report: BuildReport) -> Table:
    """The same figures."""
    unit = plan_unit(report)
    rows = [(step.name, step.becomes, _figure(step, unit)) for step in steps(report)]
    return Table("Where the time went", ("step", "becomes", f">{unit.name}"), tuple(rows), f"times {report.plan.provenance}")


def _figure(step: Step, unit: TimeUnit) -> str:
    return unit.said(step.us, signed=step.changes).removesuffix(f" {unit.name}")
