"""What narrower heads cost, and the best ones beyond the exact: queries and values are layers' outputs like any others.

Legend, for one head: scores s = q' k, outputs W_o v. With a map T of rank r in place of the identity, s = (T q)' k: narrowing
queries and keys is a truncation of q by the moments of the layer that gives it (S uncentred: a constant query counts), and
narrowing values one of v (centred: what the mean loses moves to the output's bias). Both start from the exact narrowing
q -> R q, k -> L k to the product's rank f, under which S becomes R S R' and, gradients being taken at the other side, G becomes
L G L': within it nothing is thought important that no key could read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .heads import Attention, Product, products
from .moments import Moments, Truncation, truncation

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class HeadLosses:
    """Predicted loss increase with heads of width 0, 1, ..., d, summed over the heads; 0 where nothing is lost."""

    qk: tuple[float, ...]
    vo: tuple[float, ...]


@dataclass(frozen=True)
class WeighedProduct:
    """A `Product` whose narrowing below its rank goes by the data."""

    exact: Product
    rank: int
    best: Truncation
    """In the space of the exactly narrowed outputs, (rank,)."""
    lost: Tensor
    """(rank,) their mean, the part that may move to a bias."""

    def truncated(self, width: int) -> tuple[Tensor, Tensor]:
        """A_r (width, a) and B_r (width, b), row by row of equal size."""
        if width >= self.rank:
            return self.exact.truncated(width)
        A, B = self.exact.truncated(self.rank)
        A, B = self.best.right[:width] @ A, self.best.left[:, :width].T @ B
        balance = (B.norm(dim=1, keepdim=True) / A.norm(dim=1, keepdim=True).clamp_min(1e-30)).sqrt()
        return balance * A, B / balance.clamp_min(1e-30)

    def mean_lost(self, width: int) -> Tensor:
        """(b,) what the outputs behind B lose on average."""
        if width >= self.rank:
            return self.exact.mean_lost(width)
        kept = self.best.left[:, :width] @ (self.best.right[:width] @ self.lost)
        return self.exact.truncated(self.rank)[1].T @ (self.lost - kept)

    @property
    def losses(self) -> tuple[float, ...]:
        return (*self.best.loss_at_rank, *[0.0] * (len(self.exact.s) - self.rank))


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
    bias = module.get_submodule(attention.v).bias
    of_x = v.mean if bias is None else v.mean - bias.detach().cpu()  # type: ignore[operator]
    queries = (q.covariance + torch.outer(q.mean, q.mean), q.gradient, torch.zeros_like(q.mean), q.positions)
    return _weighed(scores, *queries), _weighed(values, v.covariance, v.gradient, of_x, v.positions)


def _weighed(found: Sequence[Product], S: Tensor, G: Tensor, mean: Tensor, positions: int) -> list[WeighedProduct]:
    weighed = []
    for head, product in enumerate(found):
        width = len(product.s)
        block = slice(head * width, (head + 1) * width)
        rank = product.rank
        R, L = product.narrowing(rank)
        A = R @ product.A
        lost = R @ mean[block].double()
        of_head = Moments(lost, R @ S[block, block].double() @ R.T, L @ G[block, block].double() @ L.T, positions)
        weighed.append(WeighedProduct(product, rank, truncation(A, of_head, "whitened"), lost))
    return weighed
