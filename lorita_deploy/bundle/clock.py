"""The statistics of latency: one file, standard library only, valid Python 3.6; used on boards and by the library alike.

How times are taken (the runner follows these rules; the reasons are here):

* **A sample** is the mean of so many calls that it lasts at least 200 us, a thousand times the cost of reading the clock.
* **A visit** is one uncounted call, which brings the artifact's weights back into the caches, then a few samples.
* Artifacts are visited **in random order, then in the mirrored order** (A B B A): a slow drift of the machine cancels.
  Every second reload mirrors the orders of the one before, of loading too: what being first is worth cancels.
* **Reloads.** Where a session's memory happens to lie makes it a few per cent faster or slower for as long as it lives;
  no number of samples averages that out. So everything is loaded anew several times, and what is independent, and
  therefore counts as one observation, is a *reload*, not a sample.
* **A ratio** is the median over reloads of the median paired ratio within a reload; its interval is spanned by two order
  statistics of those reload medians, which needs no assumption on the noise beyond independent reloads.
"""

import math
import time

from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

SAMPLE_NS = 200000
"""Shortest sample."""
RELOADS = 12
"""Interval: 3rd to 10th of the reload medians, 96.1 % coverage."""
FEWEST = 6
"""Fewest independent observations that span a 95 % interval (their whole range: 96.9 %)."""
SAMPLES_PER_VISIT = 2
TAIL = 10
"""A percentile is given only where at least so many samples lie beyond it: p90 from 100, p95 from 200, p99 from 1,000."""
PERCENTILES = (("p90", 0.90), ("p95", 0.95), ("p99", 0.99))

if hasattr(time, "perf_counter_ns"):
    now_ns = time.perf_counter_ns
else:  # Python 3.6

    def now_ns() -> int:
        """A monotonic clock in nanoseconds."""
        return int(time.perf_counter() * 1e9)


# ---------------------------------------------------------------------------------------------- taking samples


def calls_per_sample(call_ns: float) -> int:
    """How many calls, each of about ``call_ns``, make a sample long enough."""
    return max(1, min(10000, int(math.ceil(SAMPLE_NS / max(call_ns, 1.0)))))


def sample_ns(call: Callable[[], object], calls: int) -> float:
    """Mean time of one of ``calls`` calls."""
    again = range(calls)
    start = now_ns()
    for _ in again:
        call()
    return (now_ns() - start) / calls


def warm_up(
    call: Callable[[], object], max_runs: int = 200, max_seconds: float = 10.0, window: int = 7, drift: float = 0.02
) -> Tuple[List[float], bool]:
    """Call until the median of the last ``window`` calls is within ``drift`` of that of the ``window`` before.

    Returns the nanoseconds of every call and whether they settled before ``max_runs`` and ``max_seconds`` ran out.
    """
    times = []  # type: List[float]
    end = now_ns() + max_seconds * 1e9
    while len(times) < max_runs and (now_ns() < end or len(times) < 2):
        times.append(sample_ns(call, 1))
        if settled(times, window, drift):
            return times, True
    return times, False


def settled(times: Sequence[float], window: int = 7, drift: float = 0.02) -> bool:
    """Whether the median of the last ``window`` times is within ``drift`` of that of the ``window`` before."""
    if len(times) < 2 * window:
        return False
    before, after = median(times[-2 * window : -window]), median(times[-window:])
    return abs(after - before) < drift * before


# ---------------------------------------------------------------------------------------------- describing samples


def quantile(values: Sequence[float], q: float) -> float:
    """Linear between order statistics, q from 0 to 1 (definition 7 of Hyndman and Fan, 1996)."""
    ordered = sorted(values)
    place = q * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def median(values: Sequence[float]) -> float:
    return quantile(values, 0.5)


def percentile(values: Sequence[float], q: float) -> Optional[float]:
    """The quantile, or None where fewer than `TAIL` samples lie beyond it."""
    return quantile(values, q) if round(len(values) * (1.0 - q), 6) >= TAIL else None


