"""The statistics on distributions whose truth is known."""

from __future__ import annotations

import math
import random
import subprocess
import sys
import time
from collections.abc import Callable
from statistics import NormalDist

import pytest

from lorita_deploy.bundle import clock, machine


def test_quantiles_of_a_known_ladder() -> None:
    values = [float(v) for v in range(101)]
    random.Random(0).shuffle(values)
    assert clock.quantile(values, 0.9) == 90
    assert clock.median(values) == 50
    assert clock.spread(values) == 1.0
    assert clock.quantile([1.0, 2.0], 0.25) == 1.25


@pytest.mark.parametrize(("q", "enough"), [(0.9, 100), (0.95, 200), (0.99, 1000)])
def test_no_percentile_with_fewer_than_ten_samples_beyond_it(q: float, enough: int) -> None:
    values = [float(v) for v in range(enough)]
    assert clock.percentile(values[:-1], q) is None
    assert clock.percentile(values, q) == pytest.approx(q * (enough - 1))


def test_midmean_ignores_both_tails() -> None:
    assert clock.midmean([0.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0, 9999.0]) == 12.5


def exact_coverage(n: int, low: int, high: int) -> float:
    """P(x_(low) <= median <= x_(high)), 1-based, for n independent continuous values."""
    return sum(math.comb(n, i) for i in range(low, high)) / 2**n


@pytest.mark.parametrize("n", [6, 9, 12, 20, 101, 1001, 5000])
def test_the_order_statistics_are_the_tightest_with_95_percent(n: int) -> None:
    low, high = clock.median_interval([float(v) for v in range(1, n + 1)])
    assert low + high == n + 1
    assert exact_coverage(n, int(low), int(high)) >= 0.95
    assert exact_coverage(n, int(low) + 1, int(high) - 1) < 0.95


def test_few_values_give_their_range() -> None:
    assert clock.median_interval([5.0, 1.0, 3.0]) == (1.0, 5.0)
    assert clock.median_interval([2.0]) == (2.0, 2.0)


def reloads_with_noise(
    rng: random.Random, slowdown: float, reloads: int = 12, rounds: int = 25
) -> list[list[tuple[float, float]]]:
    """Races as machines run them: luck of each load (1 %), noise in stretches (AR(1), 3 %), rare spikes, a common drift."""
    found, wander = [], 0.0
    for reload in range(reloads):
        luck = [rng.gauss(0, 0.01), rng.gauss(0, 0.01)]
        pairs = []
        for _ in range(rounds):
            wander = 0.9 * wander + rng.gauss(0, 0.03 * math.sqrt(1 - 0.81))
            common = (1 + 0.01 * reload) * (1 + abs(wander))
            times = [
                common * (1 + side + (wander / 2 if which else 0)) * (1.8 if rng.random() < 0.05 else 1 + rng.gauss(0, 0.01))
                for which, side in enumerate(luck)
            ]
            pairs.append((times[0] * slowdown, times[1]))
        found.append(pairs)
    return found


def test_equal_networks_are_called_different_in_at_most_5_percent_of_races() -> None:
    rng, races = random.Random(1), 1000
    claimed = 0
    for _ in range(races):
        _, (low, high) = clock.paired_ratio(reloads_with_noise(rng, 1.0))
        claimed += low > 1 or high < 1
    limit = 0.05 + NormalDist().inv_cdf(0.999) * math.sqrt(0.05 * 0.95 / races)
    assert claimed / races <= limit


@pytest.mark.parametrize("reloads", [2, 3, 5])
def test_a_race_cut_short_claims_no_more_than_one_that_was_not(reloads: int) -> None:
    """Of equal networks, with 3 % of luck in how memory lies."""
    rng, claimed = random.Random(1), 0
    for _ in range(400):
        taken = [[(luck * rng.gauss(1, 0.01), 1.0) for _ in range(25)] for luck in (rng.gauss(1, 0.03) for _ in range(reloads))]
        claimed += clock.paired_ratio(taken)[1][1] < 1.0
    assert claimed <= 0.04 * 400  # of 95 % intervals: one side
    fast = [[(0.5 * luck, 1.0)] * 25 for luck in (1.0, 1.02)]
    assert clock.paired_ratio(fast)[1][1] < 0.7, "what is plain stays plain"


def test_a_planted_slowdown_of_5_percent_is_found() -> None:
    rng = random.Random(2)
    found = 0
    for _ in range(300):
        ratio, (low, high) = clock.paired_ratio(reloads_with_noise(rng, 1.05))
        assert low <= ratio <= high
        found += low > 1
    assert found >= 0.95 * 300


