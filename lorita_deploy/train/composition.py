"""LoRITa: every weight trained as a product of N matrices with nothing between them.

Plain weight decay on the factors (parametrization.py) acts on the product as the Schatten quasi-norm N * sum_j s_j^(2/N)
(arXiv 2405.03089), which makes the weight low-rank. Whoever asks for the weight gets it composed; the
layer's own forward pass multiplies in the order that is cheapest for its batch (order.py). Taking the parametrization off
again is the exact collapse.

`factorize` and `collapse` work in place on any ``nn.Module``, inside anybody's training loop.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize

from ..attention import attentions
from ..networks import computes_only_its_matrix
from ..records import LeftAlone
from . import order
from .gates import remove_gates
from .parametrization import Composition, HeadComposition, may_narrow, smaller_side_first, unshare_class


def factorize(
    model: nn.Module,
    n: int = 3,
    *,
    init_jitter: float = 0.1,
    per_head: bool = False,
    widths: Mapping[str, int] = MappingProxyType({}),
) -> nn.Module:
    """Give every Linear, Conv1d and Conv2d of ``model`` a weight that is the product of ``n`` factors, in place.

    The function that the model computes stays the same (to rounding); ``n=1`` leaves plain weights. Layers that
    `left_alone` lists are not touched. ``init_jitter`` is the share of the largest singular value at which directions
    that a weight lacks start (see `Composition.right_inverse`). ``per_head`` gives the projections of attentions (those that
    `attentions` finds) a product for each head. ``widths`` bounds the rank of layers, by name: their factors get so small an
    inner width, and what does not fit into it is left out, which does change the function. Returns ``model``. Raises
    ``ValueError`` for ``n < 1`` and for a model that is factored already.
    """
    if n < 1:
        raise ValueError(f"n = {n}: a weight is the product of at least one factor")
    if factored_layers(model):
        raise ValueError("the model is factored already; collapse() it first")
    if n > 1:
        heads = _projections(model) if per_head else {}
        for name, layer in _suitable(model).items():
            composition = (
                HeadComposition(n, init_jitter, *heads[name])
                if name in heads
                else Composition(n, init_jitter, widths.get(name) if may_narrow(layer.weight) else None)  # type: ignore[arg-type]
            )
            parametrize.register_parametrization(layer, "weight", composition)
            if name not in heads and computes_only_its_matrix(layer):
                type(layer).forward = order.forward  # type: ignore[method-assign]  # a class made for this one layer
    return model


def collapse(model: nn.Module, *, gates: bool = True) -> nn.Module:
    """Multiply the factors out into plain weights, in place: exact, with the names and order of the plain model.

    So are the ``gates`` of batch norms. Returns ``model``.
    """
    if gates:
        remove_gates(model)
    for layer in factored_layers(model).values():
        trained = any(factor.requires_grad for factor in layer.parametrizations.parameters())  # type: ignore[union-attr]
        others = [name for name in layer._parameters if name != "weight"]
        unshare_class(layer)
        with torch.inference_mode(False), torch.no_grad():
            weight: Tensor = layer.weight  # type: ignore[assignment]
            layer.parametrizations.weight[0].kept.forget()  # type: ignore[union-attr, index, operator]
            parametrize.remove_parametrizations(layer, "weight")
            del layer.weight  # left there as a buffer wherever gradients are off
            layer.weight = nn.Parameter(weight, requires_grad=trained)
        for name in others:  # the weight comes back as the last parameter: put the bias behind it again
            layer._parameters[name] = layer._parameters.pop(name)
    return model


def factored_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers whose weight is composed, by name."""
    return {name: layer for name, layer in model.named_modules() if _is_factored(layer)}


def left_alone(model: nn.Module) -> tuple[LeftAlone, ...]:
    """The layers with a weight matrix that `factorize` does not touch, and why."""
    reasons = _reasons(model)
    return tuple(LeftAlone(layer=name, reason=reason) for name, reason in reasons.items() if reason)


@torch.no_grad()
def inner_widths(model: nn.Module, trim: float) -> dict[str, int]:
    """For every layer of the plain ``model`` whose factors may have a smaller inner width: how many singular values of its
    weight are above ``trim`` of the largest (at least one)."""
    found = {}
    for name, layer in _suitable(model).items():
        weight: Tensor = layer.weight  # type: ignore[assignment]
        if may_narrow(weight):
            s2 = _squared_singular_values(smaller_side_first(weight))
            found[name] = max(1, int((s2 > trim**2 * s2.amax()).sum()))
    return found


@torch.no_grad()
def rank_fraction(model: nn.Module) -> float:
    """How low the rank is: the share of singular values above 1e-3 of the largest, mean over the layers (0 where none) and,
    where heads have products of their own, over these.

    From the eigenvalues of the smaller Gram matrix, in float64: the threshold squared is 1e-6.
    """
    shares = []
    for layer in _suitable(model).values():
        composition: Composition | None = None
        if _is_factored(layer):
            composition = layer.parametrizations.weight[0]  # type: ignore[union-attr, index, assignment]
        weight: Tensor = layer.weight.detach()  # type: ignore[union-attr, operator, assignment]
        s2 = _squared_singular_values(composition.matrices(weight) if composition else smaller_side_first(weight))
        shares.append(float((s2 > 1e-6 * s2.amax(-1, keepdim=True)).double().mean()))
    return sum(shares) / len(shares) if shares else 0.0


def _squared_singular_values(matrices: Tensor) -> Tensor:
    """(..., k) of (..., k, l), in float64."""
    matrices = matrices.double()
    found: Tensor = torch.linalg.eigvalsh(matrices @ matrices.mT)
    return found


# ---------------------------------------------------------------------------------------------- which layers


def _is_factored(layer: nn.Module) -> bool:
    return parametrize.is_parametrized(layer, "weight") and any(
        isinstance(each, Composition)
        for each in layer.parametrizations["weight"]  # type: ignore[index, union-attr]
    )


def _projections(model: nn.Module) -> dict[str, tuple[int, bool]]:
    """The layers of attentions, each with how many heads it has and whether these are columns of its weight."""
    found: dict[str, tuple[int, bool]] = {}
    for each in attentions(model):
        found |= {name: (each.heads, name == each.o) for name in (each.q, each.k, each.v, each.o)}
    return found


def _suitable(model: nn.Module) -> dict[str, nn.Module]:
    modules = dict(model.named_modules())
    return {name: modules[name] for name, reason in _reasons(model).items() if reason is None}


def _reasons(model: nn.Module) -> dict[str, str | None]:
    """Every layer with a weight matrix, with the reason to leave it alone or None."""
    uses = Counter(id(parameter) for part in model.modules() for parameter in part._parameters.values())
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear | _ConvNd)}
    return {name: _reason(layer, uses) for name, layer in layers.items()}


def _reason(layer: nn.Module, uses: Counter[int]) -> str | None:
    if _is_factored(layer):
        return None
    if not isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d):
        return f"{type(layer).__name__} is not supported"
    if not isinstance(layer, nn.Linear) and layer.groups > 1:
        return "depthwise" if layer.groups == layer.in_channels else f"grouped ({layer.groups} groups)"
    if parametrize.is_parametrized(layer, "weight"):
        return "has a parametrization already"
    if not isinstance(layer.weight, nn.Parameter) or not layer.weight.requires_grad:
        return "its weight is not trained"
    if uses[id(layer.weight)] > 1:
        return "shares its weight with another layer"
    return None
