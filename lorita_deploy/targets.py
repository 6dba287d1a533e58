"""Devices as data: one TOML file per target, every number with its source, no code and no inheritance.

`load_target` takes a name, an alias or a path to one's own file. A board on which several software stacks run names them
(`profiles`), and ``board@profile`` picks one; what the stack fixes (opset, IR version) then comes from it. `this_host`
describes the machine we are on, and `is_local` answers whether a target is this very machine (only then can its times be
measured here).
"""

from __future__ import annotations

import os
import platform
from functools import cache
from importlib import resources
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field

from .errors import BadTarget, UnknownName
from .profiles import FROM_THE_PROFILE, Profile, all_profiles, with_default_profile
from .records import Host, Part, Positive, Precision, first_wrong
from .records.toml import read_toml

COMPARE = "compare: lorita-deploy targets show cpu --json"
SAME_MODULE = 0.7
"""Systems see less than the data sheet's memory, by what firmware and GPU keep; the next smaller module has half of it."""


Count = Annotated[int, Field(ge=1)]


class Limits(Part):
    """What a target accepts, and what it is given by default."""

    opset: int
    """ONNX opset that is written."""
    opset_max: int
    ir_version: int
    precision: Precision
    precisions: tuple[Precision, ...]
    rank_multiple: dict[Precision, int]
    """Ranks and widths offered are multiples of this."""
    memory_bytes: Count | None = None
    ir_version_max: int | None = None
    """Newest ONNX IR version that is read; None: not known beyond the one written."""
    compute_capability: str | None = None
    """Of an NVIDIA GPU: engines built for another one do not run."""
    dla: Annotated[int, Field(ge=0)] = 0
    """Deep-learning accelerators on the board (whether the software can use them, its profile says)."""


class Identify(Part):
    """How a machine is recognised as this target."""

    local: bool = False
    """True: any machine this program runs on qualifies (``cpu``)."""
    machine: str | None = None
    """Architecture as ``uname -m`` prints it."""
    device_tree_model: str | None = None
    """Part of /proc/device-tree/model."""
    cuda: bool = False
    """Any machine with a CUDA device."""
    any_memory: bool = False
    """It is sold with less memory than the limits say, too, and is the same target then."""


class Roofline(Part):
    """Parameters of the time estimate, see measure/roofline.py for the formula."""

    gflops: dict[Precision, Positive]
    """Peak multiply-add rate, counting two operations each, in 1e9 per second."""
    bandwidth_gb_s: Positive
    launch_us: Annotated[float, Field(ge=0)]
    """Fixed cost of one kernel."""
    align: dict[Precision, Count]
    """Channel counts are rounded up to multiples of this."""
    parallel: Count
    """Multiply-adds in flight needed to reach the peak: smaller layers run at a proportional share of it."""


class Target(Part):
    """A device to deploy to."""

    name: str
    title: str
    aliases: tuple[str, ...] = ()
    runtime: Literal["onnxruntime", "tensorrt", "torch-cuda"]
    exporters: Annotated[tuple[str, ...], Field(min_length=1)]
    limits: Limits
    identify: Identify
    roofline: Roofline
    source: dict[str, str]
    """Where the numbers of each table come from."""
    profiles: tuple[str, ...] = ()
    """Software stacks that run on it, oldest first."""
    default_profile: str | None = None
    profile: Profile | None = None
    """The one that was picked; not written in target files."""

    @property
    def spelled(self) -> str:
        """``board@profile``, or the bare name."""
        return f"{self.name}@{self.profile.name}" if self.profile else self.name

    def ir_version_for(self, opset: int) -> int:
        """The target's own; for a newer opset than it is usually given, the least IR version that this opset needs."""
        return self.limits.ir_version if opset <= self.limits.opset else max(self.limits.ir_version, _least_ir_version(opset))


def load_target(name: str) -> Target:
    """The target ``name``, ``name@profile``, or the one in the file ``name``. Raises `UnknownName`, `BadTarget`."""
    if name.endswith(".toml") or os.sep in name:
        return _with_its_ir_version(read_target(Path(name)), name)
    board, _, profile = name.partition("@")
    known = all_targets()
    for target in known:
        if board == target.name or board in target.aliases:
            return with_profile(target, profile) if "@" in name else target
    spellings = [spelling for target in known for spelling in (target.name, *target.aliases)]
    raise UnknownName("target", board, spellings, fix="lorita-deploy targets list, or give the path of your own TOML file")


def with_profile(target: Target, name: str) -> Target:
    """The same board with another of its software stacks. Raises `UnknownName`, `BadTarget`."""
    if not target.profiles:
        raise BadTarget(f"{target.name} has no profiles", where=f"{target.name}@{name}", fix=f"write --target {target.name}")
    spellings = {spelling: each for each in target.profiles for spelling in (each, *all_profiles()[each].covers)}
    if name not in spellings:
        runs = ", ".join(f"{target.name}@{profile}" for profile in target.profiles)
        raise UnknownName(f"profile of {target.name}", name, spellings, fix=f"choose one of: {runs}")
    profile = all_profiles()[spellings[name]]
    limits = target.limits.model_copy(update={key: getattr(profile, key) for key in FROM_THE_PROFILE})
    return target.model_copy(update={"profile": profile, "limits": limits})


