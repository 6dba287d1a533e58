"""Candidates and prices that nobody measured, for what plans by them."""

from __future__ import annotations

from lorita_deploy.records import Candidate, LayerTime, PriceTable


def three_layers(ranks: tuple[int, ...]) -> tuple[tuple[Candidate, ...], PriceTable]:
    """A pair of rank r takes 2 us per rank and costs 1 / r, dense takes 100 us."""
    candidates, times = [], []
    for layer in "abc":
        for rank in (None, *ranks):
            candidates.append(
                Candidate(
                    layer=layer, group=layer, form="pair" if rank else "dense", k_in=64, k_out=64, rank=rank,
                    precision="fp32", params=100 * (rank or 64), macs=100 * (rank or 64),
                    predicted_loss=1 / rank if rank else 0.0,
                )
            )  # fmt: skip
            times.append(LayerTime(candidate=candidates[-1].key, us=2.0 * rank if rank else 100.0, provenance="measured"))
    prices = PriceTable(
        network_sha256="n", target="cpu", runtime="onnxruntime", precision="fp32", threads=1, batch=1, host=None,
        provenance="measured", method="made up", network_us=310.0, rest_us=10.0, times=tuple(times),
    )  # fmt: skip
    return tuple(candidates), prices
