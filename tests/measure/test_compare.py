"""Two receipts side by side: what changed, how surely, and what must not be compared."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest

from lorita_deploy.bundle import clock
from lorita_deploy.errors import PlanMismatch
from lorita_deploy.measure.compare import compare, environment_differences, ratio_interval
from lorita_deploy.records import Conditions, GpuTimes, Receipt

MakeReceipt = Callable[..., Receipt]


def conditions(at: str = "start") -> Conditions:
    return Conditions(at=at, power_mode=None, clocks_mhz={}, temperatures_c={}, throttle_events={})


@pytest.mark.parametrize(
    ("after_ms", "tolerance", "verdict"),
    [
        (2.0, 0.05, "same"),
        (2.008, 0.05, "same"),
        (2.02, 0.05, "slower"),
        (1.5, 0.05, "faster"),
        (2.08, 0.05, "slower"),
        (2.4, 0.05, "regression"),
        (2.4, 0.25, "slower"),
    ],
)
def test_verdicts(make_receipt: MakeReceipt, after_ms: float, tolerance: float, verdict: str) -> None:
    found = compare(make_receipt(dense=2.0), make_receipt(dense=after_ms), tolerance=tolerance)
    (change,) = found.changes
    assert change.verdict == verdict
    assert change.change == pytest.approx(after_ms / 2.0 - 1)
    assert change.ci95[0] < change.change < change.ci95[1]


def test_intervals_hold_the_true_ratio() -> None:
    """Two races of twelve reloads each, independent of one another; the interval is at least as careful as it says."""
    rng, held, races = random.Random(5), 0, 600
    for _ in range(races):
        ends = []
        for middle in (2.0, 1.4):
            reloads = [middle * math.exp(rng.gauss(0, 0.02)) for _ in range(12)]
            ends += [clock.median(reloads), clock.median_interval(reloads)]
        low, high = ratio_interval(*ends)
        held += low <= 0.7 <= high
    assert held / races >= 0.95 - 3.1 * math.sqrt(0.05 * 0.95 / races)


def test_receipts_of_two_models_are_refused(make_receipt: MakeReceipt) -> None:
    vgg = make_receipt().model_copy(update={"model": "vgg16"})
    resnet = make_receipt().model_copy(update={"model": "resnet20"})
    with pytest.raises(PlanMismatch, match="A is of vgg16, B of resnet20"):
        compare(vgg, resnet)
    assert compare(vgg, make_receipt()).changes, "older receipts do not say"


def test_receipts_with_nothing_in_common_are_refused(make_receipt: MakeReceipt) -> None:
    with pytest.raises(PlanMismatch, match="no artifact is in both"):
        compare(make_receipt(dense=2.0), make_receipt(dense=1.0).model_copy(update={"series": ()}))


def test_what_only_one_timed_is_named(make_receipt: MakeReceipt) -> None:
    found = compare(make_receipt(), make_receipt(dense=2.0))
    assert [change.name for change in found.changes] == ["dense"]
    assert found.unmatched == ("compressed",)


def test_power_mode_and_clocks_are_part_of_the_environment(make_receipt: MakeReceipt) -> None:
    slow = {"environment": {"power mode": "15W", "gpu clock": "306-612 MHz"}, "conditions": (conditions(),)}
    fast = {"environment": {"power mode": "25W", "gpu clock": "306-918 MHz"}, "conditions": (conditions(),)}
    before, after = make_receipt().model_copy(update=slow), make_receipt().model_copy(update=fast)
    assert environment_differences(before, before) == []
    assert environment_differences(before, after) == [
        "gpu clock: 306-612 MHz -> 306-918 MHz",
        "power mode: 15W -> 25W",
    ]
    assert environment_differences(make_receipt(), after) == [], "an older receipt does not know its power mode"


def test_times_on_the_gpu_alone_are_compared_apart(make_receipt: MakeReceipt) -> None:
    def with_gpu(ms: float) -> Receipt:
        receipt = make_receipt(dense=2.0)
        times = GpuTimes(
            samples_ms=(ms,) * 12, n=12, median_ms=ms, median_ci95_ms=(0.99 * ms, 1.01 * ms), p90_ms=None, p90_ci95_ms=None,
            p95_ms=None, p95_ci95_ms=None, p99_ms=None, p99_ci95_ms=None,
        )  # fmt: skip
        return receipt.model_copy(update={"series": (receipt.series[0].model_copy(update={"gpu": times}),)})

    found = compare(with_gpu(1.0), with_gpu(1.5))
    assert {change.name: change.verdict for change in found.changes} == {"dense": "same", "dense (GPU alone)": "regression"}
