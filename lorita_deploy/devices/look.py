"""What a device says of itself: who it is, whether the runner can run there, and whether it is the target."""

from __future__ import annotations

from collections.abc import Iterator

from ..errors import DeviceUnfit, EnvironmentDiffers
from ..records import Finding, Host, Part
from ..targets import Target, all_targets, matches

LEAST_DISK_BYTES = 500_000_000
LEAST_MEMORY_BYTES = 500_000_000


class Look(Part):
    """The reply of ``onboard/agent.py``."""

    host: Host
    problems: dict[str, str]
    """Packages that cannot be imported, and why."""
    executable: str
    architecture: str
    board: str
    """As its device tree names it; empty on other machines."""
    cuda: bool
    folder: str
    writable: bool
    free_bytes: int
    kept_bytes: int
    available_bytes: int
    load: float | None
    busy: dict[str, str] | None
    """Who times something there just now, and since when."""


def is_target(look: Look, target: Target) -> bool:
    """Whether the device is an instance of ``target``."""
    return matches(target, architecture=look.architecture, board=look.board, cuda=look.cuda)


def require_target(look: Look, target: Target, where: object) -> None:
    """Raises `EnvironmentDiffers`: no time of another machine may pass for one of ``target``."""
    if not is_target(look, target):
        known = ", ".join(each.name for each in all_targets() if is_target(look, each))
        raise EnvironmentDiffers(
            f"this device is not a {target.name}: it says {look.board or look.host.machine}, {look.architecture}",
            where=where,
            fix=f"choose a --target that it is: {known}" if known else "choose another --target or --device",
        )


def require_runtime(look: Look, runtime: str | None, where: object) -> None:
    """``runtime`` None: any will do. Raises `DeviceUnfit`, naming what is missing and what brings it."""
    runtime = runtime or ("tensorrt" if "tensorrt" in look.host.versions else "onnxruntime")
    lacking = [name for name in ("numpy", runtime) if name in look.problems]
    if lacking:
        raise DeviceUnfit(
            f"{look.executable} (Python {look.host.versions['python']}) there has no {' and no '.join(lacking)}: "
            f"{look.problems[lacking[0]]}",
            where=where,
            fix=f"{_remedy(look, lacking)}; or name another interpreter: ssh://...?python=/path/to/python3",
        )


def findings(look: Look, name: str) -> Iterator[Finding]:
    """For ``lorita-deploy doctor --device``."""
    yield Finding(subject="connection", state="ok", found=name)
    yield Finding(subject="python", state="ok", found=f"{look.host.versions['python']}, {look.executable}")
    runtimes = [package for package in ("onnxruntime", "tensorrt") if package in look.host.versions]
    for package in ("numpy", "onnxruntime", "tensorrt"):
        if package in look.host.versions:
            yield Finding(subject=package, state="ok", found=look.host.versions[package])
        else:
            enough = package != "numpy" and bool(runtimes)
            fix = None if enough else _remedy(look, [package])
            yield Finding(subject=package, state="note" if enough else "missing", found=look.problems[package], fix=fix)
    yield Finding(
        subject="folder",
        state="ok" if look.writable else "missing",
        found=f"{look.folder}, {look.kept_bytes / 1e6:.0f} MB kept" if look.writable else f"{look.folder} cannot be written",
        fix=None if look.writable else "choose another place: ssh://...?folder=/path",
    )
    full, scarce = look.free_bytes < LEAST_DISK_BYTES, look.available_bytes < LEAST_MEMORY_BYTES
    yield Finding(
        subject="disk",
        state="note" if full else "ok",
        found=f"{look.free_bytes / 1e9:.1f} GB free",
        fix="free some space there, or choose another place: ssh://...?folder=/path" if full else None,
    )
    yield Finding(
        subject="memory",
        state="note" if scarce else "ok",
        found=f"{look.available_bytes / 1e9:.1f} GB available",
        fix="end other programs there" if scarce else None,
    )
    yield Finding(
        subject="in use",
        state="note" if look.busy else "ok",
        found=f"by {look.busy['who']}, since {look.busy['since']}" if look.busy else "by nobody",
        fix="wait until they are done" if look.busy else None,
    )
    known = ", ".join(each.name for each in all_targets() if is_target(look, each))
    yield Finding(subject="targets it is", state="ok", found=known or "none")


def _remedy(look: Look, packages: list[str]) -> str:
    if packages == ["tensorrt"]:
        return "sudo apt install tensorrt python3-libnvinfer there (part of JetPack)"
    return f"{look.executable} -m pip install {' '.join(packages)} there"
