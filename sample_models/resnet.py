"""ResNet20 for 32 x 32 images, with parameter-free shortcuts (He et al., arXiv 1512.03385, section 4.2, option A)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import pad

from lorita_deploy.ports import ModelSpec

from .shipped import DEFAULT, recipes, sample


class Block(nn.Module):
    """Two 3 x 3 convolutions and a shortcut: every ``stride``-th pixel, new channels zero on both sides."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU()
        self.stride = stride
        self.new_channels = (outputs - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.stride > 1 or self.new_channels:
            x = pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.new_channels, self.new_channels))
        return self.relu(x + y)


class ResNet(nn.Module):
    """(N, 3, H, W) -> (N, classes): three stages of ``blocks`` blocks, 16, 32 and 64 channels."""

    def __init__(self, classes: int, input_size: int, blocks: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(16)
        self.relu = nn.ReLU()
        stages: list[nn.Module] = []
        inputs = 16
        for width in (16, 32, 64):
            stage = [Block(inputs if k == 0 else width, width, 2 if k == 0 and width > 16 else 1) for k in range(blocks)]
            stages.append(nn.Sequential(*stage))
            inputs = width
        self.stages = nn.Sequential(*stages)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn(self.conv(x)))
        return self.head(self.pool(self.stages(x)).flatten(1))


RECIPES = recipes("resnet")

RESNET20 = ModelSpec(
    name="resnet20",
    summary="ResNet20 with parameter-free shortcuts, RGB 32 x 32 images",
    build=ResNet,
    recipe=RECIPES[DEFAULT],
    recipes=RECIPES,
    sample=sample("resnet20"),
)