def test_a_short_race_stays_honest_where_noise_comes_in_stretches() -> None:
    rng, races, claimed, naive_claimed = random.Random(3), 1000, 0, 0
    for _ in range(races):
        state, values = 0.0, []
        for _ in range(240):
            state = 0.8 * state + rng.gauss(0, 1)
            values.append(math.exp(0.01 * state))
        _, (low, high) = clock.paired_ratio([[(value, 1.0) for value in values]])
        claimed += low > 1 or high < 1
        naive = clock.median_interval(values)
        naive_claimed += naive[0] > 1 or naive[1] < 1
    assert claimed / races <= 0.05 + NormalDist().inv_cdf(0.999) * math.sqrt(0.05 * 0.95 / races)
    assert naive_claimed / races > 0.2, "the noise of this test is too tame to tell"


def drifting(slowdown: float, reload: int, number: int) -> tuple[float, float]:
    """The machine gets three times as slow in the course of the race: both alike, visited A B B A."""
    places = [(25 * reload + number + share) / 300 for share in (0.125, 0.375, 0.625, 0.875)]
    first, second, third, last = (1 + 2 * place for place in places)
    return slowdown * (first + last) / 2, (second + third) / 2


def stepping(slowdown: float, reload: int, number: int) -> tuple[float, float]:
    """The clock frequency falls to half after a third of the race, and stays there."""
    speed = 1.0 if reload < 4 else 2.0
    return slowdown * speed, speed


def interrupted(slowdown: float, reload: int, number: int) -> tuple[float, float]:
    """Every third visit of the one, and every fifth of the other, takes ten times as long."""
    return slowdown * (10.0 if number % 3 == 0 else 1.0), 10.0 if number % 5 == 0 else 1.0


def lopsided(slowdown: float, reload: int, number: int) -> tuple[float, float]:
    """Two reloads of the twelve in which one of them had a neighbour at work throughout."""
    return slowdown * (1.5 if reload in (3, 8) else 1.0), 1.0


@pytest.mark.parametrize("machine_of", [drifting, stepping, interrupted, lopsided])
@pytest.mark.parametrize("slowdown", [1.0, 1.05])
def test_neither_drift_nor_steps_nor_outliers_move_the_ratio(
    machine_of: Callable[..., tuple[float, float]], slowdown: float
) -> None:
    """The noise is all in what the machine does; the truth is known to the last digit."""
    reloads = [[machine_of(slowdown, reload, number) for number in range(25)] for reload in range(12)]
    ratio, (low, high) = clock.paired_ratio(reloads)
    assert ratio == pytest.approx(slowdown, rel=1e-3)
    assert low <= slowdown * 1.001
    assert high >= slowdown * 0.999
    if slowdown > 1:
        assert low > 1


def test_half_a_race_under_load_is_no_claim() -> None:
    """Six disturbed reloads of one of two equal networks are too many to tell noise from truth: nothing is claimed."""
    reloads = [[(1.3 if reload % 2 else 1.0, 1.0)] * 25 for reload in range(12)]
    _, (low, high) = clock.paired_ratio(reloads)
    assert low <= 1 <= high


@pytest.mark.parametrize("q", [0.9, 0.95, 0.99])
def test_percentiles_of_a_known_distribution(q: float) -> None:
    """Of 1 + Exp(1), where the q-quantile is 1 - ln(1 - q): within four standard errors, and unmoved by where the rest lies."""
    rng, n = random.Random(5), 20000
    values = [1 + rng.expovariate(1) for _ in range(n)]
    truth = 1 - math.log(1 - q)
    error = math.sqrt(q * (1 - q) / n) / (1 - q)
    found = clock.percentile(values, q)
    assert found == pytest.approx(truth, abs=4 * error)
    assert clock.percentile([min(value, 2 * truth) for value in values], q) == found


def tail_coverage(rng: random.Random, q: float, luck: float, races: int) -> float:
    """How often the interval holds the quantile of exponential tails, with ``luck`` as the spread between reloads."""
    held, truth = 0, true_quantile(q, luck)
    for _ in range(races):
        reloads = []
        for _ in range(12):
            scale = math.exp(rng.gauss(0, luck))
            reloads.append([scale * (1 + rng.expovariate(5)) for _ in range(100)])
        interval = clock.percentile_interval(reloads, q)
        assert interval
        held += interval[0] <= truth <= interval[1]
    return held / races


