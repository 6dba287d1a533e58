"""How much memory there is: the machine's, or what a container is allowed."""

import os
from pathlib import Path

import pytest

from lorita_deploy.memory import free_memory

GIB = 2**30


def machine(root: Path, available: int) -> Path:
    (root / "proc").mkdir()
    (root / "proc" / "meminfo").write_text(f"MemTotal: 9 kB\nMemFree: 1 kB\nMemAvailable:   {available // 1024} kB\n")
    return root


def test_of_this_machine() -> None:
    found = free_memory()
    assert found is not None
    assert 0 < found <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize(
    ("place", "limit", "used", "files"),
    [
        ("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
        ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ],
)
def test_a_container_is_allowed_less_than_there_is(tmp_path: Path, place: str, limit: str, used: str, files: str) -> None:
    folder = machine(tmp_path, 64 * GIB) / place
    folder.mkdir(parents=True)
    (folder / limit).write_text(f"{8 * GIB}\n")
    (folder / used).write_text(f"{7 * GIB}\n")
    assert free_memory(tmp_path) == GIB
    (folder / "memory.stat").write_text(f"anon {5 * GIB}\n{files} {2 * GIB}\n")
    assert free_memory(tmp_path) == 3 * GIB, "files that the system keeps make way"
    (folder / limit).write_text("max\n")
    assert free_memory(tmp_path) == 64 * GIB


def test_where_nothing_can_be_read(tmp_path: Path) -> None:
    assert free_memory(tmp_path) is None
