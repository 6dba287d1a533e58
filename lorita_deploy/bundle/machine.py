"""What the runner can say of the machine it runs on. Standard library only, valid Python 3.6."""

import contextlib
import ctypes
import os
import platform
import signal
import time

from typing import Any, Dict, Optional, Tuple

PR_SET_PDEATHSIG = 1
"""Of linux/prctl.h."""


def host(kind: str, versions: Dict[str, str]) -> Dict[str, Any]:
    """The ``Host`` of the records; ``versions`` are those of the runtime and its company."""
    found = dict(versions, python=platform.python_version())
    return {
        "machine": _name(),
        "kind": kind,
        "cores": os.cpu_count() or 1,
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": " ".join((platform.system(), platform.release(), platform.machine())),
        "versions": dict(sorted(found.items())),
    }


def board() -> str:
    """As a single-board computer's device tree names it; empty elsewhere."""
    with contextlib.suppress(OSError), open("/proc/device-tree/model", encoding="utf-8", errors="replace") as file:
        return file.read().rstrip("\0\n")
    return ""


def _name() -> str:
    named = board()
    if named:
        return named
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def end_with(parent: int) -> None:
    """Have this process killed when the process ``parent``, which started it, ends in whatever way; at once if it has ended.

    By the kernel (prctl, Linux); elsewhere nothing is done.
    """
    try:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    except (OSError, AttributeError):
        return
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def load_average() -> Optional[float]:
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def work_seconds() -> Optional[Tuple[float, float, float]]:
    """Now, processor seconds that all programs of this machine have used, and those of this one; None where unknown.

    Time that a hypervisor gave to other guests counts as used.
    """
    with contextlib.suppress(OSError, ValueError), open("/proc/stat", encoding="ascii") as file:
        ticks = [int(part) for part in file.readline().split()[1:]]
        user, nice, system, _, _, irq, soft, steal = ticks[:8]
        used = (user + nice + system + irq + soft + steal) / os.sysconf("SC_CLK_TCK")
        return time.monotonic(), used, time.process_time()
    return None


def peak_memory_bytes() -> Optional[int]:
    """Largest resident set of this process. Not ``ru_maxrss``, which a child inherits from its parent."""
    with contextlib.suppress(OSError), open("/proc/self/status", encoding="utf-8") as file:
        for line in file:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return None
