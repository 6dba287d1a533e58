"""Narrower attention heads, by truncating the two products that a head consists of; exact down to their numerical rank.

Legend, for one head of width d on tokens x (D,): the scores are [x 1] [W_q b_q]' W_k y plus terms that are the same for every
key y, which softmax drops, the key's bias among them; the output is W_o W_v x averaged with weights that sum to 1, so that the
value's bias moves to the output's. Both are products A' B of matrices with d rows (products.py).

All heads of a layer get one width, and the softmax keeps its old scale. Not for heads with norms or rotations between
projection and product (qk-norm, RoPE, cosine attention). Attention with fused projections is opened first (opening.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..attention import Attention, attentions
from ..networks import evaluating
from .bases import Turned
from .cuts import bias_of, ensure_bias, replace_tensor
from .feeding import on_device_of
from .products import Product, numerical_rank, product
from .rewrite import duplicate
from .spectrum import finite_matrix
from .trying import disagreement, first_line, outputs, those_that_hold, varied

if TYPE_CHECKING:
    from torch import Tensor, nn

    from .moments import Moments


@dataclass(frozen=True)
class HeadSpectra:
    """Singular values of the products, (heads, d) each, descending, float64."""

    qk: Tensor
    vo: Tensor

    @property
    def free_widths(self) -> tuple[int, int]:
        """The smallest widths for queries and keys, and for values, at which no head loses anything."""
        return numerical_rank(self.qk), numerical_rank(self.vo)


def true_attentions(module: nn.Module, examples: Sequence[Tensor], *, seed: int = 0) -> list[Attention]:
    """The `attentions` of ``module`` that really are such: with heads as wide as before, in another basis, it computes the same
    (it would not with norms or rotations between projection and product, or fewer heads of keys), and narrower ones run."""
    import torch

    named = list(attentions(module))
    if not named:
        return []
    generator = torch.Generator().manual_seed(seed)
    examples = [varied(example, generator) for example in on_device_of(module, examples)]
    with evaluating(module):
        expected = outputs(module, (), examples)

    def objection(claims: list[Attention]) -> str | None:
        with evaluating(module):
            network = duplicate(module)
            try:
                for each in claims:
                    width = _head_width(network, each)
                    narrow_heads_in_place(network, each, width, width)
                if disagreement(expected, outputs(network, (), examples)) is not None:
                    return "it computes more than attention"
                for each in claims:
                    resize_heads(network, each, *[max(1, _head_width(network, each) // 2)] * 2)
                outputs(network, (), examples)
            except Exception as error:
                return first_line(error)
        return None

    return those_that_hold(named, objection)[0]


def _head_width(network: nn.Module, attention: Attention) -> int:
    width: int = network.get_submodule(attention.q).out_features // attention.heads  # type: ignore[operator, assignment]
    return width


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
    qk: int | None,
    vo: int | None,
    second: Tensor | None = None,
    *,
    moments: Mapping[str, Moments] | None = None,
) -> nn.Module:
    """A deep copy of ``module`` with heads of width ``qk`` for queries and keys and ``vo`` for values; None: as they are.

    ``second`` as in `head_spectra`; with ``moments`` of the layers that give queries and values, widths that lose something
    lose the least by `head_losses`. Raises `BadNetwork`.
    """
    network = duplicate(module)
    narrow_heads_in_place(network, attention, qk, vo, second, moments=moments)
    return network


def narrow_heads_in_place(
    network: nn.Module,
    attention: Attention,
    qk: int | None,
    vo: int | None,
    second: Tensor | None = None,
    *,
    moments: Mapping[str, Moments] | None = None,
) -> dict[str, Turned]:
    """`narrow_heads` without the copy. What has become of the outputs of the queries', keys' and values' layers."""
    import torch

    from .head_losses import weighed_products

    q, k, v, o = (network.get_submodule(name) for name in (attention.q, attention.k, attention.v, attention.o))
    scores: Sequence[Product]
    values: Sequence[Product]
    scores, values = products(network, attention, second) if moments is None else weighed_products(network, attention, moments)
    old = {attention.q: torch.zeros_like(bias_of(q)), attention.k: bias_of(k), attention.v: bias_of(v)}
    output = bias_of(o) + o.get_parameter("weight").detach().double().cpu() @ bias_of(v)
    resize_heads(network, attention, qk, vo)
    bases: dict[str, Turned] = {}

    def narrow(side: Sequence[Product], width: int, *names: str) -> tuple[Tensor, Tensor]:
        for name, maps in zip(names, zip(*(head.narrowing(width) for head in side), strict=True), strict=False):
            bases[name] = Turned(torch.block_diag(*maps), old[name])  # type: ignore[no-untyped-call]
        first, last = (torch.cat(each) for each in zip(*(head.truncated(width) for head in side), strict=True))
        return first, last

    new: list[tuple[nn.Module, Tensor, Tensor | None]] = []
    if qk is not None:
        queries, keys = narrow(scores, qk, attention.q, attention.k)
        new += [(q, queries[:, :-1], queries[:, -1]), (k, keys, None)]
    if vo is not None:
        inner, outer = narrow(values, vo, attention.v)
        new += [(v, inner, None), (o, outer.T, output + sum(value.mean_lost(vo) for value in values))]
    for layer, weight, bias in new:
        replace_tensor(layer, "weight", weight.contiguous())
        if layer.bias is not None:
            replace_tensor(layer, "bias", torch.zeros(len(weight)) if bias is None else bias.contiguous())
    return bases


def resize_heads(network: nn.Module, attention: Attention, qk: int | None, vo: int | None) -> None:
    """Give the four layers heads of these widths, in place: a skeleton to load the weights of `narrow_heads` into, or to time.

    The weights mean nothing, but are the first of those that were there: what memory happens to hold can be denormal numbers,
    which take many times as long. With narrower values the outputs get a bias where they have none.
    """
    q, k, v, o = (network.get_submodule(name) for name in (attention.q, attention.k, attention.v, attention.o))
    if vo is not None:
        ensure_bias(o)
    for layer, width in ((q, qk), (k, qk), (v, vo), (o, vo)):
        if width is None:
            continue
        rows, weight = attention.heads * width, layer.get_parameter("weight")
        setattr(layer, "in_features" if layer is o else "out_features", rows)
        replace_tensor(layer, "weight", weight.detach().narrow(1 if layer is o else 0, 0, rows).clone())
        if layer is not o and layer.bias is not None:
            replace_tensor(layer, "bias", layer.get_parameter("bias").detach()[:rows].clone())


def products(module: nn.Module, attention: Attention, second: Tensor | None) -> tuple[list[Product], list[Product]]:
    """Per head, of queries and keys, and of values and outputs; ``second`` as in `head_spectra`."""
    import torch

    wq, wk, wv, wo = (
        finite_matrix(module, name).double().cpu() for name in (attention.q, attention.k, attention.v, attention.o)
    )
    bq = bias_of(module.get_submodule(attention.q))
    X = torch.eye(wq.shape[1], dtype=torch.float64) if second is None else second.double().cpu()
    augmented = torch.eye(len(X) + 1, dtype=torch.float64)
    augmented[:-1, :-1] = X  # tokens are taken for centred: the products E[x] * 1 are left out

    def heads(matrix: Tensor) -> Sequence[Tensor]:
        return matrix.chunk(attention.heads)

    qk = [product(a, b, augmented, X) for a, b in zip(heads(torch.cat([wq, bq[:, None]], 1)), heads(wk), strict=True)]
    vo = [product(a, b, X) for a, b in zip(heads(wv), heads(wo.T), strict=True)]
    return qk, vo
