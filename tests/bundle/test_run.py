"""The runner, as it is used: a script in a process of its own, over real files and the real ONNX Runtime."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from published_schemas import obeys
from small_onnx import write_small_onnx

from lorita_deploy import bundle
from lorita_deploy.bundle.manifest import seal
from lorita_deploy.records import Artifact, Manifest, ManifestFile, Profile, Receipt, Verification

PYTHON36 = Path.home() / ".pyenv/versions/3.6.15/bin/python"
RUNNER = Path(bundle.__file__).with_name("run.py")


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two networks, and golden data for both: three real outputs each."""
    (tmp_path / "golden").mkdir()
    inputs = np.random.default_rng(1).standard_normal((3, 3, 16, 16)).astype(np.float32)
    np.savez(tmp_path / "golden/inputs.npz", input=inputs)
    for name, width in (("compressed", 16), ("dense", 64)):
        path = write_small_onnx(tmp_path / f"{name}.onnx", width)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        outputs = np.concatenate([session.run(None, {"input": example[None]})[0] for example in inputs])
        np.savez(tmp_path / f"golden/outputs-{name}.npz", output=outputs)
    return tmp_path


def job(folder: Path, **changes: Any) -> dict[str, Any]:
    names = ("compressed", "dense")
    return {
        "schema": "lorita-deploy/job/1",
        "artifacts": [{"name": name, "path": f"{name}.onnx", "sha256": sha256(folder / f"{name}.onnx")} for name in names],
        "baseline": "dense",
        "golden": {"inputs": "golden/inputs.npz", "outputs": {name: f"golden/outputs-{name}.npz" for name in names}},
        "samples": 48,
        "max_seconds": 5.0,
        **changes,
    }


