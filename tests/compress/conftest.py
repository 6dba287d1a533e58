"""A small network with residuals, strides and batch norm, really trained on scikit-learn's digits (seconds)."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from lorita_deploy.networks import survey
from lorita_deploy.ports import Task
from lorita_deploy.records import Accuracy, Geometry


class SmallNet(nn.Module):
    """Convolutions 3x3, strided and 1x1, one residual sum, two linear layers. Inputs (N, 1, 16, 16)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(inplace=True))
        self.down = nn.Sequential(nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU())
        self.inner = nn.Sequential(nn.Conv2d(32, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32))
        self.point = nn.Conv2d(32, 48, 1)
        self.hidden = nn.Linear(48 * 16, 64)
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(self.stem(x))
        x = functional.relu(x + self.inner(x))
        x = functional.max_pool2d(functional.relu(self.point(x)), 2)
        return self.head(functional.relu(self.hidden(x.flatten(1))))


@dataclass
class Trained:
    """The network, images and labels of its splits, and what the rooms need to know."""

    module: SmallNet
    train: Tensor
    held_out: Tensor
    labels: Tensor
    task: Task
    geometries: dict[str, Geometry]

    def correct(self, module: nn.Module) -> int:
        """Right answers on the held-out images."""
        with torch.no_grad():
            return int((module.eval()(self.held_out).argmax(1) == self.labels).sum())


@pytest.fixture(scope="session")
def trained() -> Trained:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 8 - 1
    images = functional.interpolate(images, size=16, mode="bilinear")
    labels = torch.tensor(digits.target)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    train, held_out = order[:1200], order[1200:]

    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = SmallNet()
        epochs, batch = 6, 50
        optimizer = torch.optim.SGD(module.parameters(), 0.02, momentum=0.9, weight_decay=5e-4)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.05, total_steps=epochs * len(train) // batch)
        for _ in range(epochs):
            for chosen in train[torch.randperm(len(train))].split(batch):
                loss = functional.cross_entropy(module(images[chosen]), labels[chosen], label_smoothing=0.05)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
    module.eval()

    def evaluate(candidate: nn.Module) -> Accuracy:
        with torch.no_grad():
            right = (candidate.eval()(images[held_out]).argmax(1) == labels[held_out]).sum()
        return Accuracy(metric="accuracy", split="validation", correct=float(right), total=len(held_out))

    task = Task(
        examples=(images[train[:1]],),
        calibration=[(part,) for part in images[train].split(100)],
        evaluate=evaluate,
    )
    geometries = survey(module, task.examples).geometries
    return Trained(module, images[train], images[held_out], labels[held_out], task, geometries)
