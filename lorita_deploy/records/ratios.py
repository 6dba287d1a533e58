"""What follows from the ratios of a race."""

from __future__ import annotations

from .timing import LatencyRatio, Receipt


def ratio_between(receipt: Receipt, name: str, other: str) -> LatencyRatio:
    """``name`` over ``other``, both raced against a third: the interval of their worst cases, wider than a direct race's."""
    ratios = {each.candidate: each for each in receipt.ratios}
    top, bottom = ratios.get(name), ratios.get(other)
    if bottom is None and top is not None:
        return top
    assert bottom is not None
    low, high = top.ci95 if top else (1.0, 1.0)
    return bottom.model_copy(
        update={
            "candidate": name,
            "baseline": other,
            "ratio": (top.ratio if top else 1.0) / bottom.ratio,
            "ci95": (low / bottom.ci95[1], high / bottom.ci95[0]),
        }
    )
