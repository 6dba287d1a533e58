"""Single facts in words."""

import pytest

from lorita_deploy.records import Accuracy, LatencyRatio
from lorita_deploy.report import page, times, words


def test_sizes_have_a_unit_that_suits_them():
    shown = [words.size(count) for count in (None, 650, 94_700, 700_000, 4_780_000, 269e6)]
    assert shown == ["unknown", "0.650 kB", "94.7 kB", "0.700 MB", "4.78 MB", "269 MB"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (1.0, "1.00"),
        (1234.5, "1,230"),
        (123456, "123,000"),
        (12.345, "12.3"),
        (9.999, "10.0"),
        (0.9999, "1.00"),
        (0.98765, "0.988"),
        (0.0123, "0.0123"),
        (0.00123, "0.00123"),
        (0.000123, "1.23e-04"),
        (-4.567, "-4.57"),
    ],
)
def test_three_digits_and_no_more(value, text):
    assert words.number(value) == text
    assert float(text.replace(",", "")) == pytest.approx(value, rel=5e-3)


def test_amounts():
    assert words.amount(14_714_688) == "14.7 M"
    assert words.amount(999) == "999"
    assert words.amount(313_201_664) == "313 M"
    assert [words.amount(value) for value in (999_499, 999_999, 999_999_999)] == ["999 k", "1.00 M", "1.00 G"]


def ratio(value, low, high):
    return LatencyRatio(candidate="compressed", baseline="dense", n=12, reloads=12, ratio=value, ci95=(low, high))


def test_a_speed_up_is_claimed_only_where_the_interval_says_so():
    assert words.speed(ratio(0.5, 0.49, 0.51)) == "2.00x faster (95 % interval 1.96-2.04)"
    assert words.speed(ratio(0.97, 0.93, 1.01)) == "as fast as dense (95 % interval 0.99-1.08)"
    assert words.speed(ratio(1.2, 1.1, 1.3)) == "1.20x the time of dense (95 % interval 1.10-1.30)"


def test_nothing_slower_is_called_faster():
    shares = (0.5, 0.985, 0.995, 1.004, 1.09)
    same = "as fast as dense"
    assert [words.estimated(each) for each in shares] == ["2.00x faster", "1.02x faster", same, same, "1.09x the time of dense"]
    assert words.estimated(0.5, named=True) == "2.00x faster than dense"


def test_a_layer_that_became_slower_is_not_called_faster(plan):
    slower = plan.choices[0].model_copy(update={"us": 400.0})
    assert words.why(slower, {}) == "1.05x the time of dense"


def test_an_estimate_that_is_no_gain_is_not_called_one(estimated):
    slower = estimated.model_copy(update={"estimated_ratio": 1.087})
    assert "estimated 1.09x the time of dense; no board was asked" in words.provenance(slower)
    dense = estimated.model_copy(update={"shipped": "dense", "estimated_ratio": 1.0})
    assert "ESTIMATED, not measured: no board was asked." in words.provenance(dense)


def test_a_race_on_the_target_is_told_whatever_the_plan_was_made_with(estimated, report):
    raced = estimated.model_copy(update={"estimated_ratio": None})
    line = words.provenance(raced)
    assert "no board was asked" not in line
    assert "that the plan was made with are ESTIMATED; the race is not. Measured there (`cpu`): 2.05x faster" in line
    assert "The times that the plan was made with: worked out" in page.render(raced)
    tabled = report.model_copy(update={"provenance": "tabled"})
    assert "Measured there (`cpu`): 2.05x faster" in words.provenance(tabled)


def test_the_plans_times_are_measured_only_where_the_target_was_raced(report):
    assert times.measured_us(report) is not None
    assert times.measured_us(report.model_copy(update={"estimated_ratio": 0.5})) is None


def test_accuracy_is_told_as_counts():
    dense = Accuracy(metric="accuracy", split="test", correct=352, total=360)
    other = dense.model_copy(update={"correct": 350})
    assert words.right_change(dense, other) == "right: 352 -> 350 of 360 test images"
    agreeing = other.model_copy(update={"metric": "agreement", "split": "calibration"})
    assert words.right(agreeing) == "350 of 360 calibration images agree with dense (97.22 %)"
    scored = Accuracy(metric="score", split="test", correct=0.75, total=1)
    assert words.right_change(scored, scored) == "score 0.75 -> 0.75"


def test_provenance_is_said_first(report, estimated):
    assert words.provenance(report).startswith("Times on cpu are MEASURED, on this machine: Test processor (2 cores")
    line = words.provenance(estimated)
    assert line.startswith("Times on jetson-orin-nano are ESTIMATED, not measured: estimated 2.33x faster than dense;")
    assert "Measured on the machine that built (`cpu`): 2.05x faster (95 % interval" in line
    tabled = report.model_copy(update={"provenance": "tabled", "target": "pi"})
    assert words.provenance(tabled).startswith("Times on pi are TABLED, measured earlier")


@pytest.mark.parametrize(
    ("form", "rank", "said"),
    [
        ("dense", None, "dense"),
        ("pair", 16, "pair 16"),
        ("narrow", None, "narrow 8->4"),
        ("narrow-pair", 2, "narrow-pair 2 8->4"),
    ],
)
def test_what_a_layer_becomes(plan, form, rank, said):
    choice = plan.choices[0].model_copy(update={"form": form, "rank": rank, "k_in": 8, "k_out": 4})
    assert words.becomes(choice) == said


def test_geometry(collapsed):
    assert [words.geometry(layer.geometry) for layer in collapsed.layers] == ["conv 3x3/2 32->64 @8x8", "linear 64->10"]
