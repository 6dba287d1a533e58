"""``torch.compile`` where it works, and a plain word where it does not."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from ..errors import TrainingWarning


def try_compile(module: nn.Module, step: Callable[[nn.Module], Tensor]) -> nn.Module:
    """``module`` compiled, or itself with a warning where compiling fails.

    ``step(model)`` is one forward pass on inputs as they will be, under autocast as it will be; it is run once forward and
    backward, which compiles. Buffers and gradients are put back after.
    """
    compiled = cast(nn.Module, torch.compile(module))
    buffers = [(buffer, buffer.clone()) for buffer in module.buffers()]
    try:
        step(compiled).float().sum().backward()  # type: ignore[no-untyped-call]
    except Exception as error:  # whatever a compiler, its search or its absence raise
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        warnings.warn(f"not compiled, training goes on without: {first[:200]}", TrainingWarning, stacklevel=2)
        compiled = module
    with torch.no_grad():
        for buffer, before in buffers:
            buffer.copy_(before)
    module.zero_grad()
    return compiled
