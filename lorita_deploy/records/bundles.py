"""What a bundle says of itself."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from .artifacts import Artifact
from .documents import Document, Part
from .environment import Accuracy


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
    threads: int = Field(default=1, ge=1)
    """That ONNX Runtime computes with on a processor, as the prices were for."""
    accuracy: dict[str, Accuracy] = {}
    """By artifact name: what a deadline is weighed against."""
    further: dict[str, tuple[Artifact, ...]] = {}
    """Of exporters that bring a runtime of their own, by its name: ``runtime_<name>.py`` is among the files."""
    tolerances: dict[str, float] = {}
    """By artifact name, where it is not the common one (lower precisions)."""
