"""Images with labels: split, described, and handed out in batches."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ..errors import BadData
from ..records import Augmentation, DataSummary
from .images import CHUNK, ImageFiles, Images, Shape, evenly_spaced, normalise

SplitName = Literal["train", "validation", "test"]

LOOKED_AT = 100_000
"""Of a larger split only so many images give the mean and the digest: folders that stream from disk are not read twice."""

VALIDATION_SHARE, VALIDATION_MOST = 0.1, 5000
"""What is taken from train/ where no validation split is given: a share of each class, and at most so many images."""


@dataclass(frozen=True)
class Split:
    """Images with their labels."""

    images: Images
    """uint8 (N, C, H, W), or files that are decoded when indexed."""
    labels: Tensor
    """int64 (N,)"""

    def __len__(self) -> int:
        return len(self.labels)

    def looked_at(self) -> Iterator[Tensor]:
        """At most `LOOKED_AT` images, evenly spaced, in chunks."""
        if len(self) <= LOOKED_AT:
            yield from (self.images[start : start + CHUNK] for start in range(0, len(self), CHUNK))
        else:
            yield from (self.images[index] for index in torch.split(evenly_spaced(len(self), LOOKED_AT), CHUNK))


@dataclass(frozen=True)
class Batches:
    """(inputs, labels): normalised float32 (B, C, H, W) and int64 (B,), in a fixed order; can be iterated more than once."""

    split: Split
    indices: Tensor
    batch_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for index in torch.split(self.indices, self.batch_size):
            yield normalise(self.split.images[index], self.mean, self.std), self.split.labels[index]

    def __len__(self) -> int:
        return -(-len(self.indices) // self.batch_size)


@dataclass(frozen=True)
class ImageBatches:
    """Batches of normalised float32 inputs, without labels; can be iterated more than once."""

    images: Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]
    batch_size: int

    def __iter__(self) -> Iterator[tuple[Tensor]]:
        for start in range(0, len(self.images), self.batch_size):
            yield (normalise(self.images[start : start + self.batch_size], self.mean, self.std),)

    def __len__(self) -> int:
        return -(-len(self.images) // self.batch_size)


@dataclass(frozen=True)
class Dataset:
    """What a network is trained and judged on."""

    summary: DataSummary
    splits: dict[str, Split]
    augment: tuple[Augmentation, ...]
    """The changes that leave the labels true: a mirrored digit is no digit."""

    def split(self, name: SplitName) -> Split:
        return self.splits[name]

    def batches(self, split: SplitName, batch_size: int, *, limit: int | None = None, seed: int | None = None) -> Batches:
        """Batches of one split; ``limit`` takes that many images, evenly spaced over the split.

        In the order of the split, where a folder's images are sorted by class, or with ``seed`` in a random one.
        """
        chosen = self.splits[split]
        index = evenly_spaced(len(chosen), limit)
        if seed is not None:
            index = index[torch.randperm(len(index), generator=torch.Generator().manual_seed(seed))]
        return Batches(chosen, index, batch_size, self.summary.mean, self.summary.std)

    def normalised(self, mean: tuple[float, ...], std: tuple[float, ...]) -> Dataset:
        """The same images, as a network that was trained elsewhere wants them."""
        return replace(self, summary=self.summary.model_copy(update={"mean": mean, "std": std}))


def carve(whole: Split, share: float, seed: int) -> tuple[Split, Split]:
    """(rest, part): ``share`` of every class into the second split; the same for the same labels and seed."""
    generator = np.random.RandomState(seed)  # its stream is frozen across numpy versions
    share = min(share, VALIDATION_MOST / len(whole))
    labels = whole.labels.numpy()
    part = np.zeros(len(labels), dtype=bool)
    for k in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == k))
        take = round(share * len(members)) or int(len(members) > 1)
        part[members[:take]] = True
    if not part.any():
        raise BadData("too few images to split off some for validation", fix="give at least two images of each class in train/")
    return tuple(_subset(whole, torch.from_numpy(np.flatnonzero(mask))) for mask in (~part, part))  # type: ignore[return-value]


def _subset(split: Split, index: Tensor) -> Split:
    images = split.images
    chosen = (
        ImageFiles([images.paths[i] for i in index.tolist()], images.shape) if isinstance(images, ImageFiles) else images[index]
    )
    return Split(chosen, split.labels[index])


def describe(
    name: str,
    source: str,
    classes: tuple[str, ...],
    shape: Shape,
    splits: dict[str, Split],
    augment: tuple[Augmentation, ...],
) -> Dataset:
    total = hashlib.sha256()
    sums, squares = torch.zeros(shape[0], dtype=torch.float64), torch.zeros(shape[0], dtype=torch.float64)
    for word in ("train", "validation", "test"):
        split = splits[word]
        total.update(f"{word}|{len(split)}|{shape}|".encode())
        total.update(split.labels.numpy().tobytes())
        for chunk in split.looked_at():
            total.update(chunk.contiguous().numpy().tobytes())
            if word == "train":
                pixels = chunk.float().div_(255)
                sums += pixels.sum((0, 2, 3)).double()
                squares += pixels.square_().sum((0, 2, 3)).double()
    count = min(len(splits["train"]), LOOKED_AT) * shape[1] * shape[2]
    mean = sums / count
    std = (squares / count - mean.square()).clamp(min=(1 / 255) ** 2).sqrt()  # a constant channel is not blown up
    summary = DataSummary(
        name=name,
        source=source,
        classes=classes,
        shape=shape,
        mean=tuple(round(float(value), 6) for value in mean),
        std=tuple(round(float(value), 6) for value in std),
        counts={word: len(splits[word]) for word in ("train", "validation", "test")},
        content_sha256=total.hexdigest(),
    )
    return Dataset(summary, splits, augment)
