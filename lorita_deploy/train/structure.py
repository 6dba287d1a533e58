"""A network in the structure that a recipe gives it in some epoch: how many factors, how many gates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..records import Recipe
from .composition import collapse, factored_layers, factorize, inner_widths
from .gates import add_gates, gated_norms
from .parametrization import RANK_DEFICIENT


def structure(module: nn.Module, recipe: Recipe, epoch: int) -> nn.Module:
    """Bring ``module`` (plain, or in the structure of another epoch) to that of ``epoch``, in place; returns it.

    From one depth to another the weights are multiplied out and factored anew in balance: the function stays the same, and
    directions that have faded stay so. Where ``epoch`` begins a phase that trims, they are left out.
    """
    if recipe.narrow_gates and next(gated_norms(module), None) is None:
        add_gates(module, recipe.narrow_gates)
    depth, factored = recipe.depth_at(epoch), factored_layers(module)
    if epoch == 1:
        return factorize(module, depth, per_head=recipe.per_head)
    present = next(iter(factored.values())).parametrizations.weight[0].depth if factored else 1  # type: ignore[union-attr, index]
    trim = recipe.trim_at(epoch)
    if depth != present or trim is not None:
        bounds = _present_widths(factored)
        collapse(module, gates=False)
        found = inner_widths(module, trim) if trim is not None else {}
        widths = {name: min(each[name] for each in (bounds, found) if name in each) for name in bounds | found}
        factorize(module, depth, init_jitter=RANK_DEFICIENT, per_head=recipe.per_head, widths=widths)
    return module


def _present_widths(factored: Mapping[str, nn.Module]) -> dict[str, int]:
    """Inner widths that an earlier phase has trimmed layers to."""
    found = {name: layer.parametrizations.weight[0].width for name, layer in factored.items()}  # type: ignore[union-attr, index]
    return {name: width for name, width in found.items() if isinstance(width, int)}


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """What `structure_like` asks of a state dict."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def structure_like(module: nn.Module, shapes: Mapping[str, Sequence[int]]) -> nn.Module:
    """Give the plain ``module`` the factors, inner widths and gates of a training whose state dict has these ``shapes``;
    returns it. Parametrisations that ``module`` has of its own (of torch's, such as ``weight_norm``) are none of them."""
    own = {name for name, part in module.named_modules() if parametrize.is_parametrized(part, "weight")}
    counts, per_head = {"gates": 0, "factors": 0}, False
    widths: dict[str, int] = {}
    for name, shape in shapes.items():
        layer, _, number = name.rpartition(".parametrizations.weight.original")
        if layer and layer not in own and number.isdigit():
            kind = "factors" if len(shape) > 1 else "gates"
            counts[kind] = max(counts[kind], int(number) + 1)
            per_head = per_head or (len(shape) == 3 and len(shapes[f"{layer}.parametrizations.weight.original0"]) == 2)
            if number == "1" and len(shape) == 2:
                widths[layer] = max(1, min(shape))
    if counts["gates"]:
        add_gates(module, counts["gates"])
    return factorize(module, max(1, counts["factors"]), per_head=per_head, widths=widths)
