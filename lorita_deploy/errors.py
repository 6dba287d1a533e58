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

Each error has three parts: *what* happened, *where* (the command, where nothing nearer is known), and *what to do next*
(``otherwise``, where whoever raises it knows of nothing better). The command line prints them without a traceback; a
programming error stays a plain ``ValueError`` or ``TypeError`` and shows one. Missing a budget is a result, not an exception
(exit code 1).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LoritaDeployError(Exception):
    """Root of the tree. ``where`` names the file, layer or option; ``fix`` is the next thing to try."""

    exit_code = 2
    otherwise = "look at the options with -h, and at this machine with lorita-deploy doctor"
    """What to do, where whoever raises it knows of nothing better."""

    def __init__(self, what: str, *, where: object = None, fix: str | None = None) -> None:
        self.what = what
        self.where = None if where is None else str(where)
        self.fix = fix or self.otherwise
        super().__init__(str(self))

    def __str__(self) -> str:
        return self.told()

    def told(self, where: str | None = None) -> str:
        """The three parts, a line each; ``where`` stands in where no place is known."""
        place = self.where or where
        return "\n".join([self.what, *([f"  where: {place}"] if place else []), f"  do:    {self.fix}"])


class UnknownName(LoritaDeployError):
    """A name that nothing is registered under; the message offers the near misses."""

    otherwise = "lorita-deploy models list, targets list and exporters list show what there is"

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

    otherwise = "check the images and their labels, or try --data digits, which is always there"


class BadCheckpoint(LoritaDeployError):
    """Weights that do not fit the network, or a damaged weight file."""

    otherwise = "lorita-deploy inspect shows what the file holds; it has to be of this very network"


class BadRecord(LoritaDeployError):
    """A document that is damaged, has foreign keys, or was written by a newer version."""

    otherwise = "let lorita-deploy write the file again, or mend it by hand"


class BadTarget(LoritaDeployError):
    """A target file that breaks its rules."""

    otherwise = "lorita-deploy targets show cpu is an example of a target; compare yours with it, entry by entry"


class BadArtifact(LoritaDeployError):
    """An artifact that cannot be read or loaded."""

    otherwise = "copy or export the file again; lorita-deploy inspect says what a whole one holds"


class BadNetwork(LoritaDeployError):
    """A network that cannot be traced, collapsed or rewritten."""

    otherwise = "see whether the network runs by itself in torch on one example, in evaluation mode"


class PlanMismatch(LoritaDeployError):
    """A plan made for another network or another target."""

    otherwise = "let lorita-deploy plan write a plan for this network and target"


class TrainingDiverged(LoritaDeployError):
    """The loss is no longer a number; the last good checkpoint is kept."""

    otherwise = "lower the learning rate (--lr), then run the same command again"


class ExporterUnavailable(LoritaDeployError):
    """An exporter's package is missing, or this machine cannot run it."""

    otherwise = "lorita-deploy exporters show NAME says what is missing here"


class EnvironmentDiffers(LoritaDeployError):
    """Two measurements from different environments, which must not be compared unless told to."""

    otherwise = "measure again on one machine, with the same settings"
    exit_code = 3


class VerificationFailed(LoritaDeployError):
    """The artifact does not compute what the network computes, within the stated tolerance."""

    otherwise = "export again, and choose --precision fp32 if it is not; do not ship this file"
    exit_code = 4


class DeviceUnfit(LoritaDeployError):
    """The device lacks what the runner needs."""

    otherwise = "lorita-deploy doctor --device looks at the device and says how to mend it"
    exit_code = 3


class DeviceUnreachable(LoritaDeployError):
    """The device does not answer."""

    otherwise = "see that it is on and that ssh reaches it without asking for a password, then run again"
    exit_code = 5


class TrainingWarning(UserWarning):
    """Not an error: a training goes on, but not in the way that was meant."""


class OutOfResource(LoritaDeployError):
    """Disk or memory is full."""

    otherwise = "free some disk or memory, then run the same command again: what is finished is kept"
    exit_code = 6


class FolderBusy(OutOfResource):
    """Another build holds the build folder."""

    otherwise = "wait for the other build, or choose another folder with --out"


class DeviceBusy(OutOfResource):
    """Somebody else times something on the device."""

    otherwise = "wait until it is done, then run the same command again: what is finished is kept"
