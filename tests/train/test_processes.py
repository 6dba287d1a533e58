"""Two processes under torchrun walk the path of one at the same global batch; a killed training resumes to the same weights."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from lorita_deploy.pipeline.folder import BuildFolder
from lorita_deploy.records import Accuracy, EpochRecord, Recipe
from lorita_deploy.train.checkpoint import LAST
from lorita_deploy.train.datasets import load_dataset
from lorita_deploy.train.loop import train
from lorita_deploy.train.splits import Dataset, Split

RECIPE = Recipe(epochs=3, batch_size=32, lr=0.1, weight_decay=1e-3, precision="fp32", augment=("crop",))
ALONE = {"OMP_NUM_THREADS": "1"}
EDGE = 8
"""Pixels; the sample networks are small there."""


def test_precision_is_the_recipes_whatever_the_launcher_was_configured_to() -> None:
    asked = "from lorita_deploy.train.processes import accelerator_for; print(accelerator_for('cpu').mixed_precision)"
    environment = os.environ | {"ACCELERATE_MIXED_PRECISION": "bf16"}
    done = subprocess.run([sys.executable, "-c", asked], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "no"


def data(images: int = 128) -> Dataset:
    digits = load_dataset("digits", shape=(1, EDGE, EDGE))
    part = {name: Split(split.images[:images], split.labels[:images]) for name, split in digits.splits.items()}
    return replace(digits, splits=part)


TWO = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")


def line(*arguments: str, launcher: Sequence[str] = ()) -> list[str]:
    """The command line as people type it."""
    return [sys.executable, *launcher, str(Path(sys.executable).with_name("lorita-deploy")), *arguments]


def typed(*arguments: str, launcher: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    """On the CPU, with one thread for each process."""
    command = line(*arguments, launcher=launcher)
    return subprocess.run(command, env=os.environ | ALONE, capture_output=True, text=True, check=False, timeout=200)


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["train_loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fcn", "vit"])
def test_two_processes_of_the_command_line_walk_the_path_of_one(name: str, tmp_path: Path) -> None:
    """No batch normalisation or dropout in these networks: a process would see only its own part."""
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('epochs = 3\nbatch_size = 64\nlr = 0.05\nweight_decay = 1e-3\nprecision = "fp32"\naugment = ["crop"]\n')
    train = ("train", "--model", name, "--input-size", str(EDGE), "--recipe", str(recipe), "--torch-device", "cpu")
    both = typed(*train, "--out", str(tmp_path / "two"), launcher=TWO)
    alone = typed(*train, "--out", str(tmp_path / "one"))
    assert alone.returncode == 0, alone.stderr
    assert both.returncode == 0, both.stderr
    expected = losses(tmp_path / "one")
    assert expected[2] < expected[0]
    assert losses(tmp_path / "two") == pytest.approx(expected, rel=1e-3)
    files = {path.name for path in (tmp_path / "one").iterdir()}
    assert {path.name for path in (tmp_path / "two").iterdir()} == files  # one process owns the folder
    assert both.stdout.count("trained.safetensors") == alone.stdout.count("trained.safetensors") == 1  # and tells of it
    again = typed(*train, "--out", str(tmp_path / "two"), launcher=TWO)
    assert again.returncode == 0, again.stderr
    assert "cached" in again.stderr  # the others do not wait for a training that is done


@pytest.mark.slow
def test_a_batch_that_cannot_be_shared_out_evenly_is_refused(tmp_path: Path) -> None:
    done = typed("train", "--model", "fcn", "--batch-size", "63", "--out", str(tmp_path), launcher=TWO)
    assert done.returncode != 0
    assert "a batch of 63 images cannot be divided evenly among 2 processes" in done.stderr
    assert "such as 64" in done.stderr


@pytest.mark.slow
def test_a_build_of_two_processes_goes_on_with_the_first(tmp_path: Path) -> None:
    out = tmp_path / "build"
    common = ("--model", "fcn", "--input-size", str(EDGE), "--epochs", "1", "--torch-device", "cpu", "--out", str(out))
    forecast = typed("train", *common, "--dry-run", "--json", launcher=TWO)
    assert forecast.returncode == 0, forecast.stderr
    assert json.loads(forecast.stdout)["epochs"] == 1  # told once
    assert not out.exists()
    done = typed("compress", *common, launcher=TWO)
    assert done.returncode == 0, done.stderr
    assert (out / "compressed.safetensors").exists()
    assert done.stdout.count(str(out / "compressed.safetensors")) == 1


@pytest.mark.slow
def test_an_error_of_one_process_ends_all(tmp_path: Path) -> None:
    common = ("--model", "fcn", "--input-size", str(EDGE), "--epochs", "1", "--torch-device", "cpu", "--lr", "1e9")
    failed = typed("train", *common, "--out", str(tmp_path / "build"), launcher=TWO)
    assert failed.returncode != 0
    assert "no longer numbers" in failed.stderr
    assert "raise TrainingDiverged" not in failed.stderr  # no traceback of ours
    with BuildFolder(tmp_path / "build").held():
        pass  # the folder is free again


def ranks(launcher: int) -> dict[int, int]:
    """Which process id each rank has, of those that ``launcher`` started."""
    found = {}
    for place in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((place / "stat").read_text().rpartition(")")[2].split()[1])
            told = dict(each.partition(b"=")[::2] for each in (place / "environ").read_bytes().split(b"\0"))
        except (OSError, ProcessLookupError):
            continue  # it has ended
        if parent == launcher and b"RANK" in told:
            found[int(told[b"RANK"])] = int(place.name)
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="processes are found through /proc")
@pytest.mark.parametrize("victim", ["first", "other", "launcher"])
def test_where_a_process_is_killed_all_end_and_the_same_command_goes_on(victim: str, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('epochs = 8\nbatch_size = 16\nlr = 0.05\nweight_decay = 1e-3\nprecision = "fp32"\n')
    common = ("train", "--model", "fcn", "--input-size", str(EDGE), "--recipe", str(recipe), "--torch-device", "cpu")
    killed = (*common, "--out", str(tmp_path / "killed"))
    launcher = subprocess.Popen(line(*killed, launcher=TWO), env=os.environ | ALONE, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    try:
        while not list((tmp_path / "killed" / "training").glob(f"*/{LAST}")):
            assert launcher.poll() is None, "the training ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.01)
        started = ranks(launcher.pid)
        assert started.keys() == {0, 1}
        if victim == "launcher":
            launcher.send_signal(signal.SIGTERM)  # as schedulers do; it passes it on
        else:
            os.kill(started[0 if victim == "first" else 1], signal.SIGKILL)
        assert launcher.wait(90) != 0
        while any(Path(f"/proc/{process}").exists() for process in started.values()):
            assert time.monotonic() < deadline, "a process was left behind"
            time.sleep(0.1)
    finally:
        launcher.terminate()
        launcher.wait()
    assert not (tmp_path / "killed" / "trained.safetensors").exists()
    resumed = typed(*killed, launcher=TWO)
    assert resumed.returncode == 0, resumed.stderr
    whole = typed(*common, "--out", str(tmp_path / "whole"), launcher=TWO)
    assert whole.returncode == 0, whole.stderr
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    weights = [(tmp_path / name / "trained.safetensors").read_bytes() for name in ("killed", "whole")]
    assert weights[0] == weights[1]


def test_a_training_killed_in_an_epoch_resumes_to_the_same_weights(tmp_path: Path) -> None:
    """SIGKILL between two steps; the last whole epoch is all there is. One thread in both: sums are rounded alike."""
    recipe = RECIPE.model_copy(update={"epochs": 5, "ema": 0.9})
    arguments = [sys.executable, __file__, str(tmp_path / "killed"), recipe.model_dump_json()]
    process = subprocess.Popen(arguments, env=os.environ | ALONE | {"SLOWLY": "1"}, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (tmp_path / "killed" / LAST).exists():
        assert process.poll() is None, "the training ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(0.05)  # steps take 20 ms: this is in the midst of an epoch
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    resumed = training(recipe, tmp_path / "killed")
    whole = training(recipe, tmp_path / "whole")
    assert whole["first_epoch"] == 1
    assert 1 < resumed["first_epoch"] <= 5  # type: ignore[operator]
    assert resumed["weights_sha256"] == whole["weights_sha256"]


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Conv2d(1, 12, 3, bias=False), nn.BatchNorm2d(12), nn.ReLU(), nn.Dropout(0.1), nn.Flatten(), nn.Linear(432, 10))
    return nn.Sequential(*layers)


def training(recipe: Recipe, folder: Path) -> dict[str, object]:
    epochs: list[EpochRecord] = []
    trained = train(
        network(),
        data(),
        recipe,
        folder,
        evaluate=lambda _: Accuracy(metric="score", split="validation", correct=1.0, total=1),
        model_name="normalised",
        device="cpu",
        on_epoch=epochs.append,
        on_progress=(lambda *_: time.sleep(0.02)) if "SLOWLY" in os.environ else None,
    )
    return {"first_epoch": epochs[0].epoch if epochs else None, "weights_sha256": trained.record.weights_sha256}


if __name__ == "__main__":  # a training in a process of its own: FOLDER RECIPE
    training(Recipe.model_validate_json(sys.argv[2]), Path(sys.argv[1]))
