"""The trainer, on real (small) trainings."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lorita_deploy.errors import BadCheckpoint, BadData, TrainingDiverged, UnknownName
from lorita_deploy.networks import read_weights, weights_digest
from lorita_deploy.records import Accuracy, EpochRecord, Recipe
from lorita_deploy.train.augment import augment
from lorita_deploy.train.checkpoint import BEST, LAST
from lorita_deploy.train.composition import factored_layers
from lorita_deploy.train.datasets import load_dataset
from lorita_deploy.train.loop import train
from lorita_deploy.train.schedule import learning_rate, make_optimizer
from lorita_deploy.train.splits import Dataset

RECIPE = Recipe(epochs=4, batch_size=64, lr=0.05, weight_decay=1e-3, depth=3, precision="fp32", augment=("flip", "crop"))


class Small(nn.Module):
    """Convolution, batch normalisation, dropout and a linear layer: something of everything that has a state."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 12, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(12)
        self.drop = nn.Dropout(0.1)
        self.head = nn.Linear(12 * 16, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.drop(nn.functional.max_pool2d(self.norm(self.conv(x)).relu(), 2).flatten(1)))


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset("digits", shape=(1, 8, 8))


def small(classes: int = 10) -> Small:
    torch.manual_seed(0)
    return Small(classes)


def judge(digits: Dataset, split: str = "validation") -> Any:
    def evaluate(module: nn.Module) -> Accuracy:
        with torch.inference_mode():
            answers = [(module(x).argmax(1) == y).sum().item() for x, y in digits.batches(split, 256)]  # type: ignore[arg-type]
        return Accuracy(metric="accuracy", split=split, correct=sum(answers), total=len(digits.split(split)))  # type: ignore[arg-type]

    return evaluate


def run(digits: Dataset, folder: Path, recipe: Recipe = RECIPE, module: nn.Module | None = None, **options: Any) -> Any:
    options = {"evaluate": judge(digits), "model_name": "small", "device": "cpu"} | options
    return train(module or small(), digits, recipe, folder, **options)


def test_a_small_network_learns_digits_and_the_record_says_how(digits: Dataset, tmp_path: Path) -> None:
    seen: list[EpochRecord] = []
    steps: list[tuple[float, float]] = []
    recipe = RECIPE.model_copy(update={"epochs": 8, "lr": 0.1})
    trained = run(
        digits, tmp_path, recipe, on_epoch=seen.append, on_progress=lambda done, total, _: steps.append((done, total))
    )
    record = trained.record
    assert judge(digits, "test")(trained.module).value > 0.9
    assert record.epochs == tuple(seen)
    assert [each.epoch for each in record.epochs] == list(range(1, 9))
    assert record.epochs[-1].train_loss < record.epochs[0].train_loss
    best = record.epochs[record.best_epoch - 1].validation
    assert best.value == max(each.validation.value for each in record.epochs)
    assert judge(digits)(trained.module) == best  # the weights are those of the best epoch
    assert record.test is None
    assert record.factored == ("conv", "head")
    assert set(factored_layers(trained.module)) == {"conv", "head"}
    assert record.recipe.augment == ("crop",)  # digits are not mirrored, whatever the recipe says
    assert record.weights_sha256 == weights_digest(trained.module)
    assert not trained.module.training
    images = 8 * (1169 // 64) * 64
    assert steps[-1] == (images, images)
    assert type(record).parse(record.to_json(), where="text") == record


def test_the_caller_keeps_its_random_numbers_and_results_repeat(digits: Dataset, tmp_path: Path) -> None:
    recipe = RECIPE.model_copy(update={"epochs": 1})
    module = small()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = run(digits, tmp_path / "a", recipe, module)
    assert torch.equal(torch.rand(3), expected)
    assert run(digits, tmp_path / "b", recipe).record.weights_sha256 == first.record.weights_sha256
    other = run(digits, tmp_path / "c", recipe.model_copy(update={"seed": 1}))
    assert other.record.weights_sha256 != first.record.weights_sha256


# ---------------------------------------------------------------------------------------------- resuming


class StopError(Exception):
    pass


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_stopped_training_resumes_to_the_same_weights(digits: Dataset, tmp_path: Path, optimizer: str) -> None:
    recipe = RECIPE.model_copy(update={"optimizer": optimizer, "lr": 0.05 if optimizer == "sgd" else 2e-3})
    whole = run(digits, tmp_path / "whole", recipe)

    def stop(done: float, total: float, _: str) -> None:
        if done / total > 0.6:  # in the middle of the third epoch
            raise StopError

    with pytest.raises(StopError):
        run(digits, tmp_path / "cut", recipe, on_progress=stop)
    epochs: list[int] = []
    resumed = run(digits, tmp_path / "cut", recipe, on_epoch=lambda each: epochs.append(each.epoch))
    assert epochs == [3, 4]
    assert resumed.record.weights_sha256 == whole.record.weights_sha256
    assert [each.train_loss for each in resumed.record.epochs] == [each.train_loss for each in whole.record.epochs]
    last, expected = read_weights(tmp_path / "cut" / LAST), read_weights(tmp_path / "whole" / LAST)
    assert last.keys() == expected.keys()
    assert all(torch.equal(last[name], expected[name]) for name in last)  # the optimiser's state, too
    assert run(digits, tmp_path / "cut", recipe).record == resumed.record  # finished: nothing to do


def test_a_killed_process_resumes_to_the_same_weights(digits: Dataset, tmp_path: Path) -> None:
    """SIGKILL at some moment of some epoch; the file of the last whole epoch is all there is."""
    recipe = RECIPE.model_copy(update={"epochs": 8})
    script = Path(__file__)
    command = [sys.executable, str(script), str(tmp_path / "killed"), recipe.model_dump_json()]
    process = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 120
    while not (tmp_path / "killed" / LAST).exists():
        assert process.poll() is None, "the training ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(0.15)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    answer = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=True)
    resumed = json.loads(answer.stdout)
    assert 1 < resumed["first_epoch"] <= 8
    command[2] = str(tmp_path / "whole")
    answer = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=True)
    whole = json.loads(answer.stdout)
    assert whole["first_epoch"] == 1
    assert resumed["weights_sha256"] == whole["weights_sha256"]


