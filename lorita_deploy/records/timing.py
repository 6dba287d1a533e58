"""Measured times: settings, conditions, series, ratios, receipts and profiles."""

from __future__ import annotations

from typing import Literal

from .documents import Document, Interval, Part, Positive, Precision
from .environment import Accuracy, Host


class GpuTimes(Part):
    """Inference alone, between two events on the device's stream: without transfers, launched as one graph where possible."""

    samples_ms: tuple[Positive, ...]
    n: int
    median_ms: Positive
    median_ci95_ms: Interval
    p90_ms: Positive | None
    p90_ci95_ms: Interval | None
    p95_ms: Positive | None
    p95_ci95_ms: Interval | None
    p99_ms: Positive | None
    p99_ci95_ms: Interval | None


class Energy(Part):
    """By the board's own sensors (not a wall meter) while one artifact ran without pause."""

    source: str
    """The rails that were added up."""
    mean_mw: float
    idle_mw: float | None
    """At rest, before."""
    per_call_mj: float
    per_call_above_idle_mj: float | None
    calls: int
    seconds: float
    readings: int


class Engine(Part):
    """What was built on the device from the ONNX file."""

    sha256: str
    size_bytes: int
    workspace_bytes: int
    """The most scratch memory that the builder was allowed: halved until the build fitted."""
    exact: bool
    """True: float32 was kept from being rounded to TF32, because the golden outputs asked for it."""
    build_s: float
    about: dict[str, str]
    """TensorRT, CUDA and GPU that it was built by and for."""


class LatencySeries(Part):
    """One artifact's latency in one run: every sample, and what follows from them.

    These times are end to end: inputs handed over, inference, outputs back, one call after another.
    """

    name: str
    sha256: str
    samples_ms: tuple[Positive, ...]
    """Of one call, in the order taken, the same number from each reload."""
    calls_per_sample: int
    """A sample is the mean of so many calls; above 1 the percentiles are those of such means."""
    n: int
    reloads: int
    """How often the artifact was loaded anew for these samples."""
    median_ms: Positive
    median_ci95_ms: Interval
    """Order-statistic interval of the median, over reloads."""
    p90_ms: Positive | None
    p95_ms: Positive | None
    p99_ms: Positive | None
    """None where fewer than ten samples lie beyond: p90 from 100 samples, p95 from 200, p99 from 1,000."""
    spread: float
    """Inter-quartile range over median."""
    load_ms: float | None
    first_ms: float | None
    """Loading and the first inference, in a fresh process; None where whoever timed does not tell."""
    warmup_runs: int
    warmup_stable: bool
    peak_memory_bytes: int | None
    """Largest resident set of a process in which only this artifact was loaded and run; None where unknown."""
    file_bytes: int
    verified: bool | None
    """Golden outputs reproduced; None where there were none."""
    max_rel: float | None
    p90_ci95_ms: Interval | None = None
    p95_ci95_ms: Interval | None = None
    p99_ci95_ms: Interval | None = None
    """Intervals of the percentiles, from reload to reload."""
    throughput_per_s: float | None = None
    """Examples in a second; on a GPU enqueued without waiting and without transfers, else one call after another."""
    gpu: GpuTimes | None = None
    energy: Energy | None = None
    engine: Engine | None = None
    accuracy: float | None = None
    """As the manifest states it."""


FEWEST_PAIRS = 6
"""The range of six observations covers their median in 97 % of cases, that of five in 94 %."""


class LatencyRatio(Part):
    """Interleaved comparison: candidate time over baseline time, so below 1 is faster."""

    candidate: str
    baseline: str
    n: int
    """Pairs."""
    reloads: int
    """Independent observations: how often both were loaded anew."""
    ratio: Positive
    """Median over reloads of the median paired ratio."""
    ci95: Interval
    """Order-statistic interval over reloads."""

    @property
    def speedup(self) -> float:
        return 1.0 / self.ratio

    @property
    def never_slower(self) -> bool:
        """The house's definition: the upper end of the 95 % interval is at most 1.02."""
        return self.n >= FEWEST_PAIRS and self.ci95[1] <= 1.02

    @property
    def faster(self) -> bool:
        """A speed-up may be claimed."""
        return self.n >= FEWEST_PAIRS and self.ci95[1] < 1.0


