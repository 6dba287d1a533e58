"""A Pareto front for people: a table, Markdown, and a picture that stands alone."""

from __future__ import annotations

from ..records import FrontPoint, ParetoFront
from . import svg, words
from .markdown import drawn
from .table import Table

WIDTH, HEIGHT = 720.0, 400.0
LEFT, RIGHT, TOP, BOTTOM = 60.0, 24.0, 40.0, 60.0
STYLE = (
    "svg{background:#fff;font:12px system-ui,sans-serif;color:#222}text{fill:#333}.grid{stroke:#ddd}.axis{stroke:#666}"
    ".mark{fill:#1d6fb8;stroke:#1d6fb8}.lossy{fill:none;stroke:#999;stroke-width:2}.dense{fill:#444;stroke:#444}"
    ".frontier{fill:none;stroke:#1d6fb8;stroke-width:1.5}.axis-title{font-weight:600}"
)


HEADING = {"accuracy": ">Right", "agreement": ">Agrees with dense", "score": ">Score x 100"}


def table(front: ParetoFront) -> Table:
    """One row for each plan, dense last."""
    rows = [_row(front, point) for point in front.points]
    rows.append(("dense", "1.00x", *_accuracy(front, front.dense.correct), "0", "0"))
    note = f"Times are {front.provenance}; {words.JUDGED[front.dense.metric]} on {_judged_on(front)}."
    if front.recover_epochs:
        note += f" Each network was distilled from the dense one for {front.recover_epochs} epochs."
    columns = ("", ">Faster", HEADING[front.dense.metric], ">Points lost", ">Layers changed", ">Groups narrower")
    return Table(f"{front.model} for {front.target}: accuracy against time", columns, tuple(rows), note)


def markdown(front: ParetoFront) -> str:
    """The text of ``pareto.md``."""
    found = table(front)
    return f"# {found.title}\n\n{drawn(found)}\n"


def picture(front: ParetoFront) -> str:
    """The text of ``pareto.svg``: right answers (or what else was judged) over the time relative to dense."""
    times = [point.predicted_us / front.dense_us for point in front.points] + [1.0]
    shares = [100 * point.accuracy.value for point in front.points] + [100 * front.dense.value]
    x = svg.spread_scale(times, LEFT, WIDTH - RIGHT)
    y = svg.Scale(*svg.span(shares, 0.08), HEIGHT - BOTTOM, TOP)
    best = [(point.predicted_us / front.dense_us, 100 * point.accuracy.value) for point in front.points if point.best]
    percent = "" if front.dense.metric == "score" else ", %"
    parts = [
        svg.element("style", STYLE),
        svg.x_axis(x, TOP, HEIGHT - BOTTOM, f"time of a call relative to dense, {front.provenance}"),
        svg.y_axis(y, LEFT, WIDTH - RIGHT, f"{words.JUDGED[front.dense.metric]} on {_judged_on(front)}{percent}"),
        svg.polyline([(x(time), y(share)) for time, share in best], "frontier"),
    ]
    for point, time, share in zip(front.points, times, shares, strict=False):
        said = f"{words.times(front.dense_us / point.predicted_us)} {front.provenance}, {words.right(point.accuracy)}"
        parts.append(svg.mark("kept" if point.best else "lossy", x(time), y(share), said))
    parts.append(svg.mark("dense", x(1.0), y(100 * front.dense.value), f"dense, {words.right(front.dense)}"))
    title = f"{front.model} for {front.target}: accuracy against time"
    drawn = svg.chart(WIDTH, HEIGHT, title, table(front).note, *parts)
    return drawn.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1) + "\n"


def _row(front: ParetoFront, point: FrontPoint) -> tuple[str, ...]:
    return (
        "best" if point.best else "",
        words.times(front.dense_us / point.predicted_us),
        *_accuracy(front, point.accuracy.correct),
        str(len(point.choices)),
        str(len(point.groups)),
    )


def _accuracy(front: ParetoFront, correct: float) -> tuple[str, str]:
    lost = 100 * (front.dense.correct - correct) / front.dense.total
    unit = "" if front.dense.metric == "score" else " %"
    return f"{100 * correct / front.dense.total:.2f}{unit}", f"{lost:.2f}"


def _judged_on(front: ParetoFront) -> str:
    found = front.dense
    return f"{found.split} data" if found.metric == "score" else f"{found.total:,} {found.split} images"
