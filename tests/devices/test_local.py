"""Running on this machine: the result comes back, and failures arrive as our errors."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from small_onnx import write_small_onnx

from lorita_deploy.devices.local import LocalDevice, runner_error
from lorita_deploy.errors import BadArtifact, DeviceUnreachable, OutOfResource
from lorita_deploy.records import Receipt


@pytest.fixture
def job(tmp_path: Path) -> dict[str, Any]:
    path = write_small_onnx(tmp_path / "model.onnx")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return {"artifacts": [{"name": "dense", "path": path.name, "sha256": digest}], "samples": 12, "max_seconds": 2.0}


def test_the_result_comes_back(tmp_path: Path, job: dict[str, Any]) -> None:
    path = LocalDevice().run(tmp_path, {**job, "result": "own.json"}, timeout_s=60)
    assert path == tmp_path / "own.json"
    receipt = Receipt.load(path)
    assert receipt.ratios == ()
    assert receipt.faster is None


def test_a_wrong_hash_is_a_bad_artifact(tmp_path: Path, job: dict[str, Any]) -> None:
    job["artifacts"][0]["sha256"] = "0" * 64
    with pytest.raises(BadArtifact, match="nothing was run") as caught:
        LocalDevice().run(tmp_path, job, timeout_s=60)
    assert caught.value.where == "model.onnx"
    assert caught.value.fix == "copy the file again"


def test_an_old_result_is_never_taken_for_a_new_one(tmp_path: Path, job: dict[str, Any]) -> None:
    (tmp_path / "receipt.json").write_text("old")
    job["artifacts"][0]["sha256"] = "0" * 64
    with pytest.raises(BadArtifact):
        LocalDevice().run(tmp_path, job, timeout_s=60)
    assert not (tmp_path / "receipt.json").exists()


def test_a_runner_that_hangs_is_stopped(tmp_path: Path, job: dict[str, Any]) -> None:
    with pytest.raises(DeviceUnreachable, match="did not finish"):
        LocalDevice().run(tmp_path, job, timeout_s=0.05)


def test_death_by_signal_speaks_of_memory() -> None:
    assert isinstance(runner_error(-9, "", where="job"), OutOfResource)


def test_a_fault_of_the_runner_itself_keeps_its_traceback() -> None:
    error = runner_error(1, "Traceback: ZeroDivisionError", where="job")
    assert isinstance(error, RuntimeError)
    assert "ZeroDivisionError" in str(error)


CLIENT = """
import json, sys
from pathlib import Path
from lorita_deploy.devices.local import LocalDevice
LocalDevice().run(Path(sys.argv[1]), json.loads(sys.argv[2]), timeout_s=60)
"""


def test_the_runner_ends_with_a_program_that_is_killed(tmp_path: Path, job: dict[str, Any]) -> None:
    """It would go on holding the folder, and disturb what is measured next."""
    asked = json.dumps({**job, "samples": 10**6, "max_seconds": 60.0})
    client = subprocess.Popen([sys.executable, "-c", CLIENT, str(tmp_path), asked])
    place, end = Path(f"/proc/{client.pid}/task/{client.pid}/children"), time.monotonic() + 30
    if not place.exists():
        client.kill()
        pytest.skip("no list of a process's children here")
    while not place.read_text() or not (tmp_path / "receipt-progress.json").exists():
        assert time.monotonic() < end
        time.sleep(0.01)
    (runner,) = (Path("/proc") / number for number in place.read_text().split())
    client.kill()
    client.wait()
    while runner.exists() and "Z" not in (runner / "stat").read_text().rpartition(")")[2].split()[0]:
        assert time.monotonic() < end, "it lives on"
        time.sleep(0.01)
    assert not (tmp_path / "receipt.json").exists()
    job["samples"] = 12
    LocalDevice().run(tmp_path, job, timeout_s=60)