class PrecisionTrial(Part):
    """The dense network in one precision."""

    precision: Precision
    accuracy: Accuracy
    """Of the artifact, on the images that plans are judged by."""
    kept_fp32: tuple[str, ...] = ()
    size_bytes: int
    ratio: LatencyRatio | None = None
    """Over fp32, raced; None where the target is not at hand, and for fp32 itself."""
    estimated: float | None = None
    """Time over that of fp32 by the roofline, where it could not be raced."""
    refused: str | None = None
    """Why it is not an option."""

    @property
    def relative_time(self) -> float:
        """Time over that of fp32, raced or else estimated."""
        return self.ratio.ratio if self.ratio else self.estimated or 1.0


class PrecisionRecord(Document):
    """What artifacts are written in, and why. File ``precision.json``."""

    SCHEMA = "precision"

    asked: Precision | Literal["auto"]
    chosen: Precision
    trials: tuple[PrecisionTrial, ...]
    """fp32 first; none where only fp32 was asked for."""


class Settings(Part):
    """How the runtime was set while timing."""

    runtime: str
    threads: int
    graph_level: str
    spinning: bool
    batch: int


class Conditions(Part):
    """What the machine said of itself at one moment of a race; what it does not say is left out."""

    at: str
    """``start``, ``reload 3``, ``end``."""
    power_mode: str | None
    clocks_mhz: dict[str, tuple[float, float, float]]
    """Now, lowest and highest allowed."""
    temperatures_c: dict[str, float]
    throttle_events: dict[str, int]
    """Counters that rise when the machine holds itself back."""


class Deadline(Part):
    """Which artifact to use where every call has to be done in time."""

    deadline_ms: float
    chosen: str | None
    """The most accurate artifact whose p99 is under the deadline with its whole interval; None where there is none."""
    p99_at_most_ms: dict[str, float | None]
    """Upper end of each artifact's interval; None where there were too few samples."""


class Receipt(Document):
    """THE latency record, written by the bundle's runner on whatever machine it ran. File ``receipt.json``."""

    SCHEMA = "receipt"

    run_id: str
    started: str
    """UTC, ISO 8601."""
    host: Host
    settings: Settings
    load_before: float | None
    load_after: float | None
    """One-minute load average of the machine around the run."""
    series: tuple[LatencySeries, ...]
    ratios: tuple[LatencyRatio, ...]
    faster: str | None
    """Name of the artifact to use here, when several raced: the baseline unless the interval of another lies below 1.
    Rungs of the ladder are left to ``deadline``."""
    warnings: tuple[str, ...]
    model: str = ""
    environment: dict[str, str] = {}
    """Power mode and clock limits at the start."""
    fingerprint: str = ""
    """sha256 over host, settings and environment: equal where times may be compared."""
    conditions: tuple[Conditions, ...] = ()
    deadline: Deadline | None = None


class VerifiedArtifact(Part):
    """One artifact, loaded and run over the golden inputs in a process of its own."""

    name: str
    sha256: str
    max_rel: float | None
    """None where there are no golden outputs."""
    load_ms: float
    first_ms: float
    call_ms: float
    """The quickest of three calls: a first idea, not a latency."""
    peak_memory_bytes: int | None
    engine: Engine | None = None


class Verification(Document):
    """That the artifacts compute on a device what they should, without a race. File ``verification.json``."""

    SCHEMA = "verification"

    run_id: str
    started: str
    host: Host
    settings: Settings
    load_before: float | None
    load_after: float | None
    artifacts: tuple[VerifiedArtifact, ...]
    warnings: tuple[str, ...]
    model: str = ""


class NodeTime(Part):
    """One executed node of an artifact, as the runtime names it after its own optimisations."""

    name: str
    op: str
    us: float
    """Mean of the middle half of its runs."""


class ProfiledArtifact(Part):
    """Where one artifact's time goes."""

    name: str
    sha256: str
    runs: int
    nodes: tuple[NodeTime, ...]
    """In the order of execution."""
    whole_us: float
    """Median of whole runs of the same sessions with the profiler off."""


class Profile(Document):
    """Per-node times of several artifacts, taken in interleaved rounds by the bundle's runner. File ``profile.json``."""

    SCHEMA = "profile"

    run_id: str
    started: str
    host: Host
    settings: Settings
    load_before: float | None
    load_after: float | None
    artifacts: tuple[ProfiledArtifact, ...]
    warnings: tuple[str, ...]
