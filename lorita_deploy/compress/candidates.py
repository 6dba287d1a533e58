"""What each layer could become: every form at sizes the target likes. Pure: no tensors."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from math import lcm

from ..errors import BadRecord
from ..forms import FORMS, NARROW_FORMS, Form, at_widths
from ..records import CalibrationRecord, Candidate, Geometry, GroupCalibration, Layer, Precision, WidthOffer

LADDER = 20
"""Most sizes of one form that are offered for a layer: enough to lie within a few per cent of the best rank, few enough
for a whole network to be priced and solved in seconds."""
NEGLIGIBLE = 1e-4
"""Predicted loss (nats per example) of the narrowest width that is as good as the full one."""
SHARES = (0.75, 0.5, 0.25, 0.125)
"""Of that width: what is offered between it and ruin. A layer between two groups has the square of them."""
NARROW_LADDER = 6
"""Most ranks at each of those."""
RUIN = 1.0
"""Predicted loss (nats per example) from which a width is not worth offering: a wrong answer for every right one."""


def candidates(
    layers: Sequence[Layer], calibration: CalibrationRecord, *, multiple: int, precision: Precision
) -> tuple[Candidate, ...]:
    """Every form of every layer, in the order of ``layers``, dense first. Ranks are multiples of ``multiple``.

    Raises `BadRecord` when the calibration lacks a layer.
    """
    curves = {each.layer: each.loss_at_rank for each in calibration.layers}
    found = []
    for layer in layers:
        geometry = layer.geometry
        curve = curves.get(layer.name)
        if curve is None or len(curve) != geometry.m + 1:
            raise BadRecord(f"the calibration does not fit layer {layer.name}", where=layer.name, fix="calibrate again")
        for form in FORMS:
            for rank in ladder(form.ranks(geometry, multiple)):
                found.append(_candidate(layer, geometry, form, rank, precision, curve))
    return tuple(found)


def width_offers(groups: Sequence[GroupCalibration], *, multiple: int) -> tuple[WidthOffer, ...]:
    """The widths worth offering: the full one, what costs nothing or next to it, and less down to ruin, in multiples of
    ``multiple``.

    Groups of which nothing can be taken without ruin are not offered.
    """
    found = []
    for group in groups:
        enough, least = (_narrowest(group, loss) for loss in (NEGLIGIBLE, RUIN))
        sizes = (_narrowest(group, 0.0), enough, *(max(least, round(share * enough)) for share in SHARES), least)
        step = lcm(max(1, group.heads), multiple)
        kept = sorted({size for size in (_up(size, step) for size in sizes) if size < group.width}, reverse=True)
        if kept:
            found.append(
                WidthOffer(
                    group=group.group,
                    producers=group.producers,
                    consumers=group.consumers,
                    kept=(group.width, *kept),
                    losses=(0.0, *(group.loss_at_width[size] for size in kept)),
                    heads=group.heads,
                )
            )
    return tuple(found)


def width_variants(widths: Sequence[WidthOffer]) -> list[dict[str, int]]:
    """Networks to measure, as the channels that groups keep: each width of each group at least once, in mixed company.

    In the last two only every other group is narrower, so that layers are seen with one side narrow.
    """
    longest = max((len(each.kept) for each in widths), default=1) - 1
    found = [
        {each.group: each.kept[1 + (number + place) % (len(each.kept) - 1)] for place, each in enumerate(widths)}
        for number in range(longest)
    ]
    if len(widths) > 1:
        found += [{each.group: each.kept[-1] for each in widths[side::2]} for side in (0, 1)]
    return found


def narrow_candidates(
    layers: Sequence[Layer],
    calibration: CalibrationRecord,
    widths: Sequence[WidthOffer],
    *,
    multiple: int,
    precision: Precision,
) -> tuple[Candidate, ...]:
    """Every layer at every combination of its groups' widths but the full one, whole and as pairs."""
    curves = {each.layer: each.loss_at_rank for each in calibration.layers}
    written = {layer: offer for offer in widths for layer in offer.producers}
    read = {layer: (offer, repeats) for offer in widths for layer, repeats in offer.consumers.items()}
    found = []
    for layer in layers:
        geometry = layer.geometry
        outs = written[layer.name].kept if layer.name in written else (geometry.out_channels,)
        ins = (
            tuple(kept * read[layer.name][1] for kept in read[layer.name][0].kept)
            if layer.name in read
            else (geometry.in_channels,)
        )
        for k_in, k_out in product(ins, outs):
            smaller = at_widths(geometry, k_in, k_out)
            if smaller == geometry:
                continue
            for form in NARROW_FORMS:
                for rank in ladder(form.ranks(smaller, multiple), NARROW_LADDER):
                    found.append(_candidate(layer, smaller, form, rank, precision, curves[layer.name]))
    return tuple(found)


def _candidate(
    layer: Layer, geometry: Geometry, form: Form, rank: int | None, precision: Precision, curve: Sequence[float]
) -> Candidate:
    """``layer`` at the widths of ``geometry``."""
    params, macs = form.cost(geometry, rank)
    return Candidate(
        layer=layer.name,
        group=layer.group,
        form=form.name,
        k_in=geometry.in_channels,
        k_out=geometry.out_channels,
        rank=rank,
        precision=precision,
        params=params,
        macs=macs,
        predicted_loss=0.0 if rank is None else curve[rank],
    )


def _narrowest(group: GroupCalibration, loss: float) -> int:
    """Channels below which the group loses more than ``loss`` (nats per example)."""
    return max(1, min(width for width, lost in enumerate(group.loss_at_width) if lost <= loss))


def _up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


def ladder(ranks: Sequence[int | None], most: int = LADDER) -> tuple[int | None, ...]:
    """At most ``most`` of ``ranks``: all of them if they are few; else every small one, then thinning out geometrically."""
    if len(ranks) <= most:
        return tuple(ranks)
    last, rungs = len(ranks) - 1, [0]
    while rungs[-1] < last:
        steps = most - len(rungs)
        ratio = ((last + 1) / (rungs[-1] + 1)) ** (1 / steps)
        rungs.append(min(last, max(rungs[-1] + 1, round((rungs[-1] + 1) * ratio) - 1)))
    return tuple(ranks[rung] for rung in rungs)
