"""Phases that trim: what has faded is left out, factors get narrower, steps cheaper; the rest is what it was."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from lorita_deploy.records import Accuracy, Phase, Recipe
from lorita_deploy.train import order
from lorita_deploy.train.composition import collapse, factorize, inner_widths, rank_fraction
from lorita_deploy.train.datasets import load_dataset
from lorita_deploy.train.loop import train
from lorita_deploy.train.schedule import fading
from lorita_deploy.train.splits import Dataset
from lorita_deploy.train.structure import shapes_of, structure, structure_like

RECIPE = Recipe(epochs=4, batch_size=32, lr=0.1, weight_decay=1e-3, phases=(Phase(start=2, trim=1e-2),))
SPECTRUM = torch.tensor([1.0, 0.5, 0.1, 5e-3, 1e-3, 1e-4])
"""Of all layers below: three directions are above 1/100 of the largest."""

LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "wide linear": (lambda: nn.Linear(9, 6), (5, 9)),
    "tall linear": (lambda: nn.Linear(6, 9), (5, 6)),
    "tokens": (lambda: nn.Linear(6, 9), (2, 5, 6)),
    "conv": (lambda: nn.Conv2d(2, 6, 3, padding=1), (2, 2, 5, 5)),
    "strided conv": (lambda: nn.Conv2d(2, 6, 3, stride=2, padding=1), (2, 2, 5, 5)),
    "1x1 widening": (lambda: nn.Conv2d(6, 9, 1, padding=1), (2, 6, 4, 4)),
    "conv1d": (lambda: nn.Conv1d(3, 6, 3), (2, 3, 9)),
}


def layer_with(build: Callable[[], nn.Module]) -> nn.Module:
    """A layer whose weight has `SPECTRUM`."""
    torch.manual_seed(0)
    layer = build().double()
    u, _, vh = torch.linalg.svd(layer.weight.detach().flatten(1), full_matrices=False)  # type: ignore[operator, union-attr]
    with torch.no_grad():
        layer.weight.copy_(((u * SPECTRUM.double()) @ vh).view_as(layer.weight))  # type: ignore[operator, union-attr, arg-type]
    return layer


@pytest.mark.parametrize("depth", [2, 3, 4])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_what_is_above_the_share_stays_in_balance_and_the_rest_goes(name: str, depth: int, channels_last: bool) -> None:
    build, shape = LAYERS[name]
    layer = nn.Sequential(layer_with(build))
    if channels_last and len(shape) == 4:
        layer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    recipe = RECIPE.model_copy(update={"depth": depth})
    weight = structure(layer, recipe, 1)[0].weight.detach().clone()  # type: ignore[index]
    expected = weight.flatten(1)
    u, s, vh = torch.linalg.svd(expected)
    structure(layer, recipe, 2)
    factors = list(layer[0].parametrizations.weight.parameters())
    assert inner_widths(layer_with(build), 1e-2) == {"": 3}
    assert all(3 in (factor.shape[0], factor.flatten(1).shape[1], factor.shape[1]) for factor in factors)
    assert sum(factor.numel() for factor in factors) < sum(f.numel() for f in factorize(build(), depth).parameters())
    for factor in factors:  # balanced: each has the N-th root of every singular value that stays
        torch.testing.assert_close(torch.linalg.svdvals(factor.detach().flatten(1))[:3], s[:3].pow(1 / depth))
    found = layer[0].weight.detach().flatten(1)
    torch.testing.assert_close(found, (u[:, :3] * s[:3]) @ vh[:3])  # Eckart and Young's
    assert rank_fraction(layer) == 0.5  # of the rank that the layer could have, not of what is left
    assert layer[0].weight.stride() == weight.stride()


@pytest.mark.parametrize("depth", [2, 3, 4])
@pytest.mark.parametrize("name", LAYERS)
def test_narrow_factors_give_one_function_in_every_order(name: str, depth: int, monkeypatch: pytest.MonkeyPatch) -> None:
    build, shape = LAYERS[name]
    layer = factorize(layer_with(build), depth, widths={"": 3})
    torch.manual_seed(1)
    x, results = torch.randn(shape, dtype=torch.float64), []
    for way in ("weight", "square", "squares"):
        monkeypatch.setattr(order, "cheapest", lambda *_, way=way, **__: way)
        layer.zero_grad()
        y = layer(x)
        (y * torch.arange(y.numel()).view_as(y)).sum().backward()
        results.append([y.detach(), *(p.grad for p in layer.parameters())])
    for found in results[1:]:
        for each, expected in zip(found, results[0], strict=True):
            torch.testing.assert_close(each, expected, rtol=1e-9, atol=1e-9)


def test_the_order_counts_with_the_inner_width() -> None:
    assert order.cheapest(512, 4608, 3, 8192) == "weight"
    assert order.cheapest(512, 4608, 3, 8192, width=64) == "square"  # a pair of layers, an eighth of the channels between
    assert order.cheapest(512, 4608, 3, 128, width=64) == "squares"
    m, n, r, p = 128, 1152, 20, 5000
    pairs = {
        "weight": m * r**2 + m * n * r + m * n * p,
        "square": m * r**2 + (m + n) * r * p,
        "squares": (r * r + m * r + n * r) * p,
    }
    assert pairs[order.cheapest(m, n, 3, p, width=r)] == min(pairs.values())


def test_kernels_that_squares_mix_the_positions_of_keep_their_width() -> None:
    layer = layer_with(lambda: nn.Conv2d(1, 9, (2, 3)))
    assert inner_widths(layer, 1e-2) == {}
    torch.testing.assert_close(structure(layer, RECIPE, 2).weight, layer_with(lambda: nn.Conv2d(1, 9, (2, 3))).weight)  # type: ignore[union-attr]
    assert {tuple(f.shape) for f in layer.parametrizations.weight.parameters()} == {(9, 1, 2, 3), (6, 6)}  # type: ignore[union-attr, operator]


def test_what_an_earlier_phase_has_left_out_does_not_come_back() -> None:
    recipe = RECIPE.model_copy(
        update={"phases": (Phase(start=2, trim=1e-2), Phase(start=3, depth=2), Phase(start=4, trim=1e-5))}
    )
    layer = structure(layer_with(LAYERS["wide linear"][0]), recipe, 1)
    for epoch in (2, 3, 4):
        structure(layer, recipe, epoch)
        assert layer.parametrizations.weight[0].width == 3  # type: ignore[union-attr, index]
        assert torch.linalg.matrix_rank(layer.weight.detach()) == 3  # type: ignore[arg-type, operator]


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset("digits", shape=(1, 8, 8))


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(1024, 10)
    )


class StopError(Exception):
    pass


@pytest.mark.parametrize("extra", [{}, {"ema": 0.9, "narrow_gates": 2}])
def test_a_stopped_training_goes_on_with_the_widths_that_it_had(
    digits: Dataset, tmp_path: Path, extra: dict[str, object]
) -> None:
    recipe = RECIPE.model_copy(
        update={"weight_decay": 1e-2, "precision": "fp32", "phases": (Phase(start=3, trim=0.3),), **extra}
    )

    def evaluate(module: nn.Module) -> Accuracy:
        with torch.inference_mode():
            right = sum((module(x).argmax(1) == y).sum().item() for x, y in digits.batches("validation", 512))
        return Accuracy(metric="accuracy", split="validation", correct=right, total=len(digits.split("validation")))

    def run(folder: Path, **options: object) -> object:
        return train(small(), digits, recipe, folder, evaluate=evaluate, model_name="small", device="cpu", **options)  # type: ignore[arg-type]

    def stop(done: float, total: float, _: str) -> None:
        if done / total > 0.85:  # within the last epoch
            raise StopError

    whole = run(tmp_path / "whole")
    with pytest.raises(StopError):
        run(tmp_path / "cut", on_progress=stop)
    resumed = run(tmp_path / "cut")
    assert resumed.record.weights_sha256 == whole.record.weights_sha256  # type: ignore[attr-defined]
    assert resumed.record.best_epoch >= 3, "this test needs a training whose best epoch is trimmed"  # type: ignore[attr-defined]
    module = resumed.module  # type: ignore[attr-defined]
    assert module[4].parametrizations.weight[0].width < 10
    again = structure_like(small(), shapes_of(module.state_dict()))
    again.load_state_dict(module.state_dict())
    x = torch.rand(4, 1, 8, 8)
    torch.testing.assert_close(collapse(again.eval())(x), module(x))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("depth", [1, 3])
def test_directions_that_nothing_holds_fade_as_forecast(optimizer: str, depth: int) -> None:
    """By hand: no gradient but that of the decay, so many steps of the real optimiser."""
    from lorita_deploy.train.schedule import learning_rate, make_optimizer, set_rates

    recipe = RECIPE.model_copy(
        update={"optimizer": optimizer, "depth": depth, "weight_decay": 2e-3, "phases": (Phase(start=3, weight_decay=1e-3),)}
    )
    steps, layer = 400, factorize(layer_with(LAYERS["wide linear"][0]), depth)
    before, optimiser = float(torch.linalg.matrix_norm(layer.weight.detach(), 2)), make_optimizer(layer, recipe)  # type: ignore[arg-type, operator]
    for step in range(4 * steps):
        set_rates(optimiser, recipe, 1 + step // steps, learning_rate(recipe, step, 4 * steps))
        for parameter in layer.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimiser.step()
    after = float(torch.linalg.matrix_norm(layer.weight.detach(), 2))  # type: ignore[arg-type, operator]
    assert math.log(after / before) == pytest.approx(math.log(fading(recipe, steps)), rel=0.02)
    assert after / before < (0.95 if optimizer == "adamw" else 0.6)
