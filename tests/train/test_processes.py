"""Two processes over gloo walk the path of one at the same global batch; a killed training resumes to the same weights."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from lorita_deploy.ports import find_model
from lorita_deploy.records import Accuracy, EpochRecord, Recipe
from lorita_deploy.train.checkpoint import LAST
from lorita_deploy.train.datasets import load_dataset
from lorita_deploy.train.loop import train
from lorita_deploy.train.splits import Dataset, Split

RECIPE = Recipe(epochs=3, batch_size=32, lr=0.1, weight_decay=1e-3, precision="fp32", augment=("crop",))
ALONE = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1"}
EDGE = 8
"""Pixels; the sample networks are small there."""


def data(channels: int, images: int = 128) -> Dataset:
    digits = load_dataset("digits", shape=(channels, EDGE, EDGE))
    part = {name: Split(split.images[:images], split.labels[:images]) for name, split in digits.splits.items()}
    return replace(digits, splits=part)


def command(folder: Path, *names: str, recipe: Recipe = RECIPE) -> list[str]:
    return [__file__, str(folder), recipe.model_dump_json(), *names]


def answers(done: subprocess.CompletedProcess[str]) -> list[dict[str, object]]:
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
def test_two_processes_walk_the_path_of_one(tmp_path: Path) -> None:
    """No batch normalisation or dropout in these networks: a process would see only its own part."""
    options = {"env": os.environ | ALONE, "capture_output": True, "text": True, "check": False}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    both = answers(subprocess.run([*launch, *command(tmp_path / "two", "fcn", "vit")], **options))  # type: ignore[call-overload]
    alone = answers(subprocess.run([sys.executable, *command(tmp_path / "one", "fcn", "vit")], **options))  # type: ignore[call-overload]
    assert [each["name"] for each in alone] == ["fcn", "vit"]
    for expected in alone:
        found = [each for each in both if each["name"] == expected["name"]]
        assert len(found) == 2
        assert found[0] == found[1]
        losses = expected["train_loss"]
        assert found[0]["train_loss"] == pytest.approx(losses, rel=1e-3)
        assert losses[-1] < losses[0]  # type: ignore[index, operator]


def test_a_training_killed_in_an_epoch_resumes_to_the_same_weights(tmp_path: Path) -> None:
    """SIGKILL between two steps; the last whole epoch is all there is. One thread in both: sums are rounded alike."""
    recipe = RECIPE.model_copy(update={"epochs": 5, "ema": 0.9})
    arguments = [sys.executable, *command(tmp_path / "killed", "normalised", recipe=recipe)]
    process = subprocess.Popen(arguments, env=os.environ | ALONE | {"SLOWLY": "1"}, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (tmp_path / "killed" / LAST).exists():
        assert process.poll() is None, "the training ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(0.05)  # steps take 20 ms: this is in the midst of an epoch
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    resumed = training("normalised", recipe, tmp_path / "killed")
    whole = training("normalised", recipe, tmp_path / "whole")
    assert whole["first_epoch"] == 1
    assert 1 < resumed["first_epoch"] <= 5  # type: ignore[operator]
    assert resumed["weights_sha256"] == whole["weights_sha256"]


def build(name: str) -> tuple[nn.Module, Dataset]:
    torch.manual_seed(0)
    if name != "normalised":
        spec = find_model(name)
        return spec.build(10, EDGE), data(spec.channels)
    layers = (nn.Conv2d(1, 12, 3, bias=False), nn.BatchNorm2d(12), nn.ReLU(), nn.Dropout(0.1), nn.Flatten(), nn.Linear(432, 10))
    return nn.Sequential(*layers), data(1)


def training(name: str, recipe: Recipe, folder: Path) -> dict[str, object]:
    module, dataset = build(name)
    epochs: list[EpochRecord] = []
    trained = train(
        module,
        dataset,
        recipe,
        folder,
        evaluate=lambda _: Accuracy(metric="score", split="validation", correct=1.0, total=1),
        model_name=name,
        device="cpu",
        on_epoch=epochs.append,
        on_progress=(lambda *_: time.sleep(0.02)) if "SLOWLY" in os.environ else None,
    )
    return {
        "name": name,
        "first_epoch": epochs[0].epoch if epochs else None,
        "train_loss": [each.train_loss for each in trained.record.epochs],
        "weights_sha256": trained.record.weights_sha256,
    }


def main() -> None:
    """Trainings in a process of their own: FOLDER RECIPE NAME..."""
    folder, recipe, *names = sys.argv[1:]
    for name in names:
        place = Path(folder) / name if len(names) > 1 else Path(folder)
        answer = training(name, Recipe.model_validate_json(recipe), place)
        print(json.dumps(answer) + "\n", end="", flush=True)  # in one write: two processes share the pipe


if __name__ == "__main__":
    main()
