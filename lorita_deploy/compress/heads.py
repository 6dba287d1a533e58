"""Narrower attention heads, by truncating the two products that a head consists of; exact down to their numerical rank.

Legend, for one head of width d on tokens x (D,): the scores are [x 1] [W_q b_q]' W_k y plus terms that are the same for every
key y, which softmax drops, the key's bias among them; the output is W_o W_v x averaged with weights that sum to 1, so that the
value's bias moves to the output's. Both are products A' B of matrices with d rows. With X, Y the second moments on either
side, the best product of rank r in that norm follows from d x d matrices: A X A' = L L', B Y B' = M M', L' M = U diag(s) V',

    A_r = s^-1/2 V_r' M' A,        B_r = s^-1/2 U_r' L' B,        error = sum of the dropped s^2.

All heads of a layer get one width, and the softmax keeps its old scale. Not for heads with norms or rotations between
projection and product (qk-norm, RoPE, cosine attention). Attention with fused projections is opened first (opening.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .cuts import ensure_bias, replace_tensor
from .rewrite import duplicate
from .spectrum import finite_matrix

if TYPE_CHECKING:
    from torch import Tensor, nn

    from .head_losses import WeighedProduct
    from .moments import Moments

NOTHING = 1e-6
"""Share of the largest singular value below which one is numerically zero."""


@dataclass(frozen=True)
class Attention:
    """Names of the four linear layers of one attention; whoever names them vouches that the head width is read from them."""

    q: str
    k: str
    v: str
    o: str
    heads: int


@dataclass(frozen=True)
class HeadSpectra:
    """Singular values of the products, (heads, d) each, descending, float64."""

    qk: Tensor
    vo: Tensor

    @property
    def free_widths(self) -> tuple[int, int]:
        """The smallest widths for queries and keys, and for values, at which no head loses anything."""
        return _numerical_rank(self.qk), _numerical_rank(self.vo)


def attentions(module: nn.Module) -> tuple[Attention, ...]:
    """Attentions of plain projections, opened ones and those built like the sample ViT's: linear layers called q, k, v and o
    beside ``heads`` and a fixed ``scale``; not where a parametrization computes their weights."""
    from torch import nn

    found = []
    for name, part in module.named_modules():
        layers = [getattr(part, child, None) for child in "qkvo"]
        numbers = isinstance(getattr(part, "heads", None), int) and hasattr(part, "scale")
        if numbers and all(isinstance(layer, nn.Linear) and not hasattr(layer, "parametrizations") for layer in layers):
            q, k, v, o = (f"{name}.{child}".lstrip(".") for child in "qkvo")
            found.append(Attention(q, k, v, o, part.heads))
    return tuple(found)


def head_spectra(module: nn.Module, attention: Attention, second: Tensor | None = None) -> HeadSpectra:
    """``second (D, D)``: E[x x'] of the tokens that the attention reads; None: as if they were white.

    Raises `BadNetwork` for weights that are not finite.
    """
    import torch

    qk, vo = products(module, attention, second)
    return HeadSpectra(*(torch.stack([product.s for product in products]) for products in (qk, vo)))


def narrow_heads(
    module: nn.Module,
    attention: Attention,
    qk: int,
    vo: int,
    second: Tensor | None = None,
    *,
    moments: Mapping[str, Moments] | None = None,
) -> nn.Module:
    """A deep copy of ``module`` with heads of width ``qk`` for queries and keys and ``vo`` for values.

    ``second`` as in `head_spectra`; with ``moments`` of the layers that give queries and values, widths that lose something
    lose the least by `head_losses`. Raises `BadNetwork`.
    """
    import torch

    from .head_losses import weighed_products

    network = duplicate(module)
    q, k, v, o = (network.get_submodule(name) for name in (attention.q, attention.k, attention.v, attention.o))
    bias = torch.zeros(len(o.get_parameter("weight")), dtype=torch.float64) if o.bias is None else _bias(o)
    if v.bias is not None:
        bias = bias + o.get_parameter("weight").detach().double().cpu() @ _bias(v)
    scores: Sequence[Product | WeighedProduct]
    values: Sequence[Product | WeighedProduct]
    scores, values = products(module, attention, second) if moments is None else weighed_products(module, attention, moments)
    for value in values:
        bias = bias + value.mean_lost(vo)
    queries, keys = (torch.cat(side) for side in zip(*(product.truncated(qk) for product in scores), strict=True))
    inner, outer = (torch.cat(side) for side in zip(*(product.truncated(vo) for product in values), strict=True))
    resize_heads(network, attention, qk, vo)
    for layer, weight, shift in ((q, queries[:, :-1], queries[:, -1]), (k, keys, None), (v, inner, None), (o, outer.T, bias)):
        replace_tensor(layer, "weight", weight.contiguous())
        if layer.bias is not None:
            replace_tensor(layer, "bias", torch.zeros(len(weight)) if shift is None else shift.contiguous())
    return network


def resize_heads(network: nn.Module, attention: Attention, qk: int, vo: int) -> None:
    """Give the four layers heads of these widths, unfilled, in place: a skeleton to load the weights of `narrow_heads` into.

    The outputs get a bias where they have none.
    """
    q, k, v, o = (network.get_submodule(name) for name in (attention.q, attention.k, attention.v, attention.o))
    ensure_bias(o)
    for layer, width in ((q, qk), (k, qk), (v, vo), (o, vo)):
        rows, weight = attention.heads * width, layer.get_parameter("weight")
        setattr(layer, "in_features" if layer is o else "out_features", rows)
        replace_tensor(layer, "weight", weight.new_empty((len(weight), rows) if layer is o else (rows, weight.shape[1])))
        if layer is not o and layer.bias is not None:
            replace_tensor(layer, "bias", weight.new_empty(rows))


def _bias(layer: nn.Module) -> Tensor:
    return layer.get_parameter("bias").detach().double().cpu()


@dataclass(frozen=True)
class Product:
    """A' B of one head, A (d, a) and B (d, b), with what truncates it."""

    A: Tensor
    B: Tensor
    left: Tensor
    """(d, d) rows V' M', unscaled, best first; likewise U' L'."""
    right: Tensor
    s: Tensor

    @property
    def rank(self) -> int:
        """The numerical one, at least 1."""
        return _numerical_rank(self.s[None])

    def narrowing(self, rank: int) -> tuple[Tensor, Tensor]:
        """What makes A_r of A and B_r of B, (rank, d) each; zero where there is nothing more to represent."""
        import torch

        s = self.s[:rank, None]
        scale = s.rsqrt().where(s > 1e-12 * self.s[0], torch.zeros_like(s))
        return scale * self.left[:rank], scale * self.right[:rank]

    def truncated(self, rank: int) -> tuple[Tensor, Tensor]:
        """A_r (rank, a) and B_r (rank, b), of equal size."""
        of_a, of_b = self.narrowing(rank)
        return of_a @ self.A, of_b @ self.B

    def mean_lost(self, rank: int) -> Tensor:
        """(b,) nothing: tokens are taken for centred."""
        return self.B.new_zeros(self.B.shape[1])


def products(module: nn.Module, attention: Attention, second: Tensor | None) -> tuple[list[Product], list[Product]]:
    """Per head, of queries and keys, and of values and outputs; ``second`` as in `head_spectra`."""
    import torch

    wq, wk, wv, wo = (
        finite_matrix(module, name).double().cpu() for name in (attention.q, attention.k, attention.v, attention.o)
    )
    bias = module.get_submodule(attention.q).bias
    bq = torch.zeros(len(wq), dtype=torch.float64) if bias is None else bias.detach().double().cpu()  # type: ignore[operator]
    X = torch.eye(wq.shape[1], dtype=torch.float64) if second is None else second.double().cpu()
    augmented = torch.eye(len(X) + 1, dtype=torch.float64)
    augmented[:-1, :-1] = X  # tokens are taken for centred: the products E[x] * 1 are left out

    def heads(matrix: Tensor) -> Sequence[Tensor]:
        return matrix.chunk(attention.heads)

    qk = [_product(a, b, augmented, X) for a, b in zip(heads(torch.cat([wq, bq[:, None]], 1)), heads(wk), strict=True)]
    vo = [_product(a, b, X, torch.eye(len(wo), dtype=torch.float64)) for a, b in zip(heads(wv), heads(wo.T), strict=True)]
    return qk, vo


def _product(A: Tensor, B: Tensor, X: Tensor, Y: Tensor) -> Product:
    import torch

    L, M = _root(A @ X @ A.T), _root(B @ Y @ B.T)
    U, s, Vh = torch.linalg.svd(L.T @ M)
    return Product(A, B, Vh @ M.T, U.T @ L.T, s)


def _root(matrix: Tensor) -> Tensor:
    """L with L L' = ``matrix``, which may be singular."""
    import torch

    values, vectors = torch.linalg.eigh(matrix)
    root: Tensor = vectors * values.clamp_min(0).sqrt()
    return root


def _numerical_rank(singular: Tensor) -> int:
    needed = singular > NOTHING * singular[:, :1]
    return max(1, int(needed.sum(1).max()))
