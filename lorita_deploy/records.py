"""READ FIRST: every document that flows through the house, in the order in which it flows.

Documents hold no tensors. They are frozen, strict pydantic models: an unknown key, a missing key, a value of another type
or a newer schema is a `BadRecord`. A *document* (subclass of `Document`) is a file of its own and names its schema;
a *part* (subclass of `Part`) lives inside documents. Units are in the names (``_us`` microseconds, ``_ms`` milliseconds,
``_bytes``). Digests are sha256 in hexadecimal.

Format history: 1 - first version.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import pydantic
from pydantic import BaseModel, ConfigDict, Field

from .errors import BadRecord, OutOfResource

Provenance = Literal["measured", "tabled", "estimated"]
"""How a time was come by: measured on the target itself, tabled from an earlier measurement on that kind of device, or
estimated by a formula."""

Precision = Literal["fp32", "fp16", "int8"]
Role = Literal["compressed", "dense"]


class Part(BaseModel):
    """A piece of a document."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    def digest(self) -> str:
        """sha256 of the canonical JSON text."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()


class Document(Part):
    """A piece of knowledge that is a file of its own: ``{"schema": "lorita-deploy/<name>/<version>", ...}``."""

    SCHEMA: ClassVar[str]
    VERSION: ClassVar[int] = 1

    @classmethod
    def schema_id(cls) -> str:
        return f"lorita-deploy/{cls.SCHEMA}/{cls.VERSION}"

    def to_json(self) -> str:
        """The text of the file: indented, keys in the order of the class."""
        body = {"schema": self.schema_id(), **self.model_dump(mode="json")}
        return json.dumps(body, indent=1, allow_nan=False) + "\n"

    def save(self, path: Path | str) -> Path:
        """Write aside, fsync, rename: a half-written file is never taken for a whole one."""
        write_atomically(Path(path), self.to_json().encode())
        return Path(path)

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Read a document. Raises `BadRecord` (damaged, foreign keys, other schema, newer version)."""
        return cls.parse(_read(path), where=path)

    @classmethod
    def parse(cls, text: str | bytes, *, where: object) -> Self:
        """Read a document from its text; ``where`` is named in errors."""
        body = _json_object(text, where)
        found = body.pop("schema", None)
        _check_schema(found, cls, where)
        try:
            return cls.model_validate_json(json.dumps(body))
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"]) or "(top)"
            raise BadRecord(
                f"{error.error_count()} entries of this {cls.SCHEMA} record are wrong; first: {key}: {first['msg']}",
                where=where,
                fix="let lorita-deploy write the file again, or mend that entry by hand",
            ) from error


def schema_name(path: Path | str) -> str:
    """The name in a record's schema, such as ``plan``. Raises `BadRecord`."""
    found = _json_object(_read(path), path).get("schema")
    parts = found.split("/") if isinstance(found, str) else []
    if len(parts) != 3 or parts[0] != "lorita-deploy":
        raise BadRecord("this JSON file is not a lorita-deploy record (no schema line)", where=path)
    return parts[1]


