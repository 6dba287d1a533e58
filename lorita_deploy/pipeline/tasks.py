"""The two tasks the command line knows: a labelled data set, and a folder of unlabelled images.

With unlabelled images, agreement with the dense network stands in for accuracy, and is called that. Half of the images
calibrate, the other half judges.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import BadData
from ..measure.accuracy import accuracy, agreement
from ..measure.fidelity import flatten
from ..ports import Task
from .context import EVALUATION_BATCH, Build

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..records import Accuracy
    from ..train.splits import Batches

CALIBRATION_BATCH = 32
GOLDEN = 8
"""Examples that are shipped with the artifact to prove it by."""


class InputsOnly:
    """Batches without their targets; can be iterated more than once."""

    def __init__(self, batches: Batches) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        for batch in self.batches:
            yield tuple(batch[:-1])


def labelled_task(build: Build) -> Task:
    """Judged by accuracy on the validation split; calibrated on training images, or on a folder of images."""
    dataset = build.dataset

    def evaluate(module: nn.Module) -> Accuracy:
        return accuracy(module, dataset.batches("validation", EVALUATION_BATCH), "validation")

    def test(module: nn.Module) -> Accuracy:
        return accuracy(module, dataset.batches("test", EVALUATION_BATCH), "test")

    if build.options.calibration:
        calibration: Iterable[tuple[Tensor, ...]] = _images(build, mean=build.data.mean, std=build.data.std)
    else:
        calibration = InputsOnly(dataset.batches("train", CALIBRATION_BATCH, limit=build.options.calibration_samples))
    golden = next(iter(InputsOnly(dataset.batches("validation", GOLDEN, limit=GOLDEN))))
    return Task(examples=(golden[0][:1],), calibration=calibration, evaluate=evaluate, test=test, golden=golden)


def images_task(build: Build) -> Task:
    """Judged by agreement with the dense network on the second half of the images, calibrated on the first."""
    batches = _images(build, mean=build.data.mean, std=build.data.std)
    first, second = _halves(batches)
    reference: list[Tensor] = []

    def evaluate(module: nn.Module) -> Accuracy:
        if not reference:
            reference.extend(_outputs(build.dense, second))
        return agreement(module, reference, second, "calibration")

    golden = (second[0][0][:GOLDEN],)
    return Task(examples=(golden[0][:1],), calibration=first, evaluate=evaluate, golden=golden)


def _images(build: Build, *, mean: tuple[float, ...], std: tuple[float, ...]) -> list[tuple[Tensor, ...]]:
    from ..train.datasets import load_images

    assert build.options.calibration is not None
    limit = 2 * build.options.calibration_samples
    batches = load_images(Path(build.options.calibration), shape=build.shape, mean=mean, std=std, limit=limit)
    return [batch if isinstance(batch, tuple) else (batch,) for batch in batches]


def _halves(batches: list[tuple[Tensor, ...]]) -> tuple[list[tuple[Tensor, ...]], list[tuple[Tensor, ...]]]:
    """Every other image, so that folders sorted by kind are split fairly."""
    import torch

    images = torch.cat(list(chain.from_iterable(batches)))
    if len(images) < 2:
        raise BadData("one image is too few: half of them calibrate, the other half judges", fix="give some dozens of images")
    halves = (images[0::2], images[1::2])
    return tuple([(part,) for part in torch.split(half, CALIBRATION_BATCH)] for half in halves)  # type: ignore[return-value]


def _outputs(module: nn.Module, batches: Iterable[tuple[Tensor, ...]]) -> list[Tensor]:
    import torch

    device = next(module.parameters()).device
    with torch.inference_mode():
        return [next(flatten(module(*(x.to(device) for x in batch)))).cpu() for batch in batches]
