"""Every order of multiplication gives one function and one set of gradients; the cheapest is taken."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from lorita_deploy.train import order
from lorita_deploy.train.composition import factored_layers, factorize

LAYERS = {
    "wide linear": (lambda: nn.Linear(24, 10), (3, 24)),
    "tall linear": (lambda: nn.Linear(10, 24), (3, 10)),
    "no bias": (lambda: nn.Linear(24, 10, bias=False), (2, 3, 24)),
    "tokens": (lambda: nn.Linear(12, 30), (2, 5, 12)),
    "vector": (lambda: nn.Linear(12, 12), (12,)),
    "padded conv": (lambda: nn.Conv2d(3, 8, 3, padding=1), (2, 3, 9, 9)),
    "strided conv": (lambda: nn.Conv2d(4, 6, 3, stride=2, padding=2), (2, 4, 9, 9)),
    "reflecting conv": (lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), (2, 4, 9, 9)),
    "same": (lambda: nn.Conv2d(4, 6, (1, 5), padding="same"), (2, 4, 9, 9)),
    "tall conv": (lambda: nn.Conv2d(2, 40, 3, padding=1), (2, 2, 5, 5)),
    "1x1 narrowing": (lambda: nn.Conv2d(8, 4, 1), (2, 8, 5, 5)),
    "1x1 widening": (lambda: nn.Conv2d(4, 8, 1, stride=2, padding=1), (2, 4, 5, 5)),
    "one image": (lambda: nn.Conv2d(3, 8, 3, padding=1), (3, 9, 9)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, stride=2), (2, 4, 11)),
    "conv1d widening": (lambda: nn.Conv1d(4, 12, 1, padding=1), (2, 4, 11)),
}


def worked_out(layer: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """Outputs, and gradients of the inputs and of all parameters."""
    layer.zero_grad()
    x = x.clone().requires_grad_()
    y = layer(x)
    torch.manual_seed(1)
    (y * torch.randn_like(y)).sum().backward()
    return [y.detach(), x.grad, *(p.grad for p in layer.parameters())]  # type: ignore[list-item]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("depth", [2, 3, 4])
@pytest.mark.parametrize("name", LAYERS)
def test_outputs_and_gradients_are_those_of_the_composed_weight(
    name: str, depth: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    build, shape = LAYERS[name]
    layer, x = factorize(build().to(dtype), depth), torch.randn(shape, dtype=dtype)
    if name == "tall conv":  # its squares would mix kernel positions: there is no other order
        plain = copy.deepcopy(layer)
        monkeypatch.setattr(order, "_pointwise", None)
        assert torch.equal(worked_out(layer, x)[0], nn.functional.conv2d(x, plain.weight, plain.bias, padding=1))
        return
    monkeypatch.setattr(order, "cheapest", lambda *_, **__: "weight")
    composed = worked_out(layer, x)
    tolerance = {"rtol": 1e-11, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-4}
    for way in ("square", "squares"):
        monkeypatch.setattr(order, "cheapest", lambda *_, way=way, **__: way)
        for found, expected in zip(worked_out(layer, x), composed, strict=True):
            torch.testing.assert_close(found, expected, **tolerance)


def test_the_cheapest_order_has_the_fewest_multiplications() -> None:
    assert order.cheapest(512, 784, 3, 64) == "squares"  # fcn at batch 64: composing costs ten times the layer
    assert order.cheapest(512, 4608, 3, 2048) == "square"  # VGG16's fourth stage at batch 128
    assert order.cheapest(256, 2304, 3, 8192) == "weight"
    assert order.cheapest(16, 144, 3, 131072) == "weight"
    assert order.cheapest(64, 27, 3, 2, pointwise=False) == "weight"  # squares on the inputs mix kernel positions
    assert order.cheapest(64, 27, 3, 2) == "squares"
    for positions in (1, 10, 100, 1000, 10000):
        published = 2 * 100**2 * positions
        costs = {"weight": 100**3 + 100**2 * 300, "square": 100**3 + 100**2 * positions, "squares": published}
        assert costs[order.cheapest(100, 300, 3, positions)] == min(costs.values())


def test_small_batches_do_not_compose_and_evaluation_does() -> None:
    torch.manual_seed(0)
    layer = factorize(nn.Linear(40, 30), 3)
    composed = []
    layer.parametrizations.weight[0].register_forward_hook(lambda *_: composed.append(1))
    layer(torch.randn(4, 40))
    assert not composed
    layer(torch.randn(400, 40))
    assert len(composed) == 1
    with torch.inference_mode():
        layer(torch.randn(4, 40))
    assert len(composed) == 2


def test_channels_last_activations_stay_channels_last() -> None:
    layer = factorize(nn.Conv2d(8, 16, 3, padding=1), 3).to(memory_format=torch.channels_last)
    x = torch.randn(1, 8, 4, 4).contiguous(memory_format=torch.channels_last)
    assert order.cheapest(16, 72, 3, 16) != "weight"
    assert layer(x).is_contiguous(memory_format=torch.channels_last)


class Standardised(nn.Conv2d):
    """A convolution with a forward pass of its own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._conv_forward(x, self.weight - self.weight.mean((1, 2, 3), keepdim=True), self.bias)


def test_layers_with_a_forward_of_their_own_keep_it() -> None:
    torch.manual_seed(0)
    layer, x = Standardised(4, 6, 3), torch.randn(1, 4, 3, 3)
    before = layer(x)
    factorize(layer, 3)
    assert factored_layers(layer)
    torch.testing.assert_close(layer(x), before, rtol=1e-4, atol=1e-5)


def test_it_works_under_torch_compile_graph_and_all() -> None:
    """With the graph capture alone (no compiler is needed for that): no breaks, the same gradients."""
    torch.manual_seed(0)
    model = factorize(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5)), 3)
    compiled = torch.compile(copy.deepcopy(model), backend="aot_eager", fullgraph=True)
    for batch in (4, 5, 7, 400):  # from the second on, for any batch size of which the same order is the cheapest
        x = torch.randn(batch, 3, 6, 6)
        for found, expected in zip(worked_out(compiled, x), worked_out(model, x), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_a_parametrization_that_somebody_puts_behind_ours_counts() -> None:
    class Doubled(nn.Module):
        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            return 2 * weight

    torch.manual_seed(0)
    layer, x = factorize(nn.Linear(24, 10, bias=False), 3), torch.randn(3, 24)
    before = layer(x)
    parametrize.register_parametrization(layer, "weight", Doubled())
    torch.testing.assert_close(layer(x), 2 * before)
