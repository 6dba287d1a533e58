"""A network in the structure that a recipe gives it in some epoch: how many factors, how many gates."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from ..records import Recipe
from .composition import collapse, factored_layers, factorize
from .gates import add_gates, gated_norms
from .parametrization import RANK_DEFICIENT


def structure(module: nn.Module, recipe: Recipe, epoch: int) -> nn.Module:
    """Bring ``module`` (plain, or in the structure of another epoch) to that of ``epoch``, in place; returns it.

    From one depth to another the weights are multiplied out and factored anew in balance: the function stays the same, and
    directions that have faded stay so.
    """
    if recipe.narrow_gates and next(gated_norms(module), None) is None:
        add_gates(module, recipe.narrow_gates)
    depth, factored = recipe.depth_at(epoch), factored_layers(module)
    if not factored:
        return factorize(module, depth, per_head=recipe.per_head)
    present = next(iter(factored.values())).parametrizations.weight[0].depth  # type: ignore[union-attr, index]
    if depth != present:
        collapse(module, gates=False)
        factorize(module, depth, init_jitter=RANK_DEFICIENT, per_head=recipe.per_head)
    return module


def structure_like(module: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """Give the plain ``module`` the factors and gates that ``tensors``, a state dict of a training, have; returns it."""
    counts, per_head = {"gates": 0, "factors": 0}, False
    for name, tensor in tensors.items():
        layer, _, number = name.rpartition(".parametrizations.weight.original")
        if layer and number.isdigit():
            kind = "factors" if tensor.dim() > 1 else "gates"
            counts[kind] = max(counts[kind], int(number) + 1)
            per_head = per_head or (tensor.dim() == 3 and tensors[f"{layer}.parametrizations.weight.original0"].dim() == 2)
    if counts["gates"]:
        add_gates(module, counts["gates"])
    return factorize(module, max(1, counts["factors"]), per_head=per_head)
