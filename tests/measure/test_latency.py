"""Racing artifacts as the pipeline does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from small_onnx import write_small_onnx

from lorita_deploy.devices.local import LocalDevice
from lorita_deploy.errors import VerificationFailed
from lorita_deploy.measure.latency import artifact_name, race
from lorita_deploy.pipeline.folder import sha256_of
from lorita_deploy.records import Artifact, Role, Settings

SETTINGS = Settings(runtime="onnxruntime", threads=1, graph_level="all", spinning=False, batch=1)


def artifact(folder: Path, role: Role, width: int) -> Artifact:
    """A network with its golden outputs."""
    path = write_small_onnx(folder / f"{role}.onnx", width)
    golden = folder / "golden"
    golden.mkdir(exist_ok=True)
    example = np.random.default_rng(0).standard_normal((1, 3, 16, 16)).astype(np.float32)
    np.savez(golden / "inputs.npz", input=example)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    np.savez(golden / f"outputs-{role}.npz", output=session.run(None, {"input": example})[0])
    return Artifact(
        role=role, path=path.name, exporter="onnx", sha256=sha256_of(path), size_bytes=path.stat().st_size, opset=17,
        ir_version=8, precision="fp32", batch=1, dynamic_batch=False, rung=0, simplified=False, inputs=(), outputs=(),
    )  # fmt: skip


def test_the_faster_artifact_is_found_and_verified(tmp_path: Path) -> None:
    artifacts = [artifact(tmp_path, "compressed", 16), artifact(tmp_path, "dense", 64)]
    receipt = race(
        LocalDevice(),
        tmp_path,
        artifacts,
        settings=SETTINGS,
        golden=tmp_path / "golden",
        samples=48,
        max_seconds=3.0,
        kind="cpu",
    )
    assert receipt.faster == "compressed"
    (ratio,) = receipt.ratios
    assert (ratio.candidate, ratio.baseline) == ("compressed", "dense")
    assert ratio.never_slower
    assert ratio.faster
    assert [series.verified for series in receipt.series] == [True, True]
    assert receipt.settings == SETTINGS


def test_an_artifact_that_computes_something_else_is_not_raced(tmp_path: Path) -> None:
    artifacts = [artifact(tmp_path, "compressed", 16), artifact(tmp_path, "dense", 64)]
    golden = tmp_path / "golden"
    (golden / "outputs-compressed.npz").write_bytes((golden / "outputs-dense.npz").read_bytes())
    with pytest.raises(VerificationFailed, match="not reproduced"):
        race(LocalDevice(), tmp_path, artifacts, settings=SETTINGS, golden=golden, samples=12, max_seconds=1.0)


def test_rungs_have_names_of_their_own(tmp_path: Path) -> None:
    found = artifact(tmp_path, "compressed", 16)
    assert artifact_name(found) == "compressed"
    assert artifact_name(found.model_copy(update={"rung": 2})) == "compressed-rung2"
