"""Single facts in words, so that every medium says them alike and none says more than was measured."""

from __future__ import annotations

from collections.abc import Mapping

from ..records import (
    Accuracy,
    BuildReport,
    Candidate,
    Choice,
    Energy,
    Geometry,
    Host,
    LatencyRatio,
    LatencySeries,
    Probe,
    Receipt,
)
from . import shipped

UNITS = ((1e9, "G"), (1e6, "M"), (1e3, "k"))


def number(value: float, digits: int = 3) -> str:
    """``digits`` significant digits without an exponent, as long as that is readable: 0.0123, 4.56, 1,230."""
    if value == 0:
        return "0"
    if abs(value) < 1e-3:
        return f"{value:.{digits - 1}e}"
    text = f"{float(f'{value:.{digits}g}'):,.12f}"
    whole, _, decimals = text.partition(".")
    significant = digits - len(whole.lstrip("-0").replace(",", ""))
    if significant <= 0:
        return whole
    zeros = len(decimals) - len(decimals.lstrip("0")) if whole.strip("-") == "0" else 0
    return f"{whole}.{decimals[: significant + zeros]}"


def amount(value: float) -> str:
    """With a decimal prefix: 14.7 M."""
    for scale, prefix in UNITS:
        if abs(value) >= 0.9995 * scale:  # 999,999 is 1.00 M, not 1,000 k
            return f"{number(value / scale)} {prefix}"
    return f"{value:,.0f}"


def size(count: float | None) -> str:
    """Of a file or of memory: 4.78 MB, 94.7 kB."""
    if count is None:
        return "unknown"
    return f"{number(count / 1e6)} MB" if count >= 1e5 else f"{number(count / 1e3)} kB"


def millijoules(found: Energy) -> str:
    """Of one call, what the board draws at rest included."""
    return f"{number(found.per_call_mj)} mJ"


def times(ratio: float) -> str:
    """A ratio of dense over other: 3.42x."""
    return f"{ratio:.2f}x"


JUDGED = {"accuracy": "right answers", "agreement": "agreement with dense", "score": "score x 100"}
"""What a metric counts."""


def right(found: Accuracy) -> str:
    """For example ``352 of 360 test images right (97.78 %)``."""
    if found.metric == "score":
        return f"score {found.value:.4g} on {found.split} data"
    return _counted(found, f" {found.split} images")


def judged(probe: Probe) -> str:
    """The same of a plan's network, with what was done to it before."""
    return right(probe.accuracy) + (", after recovery" if probe.recovered else "")


def share(found: Accuracy) -> str:
    """The same where the split is named already: ``352 of 360 right (97.78 %)``."""
    return f"score {found.value:.4g}" if found.metric == "score" else _counted(found, "")


def _counted(found: Accuracy, of_what: str) -> str:
    verb = "agree with dense" if found.metric == "agreement" else "right"
    return f"{found.correct:,.0f} of {found.total:,}{of_what} {verb} ({100 * found.value:.2f} %)"


def right_change(dense: Accuracy, found: Accuracy) -> str:
    """For example ``right: 352 -> 350 of 360 test images``."""
    if found.metric == "score":
        return f"score {dense.value:.4g} -> {found.value:.4g}"
    what = "agree with dense" if found.metric == "agreement" else "right"
    return f"{what}: {dense.correct:,.0f} -> {found.correct:,.0f} of {found.total:,} {found.split} images"


def estimated(ratio: float, baseline: str = "dense", *, named: bool = False) -> str:
    """The same of a ratio of times that no interval is known of; ``named``: a speed-up, too, says over what."""
    if ratio <= 0.99:
        return f"{times(1 / ratio)} faster" + (f" than {baseline}" if named else "")
    return f"as fast as {baseline}" if ratio < 1.01 else f"{times(ratio)} the time of {baseline}"


def speed(found: LatencyRatio) -> str:
    """A speed-up is claimed only where the interval says so: ``3.42x faster (95 % interval 3.38-3.47)``."""
    low, high = 1 / found.ci95[1], 1 / found.ci95[0]
    interval = f"95 % interval {low:.2f}-{high:.2f}"
    if found.faster:
        return f"{found.speedup:.2f}x faster ({interval})"
    if low <= 1 <= high:
        return f"as fast as {found.baseline} ({interval})"
    low, high = found.ci95
    return f"{found.ratio:.2f}x the time of {found.baseline} (95 % interval {low:.2f}-{high:.2f})"


def host(found: Host) -> str:
    memory = f", {found.memory_bytes / 2**30:.1f} GiB" if found.memory_bytes else ""
    return f"{found.machine} ({found.cores} cores{memory}, {found.system})"