def start(folder: Path, body: dict[str, Any], *arguments: str) -> subprocess.CompletedProcess[str]:
    path = folder / "job.json"
    path.write_text(json.dumps(body))
    command = [sys.executable, str(RUNNER), "--job", str(path), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def assert_refused(done: subprocess.CompletedProcess[str], code: int, word: str) -> None:
    """The exit code, and a message in three parts without a traceback."""
    assert done.returncode == code, done.stderr
    assert word in done.stderr
    assert "\n  where: " in done.stderr
    assert "\n  do:    " in done.stderr
    assert "Traceback" not in done.stderr


def test_verify_and_race_give_a_receipt(folder: Path) -> None:
    done = start(folder, job(folder))
    assert done.returncode == 0, done.stderr
    receipt = Receipt.load(done.stdout.strip())
    compressed, dense = receipt.series
    assert (compressed.name, dense.name) == ("compressed", "dense")
    for series in receipt.series:
        assert series.n == len(series.samples_ms) == 48
        assert series.reloads == 12
        assert series.calls_per_sample * series.median_ms > 0.05, "samples are long against the clock"
        assert series.median_ci95_ms[0] <= series.median_ms <= series.median_ci95_ms[1]
        assert series.verified
        assert series.max_rel is not None
        assert series.max_rel < 1e-5
        assert series.p99_ms is None
        assert series.file_bytes == (folder / f"{series.name}.onnx").stat().st_size
        assert series.peak_memory_bytes
        assert 10e6 < series.peak_memory_bytes < 2e9
        assert series.load_ms > 0
        assert series.first_ms > 0
    (ratio,) = receipt.ratios
    assert ratio.ci95[0] <= ratio.ratio <= ratio.ci95[1]
    assert ratio.ci95[1] < 1, "a quarter of the width and a tenth of the work"
    assert receipt.faster == "compressed"
    assert receipt.host.versions["onnxruntime"] == onnxruntime.__version__
    assert receipt.settings.threads == 1


def test_a_race_against_itself_names_the_baseline(folder: Path) -> None:
    same = {"path": "dense.onnx", "sha256": sha256(folder / "dense.onnx")}
    done = start(folder, job(folder, artifacts=[{"name": "twin", **same}, {"name": "dense", **same}], golden=None, samples=240))
    receipt = Receipt.load(done.stdout.strip())
    assert 0.7 < receipt.ratios[0].ratio < 1.4
    assert receipt.faster == ("twin" if receipt.ratios[0].faster else "dense")
    assert receipt.series[0].verified is None


def test_profile_gives_the_time_of_every_node(folder: Path) -> None:
    done = start(folder, job(folder, tasks=["profile"], samples=30, result="profile.json"))
    assert done.returncode == 0, done.stderr
    profile = Profile.load(done.stdout.strip())
    assert obeys(Path(done.stdout.strip())) == "profile"
    for artifact in profile.artifacts:
        assert artifact.runs == 30
        total = sum(node.us for node in artifact.nodes)
        assert 0.2 * artifact.whole_us < total < 3 * artifact.whole_us
        assert sum("Conv" in node.op for node in artifact.nodes) == 3
        assert any("tokens_out" in node.name for node in artifact.nodes), "names survive, which prices rely on"
    assert not list(folder.glob("*profile_*")), "the raw profiles are cleared away"


def test_a_tampered_file_is_named_and_nothing_runs(folder: Path) -> None:
    body = job(folder)
    with (folder / "dense.onnx").open("ab") as file:
        file.write(b"x")
    assert_refused(start(folder, body), 2, "dense.onnx")
    assert not (folder / "receipt.json").exists()


def test_golden_outputs_that_differ_are_exit_4(folder: Path) -> None:
    path = folder / "golden/outputs-compressed.npz"
    outputs = np.load(path)["output"]
    np.savez(path, output=outputs * 1.01)
    assert_refused(start(folder, job(folder)), 4, "golden outputs not reproduced")
    assert start(folder, job(folder, tolerance=0.1), "--verify-only").returncode == 0
    own = job(folder)
    own["artifacts"][0]["tolerance"] = 0.1
    assert start(folder, own, "--verify-only").returncode == 0


def test_outputs_that_are_not_numbers_fail(folder: Path) -> None:
    inputs = np.load(folder / "golden/inputs.npz")["input"]
    inputs[1, 0, 0, 0] = np.nan
    np.savez(folder / "golden/inputs.npz", input=inputs)
    assert_refused(start(folder, job(folder)), 4, "inf")


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"schema": "lorita-deploy/job/2"}, "schema"),
        ({"colour": "red"}, "unknown entry colour"),
        ({"artifacts": []}, "at least one"),
        ({"artifacts": [{"name": "a"}]}, "an entry is missing"),
        ({"artifacts": [{"name": "a", "path": "/etc/passwd", "sha256": ""}]}, "leads out"),
        ({"artifacts": [{"name": "a", "path": "../job.json", "sha256": ""}]}, "leads out"),
        ({"artifacts": [{"name": "a", "path": "gone.onnx", "sha256": ""}]}, "gone.onnx"),
        ({"settings": {"runtime": "abacus"}}, "abacus"),
        ({"settings": {"threads": "many"}}, "threads"),
        ({"result": "../receipt.json"}, "leads out"),
    ],
)
def test_bad_jobs_are_refused(folder: Path, changes: dict[str, Any], word: str) -> None:
    assert_refused(start(folder, job(folder, **changes)), 2, word)


def test_a_file_that_is_no_network_is_refused(folder: Path) -> None:
    (folder / "dense.onnx").write_bytes(b"not a network")
    assert_refused(start(folder, job(folder)), 2, "does not load it")


