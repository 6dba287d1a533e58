"""VGG with batch normalisation for 32 x 32 images (Simonyan and Zisserman, arXiv 1409.1556, table 1).

As is usual on CIFAR, the five poolings leave one position of 512 channels, which one linear layer classifies. Larger
images are averaged to one position first.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from lorita_deploy.ports import ModelSpec

from .shipped import DEFAULT, recipes, sample

WIDTHS = (64, 128, 256, 512, 512)
CONVOLUTIONS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
"""Per stage, by the number of layers with weights (the original's three linear layers counted)."""


class VGG(nn.Module):
    """(N, 3, 32, 32) -> (N, classes)."""

    def __init__(self, classes: int, input_size: int, *, depth: int) -> None:
        super().__init__()
        if input_size < 32:
            raise ValueError(f"five poolings need at least 32 pixels, got {input_size}")
        layers: list[nn.Module] = []
        inputs = 3
        for width, count in zip(WIDTHS, CONVOLUTIONS[depth], strict=True):
            for _ in range(count):
                layers += [nn.Conv2d(inputs, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
                inputs = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.pool(self.features(x)).flatten(1))


RECIPES = recipes("vgg")


def _spec(depth: int) -> ModelSpec:
    return ModelSpec(
        name=f"vgg{depth}",
        summary=f"VGG{depth} with batch normalisation, RGB 32 x 32 images",
        build=partial(VGG, depth=depth),
        recipe=RECIPES[DEFAULT],
        recipes=RECIPES,
        sample=sample(f"vgg{depth}"),
    )


VGG11, VGG13, VGG16, VGG19 = (_spec(depth) for depth in CONVOLUTIONS)
