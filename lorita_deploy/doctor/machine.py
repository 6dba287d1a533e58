"""Is this machine fit to build on?"""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from ..memory import free_memory
from ..ports import EXPORTERS, find_exporter, names
from ..records import Finding, Health
from ..targets import Target, all_targets, is_local, this_host
from .stack import this_machine, with_stack

OLDEST_PYTHON = (3, 11)
LEAST_MEMORY_BYTES = 4 * 2**30
"""A default build of VGG16 stays below 6 GB; small networks need less."""
LEAST_DISK_BYTES = 2 * 2**30


def check_machine(folder: Path | None = None, target: Target | None = None) -> Health:
    """Everything a build here would depend on; ``folder`` is where it would write.

    With a ``target``, also whether this machine is that target and runs its profile's software.
    """
    findings = [*_python(), *_packages(), *_resources(folder or Path()), *_cuda(), *_exporters(), *_targets()]
    if target is not None:
        findings = [*with_stack(findings, this_machine(), target)]
    return Health(host=this_host(), findings=tuple(findings))


def _python() -> Iterator[Finding]:
    found = platform.python_version()
    if sys.version_info >= OLDEST_PYTHON:
        yield Finding(subject="python", state="ok", found=found)
    else:
        yield Finding(subject="python", state="missing", found=found, fix="use Python 3.11 or newer")


def _packages() -> Iterator[Finding]:
    """What our own package says it needs, and what of that is there."""
    try:
        from packaging.requirements import Requirement
    except ImportError:
        yield Finding(subject="packaging", state="missing", found="not installed", fix="pip install packaging")
        return
    for wanted in map(Requirement, requires("lorita-deploy") or []):
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        try:
            found = version(wanted.name)
        except PackageNotFoundError:
            found = None
        enough = found is not None and wanted.specifier.contains(found, prereleases=True)
        wanted.marker = None
        yield Finding(
            subject=wanted.name,
            state="ok" if enough else "missing",
            found="not installed" if found is None else found if enough else f"{found}, and {wanted.specifier} is needed",
            fix=None if enough else f"pip install '{wanted}'",
        )


def _resources(folder: Path) -> Iterator[Finding]:
    cores = os.cpu_count() or 1
    yield Finding(subject="cores", state="ok", found=str(cores))
    load = os.getloadavg()[0]
    busy = load > cores / 2
    yield Finding(
        subject="load",
        state="note" if busy else "ok",
        found=f"{load:.1f}",
        fix="times measured now will scatter: wait until other work is done (uptime)" if busy else None,
    )
    memory = free_memory()
    scarce = memory is not None and memory < LEAST_MEMORY_BYTES
    yield Finding(
        subject="memory",
        state="note" if scarce else "ok",
        found="unknown" if memory is None else f"{memory / 2**30:.1f} GiB available",
        fix="close other programs, or lower --batch-size and --calibration-samples" if scarce else None,
    )
    # Which, unlike Path.exists, answers for names that are too long and for folders that may not be entered.
    existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if os.path.exists(parent))
    writable = existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)
    longest = os.pathconf(existing, "PC_NAME_MAX")
    too_long = next((part for part in folder.absolute().parts if len(os.fsencode(part)) > longest), None)
    if too_long is not None:
        told = f"{too_long[:20]}... is longer than the {longest} bytes of a name"
    else:
        told = f"{folder} can be written" if writable else f"{existing} cannot be written to, or is no folder"
    fit = writable and too_long is None
    yield Finding(
        subject="folder",
        state="ok" if fit else "missing",
        found=told,
        fix=None if fit else "build somewhere else: --out FOLDER",
    )
    free = shutil.disk_usage(existing).free
    full = free < LEAST_DISK_BYTES
    yield Finding(
        subject="disk",
        state="note" if full else "ok",
        found=f"{free / 2**30:.1f} GiB free",
        fix="build on another disk: --out FOLDER" if full else None,
    )


def _cuda() -> Iterator[Finding]:
    try:
        import torch
    except Exception as error:  # a broken installation fails in many ways
        fix = "pip install --force-reinstall torch torchvision"
        yield Finding(subject="torch import", state="missing", found=_line(error), fix=fix)
        return
    if torch.cuda.is_available():
        yield Finding(subject="cuda", state="ok", found=f"{torch.cuda.get_device_name(0)}, CUDA {torch.version.cuda}")
    else:
        yield Finding(subject="cuda", state="note", found="no CUDA device; everything runs on the processor")


def _exporters() -> Iterator[Finding]:
    for name in names(EXPORTERS):
        try:
            problems = find_exporter(name).check()
        except Exception as error:  # a plug-in may fail in any way; one that does must not hide the rest
            problems = [f"cannot be loaded: {_line(error)}"]
        state = "missing" if problems and name == "onnx" else "note" if problems else "ok"
        yield Finding(subject=f"exporter {name}", state=state, found="ready" if not problems else "; ".join(problems))  # type: ignore[arg-type]


def _line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _targets() -> Iterator[Finding]:
    here = ", ".join(target.name for target in all_targets() if is_local(target))
    yield Finding(subject="targets here", state="ok", found=f"{here} (times on others are estimates, until a board is asked)")
