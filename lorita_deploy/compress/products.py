"""Products of two matrices whose inner width may fall: what a head of attention is, and what a linear seam is.

A' B, A (d, a) and B (d, b), is what two layers compute between them: q' k of a head, W_o W_v, or two layers with nothing
non-linear between. With X, Y the second moments on either side, the best product of rank r in that norm follows from d x d
matrices: A X A' = L L', B Y B' = M M', L' M = U diag(s) V',

    A_r = s^-1/2 V_r' M' A,        B_r = s^-1/2 U_r' L' B,        error = sum of the dropped s^2.

Exact down to the product's numerical rank f. Below, calibration says more: y = A x is a layer's output, with moments S (centred
where constants can be made up for) and, for the gradient of the loss, G. Narrowing y is a truncation by these, within the exact
narrowing y -> R y, x -> L x to rank f, under which S becomes R S R' and, gradients being taken at the other side, G becomes
L G L': nothing is thought important that the other side could never read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .moments import Moments, Truncation, truncation

if TYPE_CHECKING:
    from torch import Tensor

NOTHING = 1e-6
"""Share of the largest singular value below which one is numerically zero."""


@dataclass(frozen=True)
class Product:
    """One product, with what truncates it."""

    A: Tensor
    B: Tensor
    left: Tensor
    """(d, d) rows V' M', unscaled, best first; likewise U' L'."""
    right: Tensor
    s: Tensor

    @property
    def rank(self) -> int:
        """The numerical one, at least 1."""
        return numerical_rank(self.s[None])

    def narrowing(self, width: int) -> tuple[Tensor, Tensor]:
        """What makes A_r of A and B_r of B, (width, d) each; zero where there is nothing more to represent."""
        import torch

        s = self.s[:width, None]
        scale = s.rsqrt().where(s > 1e-12 * self.s[0], torch.zeros_like(s))
        return scale * self.left[:width], scale * self.right[:width]

    def truncated(self, width: int) -> tuple[Tensor, Tensor]:
        """A_r (width, a) and B_r (width, b), of equal size."""
        of_a, of_b = self.narrowing(width)
        return of_a @ self.A, of_b @ self.B

    def mean_lost(self, width: int) -> Tensor:
        """(b,) nothing: inputs are taken for centred."""
        return self.B.new_zeros(self.B.shape[1])


@dataclass(frozen=True)
class WeighedProduct(Product):
    """A `Product` whose narrowing below its rank goes by the data."""

    best: Truncation
    """In the space of the exactly narrowed outputs, (rank,)."""
    lost: Tensor
    """(rank,) their mean, the part that may move to a bias."""

    def narrowing(self, width: int) -> tuple[Tensor, Tensor]:
        rank = self.rank
        if width >= rank:
            return super().narrowing(width)
        of_a, of_b = super().narrowing(rank)
        of_a, of_b = self.best.right[:width] @ of_a, self.best.left[:, :width].T @ of_b
        norms = (of_b @ self.B).norm(dim=1, keepdim=True) / (of_a @ self.A).norm(dim=1, keepdim=True).clamp_min(1e-30)
        balance = norms.sqrt().clamp_min(1e-30)
        return balance * of_a, of_b / balance

    def mean_lost(self, width: int) -> Tensor:
        """(b,) what the outputs behind B lose on average."""
        if width >= self.rank:
            return super().mean_lost(width)
        kept = self.best.left[:, :width] @ (self.best.right[:width] @ self.lost)
        return super().truncated(self.rank)[1].T @ (self.lost - kept)

    @property
    def losses(self) -> tuple[float, ...]:
        return (*self.best.loss_at_rank, *[0.0] * (len(self.s) - self.rank))


def product(A: Tensor, B: Tensor, X: Tensor | None = None, Y: Tensor | None = None) -> Product:
    """Of ``A (d, a)`` and ``B (d, b)`` in the norm of ``X (a, a)`` and ``Y (b, b)``, white if None; all float64."""
    import torch

    L, M = _root(A @ A.T if X is None else A @ X @ A.T), _root(B @ B.T if Y is None else B @ Y @ B.T)
    U, s, Vh = torch.linalg.svd(L.T @ M)
    return Product(A, B, Vh @ M.T, U.T @ L.T, s)


def _root(matrix: Tensor) -> Tensor:
    """L with L L' = ``matrix``, which may be singular."""
    import torch

    values, vectors = torch.linalg.eigh(matrix)
    root: Tensor = vectors * values.clamp_min(0).sqrt()
    return root


def weighed(found: Product, moments: Moments) -> WeighedProduct:
    """``moments`` of A x (d,): the mean is the part that may move to a bias behind B, G is taken at A x."""
    R, L = found.narrowing(found.rank)
    lost = R @ moments.mean.double()
    S, G = R @ moments.covariance.double() @ R.T, L @ moments.gradient.double() @ L.T
    best = truncation(R @ found.A, Moments(lost, S, G, moments.positions), "whitened")
    return WeighedProduct(**vars(found), best=best, lost=lost)


def numerical_rank(singular: Tensor) -> int:
    """Of products with the singular values (products, d): the largest, at least 1."""
    needed = singular > NOTHING * singular[:, :1]
    return max(1, int(needed.sum(1).max()))
