"""What a device says of itself: who it is, whether the runner can run there, and whether it is the target."""

from __future__ import annotations

from ..errors import DeviceUnfit, EnvironmentDiffers
from ..records import Host, Part
from ..targets import Target, all_targets, matches, smaller_by

RUNTIMES = ("onnxruntime", "tensorrt")
"""What the runner can drive on a device."""


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
    release: str
    """What /etc/nv_tegra_release says; empty on other machines."""
    toolkit: str
    """What CUDA's version.json says; empty without one."""
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
    host = look.host
    return matches(target, architecture=look.architecture, board=look.board, cuda=look.cuda, memory_bytes=host.memory_bytes)


def require_target(look: Look, target: Target, where: object) -> None:
    """Raises `EnvironmentDiffers`: no time of another machine may pass for one of ``target``."""
    if not is_target(look, target):
        known = ", ".join(each.name for each in all_targets() if is_target(look, each))
        raise EnvironmentDiffers(
            f"this device is not a {target.name}: it says {look.board or look.host.machine}, {look.architecture}"
            f"{smaller_by(target, look.host.memory_bytes)}",
            where=where,
            fix=f"choose a --target that it is: {known}" if known else "choose another --target or --device",
        )


def require_runtime(look: Look, runtime: str | None, where: object) -> None:
    """``runtime`` None: any will do. Raises `DeviceUnfit`, naming what is missing and what brings it."""
    runtime = runtime or ("tensorrt" if "tensorrt" in look.host.versions else "onnxruntime")
    if runtime not in RUNTIMES:
        raise DeviceUnfit(
            f"the runner does not drive {runtime}", where=where, fix=f"choose a --target of: {', '.join(RUNTIMES)}"
        )
    lacking = [name for name in ("numpy", runtime) if name in look.problems]
    if lacking:
        raise DeviceUnfit(
            f"{look.executable} (Python {look.host.versions['python']}) there has no {' and no '.join(lacking)}: "
            f"{look.problems[lacking[0]]}",
            where=where,
            fix=f"{remedy(look, lacking)}; or name another interpreter: ssh://...?python=/path/to/python3",
        )


def kind_of(look: Look) -> str:
    """The target that the device is recognised as by its board; ``cpu`` where it is just some machine."""
    return next((each.name for each in all_targets() if each.identify.device_tree_model and is_target(look, each)), "cpu")


def remedy(look: Look, packages: list[str]) -> str:
    """What brings these packages."""
    if packages == ["tensorrt"]:
        return "sudo apt install tensorrt python3-libnvinfer there (part of JetPack)"
    return f"{look.executable} -m pip install {' '.join(packages)} there"
