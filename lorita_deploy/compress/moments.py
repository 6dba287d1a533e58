"""What a calibration knows of one layer, and the best layer of lower rank that follows from it.

Legend: W (m, n) the weight, m outputs, n = inputs * kernel size, r the rank; y = W x + b a layer's
output at one position; S (m, m) the centred second moment of y; G (m, m) the second moment of the loss gradient at y.

Every criterion gives the same thing, a `Truncation`: vectors in the space of outputs such that for each r

    W_r = left[:, :r] @ right[:r] @ W        and        right @ left = identity.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from .sketch import completed, leading_eigenvectors, random_sums

if TYPE_CHECKING:
    from torch import Tensor

Criterion = Literal["whitened", "svd", "paper"]

DAMPING = 1e-2
"""Added to G's eigenvalues, as a share of their mean: G is an estimate from few samples, and a direction in which no
gradient was seen must not be thought free."""
RIDGE = 1e-4
"""Share of W W' (the second moment on white inputs, scaled to S's trace) mixed into S when directions are chosen: it orders
the directions in which the calibration inputs did not vary. Predicted losses are computed with S itself."""
WIDE = 2048
"""From this many directions on only the leading quarter is worked out, if the others hold less than `NEGLIGIBLE` of the loss:
an eigendecomposition of 4096 directions in float64 takes a minute on two cores."""
NEGLIGIBLE = 1e-5


@dataclass(frozen=True)
class Moments:
    """Moments of one layer's outputs over calibration inputs and positions, float32 on the CPU."""

    mean: Tensor
    """(m,) of the outputs, bias included."""
    covariance: Tensor
    """(m, m) centred second moment S of the outputs."""
    gradient: Tensor
    """(m, m) second moment G of the gradient of one example's loss."""
    positions: int
    """How often the layer is applied to one example."""


@dataclass(frozen=True)
class Truncation:
    """Nested subspaces of a layer's outputs, best first, k = min(m, n) directions; float64."""

    left: Tensor
    """(m, k)"""
    right: Tensor
    """(k, m)"""
    loss_at_rank: tuple[float, ...]
    """Predicted loss increase at rank 0, 1, ..., m; never increasing, 0 from rank k on."""


def truncation(weight: Tensor, moments: Moments | None, criterion: Criterion) -> Truncation:
    """The best rank-r weights for all r at once. ``weight (m, n)``.

    ``whitened``
        Least predicted loss 1/2 * positions * tr(G E), E = (I - T) S (I - T)' with T = left_r right_r. With the Cholesky
        factor P of the damped G, P' P = G, right = U' P and left = P^-1 U for the eigenvectors U of P S P'; the loss is half
        the sum of the dropped eigenvalues times positions. Equal to the whitened SVD of P W C^(1/2), C = E[x x'], never formed.
    ``svd``
        Left singular vectors of W, as if inputs were white and all outputs mattered equally; the loss is the same formula,
        1/2 * positions * tr(G E), for these directions, so that the two criteria compare.
    ``paper``
        The same vectors; the loss is the dropped share (sigma / sigma_max)^2, one scale for all layers whatever they do:
        a threshold on normalised singular values common to the whole network, in no unit of loss.

    Without moments: singular vectors, and the ``paper`` loss.
    """
    import torch

    matrix = weight.detach().cpu()
    m, n = matrix.shape
    tiny = torch.finfo(torch.float32).tiny
    if moments is None or criterion == "paper":
        vectors, singular = _left_singular(matrix.double())
        relative = (singular / singular[0].clamp_min(tiny)) ** 2
        return Truncation(vectors, vectors.T, _loss_curve(_tail_sums(relative), m))

    basis: Tensor | None = None  # of the outputs that the layer can reach, where those are not all
    if criterion == "svd":
        basis, _ = _left_singular(matrix.double())
    elif m > n:
        basis, matrix = torch.linalg.qr(matrix.double())
    S, G = moments.covariance.double(), moments.gradient.double()
    if basis is not None:
        S, G = basis.T @ S @ basis, basis.T @ G @ basis
    G = G + torch.eye(len(G), dtype=G.dtype) * (DAMPING * G.diagonal().mean() + tiny)
    half = moments.positions / 2
    if criterion == "svd":
        assert basis is not None
        return Truncation(basis, basis.T, _loss_curve(half * _tail_sums_2d(G * S), m))
    found = _sketched(matrix, S, G) if len(G) >= WIDE else None
    left, right, tails = found or _whitened(matrix.double(), S, G)
    if basis is not None:
        left, right = basis @ left, right @ basis.T
    return Truncation(left, right, _loss_curve(half * tails, m))


