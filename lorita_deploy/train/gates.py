"""Diagonal composition: LoRITa one dimension lower, so that channels fade out and layers become smaller dense layers.

A batch norm's scale is replaced by a product of K >= 2 gates per channel, which scales its shift as well:

    y = d_1 ... d_K * (normalised x + b),        gamma = d_1 ... d_K,  beta = gamma * b

Weight decay on the gates acts on gamma as K * sum_c |gamma_c|^(2/K), a quasi-norm that makes channels sparse;
beside a gamma of its own it would do nothing. A channel whose gamma has faded gives a constant 0 before the
activation, shift and all, so that it can be taken out of the network. `remove_gates` is the exact collapse.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize

from .parametrization import unshare_class

FADED = 1e-3
"""A channel counts as faded where its gamma is below this share of the layer's largest."""

SMALLEST = 1e-3
"""What a gamma of (nearly) 0 with a shift of its own starts at: a gate of 0 could not carry the shift."""


class Gates(nn.Module):
    """d_1, ..., d_K (C,) in, gamma (C,) out. The parameters are ``original0...``."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def forward(self, *gates: Tensor) -> Tensor:
        product = gates[0]
        for gate in gates[1:]:
            product = product * gate
        return product

    def right_inverse(self, gamma: Tensor) -> tuple[Tensor, ...]:
        """|gamma|^(1/K) each, the sign in the first. Where gamma is 0 only the first gate is: it can grow again."""
        size = gamma.abs().pow(1 / self.count)
        others = torch.where(gamma == 0, 1.0, size)
        return size * gamma.sign(), *(others.clone() for _ in range(self.count - 1))


class Shift(nn.Module):
    """b (C,) in, beta = gamma * b out."""

    def __init__(self, gates: nn.Module) -> None:
        super().__init__()
        self._gates = (gates,)  # the norm's own, not a child: its parameters are registered once

    def forward(self, b: Tensor) -> Tensor:
        gamma: Tensor = self._gates[0]()
        return gamma * b

    def right_inverse(self, beta: Tensor) -> Tensor:
        gamma: Tensor = self._gates[0]()
        return torch.where(beta == 0, 0.0, beta / gamma).detach()


def add_gates(model: nn.Module, count: int) -> nn.Module:
    """Give every batch norm with a scale of its own ``count`` gates, in place; the function stays the same, except where a
    gamma below `SMALLEST` carries a shift: it is lifted to that.

    Returns ``model``. Raises ``ValueError`` for ``count < 2`` and for a model that has gates already.
    """
    if count < 2:
        raise ValueError(f"{count} gate(s): fading needs a product of at least two")
    if any(True for _ in gated_norms(model)):
        raise ValueError("the model has gates already")
    for norm in list(model.modules()):
        if not isinstance(norm, _BatchNorm) or norm.weight is None or parametrize.is_parametrized(norm):
            continue
        with torch.no_grad():
            stuck = (norm.weight.abs() < SMALLEST) & (norm.bias != 0)
            norm.weight[stuck] = SMALLEST
        parametrize.register_parametrization(norm, "weight", Gates(count))
        parametrize.register_parametrization(norm, "bias", Shift(norm.parametrizations.weight))  # type: ignore[union-attr, arg-type]
    return model


def remove_gates(model: nn.Module) -> nn.Module:
    """Multiply the gates out into gamma and beta, in place: exact, with the names and order of the plain model."""
    for _, norm in list(gated_norms(model)):
        trained = [any(p.requires_grad for p in norm.parametrizations[name].parameters()) for name in ("weight", "bias")]  # type: ignore[index, union-attr]
        unshare_class(norm)
        with torch.inference_mode(False), torch.no_grad():
            plain = {name: getattr(norm, name).detach().clone() for name in ("weight", "bias")}
            for name in ("bias", "weight"):  # the shift reads the gates
                parametrize.remove_parametrizations(norm, name, leave_parametrized=True)
            for (name, value), learns in zip(plain.items(), trained, strict=True):
                delattr(norm, name)
                norm.register_parameter(name, nn.Parameter(value, requires_grad=learns))
    return model


def gated_norms(model: nn.Module) -> Iterator[tuple[str, _BatchNorm]]:
    """The batch norms with gates, by name."""
    for name, part in model.named_modules():
        gated = isinstance(part, _BatchNorm) and parametrize.is_parametrized(part, "weight")
        if gated and isinstance(part.parametrizations["weight"][0], Gates):  # type: ignore[index, union-attr]
            yield name, part  # type: ignore[misc]


def gate_parameters(model: nn.Module) -> Iterator[nn.Parameter]:
    """All gates (not the shifts)."""
    for _, norm in gated_norms(model):
        yield from norm.parametrizations["weight"].parameters()  # type: ignore[index, union-attr]


@torch.no_grad()
def faded_channels(model: nn.Module, threshold: float = FADED) -> dict[str, tuple[int, ...]]:
    """For each batch norm, gated or collapsed, the channels whose gamma is below ``threshold`` of its largest."""
    found = {}
    for name, part in model.named_modules():
        if isinstance(part, _BatchNorm) and part.weight is not None:
            gamma = part.weight.abs()
            faded = (gamma < threshold * gamma.max()) | (gamma == 0)  # where all are 0, none is below the largest
            found[name] = tuple(faded.nonzero().flatten().tolist())
    return found


@torch.no_grad()
def silence(model: nn.Module, threshold: float = FADED) -> int:
    """Set gamma and beta of the faded channels of plain batch norms to 0, in place; how many channels that were."""
    gated = dict(gated_norms(model))
    faded = {name: channels for name, channels in faded_channels(model, threshold).items() if name not in gated}
    for name, channels in faded.items():
        norm = model.get_submodule(name)
        for parameter in norm.parameters(recurse=False):
            parameter[list(channels)] = 0.0
    return sum(map(len, faded.values()))
