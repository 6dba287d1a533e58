"""What the runner can say of the machine it runs on. Standard library only, valid Python 3.6."""

import contextlib
import os
import platform

from typing import Any, Dict, Optional


def host(kind: str, versions: Dict[str, str]) -> Dict[str, Any]:
    """The ``Host`` of records.py; ``versions`` are those of the runtime and its company."""
    found = dict(versions, python=platform.python_version())
    return {
        "machine": _name(),
        "kind": kind,
        "cores": os.cpu_count() or 1,
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": " ".join((platform.system(), platform.release(), platform.machine())),
        "versions": dict(sorted(found.items())),
    }


def _name() -> str:
    with contextlib.suppress(OSError), open("/proc/device-tree/model", encoding="utf-8", errors="replace") as file:
        return file.read().rstrip("\0\n")
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def load_average() -> Optional[float]:
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def peak_memory_bytes() -> Optional[int]:
    """Largest resident set of this process. Not ``ru_maxrss``, which a child inherits from its parent."""
    with contextlib.suppress(OSError), open("/proc/self/status", encoding="utf-8") as file:
        for line in file:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return None
