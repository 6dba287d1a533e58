"""Where something was measured, and how right a network is."""

from __future__ import annotations

from typing import Literal

from .documents import Part


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
