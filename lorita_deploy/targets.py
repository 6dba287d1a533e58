"""Devices as data: one TOML file per target, every number with its source, no code and no inheritance.

`load_target` takes a name, an alias or a path to one's own file; `this_host` describes the machine we are on, and
`is_local` answers whether a target is this very machine (only then can its times be measured here).
"""

from __future__ import annotations

import os
import platform
import tomllib
from functools import cache
from importlib import resources
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import pydantic

from .errors import BadTarget, UnknownName
from .records import Host, Part, Precision


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
    memory_bytes: int | None = None


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


class Roofline(Part):
    """Parameters of the time estimate, see measure/roofline.py for the formula."""

    gflops: dict[Precision, float]
    """Peak multiply-add rate, counting two operations each, in 1e9 per second."""
    bandwidth_gb_s: float
    launch_us: float
    """Fixed cost of one kernel."""
    align: dict[Precision, int]
    """Channel counts are rounded up to multiples of this."""
    parallel: int
    """Multiply-adds in flight needed to reach the peak: smaller layers run at a proportional share of it."""


class Target(Part):
    """A device to deploy to."""

    name: str
    title: str
    aliases: tuple[str, ...] = ()
    runtime: Literal["onnxruntime", "tensorrt", "torch-cuda"]
    exporters: tuple[str, ...]
    limits: Limits
    identify: Identify
    roofline: Roofline
    source: dict[str, str]
    """Where the numbers of each table come from."""


def load_target(name: str) -> Target:
    """The target called ``name``, or the one in the file ``name``. Raises `UnknownName`, `BadTarget`."""
    if name.endswith(".toml") or os.sep in name:
        return read_target(Path(name))
    known = all_targets()
    for target in known:
        if name == target.name or name in target.aliases:
            return target
    spellings = [spelling for target in known for spelling in (target.name, *target.aliases)]
    raise UnknownName("target", name, spellings, fix="lorita-deploy targets list, or give the path of your own TOML file")


@cache
def all_targets() -> tuple[Target, ...]:
    """The targets that ship with the library, by name."""
    folder = Path(str(resources.files(__package__) / "targets"))
    return tuple(read_target(path) for path in sorted(folder.glob("*.toml")))


def read_target(path: Path) -> Target:
    """Read and check one target file. Raises `BadTarget`."""
    try:
        body: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BadTarget(f"cannot be read as TOML: {error}", where=path) from error
    try:
        target = Target.model_validate(_tuples(body))
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise BadTarget(f"{key}: {first['msg']}", where=path, fix="compare: lorita-deploy targets show cpu --json") from error
    unsourced = [table for table in ("limits", "roofline") if table not in target.source]
    if unsourced:
        raise BadTarget(f"no source is given for: {', '.join(unsourced)}", where=path, fix="add the lines under [source]")
    return target


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
    rule = target.identify
    if rule.machine and platform.machine() != rule.machine:
        return False
    if rule.device_tree_model:
        return rule.device_tree_model in device_tree_model()
    if rule.cuda:
        import torch

        return torch.cuda.is_available()
    return rule.local


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
