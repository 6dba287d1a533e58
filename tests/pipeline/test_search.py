"""The bisection, on prices and losses that are made up: what it judges, and when it asks for recovery."""

import pytest
from made_up import three_layers

from lorita_deploy.pipeline.search import MOST_RECOVERIES, Search
from lorita_deploy.records import Accuracy

RANKS = tuple(range(1, 40))


def right(share):
    return Accuracy(metric="score", split="validation", correct=share, total=1)


@pytest.fixture
def search():
    candidates, prices = three_layers(RANKS)

    def made(keeps_us, recovers_us=None):
        """Plans keep the budget down to ``keeps_us``, and after recovery down to ``recovers_us``."""

        def judge(solution, epochs):
            return right(0.9 if solution.predicted_us >= (recovers_us if epochs else keeps_us) else 0.5)

        return Search(
            candidates, (), prices, judge, right(0.9), max_drop=1.0, recover_epochs=0 if recovers_us is None else 2,
        )  # fmt: skip

    return made


def probes(found, recovered):
    return [probe for _, probe in found.probes if probe.recovered == (2 if recovered else 0)]


def test_recovery_reaches_beyond_what_keeps_the_budget_without(search):
    plain, further = search(180.0), search(180.0, 90.0)
    assert 180 <= plain.run().predicted_us < 190
    assert 90 <= further.run().predicted_us < 100
    assert probes(further, recovered=False) == probes(plain, recovered=False)
    tried = probes(further, recovered=True)
    assert 1 <= len(tried) <= MOST_RECOVERIES
    assert all(probe.predicted_us < plain.run().predicted_us for probe in tried)


def test_where_recovery_wins_nothing_the_plan_is_the_one_without(search):
    found = search(180.0, 300.0)
    assert found.run() == search(180.0).run()
    assert len(probes(found, recovered=True)) == MOST_RECOVERIES


def test_no_recovery_is_tried_where_the_fastest_plan_needs_none(search):
    found = search(0.0, 0.0)
    found.run()
    assert len(found.probes) == 1


def test_networks_that_no_plan_keeps_without_recovery_are_recovered(search):
    assert search(310.0).run().predicted_us == 310.0
    assert 90 <= search(310.0, 90.0).run().predicted_us < 110