def midmean(values: Sequence[float]) -> float:
    """Mean of the middle half: as steady as a median, but finer than the steps of a coarse clock."""
    ordered = sorted(values)
    cut = len(ordered) // 4
    middle = ordered[cut : len(ordered) - cut]
    return sum(middle) / len(middle)


def spread(values: Sequence[float]) -> float:
    """Inter-quartile range over median."""
    return (quantile(values, 0.75) - quantile(values, 0.25)) / median(values)


def median_interval(values: Sequence[float]) -> Tuple[float, float]:
    """Two order statistics that hold the median of independent values with at least 95 % confidence.

    x_(k) .. x_(n+1-k) for the largest k with 2 P(Binomial(n, 1/2) < k) <= 0.05. Below six values no such k exists, and
    the whole range is given, which promises less (93.75 % of five, nothing of one).
    """
    ordered = sorted(values)
    n = len(ordered)
    k, ways, below = 0, 1, 1  # ways = n over k; below = sum of the ways up to k; of 2^n in all
    while 40 * below <= 2**n:
        k += 1
        ways = ways * (n - k + 1) // k
        below += ways
    return (ordered[max(k, 1) - 1], ordered[n - max(k, 1)])


T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179)
"""97.5 % quantile of Student's t for 1, 2, ... degrees of freedom."""


def percentile_interval(reloads: Sequence[Sequence[float]], q: float) -> Optional[Tuple[float, float]]:
    """95 % interval of a quantile whose samples come in reloads (Woodruff, J. Am. Stat. Assoc. 47, 1952).

    How far the share of samples beyond the quantile wavers is seen from reload to reload, and is not taken for less than
    that of independent samples; the quantiles at the ends of that share's interval (on the logit scale, Student's t) span
    the interval. None where `percentile` gives none, with fewer than two reloads, or where less than one sample lies
    beyond the upper end. In simulated races it held the truth 93 to 98 times in 100 where reloads differ by up to 5 per
    cent, and 86 to 92 times where they differ by 15.
    """
    every = [value for each in reloads for value in each]
    count, total, share = len(reloads), len(every), 1.0 - q
    if count < 2 or percentile(every, q) is None:
        return None
    limit = quantile(every, q)
    excess = [sum(value > limit for value in each) - share * len(each) for each in reloads]
    middle = sum(excess) / count
    between = sum((each - middle) ** 2 for each in excess) * count / (count - 1) / total**2
    reach = T_975[min(count - 2, len(T_975) - 1)] * math.sqrt(max(between, q * share / total)) / (q * share)
    few, many = [1.0 / (1.0 + q / share * math.exp(-sign * reach)) for sign in (-1, 1)]
    return None if few * total < 1.0 else (quantile(every, 1.0 - many), quantile(every, 1.0 - few))


def distribution(reloads: Sequence[Sequence[float]]) -> Dict[str, Any]:
    """The entries that ``LatencySeries`` and ``GpuTimes`` of the records share, from milliseconds, one sequence per reload."""
    every = [value for each in reloads for value in each]
    middle = median(every)
    low, high = median_interval([median(each) for each in reloads])
    found = {
        "samples_ms": every,
        "n": len(every),
        "median_ms": middle,
        "median_ci95_ms": [min(low, middle), max(high, middle)],
    }  # type: Dict[str, Any]
    for name, q in PERCENTILES:
        found[name + "_ms"] = percentile(every, q)
        found[name + "_ci95_ms"] = percentile_interval(reloads, q)
    return found


# ---------------------------------------------------------------------------------------------- comparing


