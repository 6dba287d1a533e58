"""Networks put together by hand."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn


class Net(nn.Module):
    """Layers by name, and a forward of its own."""

    def __init__(self, forward: Callable[..., Tensor], **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.run = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)
