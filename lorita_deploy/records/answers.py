"""Answers to a person: comparisons, findings, summaries of files."""

from __future__ import annotations

from typing import Literal

from .artifacts import TensorSpec
from .documents import Document, Part
from .environment import Host


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
    memory_bytes: int | None = None
    """None where nobody asked."""


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
    """Multiply-accumulates of convolutions and matrix products, open dimensions counted as 1; None: shapes not known, or there
    are operators whose products are not counted."""
    quantization: Quantization | None = None
    notes: tuple[str, ...] = ()
    external_bytes: int = 0
    """What the weights in other files take, by their shapes and types."""


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