def setting(receipt: Receipt) -> str:
    """How the runtime was set: one line."""
    found = receipt.settings
    version = receipt.host.versions.get(found.runtime, "")
    threads = "1 thread" if found.threads == 1 else f"{found.threads} threads"
    spinning = "spinning" if found.spinning else "no spinning"
    return f"{found.runtime} {version}, {threads}, batch {found.batch}, graph level {found.graph_level}, {spinning}"


def percentile(value: float | None, series: LatencySeries) -> str:
    """A tail percentile; ``n/a`` where there were too few samples to know it."""
    return number(value) if value is not None else f"n/a (n={series.n})"


MEANING = {
    "measured": "timed on the very machine that is named",
    "tabled": "timed earlier, on another device of this kind",
    "estimated": "worked out from data sheets: a ratio, not a time",
}
"""Of the words of provenance."""


def provenance(report: BuildReport) -> str:
    """The first line of every report: where its times come from."""
    local = report.receipt.host.kind if report.receipt else report.host.kind
    if report.provenance == "measured":
        where = host(report.receipt.host) if report.receipt else host(report.host)
        return f"Times on {report.target} are MEASURED, on this machine: {where}."
    race, there = shipped.race(report), shipped.raced_there(report)
    where = "there" if there else "on the machine that built"
    measured = f" Measured {where} (`{local}`): {speed(race)}." if race else ""
    if report.provenance == "tabled":
        return f"Times on {report.target} are TABLED, measured earlier on a device of that kind.{measured}"
    if there:
        return f"Times on {report.target} that the plan was made with are ESTIMATED; the race is not.{measured}"
    ratio = report.estimated_ratio if report.shipped != "dense" else None
    estimate = f"estimated {estimated(ratio, named=True)}; " if ratio else ""
    return (
        f"Times on {report.target} are ESTIMATED, not measured: {estimate}no board was asked."
        f"{measured} The bundle's runner decides on the board."
    )


def geometry(found: Geometry) -> str:
    """For example ``conv 3x3/2 64->128 @16x16``."""
    at = f" @{'x'.join(map(str, found.out_shape))}" if found.out_shape else ""
    if found.kind == "linear":
        return f"linear {found.in_channels}->{found.out_channels}{at}"
    kernel = "x".join(map(str, found.kernel))
    stride = f"/{max(found.stride)}" if found.stride and max(found.stride) > 1 else ""
    return f"conv {kernel}{stride} {found.in_channels}->{found.out_channels}{at}"


def rank(choice: Choice) -> str:
    return str(choice.rank) if choice.rank else "full"


def verdict(candidate: Candidate, taken: Candidate | None, us: Mapping[str, float]) -> str:
    """Why ``candidate`` was taken for its layer or left; ``us`` by candidate key. Nothing where what was ``taken`` had no
    price."""
    if taken is None:
        return ""
    if candidate.key == taken.key:
        return "taken"
    if (candidate.k_in, candidate.k_out) != (taken.k_in, taken.k_out):
        return "the plan's channel groups have other widths"
    if us[candidate.key] >= us[taken.key]:
        return "no faster" + (", and loses more" if candidate.predicted_loss > taken.predicted_loss else "")
    return "faster, but the budget's loss buys more elsewhere"


def becomes(choice: Choice) -> str:
    """For example ``pair 16``, ``narrow 64->64``, ``narrow-pair 8 64->64``."""
    size = [str(choice.rank)] if choice.rank else []
    widths = [f"{choice.k_in}->{choice.k_out}"] if choice.form.startswith("narrow") else []
    return " ".join((choice.form, *size, *widths))


def why(choice: Choice, offers: Mapping[int | None, tuple[float, float]], narrower: bool = False) -> str:
    """Why a layer got its form. ``offers``: rank to (time over dense time, predicted loss) of the pairs of its full width;
    ``narrower``: narrower forms were on offer, too."""
    if choice.form != "dense":
        return estimated(choice.us / choice.dense_us) if choice.us and choice.dense_us else "chosen"
    if not offers:
        return "only narrower forms were offered, and its channels all stay" if narrower else "nothing smaller was offered"
    best_rank, (ratio, loss) = min(offers.items(), key=lambda offer: offer[1][0])
    if ratio >= 1:
        return f"every pair is slower (best: rank {best_rank}, {ratio:.2f}x the time)"
    return f"faster pairs lose too much (rank {best_rank}: {ratio:.2f}x the time, predicted loss {number(loss, 2)})"


def percent(found: Accuracy) -> str:
    if found.metric == "score":
        return f"score {found.value:.4g}"
    what = "agreement" if found.metric == "agreement" else "right"
    return f"{100 * found.value:.2f} % {what} of {found.total:,} {found.split} images"
