"""How much memory there is to be had, and whether it ran out."""

from __future__ import annotations

from pathlib import Path

LIMITS = (
    ("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
    ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
"""Where a container's limit stands, what it uses, and what of that are files that make way (Linux, control groups 2 and 1)."""


def free_memory(root: Path = Path("/")) -> int | None:
    """Bytes that programs here may still take: the machine's, or those that its container is allowed; None where neither can
    be read. Files that the system keeps in memory for later make way and count as free."""
    found = [_free_of_machine(root), *(_free_of_container(root / place, *names) for place, *names in LIMITS)]
    return min((each for each in found if each is not None), default=None)


def memory_is_full(error: BaseException) -> bool:
    """Whether that is what ``error`` says: Python's own, or torch's, which for a CPU is a plain `RuntimeError`."""
    says_so = "allocate memory" in str(error) or "out of memory" in str(error)
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and says_so)


def _free_of_machine(root: Path) -> int | None:
    kilobytes = _facts(root / "proc/meminfo").get("MemAvailable:")
    return None if kilobytes is None else kilobytes * 1024


def _free_of_container(place: Path, limit: str, used: str, making_way: str) -> int | None:
    try:
        allowed, taken = (int((place / name).read_text(encoding="ascii")) for name in (limit, used))
    except (OSError, ValueError):  # no container, or one without a limit ("max")
        return None
    return max(0, allowed - taken + _facts(place / "memory.stat").get(making_way, 0))


def _facts(path: Path) -> dict[str, int]:
    """Lines of a name and a number; nothing where there is no such file."""
    try:
        words = [line.split() for line in path.read_text(encoding="ascii").splitlines()]
        return {name: int(number) for name, number, *_ in words}
    except (OSError, ValueError):
        return {}