def _whitened(matrix: Tensor, S: Tensor, G: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``left``, ``right`` and, twice over and per position, the loss at each rank."""
    import torch

    white = matrix @ matrix.T
    white *= RIDGE * S.diagonal().sum() / white.diagonal().sum().clamp_min(torch.finfo(torch.float32).tiny)
    P = torch.linalg.cholesky(G, upper=True)
    U = torch.linalg.eigh(P @ (S + white) @ P.T)[1].flip(1)  # descending
    right = U.T @ P
    kept = ((right @ S) * right).sum(1).clamp_min(0)  # U' P S P' U, its diagonal
    return torch.linalg.solve_triangular(P, U, upper=True), right, _tail_sums(kept)


def _sketched(matrix: Tensor, S: Tensor, G: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
    """The same of a wide layer, in float32; None where a quarter of the directions does not hold nearly everything.

    What the others hold is charged until full rank; they are ordered by W alone, roughly.
    """
    import torch

    whole = float((S * G).sum())  # tr(P S P')
    S, P = S.float(), torch.linalg.cholesky(G.float(), upper=True)
    count = len(P) // 4
    kept, leading = leading_eigenvectors(lambda X: P @ (S @ (P.T @ X)), len(P), count)
    tails = (whole - kept.double().cumsum(0)).clamp_min(0).cummin(0).values
    if not float(tails[-1]) <= NEGLIGIBLE * whole:
        return None
    U = completed(leading, P @ random_sums(matrix.float(), len(P) - count))
    left = torch.linalg.solve_triangular(P, U, upper=True)
    rest = tails[-1].expand(len(P) - count - 1)
    curve = torch.cat([tails.new_tensor([whole]), tails, rest, tails.new_zeros(1)])
    return left.double(), (U.T @ P).double(), curve


def singular_values(matrix: Tensor) -> Tensor:
    """Singular values (k,) of ``matrix (m, n)``, k = min(m, n), descending, float64.

    From the eigenvalues of the smaller Gram matrix in float64: exact to 1e-8 of the largest, and many times cheaper than an
    SVD when the sides differ.
    """
    import torch

    matrix = matrix.detach().double()
    gram = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
    squares: Tensor = torch.linalg.eigvalsh(gram)
    return squares.flip(0).clamp_min(0).sqrt()


def _left_singular(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Left singular vectors (m, k) and values (k,) of ``matrix (m, n)``, descending."""
    import torch

    m, n = matrix.shape
    if m > n:
        Q, R = torch.linalg.qr(matrix)
        vectors, singular = _left_singular(R)
        return Q @ vectors, singular
    values, vectors = torch.linalg.eigh(matrix @ matrix.T)
    return vectors.flip(1), values.flip(0).clamp_min(0).sqrt()


def _tail_sums(terms: Tensor) -> Tensor:
    """``terms (k,)`` to (k+1,): the sum of what is dropped at rank 0, ..., k."""
    import torch

    return torch.cat([terms.flip(0).cumsum(0).flip(0), terms.new_zeros(1)])


def _tail_sums_2d(terms: Tensor) -> Tensor:
    """``terms (k, k)`` to (k+1,): sums over the trailing blocks, made never increasing."""
    import torch

    blocks = terms.flip(0, 1).cumsum(0).cumsum(1).diagonal().cummax(0).values.clamp_min(0)
    return torch.cat([blocks.flip(0), terms.new_zeros(1)])


def _loss_curve(tails: Tensor, m: int) -> tuple[float, ...]:
    """Padded to rank m, with the six digits that a prediction can bear."""
    values = [float(f"{value:.6g}") for value in tails.tolist()]
    return tuple(values + [0.0] * (m + 1 - len(values)))
