"""Is a device, reached over SSH, fit to run a bundle on?"""

from __future__ import annotations

from collections.abc import Iterator

from ..devices.look import RUNTIMES, Look, is_target, remedy
from ..devices.ssh import SshDevice
from ..records import Finding, Health
from ..targets import Target, all_targets
from .stack import machine_facts, with_stack

LEAST_DISK_BYTES = 500_000_000
LEAST_MEMORY_BYTES = 500_000_000


def check_device(device: SshDevice, target: Target | None = None) -> Health:
    """Everything that running there depends on; with a ``target``, also whether the device is that target and runs its
    profile's software. Raises `DeviceUnreachable`, `DeviceUnfit`."""
    look = device.look
    findings = [*_findings(look, device.name)]
    if target is not None:
        facts = machine_facts(
            architecture=look.architecture,
            board=look.board,
            cuda=look.cuda,
            memory_bytes=look.host.memory_bytes,
            versions=look.host.versions,
            release=look.release,
            toolkit=look.toolkit,
        )
        findings = [*with_stack(findings, facts, target)]
    return Health(host=device.host(), findings=tuple(findings))


def _findings(look: Look, name: str) -> Iterator[Finding]:
    yield Finding(subject="connection", state="ok", found=name)
    yield Finding(subject="python", state="ok", found=f"{look.host.versions['python']}, {look.executable}")
    runtimes = [package for package in RUNTIMES if package in look.host.versions]
    for package in ("numpy", *RUNTIMES):
        if package in look.host.versions:
            yield Finding(subject=package, state="ok", found=look.host.versions[package])
        else:
            enough = package != "numpy" and bool(runtimes)
            fix = None if enough else remedy(look, [package])
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
