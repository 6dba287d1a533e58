"""Linear seams: two linear layers with nothing non-linear between, which are one layer of a rank that may be smaller.

Legend: y = W2 (D W1 x + c) + b2, with D and c what a batch norm between does in evaluation mode (and c holds b1), W1 (inner,
n), W2 (m, inner). Where one of the two acts on single positions, their product is a layer of the other's shape:

    k x k, then 1 x 1      W2 D W1 (m, n), bias W2 c + b2
    1 x 1, then k x k      the same at every tap; where zero padding would meet c, only for c = 0

A seam is *multiplied out* into one layer, or *narrowed* to an inner width that may go down to the product's rank, losing
nothing. seams.py finds them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..forms import pass_hooks, replace_layer
from ..records import Geometry
from .bases import Turned
from .cuts import bias_of, ensure_bias, replace_tensor, takes_constants
from .moments import Moments
from .products import Product, WeighedProduct, product, weighed
from .rewrite import duplicate
from .spectrum import finite_matrix

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Seam:
    """Two layers that are one. Seams of one chain share a layer: after rewriting one of them, look again."""

    first: str
    between: tuple[str, ...]
    """Batch norms, and what does nothing in evaluation mode."""
    second: str
    inner: int
    rank: int
    """Numerical rank of the product: the inner width at which nothing is lost."""
    merged: Geometry
    """The one layer, which takes the place of ``second``: its outputs are those."""

    @property
    def ends(self) -> tuple[str, str]:
        return self.first, self.second


def multiply_out(module: nn.Module, seam: Seam) -> nn.Module:
    """A deep copy of ``module`` with the one layer in place of ``second``, and nothing where ``first`` was."""
    check_finite(module, seam)
    network = duplicate(module)
    multiply_out_in_place(network, seam)
    return network


def narrow_seam(module: nn.Module, seam: Seam, width: int, moments: Moments | None = None) -> nn.Module:
    """A deep copy of ``module`` whose two layers have ``width`` channels between them; exact from the seam's rank on.

    Below, the product is truncated by the ``moments`` of the first layer's outputs; None: as if its inputs were white. Batch
    norms between become part of the layers, and do nothing any more. Raises `BadNetwork` for weights that are not finite.
    """
    network = duplicate(module)
    narrow_seam_in_place(network, seam, width, moments)
    return network


def narrow_seam_in_place(network: nn.Module, seam: Seam, width: int, moments: Moments | None = None) -> Turned:
    """`narrow_seam` without the copy. What has become of the first layer's outputs."""
    check_finite(network, seam)
    found = seam_product(network, seam) if moments is None else weighed_seam(network, seam, moments)
    of_first, _ = found.narrowing(width)
    rows, columns = found.truncated(width)
    first, second = network.get_submodule(seam.first), network.get_submodule(seam.second)
    basis = Turned(of_first * affine(network, seam)[0], bias_of(first))
    m, taps = len(second.get_parameter("weight")), second.get_parameter("weight").shape[2:]
    bias = _merged_bias(network, seam) + found.mean_lost(width).reshape(m, -1).sum(1)
    resize_between(network, seam, width)
    replace_tensor(second, "bias", bias)
    replace_tensor(first, "weight", rows.reshape(first.get_parameter("weight").shape))
    replace_tensor(second, "weight", columns.reshape(width, m, *taps).transpose(0, 1).contiguous())
    return basis


def resize_between(network: nn.Module, seam: Seam, width: int) -> None:
    """Give the two layers ``width`` channels between them, in place: the first of those that were there, which mean nothing;
    batch norms between do nothing then."""
    import torch
    from torch import nn

    first, second = network.get_submodule(seam.first), network.get_submodule(seam.second)
    ensure_bias(second)
    for layer, side, dim in ((first, "out", 0), (second, "in", 1)):
        weight = layer.get_parameter("weight")
        setattr(layer, f"{side}_{'features' if isinstance(layer, nn.Linear) else 'channels'}", width)
        replace_tensor(layer, "weight", weight.detach().narrow(dim, 0, width).clone())
    if first.bias is not None:
        replace_tensor(first, "bias", torch.zeros(width))
    for name in seam.between:
        norm: Any = network.get_submodule(name)
        if hasattr(norm, "running_var"):
            norm.num_features = width
            trivial = {"running_mean": 0.0, "running_var": 1.0 - norm.eps, "weight": 1.0, "bias": 0.0}
            for tensor in (each for each in trivial if getattr(norm, each) is not None):
                replace_tensor(norm, tensor, torch.full((width,), trivial[tensor]))


def seam_product(network: nn.Module, seam: Seam) -> Product:
    """(D W1)' W2 as if inputs were white, of width ``inner``; W2 with its taps side by side (inner, m * taps)."""
    return product(*_matrices(network, seam))