def write_atomically(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path`` so that the file is whole or not there. Raises `OutOfResource` (disk full)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except OSError as error:
        raise OutOfResource(
            f"cannot write: {error.strerror}", where=path, fix="free some space or choose another --out, then run it again"
        ) from error
    finally:
        Path(temporary).unlink(missing_ok=True)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def _read(path: Path | str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise BadRecord(f"cannot read: {error.strerror}", where=path) from error


def _json_object(text: str | bytes, where: object) -> dict[str, Any]:
    try:
        body = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadRecord(
            f"not valid JSON: {error}", where=where, fix="the file is damaged or cut short: delete it and run it again"
        ) from error
    if not isinstance(body, dict):
        raise BadRecord("not a JSON object", where=where)
    return body


def _check_schema(found: object, cls: type[Document], where: object) -> None:
    expected = cls.schema_id()
    if found == expected:
        return
    if isinstance(found, str) and found.startswith(f"lorita-deploy/{cls.SCHEMA}/"):
        version = found.rsplit("/", 1)[1]
        if version.isdigit() and int(version) > cls.VERSION:
            raise BadRecord(
                f"written by a newer lorita-deploy: schema {found}, this one reads up to {expected}",
                where=where,
                fix="pip install --upgrade lorita-deploy",
            )
    raise BadRecord(f"schema is {found!r}, expected {expected!r}", where=where)


# ---------------------------------------------------------------------------------------------- where and when


class Host(Part):
    """A machine with its software, as far as it can change a time."""

    machine: str
    """Processor or board, as it names itself, e.g. ``AMD EPYC`` or ``Jetson Orin Nano``."""
    kind: str
    """The target this machine is an instance of: ``cpu``, ``cuda``, ``jetson-orin-nano``, ..."""
    cores: int
    memory_bytes: int
    system: str
    """Kernel and architecture."""
    versions: dict[str, str]
    """Runtime packages and drivers, name to version, sorted by name."""


class Accuracy(Part):
    """How often the network is right, as counts. ``agreement`` is with the dense network, where labels are missing."""

    metric: Literal["accuracy", "agreement", "score"]
    split: str
    """Which images: ``train``, ``validation``, ``test`` or ``calibration``."""
    correct: float
    """Number of right answers (for ``score``: the score itself, with total 1)."""
    total: int

    @property
    def value(self) -> float:
        return self.correct / self.total if self.total else 0.0


# ---------------------------------------------------------------------------------------------- data and training


class DataSummary(Document):
    """What the network is trained and judged on, after splitting. File ``data.json``."""

    SCHEMA = "data"

    name: str
    source: str
    classes: tuple[str, ...]
    """Class names; empty for unlabelled images."""
    shape: tuple[int, ...]
    """One input as the network gets it, e.g. (3, 32, 32)."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    """Per channel, of pixels in 0..1, over the training split."""
    counts: dict[str, int]
    """Images per split."""
    content_sha256: str
    """Over pixels, labels and split of every image."""


class Phase(Part):
    """What changes in the course of a training, from the beginning of epoch ``start`` on (the first epoch is 1)."""

    start: int = Field(ge=2)
    depth: int | None = Field(default=None, ge=1)
    """The weights are multiplied out and factored anew into so many factors, in balance: the function stays the same."""
    weight_decay: float | None = Field(default=None, ge=0)


class Recipe(Part):
    """How a network is trained. Learning-rate units are per optimiser step."""

    epochs: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float = Field(gt=0)
    momentum: float = 0.9
    weight_decay: float = Field(ge=0)
    """On every weight matrix, factored or not; never on BN, LN or biases, unless ``decay_on`` says so."""
    decay_on: Literal["matrices", "all"] = "matrices"
    schedule: Literal["one-cycle", "cosine", "plateau"] = "one-cycle"
    """plateau: a tenth of the rate where the training loss has not fallen for ten epochs."""
    warm_up: float | None = Field(default=None, ge=0, lt=1)
    """Share of the steps in which the rate rises in a line; None: a fifth in one-cycle, nothing in the others."""
    label_smoothing: float = Field(default=0.1, ge=0, lt=1)
    clip_norm: float | None = Field(default=1.0, gt=0)
    """Gradients longer than this (over all parameters together) are cut to it: a product of factors is steep."""
    augment: tuple[Literal["flip", "crop"], ...] = ()
    depth: int = Field(default=3, ge=1)
    """N of LoRITa: how many factors each weight is the product of."""
    phases: tuple[Phase, ...] = ()
    """In ascending order of their starts."""
    narrow_gates: int = Field(default=0, ge=0)
    """K >= 2: batch norms scale each channel by a product of K gates under weight decay, so that channels fade out."""
    gate_decay: float | None = Field(default=None, ge=0)
    """Weight decay of the gates; None: that of the weights."""
    accumulate: int = Field(default=1, ge=1)
    """Into how many parts a batch is cut, whose gradients are added up: takes less memory, gives the same step (batch
    normalisation sees only a part at a time)."""
    ema: float | None = Field(default=None, gt=0, lt=1)
    """Judge and keep a running average of the weights, of which so much stays at each step, such as 0.999."""
    teacher_share: float = Field(default=0.5, ge=0, le=1)
    """Where a teacher is given: how much of the loss is the distance from its answers."""
    temperature: float = Field(default=2.0, gt=0)
    """At which the teacher's answers are softened."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    seed: int = 0

    @pydantic.model_validator(mode="after")
    def _makes_sense(self) -> Self:
        starts = [phase.start for phase in self.phases]
        if starts != sorted(set(starts)):
            raise ValueError(f"phases must start one after the other, not in epochs {starts}")
        if self.narrow_gates == 1:
            raise ValueError("narrow_gates is 0 (none) or at least 2: a single gate does nothing")
        if self.accumulate > self.batch_size:
            raise ValueError(f"a batch of {self.batch_size} cannot be cut into {self.accumulate} parts")
        return self

    def depth_at(self, epoch: int) -> int:
        """N in ``epoch``, phases considered."""
        return next((p.depth for p in reversed(self.phases) if p.start <= epoch and p.depth is not None), self.depth)

    def weight_decay_at(self, epoch: int) -> float:
        """The weight decay in ``epoch``, phases considered."""
        changes = (p.weight_decay for p in reversed(self.phases) if p.start <= epoch and p.weight_decay is not None)
        return next(changes, self.weight_decay)


class LeftAlone(Part):
    """A layer that is not touched, and why."""

    layer: str
    reason: str


class EpochRecord(Part):
    epoch: int
    train_loss: float
    validation: Accuracy
    images_per_s: float
    rank_fraction: float
    """Mean over factored layers of the share of singular values above 1e-3 of the largest."""


class TrainRecord(Document):
    """What a training was and came to. File ``trained.json``; the weights (factors) lie beside it."""

    SCHEMA = "trained"

    model: str
    data_sha256: str
    recipe: Recipe
    device: str
    factored: tuple[str, ...]
    left_alone: tuple[LeftAlone, ...]
    epochs: tuple[EpochRecord, ...]
    best_epoch: int
    """By the validation split."""
    test: Accuracy | None
    """Looked at once, at the end."""
    weights_sha256: str


class TrainingForecast(Document):
    """What a training will take, from a few of its steps (``train --dry-run``)."""

    SCHEMA = "training-forecast"

    model: str
    device: str
    params: int
    """Of the plain network."""
    trained_params: int
    """Factors and gates included."""
    peak_memory_bytes: int
    """Of the CUDA device, or of the whole process."""
    steps_per_epoch: int
    images_per_s: float
    epoch_s: float
    """Seconds for one epoch, with judging the validation images."""
    epochs: int

    @property
    def total_s(self) -> float:
        return self.epochs * self.epoch_s


# ---------------------------------------------------------------------------------------------- the collapsed network


class Geometry(Part):
    """What fixes a layer's cost. As a matrix the weight is (m, n): m outputs, n = inputs * kernel size."""

    kind: Literal["linear", "conv1d", "conv2d"]
    out_channels: int
    in_channels: int
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] | Literal["same", "valid"] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    bias: bool = True
    in_shape: tuple[int, ...] = ()
    """Spatial shape of one input (tokens for a linear layer on sequences; empty on vectors)."""
    out_shape: tuple[int, ...] = ()

    @property
    def m(self) -> int:
        return self.out_channels

    @property
    def n(self) -> int:
        size = self.in_channels // self.groups
        for extent in self.kernel:
            size *= extent
        return size

    @property
    def positions(self) -> int:
        """How often the matrix is applied to one input: H*W of a conv's output, tokens of a linear layer."""
        count = 1
        for extent in self.out_shape:
            count *= extent
        return count


class Layer(Part):
    """A layer that may change its form."""

    name: str
    geometry: Geometry
    group: str
    """The channel group its outputs belong to: channels that must stay or go together."""
    spectrum: tuple[float, ...]
    """Singular values of the weight matrix, descending."""


class CollapsedRecord(Document):
    """The plain dense network: "before" in every comparison. File ``collapsed.json``."""

    SCHEMA = "collapsed"

    model: str
    classes: int
    input_shapes: tuple[tuple[int, ...], ...]
    """Of one example, without the batch."""
    layers: tuple[Layer, ...]
    left_alone: tuple[LeftAlone, ...]
    params: int
    macs: int
    """Multiply-accumulates of the convolutions and linear layers for one example."""
    collapse_error: float
    """Largest difference of outputs between factored and collapsed network, over the largest output."""
    accuracy: tuple[Accuracy, ...]
    weights_sha256: str


# ---------------------------------------------------------------------------------------------- compression


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


# ---------------------------------------------------------------------------------------------- artifacts and proof


class TensorSpec(Part):
    name: str
    dtype: str
    shape: tuple[int | str, ...]


class Artifact(Part):
    """A file that runs somewhere."""

    role: Role
    path: str
    """Relative to the build folder."""
    exporter: str
    sha256: str
    size_bytes: int
    opset: int
    ir_version: int
    precision: Precision
    batch: int
    dynamic_batch: bool
    rung: int
    """Place on the ladder of truncation levels; 0 is the plan itself."""
    simplified: bool
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    notes: tuple[str, ...] = ()
    simplify_error: float | None = None
    """Largest difference that simplifying made to an output, over the largest output; None where it was not kept."""
    kept_fp32: tuple[str, ...] = ()
    """Nodes of a lower-precision artifact that stayed fp32, in order."""
    tolerance: float | None = None
    """On the largest relative difference from golden outputs; None: whoever verifies says it."""


class ArtifactList(Document):
    """What was exported. File ``artifacts.json``."""

    SCHEMA = "artifacts"

    artifacts: tuple[Artifact, ...]
    reference: tuple[Artifact, ...] = ()
    """Where those are of a lower precision: the same networks in fp32, which are raced along."""
    engines: tuple[Artifact, ...] = ()
    """Built from those, where this machine is the target; elsewhere they are built on the device."""


class EngineRecord(Document):
    """Where a TensorRT engine came from. File ``<engine>.json``, beside the engine and never inside it."""

    SCHEMA = "engine"

    artifact: Artifact
    runtime: str
    """``tensorrt`` or ``tensorrt-rtx``."""
    version: str
    """Of TensorRT: an engine loads in this version only."""
    gpus: tuple[str, ...]
    """Compute capabilities that it was built for, such as ``SM87``."""
    device: str | None
    """The GPU that it was built on; None: built ahead of time."""
    cuda: str | None
    source_sha256: str
    """Of the ONNX file."""
    workspace_bytes: int | None
    timing_cache: Literal["used", "made"] | None
    network_layers: int
    """Layers that the parser made, before fusion."""
    layers_file: str | None
    """The engine inspector's JSON; None where no GPU was there to read the engine."""
    parse_seconds: float
    build_seconds: float
    messages: tuple[str, ...]
    """TensorRT's warnings."""


class Fidelity(Part):
    """Artifact against the torch network, on the same inputs."""

    role: Role
    inputs: Literal["real", "random"]
    examples: int
    max_abs: float
    max_rel: float
    """max_abs over the largest absolute reference output."""
    cosine: float
    """Smallest cosine of an example's outputs."""
    top1_agreement: float
    tolerance: float
    """On max_rel."""

    @property
    def passed(self) -> bool:
        return self.max_rel <= self.tolerance


class FidelityReport(Document):
    """File ``fidelity.json``."""

    SCHEMA = "fidelity"

    artifacts: tuple[Artifact, ...]
    checks: tuple[Fidelity, ...]
    accuracy: dict[Role, Accuracy] = {}
    """Of the artifacts themselves, on the test images."""
    reference_accuracy: dict[Role, Accuracy] = {}
    """The same in fp32, where the artifacts are of a lower precision."""


class GpuTimes(Part):
    """Inference alone, between two events on the device's stream: without transfers, launched as one graph where possible."""

    samples_ms: tuple[float, ...]
    n: int
    median_ms: float
    median_ci95_ms: tuple[float, float]
    p90_ms: float | None
    p90_ci95_ms: tuple[float, float] | None
    p95_ms: float | None
    p95_ci95_ms: tuple[float, float] | None
    p99_ms: float | None
    p99_ci95_ms: tuple[float, float] | None


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
    samples_ms: tuple[float, ...]
    """Of one call, in the order taken, the same number from each reload."""
    calls_per_sample: int
    """A sample is the mean of so many calls; above 1 the percentiles are those of such means."""
    n: int
    reloads: int
    """How often the artifact was loaded anew for these samples."""
    median_ms: float
    median_ci95_ms: tuple[float, float]
    """Order-statistic interval of the median, over reloads."""
    p90_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    """None where fewer than ten samples lie beyond: p90 from 100 samples, p95 from 200, p99 from 1,000."""
    spread: float
    """Inter-quartile range over median."""
    load_ms: float
    first_ms: float
    """Loading and the first inference, in a fresh process."""
    warmup_runs: int
    warmup_stable: bool
    peak_memory_bytes: int | None
    """Largest resident set of a process in which only this artifact was loaded and run; None where unknown."""
    file_bytes: int
    verified: bool | None
    """Golden outputs reproduced; None where there were none."""
    max_rel: float | None
    p90_ci95_ms: tuple[float, float] | None = None
    p95_ci95_ms: tuple[float, float] | None = None
    p99_ci95_ms: tuple[float, float] | None = None
    """Intervals of the percentiles, from reload to reload."""
    throughput_per_s: float | None = None
    """Examples in a second; on a GPU enqueued without waiting and without transfers, else one call after another."""
    gpu: GpuTimes | None = None
    energy: Energy | None = None
    engine: Engine | None = None
    accuracy: float | None = None
    """As the manifest states it."""


class LatencyRatio(Part):
    """Interleaved comparison: candidate time over baseline time, so below 1 is faster."""

    candidate: str
    baseline: str
    n: int
    """Pairs."""
    reloads: int
    """Independent observations: how often both were loaded anew."""
    ratio: float
    """Median over reloads of the median paired ratio."""
    ci95: tuple[float, float]
    """Order-statistic interval over reloads."""

    @property
    def speedup(self) -> float:
        return 1.0 / self.ratio

    @property
    def never_slower(self) -> bool:
        """The house's definition: the upper end of the 95 % interval is at most 1.02."""
        return self.ci95[1] <= 1.02

    @property
    def faster(self) -> bool:
        """A speed-up may be claimed."""
        return self.ci95[1] < 1.0


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


class ManifestFile(Part):
    path: str
    sha256: str
    size_bytes: int


class Manifest(Document):
    """What a bundle holds. File ``manifest.json`` inside it."""

    SCHEMA = "manifest"

    model: str
    target: str
    producer: str
    files: tuple[ManifestFile, ...]
    artifacts: tuple[Artifact, ...]
    sources: dict[str, str]
    """Source chain: step to digest, from the data to the plan."""
    preprocessing: dict[str, Any]
    """mean, std, layout and size of the input."""
    classes: tuple[str, ...]
    tolerance: float
    runtime: str = "onnxruntime"
    """What the runner uses where it can."""
    accuracy: dict[str, Accuracy] = {}
    """By artifact name: what a deadline is weighed against."""
    tolerances: dict[str, float] = {}
    """By artifact name, where it is not the common one (lower precisions)."""


# ---------------------------------------------------------------------------------------------- the end of a build


class StageRecord(Document):
    """A finished stage: what went in and what came out. Files ``stages/<name>.json``."""

    SCHEMA = "stage"

    name: str
    key: str
    """sha256 over the options and input files that decide the output."""
    outputs: dict[str, str]
    """Path in the build folder to sha256."""
    seconds: float
    line: str
    """One line of result."""


class LedgerStep(Part):
    """What one step of the build did to the network's outputs or to its accuracy."""

    step: Literal["collapse", "truncation", "recover", "export", "simplify", "precision", "engine"]
    against: str
    """What was compared with what."""
    unit: Literal["relative", "points"]
    """``relative``: largest difference of an output over the largest output. ``points``: of accuracy lost, against dense."""
    error: float | None
    """None where it was not measured."""
    budget: float | None
    """What the error may be; None where nothing was demanded."""
    accuracy: Accuracy | None = None
    """After the step."""

    @property
    def over(self) -> bool:
        return self.error is not None and self.budget is not None and self.error > self.budget + 1e-9


class BuildReport(Document):
    """Everything a build found out. File ``report.json``."""

    SCHEMA = "report"

    model: str
    target: str
    provenance: Provenance
    """Of the times the plan was made with."""
    shipped: Role
    """Which network ``model.onnx`` is."""
    artifact: str
    headline: str
    estimated_ratio: float | None
    """Compressed over dense on the target, where the target is not this machine."""
    accuracy: dict[Role, Accuracy]
    """Of both artifacts, on the test images (looked at once)."""
    validation: dict[Role, Accuracy]
    """Of both networks, on the images that the plan was judged by."""
    params: tuple[int, int]
    macs: tuple[int, int]
    """Dense, shipped."""
    artifacts: tuple[Artifact, ...]
    fidelity: tuple[Fidelity, ...]
    plan: Plan
    receipt: Receipt | None
    host: Host
    """The machine that built."""
    stages: tuple[StageRecord, ...]
    left_alone: tuple[LeftAlone, ...]
    notes: tuple[str, ...]
    collapsed: CollapsedRecord | None = None
    """The dense network's layers with their geometry and spectra."""
    missed: tuple[str, ...] = ()
    """Demands that were not met (``--require-speedup``, a latency budget): a result, with exit code 1."""
    ledger: tuple[LedgerStep, ...] = ()
    """The steps that ran, in order, each with its error and budget."""
    precision: PrecisionRecord | None = None
    shipped_precision: Precision = "fp32"


# ---------------------------------------------------------------------------------------------- answers to a person


class Change(Part):
    """One artifact's median in two receipts, A before and B after. The interval is that of ``change``."""

    name: str
    """The artifact's; of the times without transfers on a GPU, with ``(GPU alone)``."""
    before_ms: float
    after_ms: float
    change: float
    """B over A, minus 1."""
    ci95: tuple[float, float]
    verdict: Literal["faster", "same", "slower", "regression"]
    """``same``: the interval holds 0. ``regression``: slower, by more than the tolerance."""


class Comparison(Document):
    """Two receipts side by side."""

    SCHEMA = "comparison"

    before: str
    after: str
    """Where the receipts came from."""
    tolerance: float
    differences: tuple[str, ...]
    """In host and settings; anything here makes the comparison one of two environments."""
    changes: tuple[Change, ...]
    unmatched: tuple[str, ...] = ()
    """Artifacts that only one of the receipts timed."""


class Finding(Part):
    """One thing looked at on a machine."""

    subject: str
    state: Literal["ok", "note", "missing", "wrong"]
    """``missing`` keeps a build from running, ``wrong`` an artifact from loading."""
    found: str
    fix: str | None = None
    """A command to copy, or what to do."""


class MachineFacts(Part):
    """What a machine says of itself, as far as it decides which target it is and what it can load."""

    architecture: str
    """As ``uname -m`` prints it."""
    board: str
    """Its device tree's model; empty on other machines."""
    cuda: bool
    versions: dict[str, str]
    """``python``, ``tensorrt``, ``onnxruntime``, ``cuda``, ...: what is installed, name to version."""
    l4t: str | None = None
    """Release of Jetson Linux, such as ``36.4.3``; None on other machines, or where nobody asked."""


class Health(Document):
    """Whether a machine is fit to build on."""

    SCHEMA = "health"

    host: Host
    findings: tuple[Finding, ...]


class CheckpointSummary(Document):
    """What a weight file holds."""

    SCHEMA = "checkpoint"

    path: str
    size_bytes: int
    sha256: str
    tensors: tuple[TensorSpec, ...]
    params: int
    depth: int | None
    """N of LoRITa, where the weights are still factors."""
    metadata: dict[str, str]


class Quantization(Part):
    """The QuantizeLinear and DequantizeLinear nodes of an ONNX file."""

    quantize: int
    dequantize: int
    per_channel: int
    """How many of them have a scale for each channel."""
    dtypes: tuple[str, ...]
    """Element types of the zero points; ``none`` where there is no zero point."""
    nonzero: int
    """How many zero points are not all zero (TensorRT takes none of those)."""
    unknown: int
    """How many zero points are computed while running."""


class ArtifactSummary(Document):
    """What an ONNX file holds."""

    SCHEMA = "onnx"

    path: str
    size_bytes: int
    sha256: str
    opset: int
    ir_version: int
    producer: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    operators: dict[str, int]
    """Name to how many, most frequent first."""
    params: int
    external_data: tuple[str, ...]
    metadata: dict[str, str]
    domains: tuple[str, ...] = ()
    """Of operators outside the ONNX standard."""
    weights: dict[str, int] = {}
    """Element type to how many numbers of it are stored."""
    macs: int | None = None
    """Multiply-accumulates of convolutions and matrix products, open dimensions counted as 1; None: shapes not known."""
    quantization: Quantization | None = None
    notes: tuple[str, ...] = ()


class EngineSummary(Document):
    """What the first bytes of a TensorRT engine say, read without TensorRT."""

    SCHEMA = "engine-file"

    path: str
    size_bytes: int
    sha256: str
    runtime: Literal["tensorrt", "tensorrt-rtx"]
    version: str | None
    """Of the TensorRT that built it, major.minor.patch.build; None where the plan has no version header."""
    offset_bytes: int
    """Where the plan begins: above 0, something else was written before it, which TensorRT does not skip."""
    prefix: str | None
    """What stands before the plan."""
    stated_bytes: int | None
    """Size of the plan, as it says itself (TensorRT for RTX)."""
    gpus: tuple[str, ...]
    """Compute capabilities it was built for; empty where neither the header nor a record beside it says."""
    gpus_from: Literal["header", "record beside it"] | None
    notes: tuple[str, ...] = ()


class LoadCheck(Document):
    """Whether a file would load on a target, judged without that target."""

    SCHEMA = "load-check"

    path: str
    sha256: str
    target: str
    """With its profile, as ``board@profile``."""
    runtime: str
    """Runtime and version that the answer holds for."""
    findings: tuple[Finding, ...]

    @property
    def loads(self) -> bool:
        return not any(finding.state == "wrong" for finding in self.findings)
