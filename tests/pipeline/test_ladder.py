"""The rank ladder: from one training, networks of several sizes in one bundle."""

import json
import shutil
import subprocess
import sys

import numpy as np
import onnxruntime
import pytest
from made_up import three_layers

from lorita_deploy.bundle.manifest import check_bundle
from lorita_deploy.compress.plan import fastest, solve
from lorita_deploy.pipeline import Watch, again, build, make_options
from lorita_deploy.pipeline.again import keep_receipt
from lorita_deploy.pipeline.ladder import Tables, further_plans
from lorita_deploy.records import ArtifactList, Verification

RANKS = (8, 16, 24, 32)


@pytest.fixture
def tables():
    return Tables(*three_layers(RANKS))


@pytest.mark.parametrize("count", [1, 2, 4, 9])
def test_rungs_divide_the_way_from_dense_to_the_fastest(tables, count):
    found = further_plans(tables, (), fastest(*tables), count)
    assert 1 <= len(found) <= count
    times = [solution.predicted_us for solution in found]
    assert times == sorted(times, reverse=True)
    losses = [solution.predicted_loss for solution in found]
    assert losses == sorted(losses)
    assert times[-1] == 10 + 3 * 2 * 8, "the last one is the fastest there is"
    assert len({tuple(choice.rank for choice in solution.choices) for solution in found}) == len(found)


def test_no_rung_repeats_the_plan_itself(tables):
    own = solve(tables.candidates, tables.prices, budget_us=60.0)
    found = further_plans(tables, own.choices, own, 3)
    assert own.choices not in [solution.choices for solution in found]
    assert all(solution.cost > own.cost for solution in found), "the last one would be the plan itself"


class Seen(Watch):
    def __init__(self):
        self.run = []

    def stage_finished(self, name, seconds, line, cached):
        if not cached:
            self.run.append(name)


@pytest.fixture(scope="module")
def ladder(tmp_path_factory):
    """The folder of a finished build with three rungs, and the stages that adding them ran."""
    folder = tmp_path_factory.mktemp("ladder")
    asked = {"model": "fcn", "target": "cpu", "out": str(folder), "epochs": 4, "calibration_samples": 128}
    build(make_options(**asked))
    seen = Seen()
    build(make_options(**asked, rungs=3), watch=seen)
    return folder, seen.run


@pytest.mark.slow
def test_rungs_come_from_the_same_training(ladder):
    folder, stages = ladder
    assert stages == ["bundle"], "nothing is trained, priced or planned again"
    manifest = check_bundle(folder / "bundle")
    rungs = [each for each in manifest.artifacts if each.rung]
    assert 1 <= len(rungs) <= 3
    assert [each.rung for each in rungs] == list(range(1, len(rungs) + 1))
    assert len({each.sha256 for each in manifest.artifacts}) == len(manifest.artifacts), "every rung is another network"
    (dense,) = [each for each in manifest.artifacts if each.role == "dense"]
    assert rungs[-1].size_bytes < dense.size_bytes, "the fastest is smaller than dense"
    names = {"dense", "compressed", *(f"compressed-rung{each.rung}" for each in rungs)}
    assert set(manifest.accuracy) == names
    assert all(0 < each.value <= 1 for each in manifest.accuracy.values())
    assert min(each.value for each in manifest.accuracy.values()) > manifest.accuracy["dense"].value - 0.2


@pytest.mark.slow
def test_golden_outputs_are_those_of_the_files(ladder):
    folder, _ = ladder
    manifest = check_bundle(folder / "bundle")
    golden = folder / "bundle/golden"
    inputs = np.load(golden / "inputs.npz")["input"]
    for artifact in manifest.artifacts:
        name = artifact.role if not artifact.rung else f"{artifact.role}-rung{artifact.rung}"
        session = onnxruntime.InferenceSession(folder / "bundle" / artifact.path)
        got = np.concatenate([session.run(None, {"input": each[None]})[0] for each in inputs])
        expected = np.load(golden / f"outputs-{name}.npz")["output"]
        np.testing.assert_allclose(got, expected, atol=1e-3 * np.abs(expected).max())


@pytest.mark.slow
def test_the_runner_knows_every_rung(ladder):
    folder, _ = ladder
    done = subprocess.run(
        [sys.executable, "-B", "run.py", "--verify-only"], cwd=folder / "bundle", capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = Verification.load(folder / "bundle/verification.json")
    listed = json.loads((folder / "bundle/manifest.json").read_text())["artifacts"]
    assert len(found.artifacts) == len(listed)
    assert all(each.max_rel is not None for each in found.artifacts)


@pytest.mark.slow
def test_a_receipt_with_rungs_is_one_of_the_build_and_of_its_bundle(ladder, tmp_path):
    folder, _ = ladder
    subprocess.run([sys.executable, "-B", "run.py"], cwd=folder / "bundle", capture_output=True, check=True)
    shutil.move(folder / "bundle/receipt.json", tmp_path / "receipt.json")
    receipt, where = keep_receipt(tmp_path / "receipt.json", folder)
    where.unlink()
    assert {each.name for each in receipt.series} > {"dense", "compressed", "compressed-rung1"}
    artifacts = ArtifactList.load(folder / "artifacts.json").artifacts
    assert again._bundle_of(folder, artifacts) == folder / "bundle"
    other = artifacts[0].model_copy(update={"sha256": "0" * 64})
    assert again._bundle_of(folder, (other, artifacts[1])) is None
