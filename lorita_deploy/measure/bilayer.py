"""Times at widths that were not measured: the roofline's estimate, corrected by what was measured nearby.

Where both sides of a layer may become narrower, the combinations of widths and ranks are too many to measure. The estimate
knows how the work falls with them; how far it is off on this machine varies slowly from one combination to the next.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import exp, log, log2

from ..forms import at_widths
from ..records import Geometry

Size = tuple[int, int, int | None]
"""Channels read, channels written, rank (None: whole)."""

Estimate = Callable[[Geometry, int | None], float]
"""Microseconds of a layer at a rank."""

SOFTNESS = 0.05
"""Squared distance, in doublings, below which measurements count alike."""


def time_between(measured: Mapping[Size, float], size: Size, geometry: Geometry, estimate: Estimate) -> float:
    """Microseconds at ``size``, from the times ``measured`` of the same layer (``geometry`` at its full widths).

    Whole layers are judged by whole ones and pairs by pairs, as far as there are any; the corrections are averaged with
    weights that fall with the fourth power of the distance in doublings of widths and rank.
    """
    if size in measured:
        return measured[size]
    alike = {each: us for each, us in measured.items() if (each[2] is None) == (size[2] is None)} or measured
    total = weights = 0.0
    for each, us in alike.items():
        weight = 1 / (SOFTNESS + _distance(each, size)) ** 2
        total += weight * log(us / _estimated(each, geometry, estimate))
        weights += weight
    return _estimated(size, geometry, estimate) * exp(total / weights)


def _estimated(size: Size, geometry: Geometry, estimate: Estimate) -> float:
    return max(1e-3, estimate(at_widths(geometry, size[0], size[1]), size[2]))


def _distance(one: Size, other: Size) -> float:
    """Squared, in doublings; a rank counts half, because it changes one side of each factor only."""
    pairs = zip(one[:2], other[:2], strict=True)
    widths = sum(log2(a / b) ** 2 for a, b in pairs if a and b)
    return widths + (0.5 * log2(one[2] / other[2])) ** 2 if one[2] and other[2] else widths
