"""Phases: another depth from some epoch on, the function kept, faded directions staying so; resumable across the change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lorita_deploy.networks import read_weights
from lorita_deploy.records import Accuracy, Phase, Recipe
from lorita_deploy.train.checkpoint import BEST
from lorita_deploy.train.composition import collapse, factored_layers, factorize
from lorita_deploy.train.datasets import load_dataset
from lorita_deploy.train.gates import add_gates, gated_norms
from lorita_deploy.train.loop import train
from lorita_deploy.train.splits import Dataset
from lorita_deploy.train.structure import shapes_of, structure, structure_like

RECIPE = Recipe(
    epochs=4, batch_size=128, lr=0.05, weight_decay=1e-3, precision="fp32", phases=(Phase(start=3, depth=2, weight_decay=1e-4),)
)


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(72, 10)
    )


def depth_of(module: nn.Module) -> int:
    return {layer.parametrizations.weight[0].depth for layer in factored_layers(module).values()}.pop()


def test_another_depth_keeps_the_function_and_what_has_faded() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(9, 6)
    u, s, vh = torch.linalg.svd(layer.weight.detach(), full_matrices=False)
    s = torch.tensor([1.0, 0.4, 1e-2, 1e-4, 1e-9, 0.0])
    with torch.no_grad():
        layer.weight.copy_((u * s) @ vh)
    recipe = RECIPE.model_copy(update={"phases": (Phase(start=2, depth=2), Phase(start=3, depth=1), Phase(start=4, depth=4))})
    structure(layer, recipe, 1)
    before = layer.weight.detach().clone()
    for epoch, depth in ((2, 2), (4, 4)):
        structure(layer, recipe, epoch)
        assert depth_of(layer) == depth
        torch.testing.assert_close(layer.weight.detach(), before, rtol=0, atol=1e-6)
    for factor in layer.parametrizations.weight.parameters():
        found = torch.linalg.svdvals(factor.detach())
        torch.testing.assert_close(found[:4], s[:4].pow(1 / 4), rtol=1e-2, atol=1e-3)
        assert float(found[4:].max()) < 0.05  # a fresh start would lift them to (0.1)^(1/4) = 0.56
    assert not factored_layers(structure(layer, recipe, 3))
    torch.testing.assert_close(layer.weight.detach(), before, rtol=0, atol=1e-6)


def test_a_phase_after_one_without_factors_trims_and_leaves_faded_what_has_faded() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(9, 6)
    u, _, vh = torch.linalg.svd(layer.weight.detach(), full_matrices=False)
    with torch.no_grad():
        layer.weight.copy_((u * torch.tensor([1.0, 0.4, 0.1, 1e-4, 1e-9, 0.0])) @ vh)
    phases = (Phase(start=2, depth=3), Phase(start=3, depth=1), Phase(start=4, depth=3, trim=1e-2))
    recipe = RECIPE.model_copy(update={"depth": 1, "phases": phases})
    assert not factored_layers(structure(layer, recipe, 1))
    structure(layer, recipe, 2)
    for factor in layer.parametrizations.weight.parameters():
        assert float(torch.linalg.svdvals(factor.detach())[4:].max()) < 0.05
    assert not factored_layers(structure(layer, recipe, 3))
    structure(layer, recipe, 4)
    assert [tuple(p.shape) for p in layer.parametrizations.weight.parameters()] == [(3, 9), (6, 3), (3, 3)]


def test_a_network_gets_the_structure_of_the_weights_to_be_loaded() -> None:
    trained = add_gates(factorize(small(), 4), 2)
    found = structure_like(small(), shapes_of(trained.state_dict()))
    assert list(found.state_dict()) == list(trained.state_dict())
    found.load_state_dict(trained.state_dict())
    assert depth_of(found) == 4
    assert len(list(gated_norms(found))) == 1
    assert not factored_layers(structure_like(small(), shapes_of(small().state_dict())))


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset("digits", shape=(1, 8, 8))


def run(digits: Dataset, folder: Path, recipe: Recipe = RECIPE, **options: Any) -> Any:
    def evaluate(module: nn.Module) -> Accuracy:
        with torch.inference_mode():
            right = sum((module(x).argmax(1) == y).sum().item() for x, y in digits.batches("validation", 512))
        return Accuracy(metric="accuracy", split="validation", correct=right, total=len(digits.split("validation")))

    return train(small(), digits, recipe, folder, model_name="small", device="cpu", **({"evaluate": evaluate} | options))


class StopError(Exception):
    pass


@pytest.mark.parametrize("stop_after", [2.0, 3.5])
@pytest.mark.parametrize("extra", [{}, {"ema": 0.9, "narrow_gates": 2, "accumulate": 2}])
def test_a_stopped_training_resumes_across_phases(
    digits: Dataset, tmp_path: Path, stop_after: float, extra: dict[str, Any]
) -> None:
    recipe = RECIPE.model_copy(update=extra)
    whole = run(digits, tmp_path / "whole", recipe)

    def stop(done: float, total: float, _: str) -> None:
        if done / total > stop_after / recipe.epochs:
            raise StopError

    with pytest.raises(StopError):
        run(digits, tmp_path / "cut", recipe, on_progress=stop)
    resumed = run(digits, tmp_path / "cut", recipe)
    assert resumed.record.weights_sha256 == whole.record.weights_sha256
    assert depth_of(resumed.module) == recipe.depth_at(resumed.record.best_epoch)


def test_without_decay_in_the_end_faded_directions_stay_so_and_the_loss_falls(digits: Dataset, tmp_path: Path) -> None:
    """What the annealed recipes rest on: the same training up to the phase, then a lower loss at no higher rank."""
    constant = RECIPE.model_copy(
        update={"epochs": 12, "batch_size": 32, "lr": 0.1, "weight_decay": 1e-2, "schedule": "cosine", "phases": ()}
    )
    annealed = constant.model_copy(update={"phases": (Phase(start=9, weight_decay=0.0),)})
    kept, freed = (run(digits, tmp_path / name, r).record.epochs for name, r in (("kept", constant), ("freed", annealed)))
    assert [each.train_loss for each in freed[:8]] == [each.train_loss for each in kept[:8]]
    assert freed[-1].train_loss < kept[-1].train_loss
    assert freed[-1].rank_fraction <= freed[7].rank_fraction < freed[0].rank_fraction


@pytest.mark.parametrize(
    ("scores", "phase", "kept", "depth"),
    [
        ([0.2, 0.95, 0.5, 0.6, 0.7, 0.7, 0.9, 0.8], Phase(start=8, weight_decay=0.0), 7, 3),  # has had the decay of most epochs
        ([0.2, 0.95, 0.5, 0.6, 0.7, 0.7, 0.9, 0.8], Phase(start=8, depth=2), 8, 2),  # what the recipe ends with
        ([0.2, 0.9, 0.8], Phase(start=3, depth=2), 2, 3),  # of so few any
    ],
)
def test_the_best_weights_may_be_of_an_earlier_phase(
    digits: Dataset, tmp_path: Path, scores: list[float], phase: Phase, kept: int, depth: int
) -> None:
    values = iter(scores)
    recipe = RECIPE.model_copy(update={"epochs": len(scores), "phases": (phase,)})

    def evaluate(module: nn.Module) -> Accuracy:
        return Accuracy(metric="score", split="validation", correct=100 * next(values), total=100)

    trained = run(digits, tmp_path, recipe, evaluate=evaluate)
    assert trained.record.best_epoch == kept
    assert depth_of(trained.module) == depth
    torch.testing.assert_close(collapse(trained.module)(torch.ones(1, 1, 8, 8)).isfinite().all(), torch.tensor(True))


def test_with_an_average_it_is_the_average_that_is_judged_and_kept(digits: Dataset, tmp_path: Path) -> None:
    judged: list[torch.Tensor] = []

    def evaluate(module: nn.Module) -> Accuracy:
        judged.append(module[4].weight.detach().clone())  # type: ignore[index]
        return Accuracy(metric="score", split="validation", correct=float(len(judged)), total=100)

    recipe = RECIPE.model_copy(update={"ema": 0.95, "phases": ()})
    trained = run(digits, tmp_path, recipe, evaluate=evaluate)
    torch.testing.assert_close(trained.module[4].weight.detach(), judged[-1])
    last = read_weights(tmp_path / "last.safetensors")
    name = "4.parametrizations.weight.original0"
    assert torch.equal(read_weights(tmp_path / BEST)[f"model/{name}"], last[f"average/{name}"])
    assert not torch.equal(last[f"model/{name}"], last[f"average/{name}"])


@pytest.mark.parametrize("depth", [1, 3])
def test_weight_norm_of_torch_stays_and_is_no_pair_of_factors(digits: Dataset, tmp_path: Path, depth: int) -> None:
    def normed() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Flatten(), nn.utils.parametrizations.weight_norm(nn.Linear(64, 20)), nn.ReLU(), nn.Linear(20, 10)
        )

    recipe = RECIPE.model_copy(update={"depth": depth, "phases": (), "epochs": 1})
    one = Accuracy(metric="accuracy", split="validation", correct=1, total=269)
    found = train(normed(), digits, recipe, tmp_path, evaluate=lambda _: one, model_name="normed", device="cpu").module
    assert list(factored_layers(found)) == (["3"] if depth > 1 else [])
    again = structure_like(normed(), shapes_of(found.state_dict()))
    again.load_state_dict(found.state_dict())
    images = torch.rand(5, 1, 8, 8)
    torch.testing.assert_close(again(images), found(images))
