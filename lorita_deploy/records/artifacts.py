"""Artifacts, their precision, and the proof that they compute the same."""

from __future__ import annotations

from typing import Literal

from .documents import Document, Part, Precision, Role
from .environment import Accuracy


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
    further: dict[str, tuple[Fidelity, ...]] = {}
    """Of other files, by file: what further exporters made of the artifacts, and the same networks in fp32."""