def paired_ratio(reloads: Sequence[Sequence[Tuple[float, float]]]) -> Tuple[float, Tuple[float, float]]:
    """Candidate over baseline from ``(candidate, baseline)`` times, one sequence of pairs per reload.

    Returns the median and its 95 % interval. In a race cut short, with fewer than six reloads, the pairs in the order
    taken are cut into six blocks instead (noise on a shared machine comes in stretches, so single pairs would promise too
    much). That sees the noise but not the luck of a load: the interval is widened to that of Student's t over the logarithms
    of the reload medians, which with two reloads is wide. Of a single reload `warnings_of` says what it leaves out.
    """
    ratios = [[candidate / baseline for candidate, baseline in pairs] for pairs in reloads if pairs]
    observed = [median(each) for each in ratios]
    lucky = []  # type: List[float]
    if len(observed) < FEWEST:
        lucky = t_interval(observed)
        every = [ratio for each in ratios for ratio in each]
        cuts = [len(every) * i // FEWEST for i in range(FEWEST + 1)]
        observed = [median(every[low:high]) for low, high in zip(cuts, cuts[1:]) if low < high]
    low, high = median_interval(observed)
    return median(observed), (min([low] + lucky), max([high] + lucky))


def t_interval(ratios: Sequence[float]) -> List[float]:
    """The ends of the 95 % interval of a few ratios' common value by Student's t, on the scale of logarithms; none of one."""
    count, logs = len(ratios), [math.log(ratio) for ratio in ratios]
    if count < 2:
        return []
    middle = sum(logs) / count
    deviation = math.sqrt(sum((each - middle) ** 2 for each in logs) / (count - 1))
    reach = T_975[count - 2] * deviation / math.sqrt(count)
    return [math.exp(middle - reach), math.exp(middle + reach)]


def ratio_of(candidate: str, baseline: str, reloads: Sequence[Sequence[Tuple[float, float]]]) -> Dict[str, Any]:
    """The ``LatencyRatio`` of the records, from what `paired_ratio` takes."""
    ratio, interval = paired_ratio(reloads)
    n = sum(len(each) for each in reloads)
    named = {"candidate": candidate, "baseline": baseline}
    return dict(named, n=n, reloads=len(reloads), ratio=ratio, ci95=interval)


def faster_of(baseline: str, ratios: Sequence[Dict[str, Any]]) -> Optional[str]:
    """The fastest of those whose interval lies below 1, else the baseline; None where nothing was compared. Of fewer pairs than
    a 95 % interval takes nothing follows."""
    if not ratios:
        return None
    winners = [each for each in ratios if each["ci95"][1] < 1.0 and each["n"] >= FEWEST]
    return str(min(winners, key=lambda each: each["ratio"])["candidate"]) if winners else baseline


def warnings_of(name: str, samples: Sequence[float], stable: bool, reloads: int) -> List[str]:
    """What makes these samples less than trustworthy, in plain words."""
    found = []  # type: List[str]
    middle = median(samples)
    if not stable:
        found.append("%s: still drifting when the warm-up ended" % name)
    if spread(samples) > 0.10:
        found.append("%s: the middle half of the samples spreads over %.0f %% of the median" % (name, 100 * spread(samples)))
    outliers = sum(sample > 1.5 * middle for sample in samples)
    if outliers > 0.01 * len(samples):
        found.append("%s: %d of %d samples took more than 1.5 times the median" % (name, outliers, len(samples)))
    third = len(samples) // 3
    if third >= 6:
        drift = median(samples[-third:]) / median(samples[:third]) - 1.0
        if abs(drift) > 0.05:
            found.append("%s: the last third of the samples is %+.0f %% against the first" % (name, 100 * drift))
    if reloads < FEWEST:
        found.append(
            "%s: only %d reloads in the time allowed, so luck in how memory lies is not averaged out" % (name, reloads)
        )
    return found


def company_warning(
    before: Optional[Tuple[float, float, float]], after: Optional[Tuple[float, float, float]], cores: int
) -> List[str]:
    """Whether others were at work during the race: ``(now, used by all, used by this program)`` in seconds, twice."""
    if before is None or after is None or after[0] <= before[0]:
        return []
    seconds, used, own = [late - early for early, late in zip(before, after)]
    others = (used - own) / seconds
    if others <= max(0.1, 0.05 * cores):
        return []
    return ["other programs used %.1f of %d cores during the race" % (others, cores)]


def load_warning(load: Optional[float], cores: int) -> List[str]:
    """Whether others were at work when the run began, by the one-minute load average."""
    if load is None or load <= max(0.5, 0.25 * cores):
        return []
    return ["load average %.2f on %d cores at the start: other work was, or is, running" % (load, cores)]
