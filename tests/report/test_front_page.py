"""A Pareto front in the words of what it was judged by."""

import pytest

from lorita_deploy.records import Accuracy, FrontPoint, ParetoFront
from lorita_deploy.report import front


def judged(metric, correct, total=200):
    return Accuracy(metric=metric, split="calibration", correct=correct, total=total)


@pytest.mark.parametrize(
    ("dense", "found", "heading", "shown", "axis"),
    [
        (judged("accuracy", 190), judged("accuracy", 180), ">Right", "90.00 %", "right answers on 200 calibration images, %"),
        (
            judged("agreement", 200),
            judged("agreement", 190),
            ">Agrees with dense",
            "95.00 %",
            "agreement with dense on 200 calibration images, %",
        ),
        (judged("score", 0.5, 1), judged("score", 0.4, 1), ">Score x 100", "40.00", "score x 100 on calibration data"),
    ],
)
def test_nothing_but_answers_is_called_right(dense, found, heading, shown, axis):
    made = ParetoFront(
        model="tiny",
        network_sha256="c" * 64,
        target="jetson",
        provenance="estimated",
        dense_us=100.0,
        dense=dense,
        points=(FrontPoint(predicted_us=50.0, predicted_loss=0.1, accuracy=found, best=True),),
    )
    table = front.table(made)
    assert table.columns[2] == heading
    assert table.rows[0][2] == shown
    assert axis.removesuffix(", %") in table.note
    assert f">{axis}<" in front.picture(made)
    assert ("right" in front.picture(made).lower()) == (dense.metric == "accuracy")
