"""What goes into a network, and what comes out of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn


def float_tensors(outputs: Any) -> list[Tensor]:
    """The floating-point tensors of a network's output, however nested."""
    import torch

    if isinstance(outputs, torch.Tensor):
        return [outputs] if outputs.is_floating_point() else []
    if isinstance(outputs, Mapping):
        outputs = outputs.values()
    if isinstance(outputs, Iterable) and not isinstance(outputs, str):
        return [tensor for part in outputs for tensor in float_tensors(part)]
    return []


def on_device_of(module: nn.Module, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """``tensors`` where the parameters of ``module`` are."""
    parameter = next(module.parameters(), None)
    return tuple(tensors) if parameter is None else tuple(each.to(parameter.device) for each in tensors)
