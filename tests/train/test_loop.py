"""The trainer, on real (small) trainings."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lorita_deploy.errors import BadCheckpoint, BadData, BadNetwork, TrainingDiverged, TrainingWarning, UnknownName
from lorita_deploy.networks import read_weights, weights_digest
from lorita_deploy.records import Accuracy, EpochRecord, Phase, Recipe
from lorita_deploy.train import checkpoint
from lorita_deploy.train.checkpoint import BEST, LAST
from lorita_deploy.train.composition import factored_layers
from lorita_deploy.train.datasets import load_dataset
from lorita_deploy.train.loop import train
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
    assert best.value == max(each.validation.value for each in record.epochs[6:])
    assert judge(digits)(trained.module) == best  # the weights are those of the best epoch
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


def test_the_state_of_an_optimiser_goes_to_where_its_parameters_are() -> None:
    """Counts of steps too, which fused optimisers on a GPU look for there."""
    module = nn.Linear(3, 2, device="meta")
    optimizer = torch.optim.AdamW(module.parameters())
    state = {"optimizer/weight/step": torch.tensor(3.0), "optimizer/weight/exp_avg": torch.zeros(2, 3)}
    checkpoint._load_optimizer(module, optimizer, state)
    found = optimizer.state[module.weight]
    assert {key: each.device.type for key, each in found.items()} == {"step": "meta", "exp_avg": "meta"}


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


def test_best_weights_are_whole_after_a_kill_between_the_two_files(digits: Dataset, tmp_path: Path) -> None:
    whole = run(digits, tmp_path)
    assert whole.record.best_epoch == len(whole.record.epochs), "this test needs a training whose last epoch is the best"
    (tmp_path / BEST).unlink()
    assert run(digits, tmp_path).record == whole.record


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
    assert "--fresh" in caught.value.fix


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
    assert "--init-from best.safetensors" in str(caught.value)
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


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"phases": (Phase(start=2, weight_decay=0.0),)}, r"ends with epoch 1: its phase of epoch 2 never begins"),
        ({"narrow_gates": 2}, "no batch normalisation whose channels could fade"),
        ({"narrow_gates": 2, "gate_decay": 0.0}, "no weight decay on the gates"),
        ({"narrow_gates": 2, "depth": 1, "weight_decay": 0.0}, "no weight decay on the gates"),
    ],
    ids=["phase", "norms", "gate decay", "decay"],
)
def test_what_is_asked_for_in_vain_is_said(digits: Dataset, tmp_path: Path, change: dict[str, Any], said: str) -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)) if "no batch norm" in said else small()
    with pytest.warns(TrainingWarning, match=said):
        run(digits, tmp_path, RECIPE.model_copy(update={"epochs": 1, **change}), module)


def test_a_network_with_two_outputs_is_refused(digits: Dataset, tmp_path: Path) -> None:
    class Both(Small):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # type: ignore[override]
            return super().forward(x), x

    with pytest.raises(BadNetwork, match="gives a tuple, not one tensor"):
        run(digits, tmp_path, module=Both())


def test_too_few_outputs_for_the_classes(digits: Dataset, tmp_path: Path) -> None:
    with pytest.raises(BadData, match=r"7 classes apart, the data has 10\n.*\n.*--classes 10"):
        run(digits, tmp_path, module=small(7))


def test_a_batch_larger_than_the_data_is_warned_of_and_cut(digits: Dataset, tmp_path: Path) -> None:
    with pytest.warns(TrainingWarning, match="a batch of 5000 is more than the 1169 training images"):
        trained = run(digits, tmp_path, RECIPE.model_copy(update={"epochs": 2, "batch_size": 5000}))
    assert trained.record.epochs[-1].train_loss < trained.record.epochs[0].train_loss


def test_gradients_that_vanish_in_a_product_of_too_many_factors_are_said(digits: Dataset, tmp_path: Path) -> None:
    recipe = RECIPE.model_copy(update={"depth": 40, "epochs": 6, "lr": 0.1, "weight_decay": 0.05})
    epochs: list[int] = []
    with pytest.raises(TrainingDiverged, match=r"products of 40 factors, have faded .* gradients vanish") as caught:
        run(digits, tmp_path, recipe, on_epoch=lambda each: epochs.append(each.epoch))
    assert "lower N (--depth)" in str(caught.value)
    assert f"epoch {epochs[-1]} is kept" in str(caught.value)
    assert (tmp_path / LAST).exists()
    assert len(run(digits, tmp_path / "sound", recipe.model_copy(update={"depth": 2})).record.epochs) == 6


def test_metrics_are_one_line_of_json_an_epoch_also_when_resumed(digits: Dataset, tmp_path: Path) -> None:
    def stop(done: float, total: float, text: str) -> None:
        if done / total > 0.6:
            assert "epoch 3/4, loss " in text
            assert "images/s, rank " in text
            raise StopError

    path = tmp_path / "metrics.jsonl"
    with pytest.raises(StopError):
        run(digits, tmp_path / "a", metrics=path, on_progress=stop)
    assert len(path.read_text().splitlines()) == 2
    record = run(digits, tmp_path / "a", metrics=path).record
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3, 4]
    assert [line["train_loss"] for line in lines] == [each.train_loss for each in record.epochs]
    assert [line["validation"]["value"] for line in lines] == [each.validation.value for each in record.epochs]
    assert lines[0]["lr"] > lines[-1]["lr"] > 0
    assert {(line["depth"], line["weight_decay"]) for line in lines} == {(3, 1e-3)}


def test_unknown_devices(digits: Dataset, tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="tpu"):
        run(digits, tmp_path, device="tpu")
    if not torch.cuda.is_available():
        with pytest.raises(UnknownName, match="no CUDA device"):
            run(digits, tmp_path, device="cuda")
