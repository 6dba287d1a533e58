"""Products are worked out once while nothing changes, and never used when something has."""

from __future__ import annotations

import copy
import gc
import weakref
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from lorita_deploy.train.composition import collapse, factorize
from lorita_deploy.train.kept import Multiply, composed_once
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

        def counted(*factors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
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
    assert store.step is None
    assert not store.found
    assert copied.layer.parametrizations.weight[0].kept.step is None
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
        assert "square" in composition.kept.found
        layer.zero_grad()
        layer(x).square().sum().backward()
    for found, each in zip(gradients(layer), expected, strict=True):
        torch.testing.assert_close(found, each)


class Stack(nn.Module):
    """Layers one after the other, some of which may be left out; which of them had a product worked out is in ``log``."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(4))
        factorize(self, 3)
        self.used = [0, 1, 2, 3]
        self.log: list[int] = []
        for i, layer in enumerate(self.layers):
            composition: Composition = layer.parametrizations.weight[0]
            composition._weight = partial(self._logged, i, composition._weight)  # type: ignore[method-assign]

    def _logged(self, i: int, multiply: Multiply, *factors: torch.Tensor) -> tuple[torch.Tensor, Any]:
        self.log.append(i)
        return multiply(*factors)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for i in self.used:
            x = self.layers[i](x).tanh()
        return x


@pytest.mark.parametrize("grad", [True, False])
def test_a_step_works_out_together_what_the_step_before_asked_for(grad: bool) -> None:
    model = Stack()

    def step(*used: int) -> tuple[list[int], list[int]]:
        """The layers whose weight there is after the first one has run, and at the end."""
        model.log.clear()
        with composed_once(model), torch.set_grad_enabled(grad):
            model.layers[used[0]](X)
            first = sorted(model.log)
            for i in used:
                model.layers[i](X)
        return first, sorted(model.log)

    assert step(0, 1, 2) == ([0], [0, 1, 2])
    assert step(0, 1, 2) == ([0, 1, 2], [0, 1, 2])
    assert step(2, 0) == ([0, 1, 2], [0, 1, 2])  # 1 in vain
    assert step(2, 0) == ([0, 2], [0, 2])
    assert step(3, 0) == ([0, 2, 3], [0, 2, 3])
    with composed_once(model), torch.set_grad_enabled(not grad):
        model.layers[1](X)
    assert step(3, 0) == ([0, 3], [0, 3])


@pytest.mark.parametrize(("width", "waits"), [(20, True), (300, False)])
def test_only_small_products_wait_for_those_of_other_layers(width: int, waits: bool) -> None:
    """Large ones are not brought along, and their gradients come while those of layers in front of them are still to come."""
    torch.manual_seed(0)
    first, second, third = factorize(nn.Sequential(*(nn.Linear(width, width) for _ in range(3))), 3)
    x, come = torch.randn(1000, width), []
    assert cheapest(width, width, 3, len(x)) == "weight"
    for _ in range(2):
        with composed_once(nn.Sequential(first, second, third)):
            y = first(x)
            brought_along = bool(third.parametrizations.weight[0].kept.found)
            y.register_hook(lambda _: come.append(third.parametrizations.weight.original0.grad is not None))
            third(second(y)).sum().backward()
        third.zero_grad()
    assert brought_along == waits
    assert come == [True, not waits]  # nothing is together in the first step


def test_gradients_together_are_those_one_by_one_also_where_a_layer_is_left_out() -> None:
    together, alone = Stack(), Stack()
    for used in ([0, 1, 2, 3], [0, 2], [3, 1, 0], [0, 1, 2, 3]):
        for model in (together, alone):
            model.used = used
            model.zero_grad()
            with composed_once(model if model is together else nn.ReLU()):
                model(X).square().sum().backward()
        for (name, a), b in zip(together.named_parameters(), alone.parameters(), strict=True):
            if b.grad is None:
                assert a.grad is None or not a.grad.any(), name
            else:
                torch.testing.assert_close(a.grad, b.grad)


def test_a_factor_that_changes_before_its_gradients_come_is_an_error() -> None:
    model = Counted()
    with composed_once(model):
        loss = model(X).sum()
        with torch.no_grad():
            model.layer.parametrizations.weight.original1.mul_(1.5)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


def test_a_replaced_factor_gets_the_gradients() -> None:
    model = Counted()
    with composed_once(model):
        model(X)
        model.load_state_dict(model.state_dict(), assign=True)
        model(X).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_nothing_is_differentiated_that_is_frozen() -> None:
    model = Stack()
    for factor in (*model.layers[0].parameters(), *model.layers[1].parameters()):
        factor.requires_grad_(False)
    model.layers[2].parametrizations.weight.original1.requires_grad_(False)
    for _ in range(3):
        model.zero_grad()
        with composed_once(model):
            assert [layer(X).requires_grad for layer in model.layers] == [False, False, True, True]
            model(X).square().sum().backward()
        assert [p.grad is not None for p in model.parameters()] == [p.requires_grad for p in model.parameters()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_under_autocast_are_those_of_autograd(dtype: torch.dtype) -> None:
    model = Stack().to(dtype)
    found = []
    for kept in (model, model, nn.ReLU()):
        model.zero_grad()
        with composed_once(kept), torch.autocast("cpu", torch.bfloat16):
            loss = model(X.to(dtype)).float().square().sum()
        loss.backward()
        found.append([p.grad.clone() for p in model.parameters()])  # type: ignore[union-attr]
    for first, second, plain in zip(*found, strict=True):
        assert first.dtype == plain.dtype == dtype
        assert torch.equal(first, second)
        torch.testing.assert_close(first, plain, rtol=0.02, atol=0.02)


def test_factors_go_with_their_layer() -> None:
    """Without waiting for the collector of reference cycles: they and their gradients are as large as a network."""
    model = nn.Sequential(factorize(nn.Linear(6, 6), 3))
    factor = weakref.ref(model[0].parametrizations.weight.original0)  # type: ignore[union-attr]
    with composed_once(model):
        model(X).sum().backward()
    gc.collect()
    gc.disable()
    try:
        collapse(model)
        assert factor() is None
    finally:
        gc.enable()
