"""Products are worked out once while nothing changes, and never used when something has."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from lorita_deploy.train.composition import factorize
from lorita_deploy.train.kept import composed_once
from lorita_deploy.train.order import cheapest
from lorita_deploy.train.parametrization import Composition


class Counted(nn.Module):
    """A linear layer used three times over, and how often its weight was composed."""

    def __init__(self, depth: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(6, 6)
        factorize(self, depth)
        self.count = 0
        composition: Composition = self.layer.parametrizations.weight[0]
        multiply = composition._weight

        def counted(*factors: torch.Tensor) -> torch.Tensor:
            self.count += 1
            return multiply(*factors)

        composition._weight = counted  # type: ignore[method-assign]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(3):
            x = self.layer(x).tanh()
        return x


X = torch.randn(50, 6, generator=torch.Generator().manual_seed(1))


def gradients(model: nn.Module) -> list[torch.Tensor]:
    return [p.grad.clone() for p in model.parameters()]  # type: ignore[union-attr]


def test_accumulated_gradients_are_the_same_and_the_weight_is_composed_once() -> None:
    model = Counted()
    for part in X.split(25):
        model(part).square().sum().backward()
    assert model.count == 6
    expected = gradients(model)
    model.zero_grad()
    model.count = 0
    with composed_once(model):
        for part in X.split(25):
            model(part).square().sum().backward()
    assert model.count == 1
    for found, each in zip(gradients(model), expected, strict=True):
        torch.testing.assert_close(found, each)


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_of_an_optimiser_is_noticed(fused: bool) -> None:
    """Fused optimisers leave no trace in the parameters' version counters."""
    model, plain = Counted(), Counted()
    for each, keep in ((model, True), (plain, False)):
        optimizer = torch.optim.SGD(each.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01, fused=fused)
        losses = []
        with composed_once(each if keep else nn.ReLU()):
            for _ in range(4):
                optimizer.zero_grad()
                loss = each(X).square().mean()
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
        assert len(set(losses)) == 4
    assert (model.count, plain.count) == (4, 12)
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_changes_in_place_replaced_factors_and_the_grad_mode_are_noticed() -> None:
    model = Counted()
    with composed_once(model):
        first = model(X)
        with torch.no_grad():
            model.layer.parametrizations.weight.original1.mul_(2)
        second = model(X)
        assert model.count == 2
        assert not torch.equal(first, second)
        with torch.inference_mode():
            torch.testing.assert_close(model(X), second)
        with torch.no_grad():
            torch.testing.assert_close(model(X), second)
        assert model(X).requires_grad
        assert model.count == 5
        state = {name: torch.zeros_like(each) for name, each in model.state_dict().items()}
        model.load_state_dict(state)
        assert not model(X).any()
        model.double()
        assert model(X.double()).dtype == torch.float64


def test_nothing_is_kept_outside() -> None:
    model = Counted()
    with composed_once(model):
        model(X)
        copied = copy.deepcopy(model)  # kept products are no leaves, and are not copied
        with composed_once(model):
            model(X)
        assert model.count == 1
        model(X)
        assert model.count == 1
    store = model.layer.parametrizations.weight[0].kept
    assert not store.on
    assert not store._found
    assert not copied.layer.parametrizations.weight[0].kept.on
    model(X)
    assert model.count == 4


def test_the_product_of_the_squares_is_kept_too() -> None:
    torch.manual_seed(0)
    layer = factorize(nn.Linear(20, 10), 4)
    x = torch.randn(15, 20)
    assert cheapest(10, 20, 4, 15) == "square"
    composition = layer.parametrizations.weight[0]
    layer(x).square().sum().backward()
    expected = gradients(layer)
    layer.zero_grad()
    with composed_once(layer):
        layer(x[:8].repeat(2, 1)[:15])
        assert "square" in composition.kept._found
        layer.zero_grad()
        layer(x).square().sum().backward()
    for found, each in zip(gradients(layer), expected, strict=True):
        torch.testing.assert_close(found, each)
