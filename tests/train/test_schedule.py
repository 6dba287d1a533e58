"""Learning rates and weight decay, as functions of the recipe and what happened so far."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lorita_deploy.records import Phase, Recipe
from lorita_deploy.train.composition import factorize
from lorita_deploy.train.gates import add_gates
from lorita_deploy.train.schedule import learning_rate, make_optimizer, plateaus, set_rates

RECIPE = Recipe(epochs=4, batch_size=64, lr=0.05, weight_decay=1e-3)


def changed(**fields: object) -> Recipe:
    return RECIPE.model_copy(update=fields)


def test_one_cycle_rises_for_a_fifth_and_falls_to_nothing() -> None:
    rates = [learning_rate(RECIPE, step, 100) for step in range(100)]
    assert max(rates) == RECIPE.lr
    assert rates[:20] == sorted(rates[:20])
    assert rates[20:] == sorted(rates[20:], reverse=True)
    assert 0 < rates[0] < RECIPE.lr / 10
    assert rates[-1] < RECIPE.lr / 100


def test_cosine_falls_from_the_start_unless_there_is_a_warm_up() -> None:
    assert learning_rate(changed(schedule="cosine"), 0, 100) == RECIPE.lr
    assert learning_rate(changed(schedule="cosine"), 50, 100) == pytest.approx(RECIPE.lr / 2)
    warm = changed(schedule="cosine", warm_up=0.1)
    assert [learning_rate(warm, step, 100) for step in (0, 4, 9)] == pytest.approx([0.005, 0.025, 0.05])
    assert learning_rate(changed(warm_up=0.0), 0, 100) == RECIPE.lr


def test_plateaus_are_those_of_torch() -> None:
    torch.manual_seed(0)
    falling = [2.0 / (1 + epoch) for epoch in range(12)]
    losses = [*falling, *(0.17 + 0.01 * torch.rand(30)).tolist(), 0.1, *[0.1 - 1e-6 * i for i in range(25)]]
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
    for done, loss in enumerate(losses, 1):
        scheduler.step(loss)
        assert 0.1 ** plateaus(losses[:done]) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-6)
    assert plateaus(losses) >= 3
    assert learning_rate(changed(schedule="plateau"), 7, 100, losses[:5]) == RECIPE.lr
    assert learning_rate(changed(schedule="plateau"), 7, 100, losses) < RECIPE.lr / 500


def test_losses_are_compared_anew_where_the_network_is_restructured() -> None:
    losses = [1.0 - 0.05 * i for i in range(10)] + [0.9 - 0.01 * i for i in range(20)]  # the second network: above the first
    assert plateaus(losses) == 1
    assert plateaus(losses, (11,)) == 0
    recipe = changed(schedule="plateau", epochs=40, phases=(Phase(start=11, depth=2), Phase(start=20, weight_decay=0.0)))
    assert recipe.restructured == (11,)
    assert learning_rate(recipe, 299, 400, losses) == recipe.lr


class Everything(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3)
        self.norm = nn.BatchNorm2d(3)
        self.linear = nn.Linear(3, 3)
        self.layer_norm = nn.LayerNorm(3)
        self.depthwise = nn.Conv2d(4, 4, 3, groups=4)
        self.position = nn.Parameter(torch.zeros(1, 4, 3))
        self.plane_norm = nn.LayerNorm((4, 8, 8))
        self.memory = nn.GRU(3, 3)


def decays(module: nn.Module, recipe: Recipe, epoch: int = 1) -> dict[str, float]:
    """Weight decay by parameter."""
    optimizer = make_optimizer(module, recipe)
    set_rates(optimizer, recipe, epoch, 0.01)
    assert all(group["lr"] == 0.01 for group in optimizer.param_groups)
    found = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    return {name: found[id(p)] for name, p in module.named_parameters()}


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_decay_is_on_weight_matrices_only(optimizer: str) -> None:
    found = decays(factorize(Everything(), 3), changed(optimizer=optimizer))
    factors = {f"{layer}.parametrizations.weight.original{i}" for layer in ("conv", "linear") for i in range(3)}
    others = {"depthwise.weight", "memory.weight_ih_l0", "memory.weight_hh_l0"}
    assert {name for name, decay in found.items() if decay} == {*factors, *others}
    assert set(found.values()) == {0.0, RECIPE.weight_decay}
    assert set(decays(factorize(Everything(), 3), changed(decay_on="all")).values()) == {RECIPE.weight_decay}


def test_gates_have_a_decay_of_their_own_and_shifts_none() -> None:
    module = add_gates(factorize(Everything(), 2), 2)
    found = decays(module, changed(gate_decay=0.3))
    assert [name for name, decay in found.items() if decay == 0.3] == [
        f"norm.parametrizations.weight.original{i}" for i in range(2)
    ]
    assert found["norm.parametrizations.bias.original"] == 0
    assert decays(module, RECIPE)["norm.parametrizations.weight.original0"] == RECIPE.weight_decay


def test_decay_changes_with_the_phases() -> None:
    recipe = changed(phases=(Phase(start=2, weight_decay=0.5), Phase(start=3, depth=1), Phase(start=4, weight_decay=0.0)))
    assert [recipe.weight_decay_at(epoch) for epoch in range(1, 6)] == [1e-3, 0.5, 0.5, 0.0, 0.0]
    assert [recipe.depth_at(epoch) for epoch in range(1, 6)] == [3, 3, 1, 1, 1]
    assert decays(nn.Linear(2, 2), recipe, 3)["weight"] == 0.5
    assert decays(nn.Linear(2, 2), recipe, 4)["weight"] == 0.0