def test_best_weights_are_whole_after_a_kill_between_the_two_files(digits: Dataset, tmp_path: Path) -> None:
    whole = run(digits, tmp_path)
    assert whole.record.best_epoch == len(whole.record.epochs), "this test needs a training whose last epoch is the best"
    (tmp_path / BEST).unlink()
    assert run(digits, tmp_path).record == whole.record


@pytest.mark.slow
def test_two_processes_walk_the_path_of_one(digits: Dataset, tmp_path: Path) -> None:
    """Over gloo, at the same global batch; no batch normalisation or dropout, which see only a process's own part."""
    recipe = RECIPE.model_copy(update={"epochs": 3})
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1", "PLAIN": "1"}
    arguments = [__file__, str(tmp_path / "two"), recipe.model_dump_json()]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "0"]
    both = subprocess.run([*launch, *arguments], env=environment, capture_output=True, text=True, check=True)
    arguments[1] = str(tmp_path / "one")
    alone = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, check=True)
    answers = [json.loads(line) for line in both.stdout.splitlines()]
    assert len(answers) == 2
    assert answers[0] == answers[1]
    assert answers[0]["train_loss"] == pytest.approx(json.loads(alone.stdout)["train_loss"], rel=1e-3)


@pytest.mark.parametrize("change", [{"lr": 0.01}, {"depth": 2}, {"epochs": 9}, {"seed": 4}])
def test_another_recipe_is_not_resumed_from(digits: Dataset, tmp_path: Path, change: dict[str, Any]) -> None:
    recipe = RECIPE.model_copy(update={"epochs": 1})
    run(digits, tmp_path, recipe)
    (name,) = change
    with pytest.raises(BadCheckpoint, match=f"{name} was") as caught:
        run(digits, tmp_path, recipe.model_copy(update=change))
    assert "resume=False" in str(caught.value)
    other = run(digits, tmp_path, recipe.model_copy(update=change | {"epochs": 1}), resume=False)
    assert len(other.record.epochs) == 1


def test_another_model_or_data_is_not_resumed_from(digits: Dataset, tmp_path: Path) -> None:
    recipe = RECIPE.model_copy(update={"epochs": 1})
    run(digits, tmp_path, recipe)
    with pytest.raises(BadCheckpoint, match="model was small, is large"):
        run(digits, tmp_path, recipe, model_name="large")
    with pytest.raises(BadCheckpoint, match="data was"):
        run(load_dataset("digits", shape=(1, 8, 8), seed=9), tmp_path, recipe)
    wider = small()
    wider.conv = nn.Conv2d(1, 12, 5, padding=2, bias=False)  # the same name for another network
    with pytest.raises(BadCheckpoint, match="conv"):
        run(digits, tmp_path, recipe, module=wider)


@pytest.mark.parametrize("damage", ["cut", "noise", "foreign"])
def test_a_damaged_checkpoint_is_named(digits: Dataset, tmp_path: Path, damage: str) -> None:
    recipe = RECIPE.model_copy(update={"epochs": 1})
    run(digits, tmp_path, recipe)
    path = tmp_path / LAST
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:1000])
    elif damage == "noise":
        path.write_bytes(b"\x07" * 500)
    else:
        from safetensors.torch import save_file

        save_file({"x": torch.zeros(2)}, path)
    with pytest.raises(BadCheckpoint) as caught:
        run(digits, tmp_path, recipe)
    assert caught.value.where == str(path)


# ---------------------------------------------------------------------------------------------- bad input


