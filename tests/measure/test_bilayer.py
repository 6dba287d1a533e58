"""Times between measured widths."""

from __future__ import annotations

import pytest

from lorita_deploy.measure.bilayer import time_between
from lorita_deploy.records import Geometry

LAYER = Geometry(kind="conv2d", in_channels=64, out_channels=64, kernel=(3, 3), out_shape=(8, 8))


def work(geometry: Geometry, rank: int | None) -> float:
    macs = geometry.m * geometry.n if rank is None else rank * (geometry.m + geometry.n)
    return macs / 1000


def test_what_was_measured_is_believed() -> None:
    assert time_between({(64, 64, None): 7.0, (32, 64, None): 5.0}, (32, 64, None), LAYER, work) == 5.0


def test_a_machine_that_is_a_constant_factor_off_is_met_exactly() -> None:
    sizes = [(64, 64, None), (32, 32, None), (64, 64, 16), (64, 32, 8)]
    measured = {
        size: 3 * work(LAYER.model_copy(update={"in_channels": size[0], "out_channels": size[1]}), size[2]) for size in sizes
    }
    for size in ((32, 64, None), (16, 48, None), (32, 64, 8)):
        expected = 3 * work(LAYER.model_copy(update={"in_channels": size[0], "out_channels": size[1]}), size[2])
        assert time_between(measured, size, LAYER, work) == pytest.approx(expected)


def test_near_measurements_count_more_and_pairs_are_judged_by_pairs() -> None:
    whole = work(LAYER, None)
    measured = {(64, 64, None): 1.0 * whole, (16, 16, None): 4.0 * whole / 16, (64, 64, 16): 9 * work(LAYER, 16)}
    near_small = time_between(measured, (16, 32, None), LAYER, work) / (whole / 8)
    near_large = time_between(measured, (64, 48, None), LAYER, work) / (whole * 48 / 64)
    assert near_large == pytest.approx(1.0, rel=0.1)
    assert near_small == pytest.approx(4.0, rel=0.2)
    assert time_between(measured, (64, 64, 8), LAYER, work) == pytest.approx(9 * work(LAYER, 8))