@cache
def all_targets() -> tuple[Target, ...]:
    """The targets that ship with the library, by name."""
    folder = Path(str(resources.files(__package__) / "targets"))
    return tuple(read_target(path) for path in sorted(folder.glob("*.toml")))


def read_target(path: Path) -> Target:
    """Read and check one target file; a board with profiles gets its default one. Raises `BadTarget`."""
    body = read_toml(path, BadTarget, fix=COMPARE)
    body = with_default_profile(_tuples(body), path)
    try:
        target = Target.model_validate(body)
    except pydantic.ValidationError as error:
        key, why = first_wrong(error)
        raise BadTarget(f"{key}: {why}", where=path, fix=COMPARE) from error
    unsourced = [table for table in ("limits", "roofline") if table not in target.source]
    if unsourced:
        raise BadTarget(f"no source is given for: {', '.join(unsourced)}", where=path, fix="add the lines under [source]")
    _check_limits(target, path)
    return target


def _check_limits(target: Target, path: Path) -> None:
    """Numbers that contradict one another, found before anything is built on them."""
    limits = target.limits
    wrong = None
    if not 7 <= limits.opset <= limits.opset_max:
        wrong = f"limits.opset: {limits.opset} is not between 7 and opset_max, {limits.opset_max}"
    elif limits.ir_version_max is not None and limits.ir_version > limits.ir_version_max:
        wrong = f"limits.ir_version: {limits.ir_version} is above ir_version_max, {limits.ir_version_max}"
    elif limits.precision not in limits.precisions:
        wrong = f"limits.precision: {limits.precision} is not among the precisions"
    elif any(multiple < 1 for multiple in limits.rank_multiple.values()):
        wrong = "limits.rank_multiple: a multiple below 1"
    elif not set(limits.precisions) <= target.roofline.gflops.keys():
        wrong = "roofline.gflops: a rate is missing for one of limits.precisions"
    if wrong:
        raise BadTarget(wrong, where=path, fix=COMPARE)


def _with_its_ir_version(target: Target, path: str) -> Target:
    """Asked of people's own files only, because it takes onnx to know."""
    opset, found = target.limits.opset, target.limits.ir_version
    if found < (least := _least_ir_version(opset)):
        raise BadTarget(f"limits.ir_version: {found} is below {least}, which opset {opset} needs", where=path, fix=COMPARE)
    return target


def _least_ir_version(opset: int) -> int:
    import onnx

    return int(onnx.helper.find_min_ir_version_for([onnx.helper.make_opsetid("", opset)], ignore_unknown=True))


def _tuples(value: Any) -> Any:
    """TOML arrays as tuples, which the strict models ask for."""
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    if isinstance(value, list):
        return tuple(_tuples(item) for item in value)
    return value


# ---------------------------------------------------------------------------------------------- this machine


def is_local(target: Target) -> bool:
    """Whether this machine is an instance of ``target``, so that its times can be measured here."""
    cuda = False
    if target.identify.cuda and target.identify.machine in (None, platform.machine()):
        import torch

        cuda = torch.cuda.is_available()
    architecture, board = platform.machine(), device_tree_model()
    return matches(target, architecture=architecture, board=board, cuda=cuda, memory_bytes=_memory_bytes())


def matches(target: Target, *, architecture: str, board: str, cuda: bool, memory_bytes: int | None) -> bool:
    """Whether a machine of this architecture (``uname -m``), board (its device tree's model) and memory (None or 0 where it
    is not known), with or without a CUDA device, is an instance of ``target``."""
    rule = target.identify
    if (rule.machine and architecture != rule.machine) or too_small(target, memory_bytes):
        return False
    if rule.device_tree_model:
        return rule.device_tree_model in board
    return cuda if rule.cuda else rule.local


def too_small(target: Target, memory_bytes: int | None) -> bool:
    """Whether a machine has so much less memory that it is a smaller module than ``target``: several modules of one family
    may call themselves the same."""
    stated = target.limits.memory_bytes
    return bool(memory_bytes and stated and not target.identify.any_memory and memory_bytes < SAME_MODULE * stated)


def smaller_by(target: Target, memory_bytes: int | None) -> str:
    """What to add to "this is not a ..." where memory speaks against it; else nothing."""
    stated = target.limits.memory_bytes
    if not (memory_bytes and stated and too_small(target, memory_bytes)):
        return ""
    return f", with {memory_bytes / 1e9:.1f} GB of memory ({stated / 1e9:g} GB in a {target.name})"


def device_tree_model() -> str:
    """The board's name on Linux single-board computers; empty elsewhere."""
    try:
        return Path("/proc/device-tree/model").read_text(encoding="utf-8", errors="replace").rstrip("\0\n")
    except OSError:
        return ""


def this_host(kind: str = "cpu") -> Host:
    """The machine we are on. ``kind`` is the target it stands for."""
    return Host(
        machine=device_tree_model() or _processor(),
        kind=kind,
        cores=os.cpu_count() or 1,
        memory_bytes=_memory_bytes(),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        versions=_versions("lorita-deploy", "numpy", "onnx", "onnxruntime", "torch"),
    )


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _memory_bytes() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return 0


def _versions(*packages: str) -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return dict(sorted(found.items()))
