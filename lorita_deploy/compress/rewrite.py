"""Gives the layers of a copy of the network the forms that were chosen, filled so that the outputs change least."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..errors import BadNetwork, PlanMismatch
from ..forms import fill_pair, form, replace_layer
from .moments import Criterion, Moments, Truncation, truncation
from .spectrum import finite_matrix

if TYPE_CHECKING:
    from torch import Tensor, nn


def rewrite(
    module: nn.Module,
    ranks: Mapping[str, int],
    moments: Mapping[str, Moments] | None,
    *,
    criterion: Criterion = "whitened",
    known: dict[str, Truncation] | None = None,
) -> nn.Module:
    """A deep copy of ``module`` with the layers of ``ranks`` as pairs; ``module`` itself is left as it is.

    ``known`` holds the truncations of this module's layers that were worked out before, and takes up new ones: a search that
    rewrites the same network many times pays for them once.

    Hooks, device, type, memory format, training mode and requires_grad of a replaced layer pass to what replaces it. Without
    moments: plain SVD and the old bias. Raises `BadNetwork` (cannot be copied, NaN weights) and `PlanMismatch` (no such layer).
    """
    network = duplicate(module)
    present = dict(network.named_modules())
    for name, rank in ranks.items():
        if name not in present:
            raise PlanMismatch(f"the plan names a layer that the network lacks: {name}", where=name)
        rewrite_layer(network, name, rank, moments.get(name) if moments else None, criterion, known)
    return network


def duplicate(module: nn.Module, known: dict[int, Any] | None = None) -> nn.Module:
    """A deep copy; ``known`` is deepcopy's memo: what to put for objects by their id. Raises `BadNetwork`."""
    try:
        return copy.deepcopy(module, known)
    except Exception as error:
        raise BadNetwork(
            f"the network cannot be copied (copy.deepcopy): {error}",
            where=type(module).__name__,
            fix="keep open files, locks, generators and non-leaf tensors out of the module, or give it a __deepcopy__",
        ) from error


def rewrite_layer(
    network: nn.Module,
    name: str,
    rank: int,
    moments: Moments | None,
    criterion: Criterion,
    known: dict[str, Truncation] | None = None,
) -> None:
    """Replace the layer ``name`` of ``network`` by its best pair of ``rank``, in place."""
    layer = network.get_submodule(name)
    matrix = finite_matrix(network, name)
    best = known.get(name) if known is not None else None
    if best is None:
        best = truncation(matrix, moments, criterion)
        if known is not None:
            known[name] = best
    first, second, bias = factors(matrix, layer.bias, rank, moments, criterion, best)  # type: ignore[arg-type]
    pair = form("pair").build(layer, rank)
    fill_pair(pair, first, second, bias)
    replace_layer(network, name, pair)


def factors(
    matrix: Tensor,
    bias: Tensor | None,
    rank: int,
    moments: Moments | None,
    criterion: Criterion,
    best: Truncation | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """``first (r, n)``, ``second (m, r)`` and the new bias ``(m,)``, float64, for the weight ``matrix (m, n)``.

    Balanced: row j of first and column j of second have the same norm, so that neither leaves the range of fp16 nor wastes the
    steps of int8. The bias keeps the mean output: b + (I - T)(E[y] - b), T = second first of the outputs. ``best`` is the
    truncation, where it is known already.
    """
    import torch

    best = best or truncation(matrix, moments, criterion)
    left, right = best.left[:, :rank], best.right[:rank]
    first, second = right @ matrix.double().cpu(), left
    scale = (second.norm(dim=0) / first.norm(dim=1).clamp_min(1e-30)).sqrt()
    scale = torch.where(first.norm(dim=1) > 1e-12 * matrix.norm().item(), scale, torch.ones_like(scale))
    old = torch.zeros(len(matrix), dtype=torch.float64) if bias is None else bias.detach().double().cpu()
    if moments is None:
        return scale[:, None] * first, second / scale, old
    mean = moments.mean.double() - old
    return scale[:, None] * first, second / scale, old + mean - left @ (right @ mean)
