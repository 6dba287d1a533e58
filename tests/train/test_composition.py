"""LoRITa keeps the function, has the gradients of the chain, and its decay is the Schatten penalty."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from lorita_deploy.train.composition import collapse, factored_layers, factorize, left_alone, rank_fraction

LAYERS = {
    "wide linear": (lambda: nn.Linear(24, 10), (3, 24)),
    "tall linear": (lambda: nn.Linear(10, 24, bias=False), (3, 10)),
    "tokens": (lambda: nn.Linear(12, 12), (2, 5, 12)),
    "conv": (lambda: nn.Conv2d(3, 8, 3, padding=1), (2, 3, 9, 9)),
    "strided": (lambda: nn.Conv2d(4, 6, 3, stride=2, bias=False), (2, 4, 9, 9)),
    "dilated": (lambda: nn.Conv2d(4, 6, 3, dilation=2), (2, 4, 9, 9)),
    "rectangular kernel": (lambda: nn.Conv2d(4, 6, (1, 5), padding="same"), (2, 4, 9, 9)),
    "1x1 narrowing": (lambda: nn.Conv2d(8, 4, 1), (2, 8, 5, 5)),
    "1x1 widening": (lambda: nn.Conv2d(4, 8, 1), (2, 4, 5, 5)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, stride=2), (2, 4, 11)),
}


def made(name: str) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    build, shape = LAYERS[name]
    return build(), torch.randn(shape)


def factors(layer: nn.Module) -> list[nn.Parameter]:
    return [p for name, p in layer.named_parameters() if "original" in name]


@pytest.mark.parametrize("depth", [1, 2, 3, 5])
@pytest.mark.parametrize("name", LAYERS)
def test_factorize_keeps_the_function_and_collapse_is_exact(name: str, depth: int) -> None:
    layer, x = made(name)
    before, keys = layer(x), list(layer.state_dict())
    assert factorize(layer, depth) is layer
    torch.testing.assert_close(layer(x), before, rtol=1e-5, atol=1e-5)
    with torch.no_grad():  # networks are judged as what they collapse to
        factored = layer(x)
    assert len(factors(layer)) == (depth if depth > 1 else 0)
    assert collapse(layer) is layer
    assert torch.equal(layer(x), factored)
    assert list(layer.state_dict()) == keys
    assert type(layer) is type(made(name)[0])
    assert all(isinstance(p, nn.Parameter) and p.requires_grad for p in layer.parameters())


@pytest.mark.parametrize("name", LAYERS)
def test_squares_are_on_the_smaller_side(name: str) -> None:
    layer, _ = made(name)
    small = min(layer.weight.flatten(1).shape)
    wide, *squares = factors(factorize(layer, 4))
    assert wide.shape == made(name)[0].weight.shape
    assert [square.shape for square in squares] == [(small, small)] * 3


def test_gradients_are_those_of_the_chain_of_layers() -> None:
    torch.manual_seed(0)
    layer = factorize(nn.Conv2d(5, 4, 3, stride=2, padding=1), 3)
    wide, first, second = factors(layer)
    copies = [each.detach().clone().requires_grad_() for each in (wide, first, second)]
    x = torch.randn(3, 5, 8, 8)
    y = nn.functional.conv2d(x, copies[0], stride=2, padding=1)  # the published form: k x k, then two 1x1
    for square in (copies[2], copies[1]):
        y = nn.functional.conv2d(y, square[:, :, None, None])
    y = y + layer.bias.view(1, -1, 1, 1)
    torch.testing.assert_close(layer(x), y, rtol=1e-5, atol=1e-6)
    torch.manual_seed(1)
    direction = torch.randn_like(y)
    (y * direction).sum().backward()
    (layer(x) * direction).sum().backward()
    for factor, expected in zip((wide, first, second), copies, strict=True):
        torch.testing.assert_close(factor.grad, expected.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("depth", [2, 3, 4])
@pytest.mark.parametrize("name", ["wide linear", "tall linear", "conv"])
def test_the_start_is_balanced_so_decay_is_the_schatten_penalty(name: str, depth: int) -> None:
    layer, _ = made(name)
    s = torch.linalg.svdvals(layer.weight.detach().flatten(1).double())
    factorize(layer, depth)
    penalty = sum(float(factor.detach().double().square().sum()) for factor in factors(layer))
    assert penalty == pytest.approx(depth * float(s.pow(2 / depth).sum()), rel=1e-5)
    for factor in factors(layer):
        torch.testing.assert_close(
            torch.linalg.svdvals(factor.detach().flatten(1).double()), s.pow(1 / depth), rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("depth", [2, 3])
def test_a_zero_layer_computes_zero_and_learns(depth: int) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(6, 3, bias=False)
    nn.init.zeros_(layer.weight)
    factorize(layer, depth)
    x, wanted = torch.randn(64, 6), torch.randn(3, 6)
    assert torch.equal(layer(x), torch.zeros(64, 3))
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    for _ in range(300):
        optimizer.zero_grad()
        (layer(x) - x @ wanted.T).square().mean().backward()
        optimizer.step()
    torch.testing.assert_close(layer.weight.detach(), wanted, rtol=0, atol=0.02)


def test_directions_that_a_weight_lacks_can_come_back() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(8, 6, bias=False)
    u, s, vh = torch.linalg.svd(layer.weight.detach(), full_matrices=False)
    with torch.no_grad():
        layer.weight.copy_((u[:, :2] * s[:2]) @ vh[:2])  # rank 2 of 6
    x, wanted = torch.randn(128, 8), (u * s) @ vh
    before = layer.weight.detach().clone()
    factorize(layer, 3)
    torch.testing.assert_close(layer.weight.detach(), before, rtol=0, atol=1e-6)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.3)
    for _ in range(1000):
        optimizer.zero_grad()
        (layer(x) - x @ wanted.T).square().mean().backward()
        optimizer.step()
    assert torch.linalg.matrix_rank(layer.weight.detach(), rtol=1e-2) == 6


@pytest.mark.parametrize("shape", [(8, 3, 3), (3, 8, 3), (40, 2, 3)])
def test_the_memory_format_is_kept(shape: tuple[int, int, int]) -> None:
    out, inputs, size = shape
    layer = nn.Conv2d(inputs, out, size).to(memory_format=torch.channels_last)
    before = layer.weight.detach().clone()
    factorize(layer)
    assert layer.weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(layer.weight, before, rtol=1e-5, atol=1e-6)
    layer.to(memory_format=torch.contiguous_format)
    assert layer.weight.is_contiguous()
    torch.testing.assert_close(layer.weight, before, rtol=1e-5, atol=1e-6)
    layer.to(memory_format=torch.channels_last)
    assert collapse(layer).weight.is_contiguous(memory_format=torch.channels_last)


def test_weights_are_composed_in_float32_under_autocast() -> None:
    layer = factorize(nn.Linear(16, 16), 3)
    exact = layer.weight.detach().clone()
    with torch.autocast("cpu", torch.bfloat16):
        assert layer.weight.dtype == torch.float32
        assert torch.equal(layer.weight, exact)
        assert layer(torch.randn(2, 16)).dtype == torch.bfloat16


class Everything(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3)
        self.grouped = nn.Conv2d(4, 8, 3, groups=2)
        self.depthwise = nn.Conv2d(4, 4, 3, groups=4)
        self.transposed = nn.ConvTranspose2d(4, 4, 2)
        self.volume = nn.Conv3d(1, 2, 3)
        self.embedding = nn.Embedding(7, 5)
        self.tied_head = nn.Linear(5, 7, bias=False)
        self.tied_head.weight = self.embedding.weight
        self.frozen = nn.Linear(3, 3).requires_grad_(False)
        self.norm = nn.BatchNorm2d(4)
        self.linear = nn.Linear(6, 5)


def test_what_cannot_be_factored_is_left_alone_and_listed() -> None:
    model = Everything()
    listed = {each.layer: each.reason for each in left_alone(model)}
    assert set(listed) == {"grouped", "depthwise", "transposed", "volume", "tied_head", "frozen"}
    assert listed["depthwise"] == "depthwise"
    assert "2 groups" in listed["grouped"]
    assert "shares" in listed["tied_head"]
    factorize(model)
    assert set(factored_layers(model)) == {"conv", "linear"}
    assert model.tied_head.weight is model.embedding.weight
    assert {each.layer: each.reason for each in left_alone(model)} == listed  # the same list before and after
    plain = Everything().state_dict()
    assert list(collapse(model).state_dict()) == list(plain)


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_collapse_gives_parameters_wherever_it_is_called(mode: type) -> None:
    model = factorize(nn.Linear(4, 5))
    with mode():
        collapse(model)
    assert isinstance(model.weight, nn.Parameter)
    assert model.weight.requires_grad
    model(torch.ones(1, 4)).sum().backward()
    assert model.weight.grad is not None
    frozen = collapse(factorize(nn.Linear(4, 5)).requires_grad_(False))
    assert isinstance(frozen.weight, nn.Parameter)
    assert not frozen.weight.requires_grad


def test_factored_models_can_be_copied() -> None:
    model = factorize(nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 2)))
    twin = copy.deepcopy(model)
    with torch.no_grad():
        factors(twin[0])[0].zero_()
    assert torch.equal(collapse(twin)[0].weight, torch.zeros(5, 4))
    assert float(model[0].weight.detach().abs().sum()) > 0  # torch gives copies one class, but each is collapsed alone
    assert set(factored_layers(model)) == {"0", "1"}


def test_depth_must_make_sense_and_factoring_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        factorize(nn.Linear(2, 2), 0)
    with pytest.raises(ValueError, match="collapse"):
        factorize(factorize(nn.Linear(2, 2)))


@pytest.mark.parametrize("depth", [1, 3])
def test_rank_fraction_counts_singular_values(depth: int) -> None:
    layer = nn.Linear(20, 10)
    u, _, vh = torch.linalg.svd(layer.weight.detach(), full_matrices=False)
    s = torch.tensor([1.0, 0.5, 0.1, 0.002, *[0.0005] * 6])
    with torch.no_grad():
        layer.weight.copy_((u * s) @ vh)
    model = factorize(nn.Sequential(layer, nn.Conv2d(3, 4, 3)), depth)
    assert rank_fraction(model) == pytest.approx((0.4 + 1.0) / 2)
    assert rank_fraction(nn.ReLU()) == 0


def test_decay_on_the_factors_lowers_the_rank_and_decay_on_plain_weights_does_not() -> None:
    """The point of it all: fit a rank-2 map from noisy data; N = 3 finds rank 2, N = 1 stays of full rank."""
    shares = {}
    for depth in (1, 3):
        torch.manual_seed(0)
        x = torch.randn(256, 12)
        y = x @ (torch.randn(12, 2) @ torch.randn(2, 10)) / math.sqrt(12) + 0.05 * torch.randn(256, 10)
        layer = factorize(nn.Linear(12, 10, bias=False), depth)
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9, weight_decay=3e-3)
        for _ in range(1500):
            optimizer.zero_grad()
            (layer(x) - y).square().mean().backward()
            optimizer.step()
        shares[depth] = rank_fraction(layer)
    assert shares == {1: 1.0, 3: pytest.approx(0.2)}
