"""The plain network that a build is about, before any weights are loaded, with its attentions opened."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..compress.opening import open_attention
from ..compress.rewrite import duplicate
from ..errors import BadNetwork

if TYPE_CHECKING:
    from torch import nn

    from .context import Build


def blank_network(build: Build) -> nn.Module:
    """Freshly initialised from the seed, or a copy of the one handed in. Raises `BadNetwork`."""
    import torch

    if build.own_model is not None:
        module = duplicate(build.own_model)
        _require_single_precision(module)
        assert build.own_task is not None
        examples = tuple(example.cpu() for example in build.own_task.examples)
        open_attention(module.cpu(), examples)
        return module
    torch.manual_seed(build.options.seed)
    try:
        module = build.spec.build(build.classes, build.input_size)
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise BadNetwork(
            f"the model cannot be built with {build.classes} classes at {build.input_size} pixels: {error}",
            where=build.spec.name,
        ) from error
    open_attention(module, (torch.zeros(1, *build.shape),))
    return module


def _require_single_precision(module: nn.Module) -> None:
    """Half of a network's digits would be gone before anything is compared. Raises `BadNetwork`."""
    import torch

    for name, parameter in module.named_parameters():
        if parameter.dtype in (torch.float16, torch.bfloat16):
            kind = str(parameter.dtype).removeprefix("torch.")
            fix = "hand in network.float(), with inputs to match; --precision makes artifacts of lower precision"
            raise BadNetwork(f"{name} is of type {kind}", where=type(module).__name__, fix=fix)
