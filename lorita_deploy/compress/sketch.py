"""Leading eigenvectors of a large matrix by randomized subspace iteration, where few of them hold all that counts.

Halko, Martinsson and Tropp, "Finding structure with randomness" (SIAM Review 2011), algorithms 4.4 and 5.3. With A (k, k)
positive semidefinite of trace t and Q (k, p) orthonormal, what p directions leave of A is t - tr(Q' A Q), known exactly.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

ITERATIONS = 2
"""Of the subspace after the first sketch: errors shrink by the square of the ratio of eigenvalues in each."""
SEED = 0


def leading_eigenvectors(apply: Callable[[Tensor], Tensor], size: int, count: int) -> tuple[Tensor, Tensor]:
    """Eigenvalues (count,), descending, and eigenvectors (size, count) of the symmetric matrix that ``apply`` multiplies by.

    float32 throughout. Exact to rounding when the rank is below ``count``; else the last ones are approximate.
    """
    import torch

    generator = torch.Generator().manual_seed(SEED)
    Q = torch.randn(size, count, generator=generator)
    for _ in range(1 + ITERATIONS):
        Q = torch.linalg.qr(apply(Q))[0]
    values, vectors = torch.linalg.eigh(Q.T @ apply(Q))
    return values.flip(0), Q @ vectors.flip(1)


def random_sums(matrix: Tensor, count: int) -> Tensor:
    """(k, count) columns of ``matrix (k, n)`` added up with random signs: any r of them span its range when its rank is r."""
    import torch

    generator = torch.Generator().manual_seed(SEED)
    n = matrix.shape[1]
    bucket = torch.randint(count, (n,), generator=generator)
    signs = 2 * torch.randint(2, (n,), generator=generator) - 1
    return matrix.new_zeros(len(matrix), count).index_add_(1, bucket, matrix * signs)


def completed(leading: Tensor, others: Tensor) -> Tensor:
    """An orthonormal basis (k, k): ``leading (k, p)``, then what the columns of ``others (k, k - p)`` add, one by one."""
    import torch

    size = others.norm(dim=0).mean().clamp_min(torch.finfo(others.dtype).tiny)
    basis: Tensor = torch.linalg.qr(torch.cat([leading, others / size], 1))[0]
    basis[:, : leading.shape[1]] = leading  # the signs of its columns are arbitrary
    return basis
