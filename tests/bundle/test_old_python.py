"""What ships, under the oldest boards' Python: imported, statistics computed, a whole bundle run where packages install."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from small_onnx import write_small_onnx
from test_manifest import write as write_small_bundle

from lorita_deploy import bundle
from lorita_deploy.bundle.manifest import PROGRAMS
from lorita_deploy.records import Receipt, Verification

PYTHON36 = Path.home() / ".pyenv/versions/3.6.15/bin/python"
FOLDER = Path(bundle.__file__).parent

pytestmark = pytest.mark.skipif(not PYTHON36.exists(), reason="no Python 3.6 on this machine")

STATISTICS = """
import clock, engines, machine, race
times = [1.0 + 0.01 * (i % 10) for i in range(1200)]
reloads = [times[i * 100:(i + 1) * 100] for i in range(12)]
assert clock.now_ns() > 0
assert abs(clock.median(times) - 1.045) < 1e-9
assert clock.percentile(times, 0.99) and clock.percentile_interval(reloads, 0.99)
assert clock.paired_ratio([[(a, 1.0) for a in each] for each in reloads])[1][0] > 1
assert clock.warm_up(lambda: None)[0]
assert machine.host("cpu", {})["versions"]["python"].startswith("3.6.")
assert engines.ladder(4 << 30)[0] == 1 << 30
"""


def test_it_compiles_and_is_imported() -> None:
    for name in PROGRAMS:
        code = f"compile(open({str(FOLDER / name)!r}, encoding='utf-8').read(), {name!r}, 'exec')"
        subprocess.run([PYTHON36, "-c", code], check=True)
    modules = ", ".join(Path(name).stem for name in PROGRAMS)
    done = subprocess.run(
        [PYTHON36, "-B", "-c", f"import {modules}\n{STATISTICS}"], cwd=FOLDER, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_what_it_cannot_do_is_said(tmp_path: Path) -> None:
    """Without numpy and onnxruntime: one clear message."""
    write_small_bundle(tmp_path / "build", tmp_path / "bundle")
    done = subprocess.run([PYTHON36, "-B", "run.py"], cwd=tmp_path / "bundle", capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert "onnxruntime cannot be imported" in done.stderr
    assert "Traceback" not in done.stderr
    picture = tmp_path / "picture.png"
    done = subprocess.run(
        [PYTHON36, "-B", "infer.py", picture], cwd=tmp_path / "bundle", capture_output=True, text=True, check=False
    )
    assert done.returncode == 3
    assert "onnxruntime cannot be imported" in done.stderr


@pytest.mark.slow
def test_a_bundle_is_run_and_classifies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the last ONNX Runtime that was made for Python 3.6."""
    python = tmp_path / "venv/bin/python"
    subprocess.run([PYTHON36, "-m", "venv", tmp_path / "venv"], check=True)
    for packages in (["pip==21.3.1"], ["--only-binary", ":all:", "numpy", "onnxruntime", "pillow"]):
        command = [python, "-m", "pip", "install", "-q", "-U", *packages]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"onnxruntime for Python 3.6 cannot be installed here: {done.stderr[-200:]}")
    # The networks that JetPack 4 loads: opset 13.
    monkeypatch.setattr("test_manifest.write_small_onnx", lambda path, width: write_small_onnx(path, width, opset=13))
    write_small_bundle(tmp_path / "build", tmp_path / "bundle")
    for arguments, record, name in (
        (["--verify-only"], Verification, "verification.json"),
        (["--deadline", "1000"], Receipt, "receipt.json"),
    ):
        subprocess.run([python, "-B", "run.py", *arguments], cwd=tmp_path / "bundle", check=True)
        found = record.load(tmp_path / "bundle" / name)
        assert found.host.versions["python"].startswith("3.6.")
        assert found.host.versions["onnxruntime"] == "1.10.0"
    assert Receipt.load(tmp_path / "bundle/receipt.json").deadline.chosen == "dense"
    from PIL import Image

    Image.new("RGB", (20, 20)).save(tmp_path / "picture.png")
    command = [python, "-B", tmp_path / "bundle/infer.py", tmp_path / "picture.png"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "class number" in done.stdout
