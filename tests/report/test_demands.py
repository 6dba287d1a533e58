"""What a build was asked for and did not reach is told, and only then."""

import pytest

from lorita_deploy.pipeline.context import Build
from lorita_deploy.pipeline.options import make_options
from lorita_deploy.pipeline.reporting import _missed, headline


def missed(report, **options):
    build = Build(make_options(model="fcn", target=report.target, **options))
    asked = report.plan.model_copy(update={"budget": build.budget})
    return list(_missed(build, report.model_copy(update={"plan": asked})))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, None),
        ({"require_speedup": 2.0}, None),
        ({"require_speedup": 2.1}, "2.1x was required: 2.05x faster"),
        ({"speedup": 2.06}, None),  # within the interval of 2.05x
        ({"speedup": 3.0}, "3x was asked for: 2.05x faster"),
        ({"max_latency": "0.22ms"}, None),
        ({"max_latency": "200us"}, "at most 0.2 ms were asked for: 0.201 ms, measured"),
    ],
)
def test_measured(report, options, said):
    found = missed(report, **options)
    assert (not found) if said is None else (len(found) == 1 and said in found[0])


def test_the_dense_network_meets_no_speed_up(report):
    dense = report.model_copy(update={"shipped": "dense"})
    assert missed(dense, require_speedup=1.1) == ["a speed-up of 1.1x was required: the dense network ships"]


def test_an_estimate_proves_nothing(estimated):
    assert "no time on jetson-orin-nano is measured" in missed(estimated, require_speedup=1.1)[0]
    assert missed(estimated, speedup=2.33) == []
    assert missed(estimated, speedup=9.0) == ["a speed-up of 9x was asked for: 2.33x predicted (estimated)"]
    (line,) = missed(estimated, max_latency="0.001ms")
    assert "0.0333" not in line, "estimated milliseconds stay out of words"


def test_headlines(report, estimated):
    counts = "right: 352 -> 350 of 360 test images"
    assert headline(report) == f"2.05x faster (95 % interval 2.03-2.07), measured; {counts}"
    assert headline(estimated).startswith(
        "estimated 2.33x faster on jetson-orin-nano; cpu, measured: 2.05x faster (95 % interval"
    )
    dense = report.model_copy(update={"shipped": "dense"})
    assert headline(dense).startswith("ships the dense network")


def test_a_headline_says_where_its_ratio_comes_from(estimated):
    tabled = estimated.model_copy(update={"provenance": "tabled"})
    assert headline(tabled).startswith("tabled 2.33x faster on jetson-orin-nano; cpu, measured: 2.05x faster")
    slower = estimated.model_copy(update={"estimated_ratio": 1.087})
    assert headline(slower).startswith("estimated 1.09x the time of dense on jetson-orin-nano;")


def test_why_the_dense_network_ships(report):
    def why(**changes):
        plan = report.plan.model_copy(update=changes)
        return headline(report.model_copy(update={"shipped": "dense", "plan": plan})).split(";")[0]

    lossy = tuple(probe.model_copy(update={"accepted": False}) for probe in report.plan.probes)
    assert why() == "ships the dense network: no compressed form was faster"
    assert why(probes=lossy) == "ships the dense network: no compressed form was faster"
    dense = report.plan.choices[1:]
    assert why(choices=dense, probes=lossy) == "ships the dense network: every layer stays dense within the budget"
    assert why(choices=dense) == "ships the dense network: no compressed form was faster"
    assert why(choices=(), probes=()) == "ships the dense network: no layer can take another form"
