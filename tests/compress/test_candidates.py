"""Which sizes are offered."""

from __future__ import annotations

import itertools

import pytest

from lorita_deploy.compress.candidates import candidates, ladder, width_offers
from lorita_deploy.errors import BadRecord
from lorita_deploy.records import CalibrationRecord, Geometry, GroupCalibration, Layer, LayerCalibration


def layer(name: str, geometry: Geometry) -> Layer:
    return Layer(name=name, geometry=geometry, group=name, spectrum=(1.0,))


CONV = Geometry(
    kind="conv2d",
    out_channels=64,
    in_channels=32,
    kernel=(3, 3),
    stride=(1, 1),
    padding=(1, 1),
    dilation=(1, 1),
    out_shape=(8, 8),
)
HEAD = Geometry(kind="linear", out_channels=10, in_channels=64)


def record(**curves: tuple[float, ...]) -> CalibrationRecord:
    return CalibrationRecord(
        network_sha256="n",
        criterion="whitened",
        samples=10,
        seed=0,
        layers=tuple(LayerCalibration(layer=name, loss_at_rank=curve) for name, curve in curves.items()),
    )


def test_dense_and_pairs_at_aligned_ranks_with_their_cost_and_loss() -> None:
    curve = tuple(float(64 - rank) for rank in range(65))
    found = candidates([layer("conv", CONV)], record(conv=curve), multiple=8, precision="fp16")
    assert [(each.form, each.rank) for each in found] == [("dense", None)] + [("pair", rank) for rank in range(8, 53, 8)]
    dense, pair = found[0], found[1]
    assert (dense.params, dense.macs, dense.predicted_loss) == (64 * 288 + 64, 64 * 288 * 64, 0.0)
    assert (pair.params, pair.macs, pair.predicted_loss) == (8 * (64 + 288) + 64, 8 * (64 + 288) * 64, 56.0)
    assert (pair.k_in, pair.k_out, pair.precision, pair.group) == (32, 64, "fp16", "conv")


def test_a_pair_that_saves_no_multiplications_is_not_offered() -> None:
    found = candidates([layer("head", HEAD)], record(head=(0.0,) * 11), multiple=16, precision="fp32")
    assert [each.form for each in found] == ["dense"]


def test_a_long_ladder_is_dense_at_small_ranks_and_thins_out() -> None:
    ranks = tuple(range(8, 3501, 8))
    rungs = ladder(ranks)
    assert len(rungs) <= 20
    assert rungs[:3] == (8, 16, 24)
    assert rungs[-1] == ranks[-1]
    steps = [after - before for before, after in itertools.pairwise(rungs)]
    assert steps == sorted(steps)
    assert all(after / before < 2.01 for before, after in itertools.pairwise(rungs))


@pytest.mark.parametrize("count", [1, 2, 19, 20, 21, 22, 40, 1000])
def test_a_ladder_has_no_rung_twice_and_both_ends(count: int) -> None:
    ranks = tuple(range(1, count + 1))
    rungs = ladder(ranks)
    assert len(set(rungs)) == len(rungs) == min(count, 20)
    assert (rungs[0], rungs[-1]) == (1, count)


def test_a_calibration_of_another_network_is_refused() -> None:
    with pytest.raises(BadRecord, match="conv"):
        candidates([layer("conv", CONV)], record(head=(0.0,) * 11), multiple=8, precision="fp32")
    with pytest.raises(BadRecord, match="conv"):
        candidates([layer("conv", CONV)], record(conv=(0.0,) * 33), multiple=8, precision="fp32")


def test_no_group_is_left_without_channels() -> None:
    """Not even one that the network does not need: a layer must stay a layer."""
    group = GroupCalibration(
        group="squeeze", width=4, producers=("squeeze",), consumers={"excite": 1}, order=(0, 1, 2, 3), loss_at_width=(0.0,) * 5
    )
    (offer,) = width_offers([group], multiple=1)
    assert offer.kept == (4, 1)
    assert width_offers([group], multiple=8) == ()


def test_widths_are_offered_around_what_a_group_needs() -> None:
    """A group that training left with 40 useful channels of 512: an eighth of 512 would be the end of the story otherwise."""
    losses = (2.0,) * 8 + tuple(1e-3 * (40 - width) for width in range(8, 40)) + (5e-5,) * 460 + (0.0,) * 13
    group = GroupCalibration(
        group="conv", width=512, producers=("conv",), consumers={"next": 1}, order=tuple(range(512)), loss_at_width=losses
    )
    (offer,) = width_offers([group], multiple=8)
    assert offer.kept == (512, 504, 40, 32, 24, 16, 8), "the full width, what costs nothing, next to nothing, and down to ruin"
    assert offer.losses == tuple(losses[width] for width in (512, 504, 40, 32, 24, 16, 8))
