"""What each layer could become: every form at sizes the target likes. Pure: no tensors."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import BadRecord
from ..forms import FORMS
from ..records import CalibrationRecord, Candidate, Layer, Precision

LADDER = 20
"""Most sizes of one form that are offered for a layer: enough to lie within a few per cent of the best rank, few enough
for a whole network to be priced and solved in seconds."""


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
                params, macs = form.cost(geometry, rank)
                found.append(
                    Candidate(
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
                )
    return tuple(found)


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
