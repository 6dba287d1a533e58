"""Everything that can go wrong because of the world outside the program.

    LoritaDeployError            exit 2
    ├── UnknownName              2   no such model, target, data set, exporter (near misses are named)
    ├── BadData                  2   images or labels that cannot be used
    ├── BadCheckpoint            2   weights that do not fit the network, or a damaged weight file
    ├── BadRecord                2   a document that is damaged, has foreign keys, or is from a newer version
    ├── BadTarget                2   a target file that breaks its rules
    ├── BadArtifact              2   an ONNX file (or another artifact) that cannot be read
    ├── BadNetwork               2   a network that cannot be traced, collapsed or rewritten
    ├── PlanMismatch             2   a plan for another network or target
    ├── TrainingDiverged         2   a loss that is no longer a number
    ├── ExporterUnavailable      2   a package is missing, or this is the wrong machine
    ├── EnvironmentDiffers       3   two measurements that must not be compared
    ├── VerificationFailed       4   the artifact does not compute what the network computes
    ├── DeviceUnfit              3   the device lacks what the runner needs
    ├── DeviceUnreachable        5
    └── OutOfResource            6   disk or memory is full
        ├── FolderBusy           6   another build holds the folder
        └── DeviceBusy           6   somebody else times something on the device

Each error has three parts: *what* happened, *where*, and *what to do next*. The command line prints them without a
traceback; a programming error stays a plain ``ValueError`` or ``TypeError`` and shows one. Missing a budget is a result,
not an exception (exit code 1).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LoritaDeployError(Exception):
    """Root of the tree. ``where`` names the file, layer or option; ``fix`` is the next thing to try."""

    exit_code = 2

    def __init__(self, what: str, *, where: object = None, fix: str | None = None) -> None:
        self.what = what
        self.where = None if where is None else str(where)
        self.fix = fix
        super().__init__(str(self))

    def __str__(self) -> str:
        parts = [self.what]
        if self.where:
            parts.append(f"  where: {self.where}")
        if self.fix:
            parts.append(f"  do:    {self.fix}")
        return "\n".join(parts)


class UnknownName(LoritaDeployError):
    """A name that nothing is registered under; the message offers the near misses."""

    def __init__(self, kind: str, name: str, known: Iterable[str], *, fix: str | None = None) -> None:
        known = sorted(known)
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        hint = (
            f"did you mean {' or '.join(near)}?"
            if near
            else f"known: {', '.join(known[:20])}{', ...' if len(known) > 20 else ''}"
        )
        super().__init__(f"there is no {kind} called {name!r}; {hint}", fix=fix)
        self.near = near


class BadData(LoritaDeployError):
    """Images or labels that cannot be used."""


class BadCheckpoint(LoritaDeployError):
    """Weights that do not fit the network, or a damaged weight file."""


class BadRecord(LoritaDeployError):
    """A document that is damaged, has foreign keys, or was written by a newer version."""


class BadTarget(LoritaDeployError):
    """A target file that breaks its rules."""


class BadArtifact(LoritaDeployError):
    """An artifact that cannot be read or loaded."""


class BadNetwork(LoritaDeployError):
    """A network that cannot be traced, collapsed or rewritten."""


class PlanMismatch(LoritaDeployError):
    """A plan made for another network or another target."""


class TrainingDiverged(LoritaDeployError):
    """The loss is no longer a number; the last good checkpoint is kept."""


class ExporterUnavailable(LoritaDeployError):
    """An exporter's package is missing, or this machine cannot run it."""


class EnvironmentDiffers(LoritaDeployError):
    """Two measurements from different environments, which must not be compared unless told to."""

    exit_code = 3


class VerificationFailed(LoritaDeployError):
    """The artifact does not compute what the network computes, within the stated tolerance."""

    exit_code = 4


class DeviceUnfit(LoritaDeployError):
    """The device lacks what the runner needs."""

    exit_code = 3


class DeviceUnreachable(LoritaDeployError):
    """The device does not answer."""

    exit_code = 5


class TrainingWarning(UserWarning):
    """Not an error: a training goes on, but not in the way that was meant."""


class OutOfResource(LoritaDeployError):
    """Disk or memory is full."""

    exit_code = 6


class FolderBusy(OutOfResource):
    """Another build holds the build folder."""


class DeviceBusy(OutOfResource):
    """Somebody else times something on the device."""