def test_a_symlink_out_of_the_folder_is_refused(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    outside = tmp_path_factory.mktemp("outside") / "dense.onnx"
    body = job(folder)
    (folder / "dense.onnx").rename(outside)
    (folder / "dense.onnx").symlink_to(outside)
    assert_refused(start(folder, body), 2, "leads out")


def test_in_a_bundle_the_manifest_stands_for_the_job(folder: Path) -> None:
    for name in bundle.RUNNER_FILES:
        (folder / name).write_bytes(RUNNER.with_name(name).read_bytes())
    artifacts = [
        Artifact(
            role=role, path=f"{role}.onnx", exporter="onnx", sha256=sha256(folder / f"{role}.onnx"), size_bytes=1, opset=17,
            ir_version=8, precision="fp32", batch=1, dynamic_batch=False, rung=0, simplified=False, inputs=(), outputs=(),
        )
        for role in ("compressed", "dense")
    ]  # fmt: skip
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files = [
        ManifestFile(path=str(path.relative_to(folder)), sha256=sha256(path), size_bytes=path.stat().st_size) for path in paths
    ]
    Manifest(
        model="small", target="cpu", producer="test", files=tuple(files), artifacts=tuple(artifacts), sources={},
        preprocessing={}, classes=(), tolerance=1e-3,
    ).save(folder / "manifest.json")  # fmt: skip
    seal(folder)
    done = subprocess.run([sys.executable, "run.py"], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    receipt = Receipt.load(folder / "receipt.json")
    assert receipt.faster == "compressed"
    assert all(series.verified for series in receipt.series)
    manifest = folder / "manifest.json"
    whole = manifest.read_text()
    manifest.write_text(whole.replace('"tolerance": 0.001', '"tolerance": 1000.0'))
    assert manifest.read_text() != whole
    done = subprocess.run([sys.executable, "run.py"], cwd=folder, capture_output=True, text=True, check=False)
    assert_refused(done, 2, "manifest.json")
    manifest.write_text(whole)
    (folder / "golden/inputs.npz").write_bytes(b"changed")
    done = subprocess.run([sys.executable, "run.py"], cwd=folder, capture_output=True, text=True, check=False)
    assert_refused(done, 2, "golden/inputs.npz")


# ---------------------------------------------------------------------------------------------- stopped and resumed


def begin(folder: Path, body: dict[str, Any], *arguments: str) -> subprocess.Popen[str]:
    path = folder / "job.json"
    path.write_text(json.dumps(body))
    command = [sys.executable, str(RUNNER), "--job", str(path), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_reloads(folder: Path, count: int) -> dict[str, Any]:
    """What is finished, as soon as so many reloads are."""
    path, end = folder / "receipt-progress.json", time.monotonic() + 60
    while time.monotonic() < end:
        if path.exists():
            found = json.loads(path.read_text())
            if len(found["reloads"]) >= count:
                return found
        time.sleep(0.02)
    raise AssertionError("the race did not get that far")


@pytest.mark.parametrize(
    ("end", "code"),
    [
        (signal.SIGKILL, -9),
        pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow),
    ],
)
def test_a_run_that_was_stopped_goes_on_where_it_was(folder: Path, end: signal.Signals, code: int) -> None:
    body = job(folder, samples=480, max_seconds=20.0)
    child = begin(folder, body)
    wait_for_reloads(folder, 2)
    child.send_signal(end)
    child.communicate()
    assert child.returncode == code
    assert not (folder / "receipt.json").exists()
    kept = json.loads((folder / "receipt-progress.json").read_text())
    done = start(folder, body)
    assert done.returncode == 0, done.stderr
    receipt = Receipt.load(folder / "receipt.json")
    (resumed,) = [warning for warning in receipt.warnings if warning.startswith("resumed: ")]
    assert resumed == f"resumed: {len(kept['reloads'])} of 12 reloads are from before an interruption"
    for series in receipt.series:
        before = [ns / 1e6 for reload in kept["reloads"] for ns in reload[series.name]["samples"]]
        assert list(series.samples_ms[: len(before)]) == before, "finished samples are kept, not taken again"
        assert series.reloads == 12
        assert series.load_ms == kept["probes"][series.name]["load_ms"]
    assert not (folder / "receipt-progress.json").exists()


def test_another_job_does_not_go_on_with_what_is_there(folder: Path) -> None:
    child = begin(folder, job(folder, samples=480, max_seconds=20.0))
    wait_for_reloads(folder, 1)
    child.kill()
    child.communicate()
    done = start(folder, job(folder, samples=12, max_seconds=1.0, settings={"graph_level": "basic"}))
    assert done.returncode == 0, done.stderr
    assert not [warning for warning in Receipt.load(folder / "receipt.json").warnings if "resumed" in warning]


def test_progress_that_is_damaged_is_begun_anew(folder: Path) -> None:
    for content in ("[]", '{"schema": "lorita-deploy/progress/1"}'):
        (folder / "verification-progress.json").write_text(content)
        assert start(folder, job(folder), "--verify-only").returncode == 0


def test_two_at_once_are_refused(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    assert_refused(start(folder, job(folder)), 6, "another run is at work")
    os.close(handle)


def test_a_finished_receipt_is_kept(folder: Path) -> None:
    (folder / "verification.json").write_text("an older one")
    assert start(folder, job(folder), "--verify-only").returncode == 0
    assert sorted(path.read_text() == "an older one" for path in folder.glob("verification*.json")) == [False, True]


def test_no_room_is_said_before_anything_is_measured(folder: Path) -> None:
    path = folder / "job.json"
    path.write_text(json.dumps(job(folder)))
    code = """
import resource, runpy, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
sys.path.insert(0, sys.argv[1])
sys.argv = ["run.py", "--job", sys.argv[2]]
runpy.run_path(sys.path[0] + "/run.py", run_name="__main__")
"""
    command = [sys.executable, "-B", "-c", code, str(RUNNER.parent), str(path)]
    assert_refused(subprocess.run(command, capture_output=True, text=True, check=False), 6, "cannot be written")
    assert not list(folder.glob("*.part"))


def test_every_wrong_file_is_named_at_once(folder: Path) -> None:
    body = job(folder)
    (folder / "dense.onnx").write_bytes(b"other")
    (folder / "compressed.onnx").unlink()
    done = start(folder, body)
    assert_refused(done, 2, "nothing was run")
    assert "dense.onnx" in done.stderr
    assert "compressed.onnx" in done.stderr


# ---------------------------------------------------------------------------------------------- what else it can do


def test_a_deadline_is_met_by_the_most_accurate_that_can(folder: Path) -> None:
    body = job(folder, max_seconds=10.0)
    for artifact, accuracy in zip(body["artifacts"], (0.93, 0.91), strict=True):
        artifact["accuracy"] = accuracy
    done = start(folder, body, "--deadline", "1000")
    assert done.returncode == 0, done.stderr
    receipt = Receipt.load(folder / "receipt.json")
    assert receipt.deadline
    assert receipt.deadline.chosen == "compressed", "the more accurate one, by what the job says"
    for series in receipt.series:
        assert series.calls_per_sample == 1, "the tail is that of single calls"
        assert series.n >= 1000
        assert series.p99_ms
        assert series.p99_ci95_ms
        assert series.p99_ci95_ms[0] <= series.p99_ms <= series.p99_ci95_ms[1]
        assert receipt.deadline.p99_at_most_ms[series.name] == series.p99_ci95_ms[1]


def test_a_deadline_that_none_meets_is_exit_1(folder: Path) -> None:
    done = start(folder, job(folder, max_seconds=10.0), "--deadline", "0.000001")
    assert done.returncode == 1, done.stderr
    receipt = Receipt.load(folder / "receipt.json")
    assert receipt.deadline
    assert receipt.deadline.chosen is None


def test_verifying_alone_gives_no_times(folder: Path) -> None:
    done = start(folder, job(folder), "--verify-only")
    assert done.returncode == 0, done.stderr
    found = Verification.load(done.stdout.strip())
    assert Path(done.stdout.strip()).name == "verification.json"
    assert [each.name for each in found.artifacts] == ["compressed", "dense"]
    assert all(each.max_rel is not None and each.max_rel < 1e-5 for each in found.artifacts)
    assert not (folder / "receipt.json").exists()


def test_receipts_tell_the_conditions(folder: Path) -> None:
    assert start(folder, job(folder, model="small")).returncode == 0
    receipt = Receipt.load(folder / "receipt.json")
    assert receipt.model == "small"
    assert [each.at for each in receipt.conditions] == ["start", *(f"reload {n}" for n in range(1, 13)), "end"]
    assert len(receipt.fingerprint) == 64
    for series in receipt.series:
        assert series.throughput_per_s == pytest.approx(1e3 * series.n / sum(series.samples_ms))


def test_other_work_on_the_machine_is_told_in_the_receipt(folder: Path) -> None:
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)]
    try:
        assert start(folder, job(folder)).returncode == 0
    finally:
        for each in busy:
            each.kill()
            each.wait()
    warnings = Receipt.load(folder / "receipt.json").warnings
    assert [each for each in warnings if each.startswith("other programs used")], warnings


def test_tensorrt_is_refused_by_name_and_replaced_where_it_is_only_preferred(folder: Path) -> None:
    if importlib.util.find_spec("tensorrt"):
        pytest.skip("TensorRT is installed")
    assert_refused(start(folder, job(folder, settings={"runtime": "tensorrt"})), 3, "tensorrt cannot be imported")
    assert_refused(start(folder, job(folder), "--runtime", "tensorrt"), 3, "tensorrt cannot be imported")


@pytest.mark.parametrize("text", ["nan", "inf", "-5", "0", "soon"])
def test_a_deadline_that_is_none_is_refused_before_anything_is_run(folder: Path, text: str) -> None:
    done = start(folder, job(folder), f"--deadline={text}")
    assert done.returncode == 2
    assert "argument --deadline" in done.stderr
    assert not (folder / "receipt-progress.json").exists()


def test_a_python_without_numpy_is_exit_3(folder: Path) -> None:
    """The runtime imports, numpy does not: a module of that name that fails stands first in the path."""
    (folder / "without").mkdir()
    (folder / "without/numpy.py").write_text("raise ModuleNotFoundError(\"No module named 'numpy'\", name='numpy')\n")
    (folder / "runtime_own.py").write_text("class Runtime:\n    def __init__(self, settings):\n        import numpy\n")
    (folder / "job.json").write_text(json.dumps(job(folder, settings={"runtime": "own"})))
    command = [sys.executable, str(RUNNER), "--job", str(folder / "job.json")]
    environment = {**os.environ, "PYTHONPATH": str(folder / "without")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert_refused(done, 3, "numpy")


@pytest.mark.slow
@pytest.mark.skipif(not PYTHON36.exists(), reason="no Python 3.6 on this machine")
def test_race_and_profile_under_python_36(tmp_path: Path) -> None:
    """The oldest boards' Python, with the last ONNX Runtime that was made for it."""
    venv = tmp_path / "venv"
    python = venv / "bin/python"
    subprocess.run([PYTHON36, "-m", "venv", venv], check=True)
    for packages in (["pip==21.3.1"], ["--only-binary", ":all:", "numpy", "onnxruntime"]):
        done = subprocess.run(
            [python, "-m", "pip", "install", "-q", "-U", *packages], capture_output=True, text=True, check=False
        )
        if done.returncode:
            pytest.skip(f"onnxruntime for Python 3.6 cannot be installed here: {done.stderr[-200:]}")
    for name, width in (("compressed", 16), ("dense", 64)):
        write_small_onnx(tmp_path / f"{name}.onnx", width, opset=13)
    job_file = tmp_path / "job.json"
    for task, record in (("race", Receipt), ("profile", Profile)):
        job_file.write_text(json.dumps(job(tmp_path, tasks=[task], golden=None, result=f"{task}.json")))
        subprocess.run([python, "-B", RUNNER, "--job", job_file], check=True)
        found = record.load(tmp_path / f"{task}.json")
        assert found.host.versions["python"].startswith("3.6.")
        assert found.host.versions["onnxruntime"] == "1.10.0"
