"""The end of a build: stages, the error ledger, the report."""

from __future__ import annotations

from typing import Literal

from .artifacts import Artifact, Fidelity
from .compression import Plan
from .documents import Document, Part, Precision, Provenance, Role
from .environment import Accuracy, Host
from .network import CollapsedRecord
from .timing import PrecisionRecord, Receipt
from .training import LeftAlone


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
    version: str = "0.1.0"
    """Of the program that did it. Records without it are from the first version, which did not write it."""
    notes: tuple[str, ...] = ()
    """What was worth saying while it ran."""


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
    """Both networks in the precision that ships."""
    fidelity: tuple[Fidelity, ...]
    plan: Plan
    receipt: Receipt | None
    host: Host
    """The machine that built."""
    stages: tuple[StageRecord, ...]
    left_alone: tuple[LeftAlone, ...]
    notes: tuple[str, ...]
    """Of the stages, beside the plan's own."""
    collapsed: CollapsedRecord | None = None
    """The dense network's layers with their geometry and spectra."""
    missed: tuple[str, ...] = ()
    """Demands that were not met (``--require-speedup``, a latency budget): a result, with exit code 1."""
    ledger: tuple[LedgerStep, ...] = ()
    """The steps that ran, in order, each with its error and budget."""
    precision: PrecisionRecord | None = None
    shipped_precision: Precision = "fp32"
