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
from .cuts import ensure_bias, replace_tensor
from .rewrite import duplicate
from .spectrum import finite_matrix

if TYPE_CHECKING:
    from torch import Tensor, nn

NOTHING = 1e-6
"""Share of the largest singular value below which one is numerically zero."""


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


def narrow_seam(module: nn.Module, seam: Seam, width: int) -> nn.Module:
    """A deep copy of ``module`` whose two layers have ``width`` channels between them; exact from the seam's rank on.

    Below, the product is truncated as if its inputs were white. Batch norms between become part of the layers.
    """
    check_finite(module, seam)
    network = duplicate(module)
    bias = _merged_bias(network, seam)
    left, s, right = _product(network, seam)
    first, second = network.get_submodule(seam.first), network.get_submodule(seam.second)
    width = min(width, len(s))
    root = s[:width, None].sqrt()
    m, taps = len(second.get_parameter("weight")), second.get_parameter("weight").shape[2:]
    resize_seam(network, seam, width)
    replace_tensor(first, "weight", (root * left.T[:width]).reshape(first.get_parameter("weight").shape))
    replace_tensor(second, "weight", (root * right[:width]).reshape(width, m, *taps).transpose(0, 1).contiguous())
    replace_tensor(second, "bias", bias)
    return network


def resize_seam(network: nn.Module, seam: Seam, width: int | None) -> None:
    """The layers of `narrow_seam`, or with ``width`` None the one of `multiply_out`, unfilled, in place: a skeleton to load
    weights into. The second layer gets a bias."""
    from torch import nn

    for name in seam.between:
        replace_layer(network, name, nn.Identity())
    first, second = network.get_submodule(seam.first), network.get_submodule(seam.second)
    if width is None:
        replace_layer(network, seam.second, _layer(seam.merged, second))
        replace_layer(network, seam.first, nn.Identity().train(first.training))
        return
    first.bias = None  # type: ignore[assignment]
    ensure_bias(second)
    for layer, side, dim in ((first, "out", 0), (second, "in", 1)):
        weight = layer.get_parameter("weight")
        setattr(layer, f"{side}_{'features' if isinstance(layer, nn.Linear) else 'channels'}", width)
        replace_tensor(layer, "weight", weight.new_empty((*weight.shape[:dim], width, *weight.shape[dim + 1 :])))


def seam_rank(module: nn.Module, seam: Seam) -> int:
    """Numerical rank of the product."""
    s = _product(module, seam)[1]
    return max(1, int((s > NOTHING * s[0]).sum()))


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

    bias = network.get_submodule(seam.first).bias
    scale = torch.ones(seam.inner, dtype=torch.float64)
    constant = torch.zeros_like(scale) if bias is None else bias.detach().double().cpu()  # type: ignore[operator]
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


def _product(network: nn.Module, seam: Seam) -> tuple[Tensor, Tensor, Tensor]:
    """(D W1)' W2 = left diag(s) right, (n, k), (k,) and (k, m * taps), descending, float64."""
    import torch

    A, B = _matrices(network, seam)
    (Q, R), (P, T) = torch.linalg.qr(A.T), torch.linalg.qr(B.T)
    U, s, Vh = torch.linalg.svd(R @ T.T, full_matrices=False)
    return Q @ U, s, Vh @ P.T


def _merged_bias(network: nn.Module, seam: Seam) -> Tensor:
    """W2 c, summed over its taps, + b2."""
    second = network.get_submodule(seam.second)
    weight = second.get_parameter("weight").detach().double().cpu()
    moved: Tensor = weight.reshape(*weight.shape[:2], -1).sum(2) @ affine(network, seam)[1]
    return moved if second.bias is None else moved + second.bias.detach().double().cpu()  # type: ignore[operator]


def multiply_out_in_place(network: nn.Module, seam: Seam) -> None:
    """What `multiply_out` does to its copy."""
    A, B = _matrices(network, seam)
    second = network.get_submodule(seam.second).get_parameter("weight")
    # (n, m, taps) where the first acts on single positions; (inputs, taps, m, 1) where the second does.
    weight = (A.T @ B).reshape(len(A.T), len(second), -1)
    bias = _merged_bias(network, seam)
    resize_seam(network, seam, None)
    merged = network.get_submodule(seam.second)
    shape = merged.get_parameter("weight").shape
    replace_tensor(merged, "weight", weight.transpose(0, 1).reshape(shape))
    replace_tensor(merged, "bias", bias)
