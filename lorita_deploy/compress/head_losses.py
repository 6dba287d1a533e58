"""What narrower heads cost, and the best ones beyond the exact: queries and values are layers' outputs like any others.

Narrowing queries and keys is a truncation of the queries by the moments of the layer that gives them (uncentred: a constant
query counts), and narrowing values one of the values (centred: what the mean loses moves to the output's bias).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..attention import Attention
from .bases import Kept
from .cuts import bias_of
from .heads import products
from .moments import Moments
from .products import Product, WeighedProduct, weighed

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class HeadLosses:
    """Predicted loss increase with heads of width 0, 1, ..., d, summed over the heads; 0 where nothing is lost."""

    qk: tuple[float, ...]
    vo: tuple[float, ...]


def head_losses(module: nn.Module, attention: Attention, moments: Mapping[str, Moments]) -> HeadLosses:
    """``moments`` of the layers that give queries and values. Raises `BadNetwork` for weights that are not finite."""
    scores, values = weighed_products(module, attention, moments)
    return HeadLosses(*(tuple(map(sum, zip(*(each.losses for each in side), strict=True))) for side in (scores, values)))


def weighed_products(
    module: nn.Module, attention: Attention, moments: Mapping[str, Moments]
) -> tuple[list[WeighedProduct], list[WeighedProduct]]:
    """Per head, of queries and keys, and of values and outputs."""
    import torch

    scores, values = products(module, attention, None)
    q, v = moments[attention.q], moments[attention.v]
    of_x = v.mean - bias_of(module.get_submodule(attention.v)).float()
    queries = replace(q, covariance=q.covariance + torch.outer(q.mean, q.mean), mean=torch.zeros_like(q.mean))
    return _weighed(scores, queries), _weighed(values, replace(v, mean=of_x))


def _weighed(found: Sequence[Product], moments: Moments) -> list[WeighedProduct]:
    """``moments`` of the outputs of all heads."""
    blocks = [Kept(range(head * len(each.s), (head + 1) * len(each.s))) for head, each in enumerate(found)]
    return [weighed(each, block.moments(moments)) for each, block in zip(found, blocks, strict=True)]
