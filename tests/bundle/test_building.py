"""Engines through the whole runner: built in processes of their own with less and less workspace, kept, taken up again.

The runtime travels with the job, as one of an exporter of somebody's own would. It builds: its "engine" is the ONNX file with a
header, so that the outputs are real ones. No TensorRT is played here (see test_trt.py for its real builder).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_run import RUNNER, assert_refused, folder, job  # noqa: F401

from lorita_deploy.records import Receipt, Verification

RUNTIME = """
import os, resource
import engines, runtimes

class Runtime(runtimes.OnnxRuntime):
    suffix, builds = ".engine", True

    def about(self):
        return {"gpu": os.environ.get("GPU", "one"), "tensorrt": "1"}

    def workspaces(self):
        return engines.ladder(1 << 30)

    def build(self, path, precision, workspace, exact, cache):
        with open(os.path.join(os.path.dirname(path), "tries"), "a") as file:
            file.write("%s %d\\n" % (os.path.basename(path), workspace >> 20))
        how = os.environ.get("HOW", "")
        if how == "disk":  # the system refuses larger files, as it does on a full disk
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
        resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
        if how == "greedy":
            workspace = 1 << 40
        block = bytearray(workspace * 16)  # taken for real: of 256 MiB there is not enough
        del block
        with open(path, "rb") as file:
            return b"mine" + file.read()

    def open(self, path, profile=False):
        with open(path, "rb") as file:
            plan = file.read()
        assert plan[:4] == b"mine"
        with open(path + ".onnx", "wb") as file:
            file.write(plan[4:])
        return runtimes.OnnxRuntime.open(self, path + ".onnx", profile)
"""


@pytest.fixture
def place(folder: Path) -> Path:  # noqa: F811
    (folder / "runtime_own.py").write_text(RUNTIME)
    ask(folder, ["verify"])
    return folder


def ask(place: Path, tasks: list[str]) -> None:
    (place / "job.json").write_text(json.dumps(job(place, settings={"runtime": "own"}, tasks=tasks)))


def run(place: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(RUNNER), "--job", str(place / "job.json")]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)


def tries(place: Path, artifact: str = "dense.onnx") -> list[int]:
    """Workspaces in MiB that were tried, in order."""
    lines = [line.split() for line in (place / "tries").read_text().splitlines()] if (place / "tries").exists() else []
    return [int(size) for name, size in lines if name == artifact]


def finished(place: Path) -> dict[str, tuple[int, int]]:
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in place.glob("engines/*.engine")}


def test_workspace_is_halved_until_memory_suffices_and_engines_are_built_once(place: Path) -> None:
    done = run(place)
    assert done.returncode == 0, done.stderr
    assert tries(place)[:1] == [256]
    assert tries(place) == tries(place, "compressed.onnx") == sorted(tries(place), reverse=True)
    assert len(tries(place)) > 1
    engines = [each.engine for each in Verification.load(place / "verification.json").artifacts]
    assert [each.workspace_bytes >> 20 for each in engines if each] == [tries(place)[-1]] * 2
    before, attempts = finished(place), tries(place)
    assert len(before) == 2
    ask(place, ["verify", "race"])
    assert run(place).returncode == 0
    series = Receipt.load(place / "receipt.json").series
    assert all(each.verified for each in series)
    assert [each.engine for each in series] == engines
    assert (finished(place), tries(place)) == (before, attempts), "found again, not built again"


def test_another_gpu_gets_engines_of_its_own_and_loses_none(place: Path) -> None:
    assert run(place).returncode == 0
    before = finished(place)
    assert run(place, GPU="another").returncode == 0
    after = finished(place)
    assert len(after) == 4
    assert before.items() <= after.items()


def test_an_engine_that_was_damaged_is_built_again(place: Path) -> None:
    assert run(place).returncode == 0
    attempts = len(tries(place))
    (engine,) = place.glob("engines/dense-*.engine")
    engine.write_bytes(engine.read_bytes()[:-1])
    assert run(place).returncode == 0
    assert len(tries(place)) == 2 * attempts
    assert len(tries(place, "compressed.onnx")) == attempts


def test_memory_that_never_suffices_is_exit_6_with_all_that_was_tried(place: Path) -> None:
    done = run(place, HOW="greedy")
    assert_refused(done, 6, "no engine could be built with 256, 128, 64, 32, 16 MiB of workspace: out of memory")
    assert "add swap" in done.stderr


def test_a_full_disk_is_not_taken_for_want_of_memory(place: Path) -> None:
    """Less workspace would not help: it is said at once, and what is there stays."""
    assert run(place).returncode == 0
    before = finished(place)
    (place / "tries").unlink()
    done = run(place, HOW="disk", GPU="another")
    assert_refused(done, 6, "cannot be written")
    assert "make room" in done.stderr
    assert tries(place, "compressed.onnx") == [256, 128], "128 MiB sufficed, and the disk was full: no 64"
    assert "MiB of workspace" not in done.stderr
    assert tries(place) == [], "the next network is not tried"
    assert finished(place) == before
    assert not list(place.rglob("*.part"))
