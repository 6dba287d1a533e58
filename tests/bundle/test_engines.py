"""Engines: the ladder of workspaces, what is kept, what is refused."""

from __future__ import annotations

import itertools
import os
import struct
import subprocess
import sys
from pathlib import Path

import engines
import pytest
from job import JobError

MIB = 1 << 20
ARTIFACT = {"sha256": "a" * 64, "precision": "fp16"}
ABOUT = {"tensorrt": "10.3.0", "gpu": "Orin", "sm": "8.7", "cuda": "12.6"}


@pytest.mark.parametrize(
    ("memory_gb", "largest_mib"), [(2, 512), (3.9, 512), (4, 1024), (7.4, 1024), (8, 2048), (61, 4096), (0.01, 16)]
)
def test_the_ladder_starts_within_a_quarter_of_the_memory(memory_gb: float, largest_mib: int) -> None:
    sizes = engines.ladder(int(memory_gb * 2**30))
    assert sizes[0] == largest_mib * MIB
    assert sizes[-1] == 16 * MIB
    assert all(above == 2 * below for above, below in itertools.pairwise(sizes))


def test_processes_that_memory_kills_are_tried_again_with_less() -> None:
    """Children that take their workspace for real, under a limit on their address space."""
    code = """
import resource, sys
size = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_AS, (400 << 20, 400 << 20))
try:
    block = bytearray(size)
except MemoryError:
    sys.exit(6)
"""
    tried = []

    def build(size: int) -> None:
        tried.append(size)
        if subprocess.run([sys.executable, "-c", code, str(size)], check=False).returncode:
            raise engines.OutOfMemoryError("out of memory")

    assert engines.build_down("dense", engines.ladder(4 << 30), build) <= 256 * MIB
    assert tried[:2] == [1024 * MIB, 512 * MIB]
    with pytest.raises(JobError, match="no engine could be built with 1024, 512 MiB") as caught:
        engines.build_down("dense", [1024 * MIB, 512 * MIB], build)
    assert caught.value.code == 6


def test_engines_are_kept_and_found_by_what_they_depend_on(tmp_path: Path) -> None:
    key = engines.key_of(ARTIFACT, ABOUT, False, 1)
    others = {
        engines.key_of({**ARTIFACT, "sha256": "b" * 64}, ABOUT, False, 1),
        engines.key_of({**ARTIFACT, "precision": "fp32"}, ABOUT, False, 1),
        engines.key_of(ARTIFACT, {**ABOUT, "tensorrt": "10.3.1"}, False, 1),
        engines.key_of(ARTIFACT, {**ABOUT, "gpu": "Xavier"}, False, 1),
        engines.key_of(ARTIFACT, ABOUT, True, 1),
        engines.key_of(ARTIFACT, ABOUT, False, 8),
    }
    assert len(others | {key}) == 7
    assert engines.find(str(tmp_path), "dense", key) is None
    engines.keep(str(tmp_path), "dense", key, b"plan", {"workspace_bytes": 1})
    found = engines.find(str(tmp_path), "dense", key)
    assert found
    assert (found["size_bytes"], found["workspace_bytes"], Path(found["path"]).read_bytes()) == (4, 1, b"plan")
    assert all(engines.find(str(tmp_path), "dense", other) is None for other in others)


def test_an_engine_that_was_changed_or_is_half_written_is_not_loaded(tmp_path: Path) -> None:
    engines.keep(str(tmp_path), "dense", "k", b"plan", {})
    path = Path(engines.path_of(str(tmp_path), "dense", "k"))
    path.write_bytes(b"other")
    assert engines.find(str(tmp_path), "dense", "k") is None
    path.write_bytes(b"plan")
    assert engines.find(str(tmp_path), "dense", "k")
    Path(f"{path}.json").unlink()  # killed between the engine and its sidecar
    assert engines.find(str(tmp_path), "dense", "k") is None


def test_timings_are_kept_apart_by_what_they_depend_on() -> None:
    """The device, CUDA and TensorRT."""
    changes: tuple[dict[str, str], ...] = (
        {}, {"tensorrt": "10.3.1"}, {"cuda": "12.8"}, {"gpu": "Xavier"}, {"multiprocessors": "16"}, {"board": "b"}
    )  # fmt: skip
    assert len({engines.cache_key({**ABOUT, **change}) for change in changes}) == len(changes)


def test_a_folder_that_cannot_be_written_to_is_exit_6(tmp_path: Path) -> None:
    (tmp_path / "engines").write_text("in the way")
    with pytest.raises(JobError) as caught:
        engines.keep(str(tmp_path), "dense", "k", b"plan", {})
    assert caught.value.code == 6


def test_an_engine_of_another_tensorrt_is_refused_before_it_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "some.engine"
    path.write_bytes(struct.pack("<II", 0x74727466, 0) + bytes(16) + bytes([10, 13, 3, 9]) + os.urandom(64))
    assert engines.plan_version(str(path)) == "10.13.3.9"
    assert engines.refusal(str(path), {**ABOUT, "tensorrt": "10.13.3.9"}) is None
    assert "built by TensorRT 10.13.3.9, and this is TensorRT 10.3.0" in str(engines.refusal(str(path), ABOUT))
    for content in (b"", b"short", os.urandom(64)):
        path.write_bytes(b"\x01" + content)
        assert engines.plan_version(str(path)) is None
        assert engines.refusal(str(path), ABOUT) is None
    path.write_bytes(b"vtrt" + bytes(60))
    assert "built by TensorRT for RTX" in str(engines.refusal(str(path), ABOUT))
    path.write_bytes(b"ptrt" + bytes(60))
    assert "before 8.6" in str(engines.refusal(str(path), ABOUT))
    assert engines.refusal(str(path), {**ABOUT, "tensorrt": "8.2.1.8"}) is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"gpu": "Xavier", "sm": "7.2"}, "GPU Xavier, and here it is Orin; compute capability 7.2, and here it is 8.7"),
        ({"multiprocessors": "16"}, "number of multiprocessors 16, and here it is 8"),
        ({"board": "Jetson AGX Orin"}, "board Jetson AGX Orin, and here it is Jetson Orin Nano"),
        ({}, None),
        ({"cuda-driver": "12.8"}, None),
    ],
)
def test_an_engine_of_another_gpu_is_refused_before_it_is_loaded(
    tmp_path: Path, change: dict[str, str], words: str | None
) -> None:
    """All Orins call their GPU by one name, with one compute capability: the board and the size tell them apart."""
    here = {**ABOUT, "multiprocessors": "8", "board": "Jetson Orin Nano"}
    plan = struct.pack("<II", 0x74727466, 0) + bytes(16) + bytes([10, 3, 0, 30]) + os.urandom(64)
    engines.keep(str(tmp_path), "dense", "k", plan, {"about": {**here, **change}})
    refused = engines.refusal(engines.path_of(str(tmp_path), "dense", "k"), here)
    assert refused == (words and f"built on another device: {words}")
    assert (engines.key_of(ARTIFACT, here, False, 1) == engines.key_of(ARTIFACT, {**here, **change}, False, 1)) == (not change)
