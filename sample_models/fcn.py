"""A fully connected network for small grey images, as the LoRITa paper trains on MNIST (arXiv 2405.03089, section 5)."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from lorita_deploy.ports import ModelSpec

from .shipped import DEFAULT, recipes, sample


class FullyConnected(nn.Module):
    """(N, 1, size, size) -> (N, classes) through ``hidden`` layers of ``width``."""

    def __init__(self, classes: int, input_size: int, width: int = 512, hidden: int = 4) -> None:
        super().__init__()
        widths = [input_size * input_size, *[width] * hidden]
        self.hidden = nn.ModuleList(nn.Linear(n, m) for n, m in pairwise(widths))
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        for layer in self.hidden:
            x = layer(x).relu()
        return self.head(x)


RECIPES = recipes("fcn")

FCN = ModelSpec(
    name="fcn",
    summary="fully connected, 4 hidden layers of 512, grey 28 x 28 images",
    build=FullyConnected,
    recipe=RECIPES[DEFAULT],
    recipes=RECIPES,
    sample=sample("fcn"),
    channels=1,
    input_size=28,
)
