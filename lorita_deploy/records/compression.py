"""From calibration to the compressed network, with the plan as the hinge."""

from __future__ import annotations

from typing import Literal

from .documents import Document, Part, Precision, Provenance
from .environment import Accuracy, Host
from .network import Geometry


class LayerCalibration(Part):
    """What calibration says of one layer."""

    layer: str
    loss_at_rank: tuple[float, ...]
    """Predicted loss increase when the layer is cut to rank 0, 1, ..., m (length m+1, descending to 0)."""


class GroupCalibration(Part):
    """What calibration says of one channel group."""

    group: str
    """The first of its producers."""
    width: int
    producers: tuple[str, ...]
    """Layers whose outputs the channels are."""
    consumers: dict[str, int]
    """Layers that read them, to how often each channel stands among the layer's inputs (a flatten repeats it)."""
    order: tuple[int, ...]
    """Channels from the most to the least needed; empty for attention heads, which keep directions, not channels."""
    loss_at_width: tuple[float, ...]
    """Predicted loss increase when 0, 1, ..., width channels are kept, the others rebuilt from them by the consumers."""
    heads: int = 0
    """Of an attention, all of one width; 0 for other groups."""


class CalibrationRecord(Document):
    """Moments of each layer's outputs, boiled down to loss curves. File ``calibration.json``; moments in safetensors."""

    SCHEMA = "calibration"

    network_sha256: str
    criterion: Literal["whitened", "svd", "paper"]
    samples: int
    seed: int
    layers: tuple[LayerCalibration, ...]
    groups: tuple[GroupCalibration, ...] = ()
    """Those that may become narrower."""


class Candidate(Part):
    """One thing a layer could become. Dense: all None but the full widths."""

    layer: str
    group: str
    form: Literal["dense", "pair", "narrow", "narrow-pair"]
    k_in: int
    k_out: int
    """Channels read and written."""
    rank: int | None
    precision: Precision
    params: int
    macs: int
    predicted_loss: float

    @property
    def key(self) -> str:
        """Names the candidate within one network."""
        return f"{self.layer}|{self.form}|{self.k_in}x{self.k_out}|{self.rank or 'full'}|{self.precision}"


class WidthOffer(Part):
    """How narrow one channel group could become. All its producers and consumers take the same width."""

    group: str
    producers: tuple[str, ...]
    consumers: dict[str, int]
    """Layers that read the channels, to how often each channel stands among their inputs."""
    kept: tuple[int, ...]
    """Channels to keep: the full width first, descending."""
    losses: tuple[float, ...]
    """Predicted loss of each; 0 at the full width."""
    heads: int = 0
    """As in `GroupCalibration`."""


class CandidateTable(Document):
    """All that was on offer. File ``candidates.json``."""

    SCHEMA = "candidates"

    candidates: tuple[Candidate, ...]
    widths: tuple[WidthOffer, ...] = ()


class LayerTime(Part):
    """The price of a candidate, in the context of the whole network (fused with its neighbours)."""

    candidate: str
    """`Candidate.key`."""
    us: float
    provenance: Provenance


class PriceTable(Document):
    """What every candidate costs on one host through one runtime. File ``prices.json``."""

    SCHEMA = "prices"

    network_sha256: str
    target: str
    runtime: str
    precision: Precision
    threads: int
    batch: int
    host: Host | None
    """Where it was measured; None for estimates."""
    provenance: Provenance
    method: str
    network_us: float
    """The dense network as a whole."""
    rest_us: float
    """The part of it that no candidate changes."""
    times: tuple[LayerTime, ...]
    geometries: dict[str, Geometry] = {}
    """Of the layers: a price holds for another network only where its layer has the same geometry."""


class Budget(Part):
    """What the plan must keep. Exactly one of the first three is set."""

    max_drop: float | None = None
    """Points of validation accuracy (or agreement) that may be lost: 1.0 is one per cent of the images."""
    max_latency_ms: float | None = None
    speedup: float | None = None
    objective: Literal["latency", "macs", "params"] = "latency"


class Choice(Part):
    """What one layer becomes."""

    layer: str
    form: Literal["dense", "pair", "narrow", "narrow-pair"]
    k_in: int
    k_out: int
    rank: int | None
    predicted_loss: float
    us: float
    dense_us: float


class GroupChoice(Part):
    """How many channels a channel group keeps."""

    group: str
    width: int
    kept: int
    predicted_loss: float = 0.0
    """Of taking out the others, beside what its layers' forms lose."""


class Probe(Part):
    """One plan that was really built and judged while the budget was being searched."""

    budget_us: float
    predicted_us: float
    predicted_loss: float
    accuracy: Accuracy
    accepted: bool
    recovered: int = 0
    """Epochs of distillation before it was judged; 0: as it was cut."""


class Prediction(Part):
    """The planned network's predicted time against the measured one (both whole network, same host)."""

    predicted_us: float
    measured_us: float

    @property
    def error(self) -> float:
        return self.predicted_us / self.measured_us - 1.0


class Plan(Document):
    """THE HINGE: a small file that a person can read, diff, edit and feed back. File ``plan.json``."""

    SCHEMA = "plan"

    model: str
    network_sha256: str
    target: str
    precision: Precision
    budget: Budget
    provenance: Provenance
    dense_us: float
    predicted_us: float
    predicted_loss: float
    groups: tuple[GroupChoice, ...]
    choices: tuple[Choice, ...]
    solver: str
    """Solver, its status and the optimality gap."""
    probes: tuple[Probe, ...] = ()
    predictions: tuple[Prediction, ...] = ()
    notes: tuple[str, ...] = ()

    def changed(self) -> tuple[Choice, ...]:
        """The choices that are not dense."""
        return tuple(choice for choice in self.choices if choice.form != "dense")

    def narrowed(self) -> tuple[GroupChoice, ...]:
        """The groups that keep only some of their channels."""
        return tuple(choice for choice in self.groups if choice.kept < choice.width)


class FrontPoint(Part):
    """One plan of a sweep over the budget, built and judged on validation data."""

    predicted_us: float
    predicted_loss: float
    accuracy: Accuracy
    best: bool
    """No other point is both faster and at least as right."""
    groups: tuple[GroupChoice, ...] = ()
    choices: tuple[Choice, ...] = ()
    """The layers that change their form."""


class ParetoFront(Document):
    """Accuracy against time: plans from dense to the fastest. File ``pareto.json``."""

    SCHEMA = "pareto"

    model: str
    network_sha256: str
    target: str
    provenance: Provenance
    objective: Literal["latency", "macs", "params"] = "latency"
    recover_epochs: int = 0
    """Of distillation after each cut."""
    dense_us: float
    dense: Accuracy
    points: tuple[FrontPoint, ...]
    """By predicted time, the fastest first."""


class CompressedRecord(Document):
    """The network in its chosen forms. File ``compressed.json``."""

    SCHEMA = "compressed"

    plan_sha256: str
    params: int
    macs: int
    accuracy: tuple[Accuracy, ...]
    weights_sha256: str
    truncated: Accuracy | None = None
    """Before recovery, on the images of ``accuracy``; None where nothing was recovered."""