def weighed_seam(network: nn.Module, seam: Seam, moments: Moments) -> WeighedProduct:
    """With the ``moments`` of the first layer's outputs.

    Where the second layer pads with zeros a constant counts: it cannot move to its bias.
    """
    import torch

    scale = affine(network, seam)[0]
    inverse = (1 / scale).where(scale != 0, torch.zeros_like(scale))
    mean = scale * (moments.mean.double() - bias_of(network.get_submodule(seam.first)))
    S = scale[:, None] * moments.covariance.double() * scale
    G = inverse[:, None] * moments.gradient.double() * inverse
    if not takes_constants(network.get_submodule(seam.second)):
        mean, S = torch.zeros_like(mean), S + torch.outer(mean, mean)
    return weighed(seam_product(network, seam), Moments(mean, S, G, moments.positions))


def resize_seam(network: nn.Module, seam: Seam) -> None:
    """The one layer of `multiply_out`, unfilled, in place: a skeleton to load weights into."""
    from torch import nn

    first, second = network.get_submodule(seam.first), network.get_submodule(seam.second)
    for name in seam.between:
        replace_layer(network, name, nn.Identity())
    replace_layer(network, seam.second, _layer(seam.merged, second))
    replace_layer(network, seam.first, nn.Identity().train(first.training))


def seam_rank(module: nn.Module, seam: Seam) -> int:
    """Numerical rank of the product."""
    return seam_product(module, seam).rank


def check_finite(module: nn.Module, seam: Seam) -> None:
    """Raises `BadNetwork`."""
    for name in seam.ends:
        finite_matrix(module, name)


def _layer(geometry: Geometry, like: nn.Module) -> nn.Module:
    """An unfilled layer of ``geometry`` in place of ``like``."""
    from torch import nn

    weight = like.get_parameter("weight")
    options: dict[str, Any] = {"device": weight.device, "dtype": weight.dtype}
    new: nn.Module
    if geometry.kind == "linear":
        new = nn.Linear(geometry.n, geometry.m, **options)
    else:
        kind = nn.Conv2d if geometry.kind == "conv2d" else nn.Conv1d
        options |= {"stride": geometry.stride, "padding": geometry.padding, "dilation": geometry.dilation}
        new = kind(geometry.in_channels, geometry.m, geometry.kernel, **options)  # type: ignore[arg-type]
    for parameter in new.parameters():
        parameter.requires_grad_(weight.requires_grad)
    pass_hooks(like, new)
    return new.train(like.training)


# ---------------------------------------------------------------------------------------------- the mathematics


def affine(network: nn.Module, seam: Seam) -> tuple[Tensor, Tensor]:
    """The diagonal of D and c, (inner,) each, float64: what happens to W1 x before W2."""
    import torch

    constant = bias_of(network.get_submodule(seam.first))
    scale = torch.ones_like(constant)
    for name in seam.between:
        norm: Any = network.get_submodule(name)
        if not hasattr(norm, "running_var"):
            continue
        factor = (norm.running_var.detach().double().cpu() + norm.eps).rsqrt()
        if norm.weight is not None:
            factor = factor * norm.weight.detach().double().cpu()
        constant = factor * (constant - norm.running_mean.detach().double().cpu())
        if norm.bias is not None:
            constant = constant + norm.bias.detach().double().cpu()
        scale = factor * scale
    return scale, constant


def _matrices(network: nn.Module, seam: Seam) -> tuple[Tensor, Tensor]:
    """D W1 (inner, n) and W2 as (inner, m * taps), float64."""
    first, second = (network.get_submodule(name).get_parameter("weight").detach().double().cpu() for name in seam.ends)
    return affine(network, seam)[0][:, None] * first.flatten(1), second.transpose(0, 1).flatten(1)


def _merged_bias(network: nn.Module, seam: Seam) -> Tensor:
    """W2 c, summed over its taps, + b2."""
    second = network.get_submodule(seam.second)
    weight = second.get_parameter("weight").detach().double().cpu()
    moved: Tensor = weight.reshape(*weight.shape[:2], -1).sum(2) @ affine(network, seam)[1]
    return moved + bias_of(second)


def multiply_out_in_place(network: nn.Module, seam: Seam) -> None:
    """What `multiply_out` does to its copy."""
    A, B = _matrices(network, seam)
    second = network.get_submodule(seam.second).get_parameter("weight")
    # (n, m, taps) where the first acts on single positions; (inputs, taps, m, 1) where the second does.
    weight = (A.T @ B).reshape(len(A.T), len(second), -1)
    bias = _merged_bias(network, seam)
    resize_seam(network, seam)
    merged = network.get_submodule(seam.second)
    shape = merged.get_parameter("weight").shape
    replace_tensor(merged, "weight", weight.transpose(0, 1).reshape(shape))
    replace_tensor(merged, "bias", bias)
