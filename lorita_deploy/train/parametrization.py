"""What makes a weight the product of its factors, as torch parametrizations: of the whole weight, or of each head's part.

With W the (m, n) matrix of a layer (m outputs, n = inputs * kernel size) and k = min(m, n),

    W = P_1 ... P_{N-1} V    (m <= n)        W = V P_1 ... P_{N-1}    (m > n)

where the *squares* P are (k, k) and the *wide* factor V has the shape of the weight. With an inner width r < k, which bounds
the rank, the square at the far end from V is (k, r) or (r, k), the others are (r, r), and V has r rows (m <= n) or r columns.
An attention's projections may instead have squares (d, d) for each head of width d (`HeadComposition`).
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from .kept import Kept

RANK_DEFICIENT = 1e-6
"""Singular values below this share of the largest are rounding noise of a float32 weight."""


class Composition(nn.Module):
    """The parametrization: factors in, weight out. The parameters are ``original0`` = V and ``original1...`` = P_1 ..."""

    def __init__(self, depth: int, init_jitter: float, width: int | None = None) -> None:
        super().__init__()
        self.depth = depth
        self.init_jitter = init_jitter
        self.width = width
        """The inner width r that weights get; None: k."""
        self.kept = Kept()

    def forward(self, wide: Tensor, *squares: Tensor) -> Tensor:
        """The weight, in the type and memory format of ``wide``; multiplied in float32, also under autocast."""
        return self.kept.get("weight", self._weight, self._weight_gradients, (wide, *squares))

    def square(self, *squares: Tensor) -> Tensor:
        """P_1 ... P_{N-1} (k, k), or (k, r) or (r, k), multiplied in float32, in the type of the squares."""
        if len(squares) == 1:
            return squares[0]
        return self.kept.get("square", self._square, self._square_gradients, squares)

    def matrices(self, weight: Tensor) -> Tensor:
        """What the penalty makes low-rank: (k, l), or (heads, k, l); the squares are (k, k) on its left."""
        return smaller_side_first(weight)

    def _weight_of(self, matrices: Tensor, shape: torch.Size) -> Tensor:
        """The inverse of `matrices`, but for the memory format."""
        return (matrices if shape[0] == len(matrices) else matrices.T).reshape(shape)

    def _square(self, *squares: Tensor) -> tuple[Tensor, None]:
        with _no_autocast(squares[0]):
            return chained(*squares).to(squares[0].dtype), None

    def _square_gradients(self, gradient: Tensor, _: None, *squares: Tensor) -> tuple[Tensor, ...]:
        with _no_autocast(gradient):
            return chained_gradients(gradient, *squares)

    def _weight(self, wide: Tensor, *squares: Tensor) -> tuple[Tensor, Tensor]:
        """The weight and P = P_1 ... P_{N-1}."""
        with _no_autocast(wide):
            P, V = chained(*squares), _exact(self._matrix(wide, wide))  # squares first: (N-2) k^3 + k m n, the cheapest order
            return self._shaped(P @ V if self._on_the_left(wide) else V @ P, wide).to(wide.dtype), P

    def _weight_gradients(self, gradient: Tensor, P: Tensor, wide: Tensor, *squares: Tensor) -> tuple[Tensor, ...]:
        """Of ``wide`` and the squares."""
        with _no_autocast(wide):
            V, G = _exact(self._matrix(wide, wide)), _exact(self._matrix(gradient, wide))
            of_wide, of_square = (P.mT @ G, G @ V.mT) if self._on_the_left(wide) else (G @ P.mT, V.mT @ G)
            return self._shaped(of_wide, wide).to(wide.dtype), *chained_gradients(of_square, *squares)

    def _on_the_left(self, wide: Tensor) -> bool:
        return _squares_on_the_left(wide)

    def _matrix(self, tensor: Tensor, wide: Tensor) -> Tensor:
        """A weight, or its gradient, as the matrix that is multiplied. Seen as (out, kh, kw, in), a channels-last weight is one
        without a copy; squares on the right tell the columns apart, so theirs keep the usual order."""
        if _is_channels_last(wide) and self._on_the_left(wide):
            tensor = tensor.permute(0, 2, 3, 1)
        return tensor.flatten(1)

    def _shaped(self, matrix: Tensor, wide: Tensor) -> Tensor:
        """The inverse of `_matrix`, in the memory format of ``wide``."""
        _, _, *kernel = wide.shape
        if not _is_channels_last(wide):
            return matrix.view(len(matrix), -1, *kernel)
        if self._on_the_left(wide):
            return matrix.view(len(matrix), *kernel, -1).permute(0, 3, 1, 2)
        return matrix.view(len(matrix), -1, *kernel).contiguous(memory_format=torch.channels_last)

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, ...]:
        """The balanced factors of ``weight``: singular values s^(1/N) in each, so the decay is the Schatten penalty at once.

        With W = U diag(s) Z^T (m <= n) the squares are U diag(q) U^T, q = s^(1/N), and V = U diag(q^(1-N)) U^T W, which
        gives W back for any q. A direction that W lacks would be a stationary point with q = 0 and never learn, so there
        q is lifted: to (``init_jitter`` * s_max)^(1/N), or, for a zero weight, to what torch's default initialisation
        has (root mean square). V stays (nearly) zero there: the function does not change, the gradient does not vanish.

        With an inner width r < k the r largest directions are kept, in coordinates of their own: U_r diag(q) at the far end,
        diag(q) between, diag(q^(1-N)) U_r^T W as V. The singular values of the factors are the same.
        """
        matrices = self.matrices(weight.detach()).double()
        s2, U = torch.linalg.eigh(matrices @ matrices.mT)
        s = s2.clamp(min=0).sqrt()
        largest = s.amax(-1, keepdim=True)
        usual = (matrices.shape[-1] / (3 * weight[0].numel())) ** 0.5
        lifted = torch.where(largest > 0, self.init_jitter * largest, usual)
        q = torch.where(s > RANK_DEFICIENT * largest, s, lifted).pow(1 / self.depth)[..., None, :]
        if self.width is not None and self.width < len(matrices):
            return self._narrow(weight, matrices, U[:, -self.width :], q[0, -self.width :])  # eigh: ascending
        square = (U * q) @ U.mT
        inverse = (U * q.pow(1 - self.depth)) @ U.mT
        wide = torch.empty_like(weight, requires_grad=False)  # keeps the memory format
        wide.copy_(self._weight_of(inverse @ matrices, weight.shape))
        return wide, *(square.to(weight.dtype, copy=True) for _ in range(self.depth - 1))  # each its own memory

    def _narrow(self, weight: Tensor, matrices: Tensor, U: Tensor, q: Tensor) -> tuple[Tensor, ...]:
        """Balanced factors with as many inner directions as ``U (k, r)`` has columns, each ``q (r,)`` large."""
        wide = q[:, None].pow(1 - self.depth) * (U.mT @ matrices)
        outer, between = U * q, torch.diag(q)
        if _squares_on_the_left(weight):
            wide = wide.reshape(-1, *weight.shape[1:])
            squares = [outer, *[between] * (self.depth - 2)]
        else:
            wide = wide.T.contiguous().view(len(weight), -1, *weight.shape[2:])
            squares = [*[between] * (self.depth - 2), outer.T]
        if _is_channels_last(weight):
            wide = wide.contiguous(memory_format=torch.channels_last)
        return wide.to(weight.dtype).clone(), *(square.to(weight.dtype, copy=True).contiguous() for square in squares)


class HeadComposition(Composition):
    """Of one projection of an attention: a product for each head, so that each head becomes low-rank by itself.

    Squares act on the ``heads`` parts of the width d: rows of the queries', keys' and values' weights (heads * d, D), columns
    of the outputs' (D, heads * d). Each is one tensor (heads, d, d). A head's W_q' W_k and W_o W_v are then products of 2N
    factors, on which decay acts as 2N * sum_j s_j^(1/N), and a head's width may follow their rank.
    """

    def __init__(self, depth: int, init_jitter: float, heads: int, columns: bool) -> None:
        super().__init__(depth, init_jitter)
        self.heads = heads
        self.columns = columns

    def matrices(self, weight: Tensor) -> Tensor:
        """(heads, d, D)."""
        rows = weight.T if self.columns else weight
        return rows.reshape(self.heads, -1, rows.shape[1])

    def _weight_of(self, matrices: Tensor, shape: torch.Size) -> Tensor:
        rows = matrices.flatten(0, 1)
        return rows.T.contiguous() if self.columns else rows

    def _on_the_left(self, wide: Tensor) -> bool:
        return True

    def _matrix(self, tensor: Tensor, wide: Tensor) -> Tensor:
        return self.matrices(tensor)

    def _shaped(self, matrix: Tensor, wide: Tensor) -> Tensor:
        return self._weight_of(matrix, wide.shape)


def chained(*factors: Tensor) -> Tensor:
    """Their product, in float32 at least."""
    product = _exact(factors[0])
    for factor in factors[1:]:
        product = product @ _exact(factor)
    return product


def chained_gradients(gradient: Tensor, *factors: Tensor) -> tuple[Tensor, ...]:
    """Of each factor, in its type, from the ``gradient`` of their product: (P_1 ... P_{i-1})^T G (P_{i+1} ... P_q)^T."""
    before = [_exact(factors[0])]
    for factor in factors[1:-1]:
        before.append(before[-1] @ _exact(factor))
    behind, found = _exact(gradient), []
    for i in range(len(factors) - 1, 0, -1):
        found.append((before[i - 1].mT @ behind).to(factors[i].dtype))
        behind = behind @ _exact(factors[i]).mT
    return behind.to(factors[0].dtype), *reversed(found)


def _exact(tensor: Tensor) -> Tensor:
    """In float32 at least."""
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


def _no_autocast(tensor: Tensor) -> AbstractContextManager[object]:
    """Entering a context of torch's takes longer than multiplying small factors: only where there is one to switch off."""
    device = tensor.device.type
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


def unshare_class(layer: nn.Module) -> None:
    """Torch parametrizes a layer by properties of a class made for it, which the layer's copies share: taken off one, they
    would be gone from all."""
    own = type(layer)
    layer.__class__ = type(own.__name__, own.__bases__, dict(vars(own)))


def smaller_side_first(weight: Tensor) -> Tensor:
    """The matrix (m, n) of a weight, or its transpose: (k, l), k <= l."""
    matrix = weight.flatten(1)
    return matrix if _squares_on_the_left(weight) else matrix.T


def may_narrow(weight: Tensor) -> bool:
    """Whether a factored ``weight`` can have an inner width below k: not where squares mix the positions of a kernel."""
    return _squares_on_the_left(weight) or weight[0, 0].numel() == 1


def _squares_on_the_left(weight: Tensor) -> bool:
    """Squares go on the smaller side: an inner width of min(m, n) is all that the penalty needs."""
    return weight.shape[0] <= weight[0].numel()


def _is_channels_last(weight: Tensor) -> bool:
    return weight.dim() == 4 and not weight.is_contiguous() and weight.is_contiguous(memory_format=torch.channels_last)
