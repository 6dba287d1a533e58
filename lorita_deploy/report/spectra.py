"""Small pictures of the layers' singular values, each with the cut drawn in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..records import BuildReport, Choice, Layer
from . import svg, words

WIDTH, HEIGHT = 196.0, 142.0
LEFT, RIGHT, TOP, BOTTOM = 36.0, 8.0, 38.0, 20.0
FLOOR = 1e-6
"""Below this share of the largest, a singular value counts as zero and is drawn at the bottom."""
MOST_POINTS = 96


@dataclass(frozen=True)
class Spectrum:
    layer: Layer
    choice: Choice | None

    @property
    def cut(self) -> int | None:
        """The rank kept; None where the layer is not cut to one."""
        return self.choice.rank if self.choice else None


def spectra(report: BuildReport) -> list[Spectrum]:
    """The layers in the order of the network."""
    choices = {choice.layer: choice for choice in report.plan.choices}
    layers = report.collapsed.layers if report.collapsed else ()
    return [Spectrum(layer, choices.get(layer.name)) for layer in layers if len(layer.spectrum) > 1 and layer.spectrum[0] > 0]


def floor(found: Sequence[Spectrum]) -> float:
    """The whole decade at which the pictures end, the same in all of them so that they can be compared."""
    least = min((min(each.layer.spectrum) / each.layer.spectrum[0] for each in found), default=1.0)
    return float(10.0 ** min(-1, math.floor(math.log10(max(least, FLOOR)))))


def names(found: Sequence[Spectrum]) -> dict[str, str]:
    """What is written over each picture."""
    return svg.distinct([each.layer.name for each in found], WIDTH - 4)


def picture(found: Spectrum, name: str, bottom: float) -> str:
    """Singular values over the largest, on a logarithmic scale, over their number; what is kept is filled."""
    values = [max(value / found.layer.spectrum[0], bottom) for value in found.layer.spectrum]
    x = svg.Scale(0, len(values), LEFT, WIDTH - RIGHT)
    y = svg.Scale(bottom, 1.0, HEIGHT - BOTTOM, TOP, log=True)
    base = HEIGHT - BOTTOM
    kept = found.cut if found.cut is not None else len(values)
    becomes = words.becomes(found.choice) if found.choice else "dense"
    parts = [svg.label(2, 13, svg.shortened(name, WIDTH - 4), "start", "name")]
    parts.append(svg.label(2, 28, svg.shortened(becomes, WIDTH - 4), "start", "becomes"))
    for value in (bottom, 1.0):
        parts += [svg.line(LEFT, y(value), WIDTH - RIGHT, y(value), "grid")]
        parts += [svg.label(LEFT - 4, y(value) + 4, svg.tick_text(value), "end", "tick small")]
    path = [(x(place + 0.5), y(values[place])) for place in _some(len(values), kept)]
    inside = [point for point in path if point[0] <= x(kept)]
    area = [(LEFT, base), (LEFT, inside[0][1]), *inside, (x(kept), inside[-1][1]), (x(kept), base)] if inside else []
    if area:
        parts.append(svg.element("polygon", points=" ".join(f"{a:.1f},{b:.1f}" for a, b in area), class_="kept-area"))
    parts.append(svg.polyline(path, "curve"))
    if found.cut is not None:
        parts.append(svg.line(x(kept), TOP - 2, x(kept), base, "cut"))
        near_right = x(kept) + svg.text_width(str(kept)) + 6 > WIDTH - RIGHT
        parts.append(
            svg.label(x(kept) + (-4 if near_right else 4), base - 6, str(kept), "end" if near_right else "start", "cut-text")
        )
    parts.append(svg.line(LEFT, base, WIDTH - RIGHT, base, "axis"))
    parts.append(svg.label(LEFT, HEIGHT - 6, "1", "middle", "tick small"))
    parts.append(svg.label(WIDTH - RIGHT, HEIGHT - 6, str(len(values)), "end", "tick small"))
    geometry = words.geometry(found.layer.geometry)
    described = f"{geometry}; {len(values)} singular values, the smallest {values[-1]:.1e} of the largest; {becomes}"
    return svg.chart(WIDTH, HEIGHT, f"{found.layer.name}: {becomes}", described, *parts)


def _some(count: int, kept: int) -> list[int]:
    """At most about `MOST_POINTS` places, the ends and those around the cut among them."""
    step = max(1, -(-count // MOST_POINTS))
    return sorted({*range(0, count, step), count - 1, *(place for place in (kept - 1, kept) if 0 <= place < count)})