def test_a_diverging_training_stops_and_keeps_the_last_good_epoch(digits: Dataset, tmp_path: Path) -> None:
    epochs: list[int] = []

    def poison(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        value = nn.functional.cross_entropy(outputs, labels)
        return value * math.nan if len(epochs) == 2 else value

    with pytest.raises(TrainingDiverged, match="in epoch 3") as caught:
        run(digits, tmp_path, loss=poison, on_epoch=lambda each: epochs.append(each.epoch))
    assert "lower the learning rate" in str(caught.value)
    assert "epoch 2 is kept" in str(caught.value)
    kept = read_weights(tmp_path / LAST)
    assert all(torch.isfinite(tensor).all() for tensor in kept.values())


def test_a_learning_rate_out_of_bounds_diverges(digits: Dataset, tmp_path: Path) -> None:
    with pytest.raises(TrainingDiverged, match="in epoch 1"):
        run(digits, tmp_path, RECIPE.model_copy(update={"lr": 1e9}))
    assert not (tmp_path / LAST).exists()


def test_no_weight_decay_is_warned_of_only_where_there_are_factors(digits: Dataset, tmp_path: Path) -> None:
    import warnings

    recipe = RECIPE.model_copy(update={"epochs": 1, "weight_decay": 0.0})
    with pytest.warns(UserWarning, match="weight decay 0"):
        run(digits, tmp_path / "a", recipe)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        plain = run(digits, tmp_path / "b", recipe.model_copy(update={"depth": 1}))
    assert plain.record.factored == ()


def test_too_few_outputs_for_the_classes(digits: Dataset, tmp_path: Path) -> None:
    with pytest.raises(BadData, match="7 classes apart, the data has 10"):
        run(digits, tmp_path, module=small(7))


def test_unknown_devices(digits: Dataset, tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="tpu"):
        run(digits, tmp_path, device="tpu")
    if not torch.cuda.is_available():
        with pytest.raises(UnknownName, match="no CUDA device"):
            run(digits, tmp_path, device="cuda")


# ---------------------------------------------------------------------------------------------- pieces


def test_decay_is_on_weight_matrices_only() -> None:
    from lorita_deploy.train.composition import factorize

    module = nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Linear(3, 3), nn.LayerNorm(3), nn.Conv2d(4, 4, 3, groups=4)
    )
    module.position = nn.Parameter(torch.zeros(1, 4, 3))
    decayed, plain = make_optimizer(factorize(module, 3), RECIPE).param_groups
    names = {parameter: name for name, parameter in module.named_parameters()}
    assert decayed["weight_decay"] == RECIPE.weight_decay
    assert plain["weight_decay"] == 0
    factors = [f"{layer}.parametrizations.weight.original{i}" for layer in (0, 2) for i in range(3)]
    assert {names[each] for each in decayed["params"]} == {*factors, "4.weight"}
    expected = {"0.bias", "1.weight", "1.bias", "2.bias", "3.weight", "3.bias", "4.bias", "position"}
    assert {names[each] for each in plain["params"]} == expected


def test_learning_rates() -> None:
    rates = [learning_rate(RECIPE, step, 100) for step in range(100)]
    assert max(rates) == RECIPE.lr
    assert rates[:20] == sorted(rates[:20])
    assert rates[20:] == sorted(rates[20:], reverse=True)
    assert 0 < rates[0] < RECIPE.lr / 10
    assert rates[-1] < RECIPE.lr / 100
    cosine = RECIPE.model_copy(update={"schedule": "cosine"})
    assert learning_rate(cosine, 0, 100) == RECIPE.lr
    assert learning_rate(cosine, 50, 100) == pytest.approx(RECIPE.lr / 2)


def test_augmentation_moves_and_mirrors_whole_images() -> None:
    images = torch.zeros(400, 2, 16, 16, dtype=torch.uint8)
    images[:, 0, 8, 5], images[:, 1, 8, 5] = 100, 200
    mirrored = augment(images, ("flip",), torch.Generator().manual_seed(0))
    columns = mirrored[:, 0].flatten(1).argmax(1) % 16
    assert set(columns.tolist()) == {5, 10}
    assert 150 < int((columns == 10).sum()) < 250
    moved = augment(images, ("crop",), torch.Generator().manual_seed(0))
    assert moved.shape == images.shape
    place = moved[:, 0].flatten(1).argmax(1)
    assert torch.equal(place, moved[:, 1].flatten(1).argmax(1))  # all channels alike
    assert set((place // 16).tolist()) == set(range(6, 11))
    assert set((place % 16).tolist()) == set(range(3, 8))
    assert torch.equal(moved.flatten(1).sum(1), images.flatten(1).sum(1))
    again = augment(images, ("crop",), torch.Generator().manual_seed(0))
    assert torch.equal(moved, again)
    assert augment(images, (), torch.Generator()) is images


def main() -> None:
    """A training in a process of its own: FOLDER RECIPE. With $PLAIN a network without normalisation and dropout."""
    data = load_dataset("digits", shape=(1, 8, 8))
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)) if "PLAIN" in os.environ else None
    epochs: list[EpochRecord] = []
    trained = run(data, Path(sys.argv[1]), Recipe.model_validate_json(sys.argv[2]), plain, on_epoch=epochs.append)
    answer = {
        "first_epoch": epochs[0].epoch,
        "train_loss": [each.train_loss for each in epochs],
        "weights_sha256": trained.record.weights_sha256,
    }
    print(json.dumps(answer) + "\n", end="", flush=True)  # in one write: two processes share the pipe


if __name__ == "__main__":
    main()
