"""How the points of compressors.py are tuned on and judged: the same images in the same order for all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from lorita_deploy.measure.accuracy import artifact_accuracy, predictions
from lorita_deploy.pipeline.context import EVALUATION_BATCH, Build
from lorita_deploy.pipeline.tasks import InputsOnly

if TYPE_CHECKING:
    from torch import Tensor, nn

    from lorita_deploy.train.splits import Batches

BATCH = 64


def shuffled(start: Build, limit: int | None = None) -> Batches:
    """Training images with labels in one random order, the same for all: folders come sorted by class."""
    import torch

    batches = start.dataset.batches("train", BATCH, limit=limit)
    order = torch.randperm(len(batches.indices), generator=torch.Generator().manual_seed(0))
    return replace(batches, indices=batches.indices[order])


def better(start: Build, network: nn.Module, other: nn.Module) -> nn.Module:
    """``other`` unless it is wrong on more validation images than ``network``."""
    return other if start.task.evaluate(other).value >= start.task.evaluate(network).value else network


def wrong_answers(start: Build, path: Path) -> list[int]:
    """Numbers of the test images that the artifact is wrong about, in ONNX Runtime."""
    session, names = start.exporter.open(path), start.task.input_names

    def right(one: tuple[Tensor, Tensor]) -> bool:
        return artifact_accuracy(session, names, [one], "test").correct == 1

    return [number for number, one in enumerate(start.dataset.batches("test", 1)) if not right(one)]


def wrong_in_torch(start: Build, network: nn.Module) -> list[int]:
    """The same of the network itself, for those that are not exported."""
    batches = list(start.dataset.batches("test", EVALUATION_BATCH))
    found = zip(predictions(network, InputsOnly(batches)), batches, strict=True)
    right = [each for classes, (_, labels) in found for each in (classes == labels).tolist()]
    return [number for number, each in enumerate(right) if not each]
