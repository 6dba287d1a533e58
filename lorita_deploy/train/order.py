"""In which order the product of a factored layer is multiplied out: what is cheapest for this layer and this batch.

With k = min(m, n), l = max(m, n), an inner width r (k unless the layer was trimmed), q = N - 1 squares and p positions (batch x
height x width; tokens), all three give the same function and the same gradients. Multiply-accumulates:

    weight      the weight is composed, then used            (q - 1) k r^2 + k l r + k l p
    square      the squares become one, which runs as 1x1    (q - 1) k r^2 + (k r + l r) p
    squares     each square runs as 1x1 (the published form)    ((q - 1) r^2 + k r + l r) p

Where gradients are off the weight is composed: networks are judged as what they collapse to, bit for bit.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from torch.nn.utils.parametrize import ParametrizationList

    from .parametrization import Composition

Order = Literal["weight", "square", "squares"]


def cheapest(m: int, n: int, depth: int, positions: int, *, width: int | None = None, pointwise: bool = True) -> Order:
    """The order with the fewest multiply-accumulates; ``width`` is r. Squares on the right (m > n) act on the inputs of the
    weight's matrix, which are those of the layer only where the kernel is ``pointwise``."""
    k, longer = min(m, n), max(m, n)
    r, further = width or k, depth - 2
    if m > n and not pointwise:
        return "weight"
    once, factors = further * k * r**2, k * r + longer * r
    costs: dict[Order, int] = {
        "weight": once + k * longer * r + k * longer * positions,
        "square": once + factors * positions,
        "squares": (further * r**2 + factors) * positions,
    }
    found: Order = "weight"
    for order in costs:
        if costs[order] < costs[found]:  # min() would need numbers: torch.compile may hold symbols of the batch size
            found = order
    return found


def forward(layer: nn.Module, input: Tensor) -> Tensor:
    """The forward pass of a factored Linear, Conv1d or Conv2d; ``input`` is what torch calls it, too."""
    x = input
    originals: ParametrizationList = layer.parametrizations.weight  # type: ignore[union-attr, assignment]
    composition: Composition = originals[0]  # type: ignore[assignment]
    bias: Tensor | None = layer.bias  # type: ignore[assignment]
    factors: list[Tensor] = list(originals._parameters.values())  # type: ignore[arg-type]
    wide, squares = factors[0], factors[1:]
    on_the_left = len(wide) <= wide[0].numel()
    m, n = (len(squares[0]), wide[0].numel()) if on_the_left else (len(wide), squares[-1].shape[1])
    width = len(wide) if on_the_left else wide[0].numel()
    positions = _positions(layer, x, on_the_left)
    order = cheapest(m, n, composition.depth, positions, width=width, pointwise=wide[0, 0].numel() == 1)
    if len(originals) > 1:  # somebody has put a parametrization of their own behind ours
        return _run(layer, x, layer.weight, bias)  # type: ignore[arg-type]
    if order == "weight" or not torch.is_grad_enabled():
        return _run(layer, x, composition(wide, *squares), bias)  # layer.weight, without its detours
    if order == "square":
        squares = [composition.square(*squares)]
    if not on_the_left:  # W = V P_1 ... P_q: the last one first. Zeros stay zeros, so padding may come behind them
        for square in reversed(squares):
            x = _pointwise(layer, x, square, None)
        return _run(layer, x, wide, bias)
    x = _run(layer, x, wide, None)  # W = P_1 ... P_q V
    for square in reversed(squares[1:]):
        x = _pointwise(layer, x, square, None)
    return _pointwise(layer, x, squares[0], bias)


def _positions(layer: nn.Module, x: Tensor, behind: bool) -> int:
    """Where the squares would act, in front of the layer or ``behind`` it; up to what padding and kernel do at the edge."""
    if isinstance(layer, nn.Linear):
        return x.numel() // layer.in_features
    assert isinstance(layer, nn.Conv1d | nn.Conv2d)
    return x.numel() // (layer.in_channels * (prod(layer.stride) if behind else 1))


def _run(layer: nn.Module, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if isinstance(layer, nn.Linear):
        return functional.linear(x, weight, bias)
    assert isinstance(layer, nn.Conv1d | nn.Conv2d)
    y: Tensor = layer._conv_forward(x, weight, bias)
    return y


def _pointwise(layer: nn.Module, x: Tensor, square: Tensor, bias: Tensor | None) -> Tensor:
    """``square``, (k, k) or of the inner width, on the channels of ``x``: (..., k) for a linear layer, (N, k, L) or
    (N, k, H, W) for convolutions."""
    if isinstance(layer, nn.Linear):
        return functional.linear(x, square, bias)
    if isinstance(layer, nn.Conv1d):
        return functional.conv1d(x, square[:, :, None], bias)
    return functional.conv2d(x, square[:, :, None, None], bias)