def true_quantile(q: float, luck: float) -> float:
    """Of ``exp(N(0, luck)) * (1 + Exp(5))``, by bisection on its distribution function."""
    steps = [NormalDist(0, luck).inv_cdf((i + 0.5) / 400) if luck else 0.0 for i in range(400)]

    def below(x: float) -> float:
        return sum(max(0.0, 1 - math.exp(-5 * (x / math.exp(step) - 1))) for step in steps) / len(steps)

    low, high = 0.5, 10.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if below(middle) < q else (low, middle)
    return low


@pytest.mark.parametrize("q", [0.90, 0.95, 0.99])
@pytest.mark.parametrize("luck", [0.0, 0.05])
def test_intervals_of_percentiles_hold_the_truth(q: float, luck: float) -> None:
    """Also where reloads differ by luck, for which independent samples would promise too much."""
    races = 300
    noise = NormalDist().inv_cdf(0.999) * math.sqrt(0.05 * 0.95 / races)
    assert tail_coverage(random.Random(7), q, luck, races) >= 0.95 - noise


def test_no_interval_where_the_tail_is_not_seen() -> None:
    few = [[float(v) for v in range(50)] for _ in range(12)]
    assert clock.percentile_interval(few, 0.99) is None
    assert clock.percentile_interval([list(range(600))], 0.90) is None, "one reload tells nothing of the luck of reloads"
    one_bad_reload = [[1.0 + i / 1000 for i in range(100)] for _ in range(11)] + [[1.0] * 60 + [9.0 + i for i in range(40)]]
    interval = clock.percentile_interval(one_bad_reload, 0.99)
    assert interval is None or interval[1] > 45, "the tail is one reload's, and may be longer in the next"


def test_warm_up_waits_for_the_times_to_settle(monkeypatch: pytest.MonkeyPatch) -> None:
    now, durations = [0], iter([*(10_000_000 - 400_000 * i for i in range(20)), *([2_000_000] * 500)])

    def call() -> None:
        now[0] += next(durations)

    monkeypatch.setattr(clock, "now_ns", lambda: now[0])
    times, stable = clock.warm_up(call)
    assert stable
    assert 20 < len(times) < 60
    assert times[-1] == 2_000_000


def test_warm_up_gives_up_on_time_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0]

    def call() -> None:
        now[0] += 1_000_000_000

    monkeypatch.setattr(clock, "now_ns", lambda: now[0])
    times, stable = clock.warm_up(call, max_seconds=3)
    assert not stable
    assert len(times) == 3


@pytest.mark.parametrize(("call_ns", "calls"), [(0, 10000), (10_000, 20), (150_000, 2), (200_000, 1), (9e9, 1)])
def test_samples_are_long_enough_for_the_clock(call_ns: float, calls: int) -> None:
    assert clock.calls_per_sample(call_ns) == calls


def test_warnings_name_what_is_wrong() -> None:
    quiet = [1.0 + 0.001 * (i % 7) for i in range(300)]
    assert clock.warnings_of("dense", quiet, True, 12) == []
    assert "drifting" in clock.warnings_of("dense", quiet, False, 12)[0]
    assert "reloads" in clock.warnings_of("dense", quiet, True, 3)[0]
    assert "last third" in clock.warnings_of("dense", [1 + 0.0004 * i for i in range(300)], True, 12)[0]
    assert "spreads" in clock.warnings_of("dense", [1.0, 1.2] * 150, True, 12)[0]
    assert "1.5 times" in clock.warnings_of("dense", quiet[:290] + [3.0] * 10, True, 12)[0]


@pytest.mark.parametrize(
    ("others", "cores", "warns"), [(0.0, 2, False), (0.09, 2, False), (0.5, 2, True), (1.0, 64, False), (9.0, 64, True)]
)
def test_other_programs_at_work_are_said(others: float, cores: int, warns: bool) -> None:
    before, after = (100.0, 5000.0, 3.0), (110.0, 5000.0 + 9.5 + 10 * others, 3.0 + 9.5)
    found = clock.company_warning(before, after, cores)
    assert bool(found) == warns
    assert clock.company_warning(None, after, cores) == []


def test_a_busy_neighbour_is_noticed() -> None:
    """For real: a process that computes for as long as we wait."""
    before = machine.work_seconds()
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    time.sleep(1.5)
    busy.kill()
    busy.wait()
    assert clock.company_warning(before, machine.work_seconds(), 2), "one of two cores was busy"


@pytest.mark.parametrize(("load", "cores", "warns"), [(None, 2, False), (0.3, 2, False), (1.0, 2, True), (3.0, 64, False)])
def test_load_at_the_start_is_said(load: float | None, cores: int, warns: bool) -> None:
    assert bool(clock.load_warning(load, cores)) == warns
