"""A running average of the weights, which is often better than any single moment of a training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Average:
    """Exponential average of everything in the state dict (factors, not products; statistics of batch norms too).

    At step t the share min(``decay``, t / (t + 9)) of the average stays, so that the first weights are soon forgotten.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.steps = 0
        self.tensors = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Take in the weights after a step."""
        self.steps += 1
        share = 1 - min(self.decay, self.steps / (self.steps + 9))
        present = module.state_dict()
        moving = [name for name, tensor in present.items() if tensor.is_floating_point()]
        torch._foreach_lerp_([self.tensors[name] for name in moving], [present[name] for name in moving], share)
        for name in present.keys() - set(moving):
            self.tensors[name].copy_(present[name])

    @contextmanager
    def swapped_in(self, module: nn.Module) -> Iterator[None]:
        """Inside, ``module`` holds the average."""
        present = {name: tensor.clone() for name, tensor in module.state_dict().items()}
        _copy(self.tensors, module)
        try:
            yield
        finally:
            _copy(present, module)


@torch.no_grad()
def _copy(tensors: dict[str, Tensor], module: nn.Module) -> None:
    for name, tensor in module.state_dict().items():
        tensor.copy_(tensors[name])
