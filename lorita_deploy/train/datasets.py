"""Data sets by name: split, described, kept in memory as uint8 (where it fits) so that loading is never the bottleneck.

    digits                                       scikit-learn's 1,797 handwritten digits; needs no file and no network
    mnist, fashion-mnist, cifar10, cifar100      torchvision's loaders, from ``root`` or $LORITA_DATA
    folder:PATH                                  train/<class>/*, with test/ and/or val/ beside train/

Where a data set comes without a validation split, a tenth of each class (at most 5,000 images in all) is taken from
train/. Where a folder has val/ but no test/, val/ is kept for the test, looked at once (as is usual with ImageNet).
"""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ..errors import BadData, UnknownName
from ..records import DataSummary
from .images import ImageFiles, Images, Shape, evenly_spaced, find_images, normalise

SplitName = Literal["train", "validation", "test"]
Augmentation = Literal["flip", "crop"]

TORCHVISION = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST", "cifar10": "CIFAR10", "cifar100": "CIFAR100"}
KNOWN = ("digits", *TORCHVISION, "folder:PATH")

VALIDATION_SHARE, VALIDATION_MOST = 0.1, 5000
MEMORY_SHARE = 0.4
"""Of the free memory, that images kept as uint8 may take."""
CHUNK = 4096
"""Images looked at together when pixels are summed or hashed."""


@dataclass(frozen=True)
class Split:
    """Images with their labels."""

    images: Images
    """uint8 (N, C, H, W), or files that are decoded when indexed."""
    labels: Tensor
    """int64 (N,)"""

    def __len__(self) -> int:
        return len(self.labels)

    def chunks(self) -> Iterator[Tensor]:
        for start in range(0, len(self), CHUNK):
            yield self.images[start : start + CHUNK]


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
class Dataset:
    """What a network is trained and judged on."""

    summary: DataSummary
    splits: dict[str, Split]
    augment: tuple[Augmentation, ...]
    """The changes that leave the labels true: a mirrored digit is no digit."""

    def split(self, name: SplitName) -> Split:
        return self.splits[name]

    def batches(self, split: SplitName, batch_size: int, *, limit: int | None = None) -> Batches:
        """Batches of one split; ``limit`` takes that many images, evenly spaced over the split."""
        chosen = self.splits[split]
        return Batches(chosen, evenly_spaced(len(chosen), limit), batch_size, self.summary.mean, self.summary.std)


def load_dataset(name: str, *, shape: Shape, seed: int = 0, root: Path | str | None = None) -> Dataset:
    """The data set called ``name``, resized to ``shape`` (C, H, W), split by ``seed``.

    ``root`` holds torchvision's data sets (default: $LORITA_DATA, then ~/.cache/lorita-deploy/data). Raises `UnknownName` and
    `BadData`.
    """
    if name == "digits":
        return _digits(shape, seed)
    if name in TORCHVISION:
        return _torchvision(name, shape, seed, root)
    if name.startswith("folder:"):
        return _folder(Path(name.removeprefix("folder:")).expanduser(), shape, seed)
    raise UnknownName("data set", name, KNOWN, fix="an image folder with train/ and test/ is given as folder:PATH")


# ---------------------------------------------------------------------------------------------- sources


def _digits(shape: Shape, seed: int) -> Dataset:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels = torch.from_numpy(bunch.images).mul(255 / 16).round().to(torch.uint8)[:, None]  # 8 x 8, values 0..16
    everything = Split(fit(pixels, shape), torch.from_numpy(bunch.target).long())
    rest, test = _carve(everything, 0.2, seed)
    train, validation = _carve(rest, 0.15 / 0.8, seed)
    splits = {"train": train, "validation": validation, "test": test}
    return _describe("digits", "scikit-learn load_digits", tuple("0123456789"), shape, splits, ("crop",))


def _torchvision(name: str, shape: Shape, seed: int, root: Path | str | None) -> Dataset:
    import torchvision.datasets

    place = Path(root or os.environ.get("LORITA_DATA") or Path.home() / ".cache" / "lorita-deploy" / "data").expanduser()
    loader = getattr(torchvision.datasets, TORCHVISION[name])
    try:
        parts = [loader(place, train=train, download=False) for train in (True, False)]
    except (RuntimeError, OSError):
        parts = [_download(loader, name, place, train) for train in (True, False)]
    classes = tuple(str(each) for each in parts[0].classes)
    whole, test = (Split(fit(_pixels(part.data), shape), torch.as_tensor(part.targets).long()) for part in parts)
    train, validation = _carve(whole, VALIDATION_SHARE, seed)
    splits = {"train": train, "validation": validation, "test": test}
    augment: tuple[Augmentation, ...] = ("crop",) if name == "mnist" else ("flip", "crop")
    return _describe(name, f"torchvision {TORCHVISION[name]}", classes, shape, splits, augment)


def _download(loader: Any, name: str, place: Path, train: bool) -> Any:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(20)
    try:
        return loader(place, train=train, download=True)
    except (RuntimeError, OSError) as error:
        raise BadData(
            f"{name} is not there and cannot be downloaded: {error}",
            where=place,
            fix=f"put torchvision's files for {loader.__name__} there (or set LORITA_DATA to where they are), "
            "or use an image folder with train/ and test/: --data folder:PATH",
        ) from error
    finally:
        socket.setdefaulttimeout(before)


def _pixels(data: Any) -> Tensor:
    """torchvision keeps (N, H, W) tensors or (N, H, W, C) arrays."""
    images = torch.as_tensor(data)
    return images[:, None] if images.dim() == 3 else images.permute(0, 3, 1, 2)


def _folder(path: Path, shape: Shape, seed: int) -> Dataset:
    if not path.is_dir():
        raise BadData("there is no such folder", where=path, fix="check the path behind folder:")
    places = {word: path / word for word in ("train", "val", "test") if (path / word).is_dir()}
    if "train" not in places or len(places) < 2:
        raise BadData(
            "an image folder needs train/ and test/ (or val/) with one folder per class in each",
            where=path,
            fix="make PATH/train/<class>/ and PATH/test/<class>/ and move the images there",
        )
    classes = tuple(sorted(each.name for each in places["train"].iterdir() if each.is_dir() and not each.name.startswith(".")))
    if len(classes) < 2:
        raise BadData(
            f"train/ has {len(classes)} class folder(s), a classifier needs two",
            where=places["train"],
            fix="make one folder per class under train/",
        )
    splits = {word: _class_folders(place, classes, shape) for word, place in places.items()}
    empty = [each for k, each in enumerate(classes) if not (splits["train"].labels == k).any()]
    if empty:
        raise BadData(
            f"no images of class {', '.join(empty)} in train/", where=path, fix="add images or remove the class folder"
        )
    notes = []
    if "test" not in splits:
        splits["test"] = splits.pop("val")
        notes.append("test is val/")
    if "val" in splits:
        splits["validation"] = splits.pop("val")
    else:
        splits["train"], splits["validation"] = _carve(splits["train"], VALIDATION_SHARE, seed)
        notes.append("validation taken from train/")
    splits = _in_memory(splits, shape)
    return _describe(f"folder:{path.name}", "; ".join(["image folder", *notes]), classes, shape, splits, ("flip", "crop"))


def _class_folders(place: Path, classes: tuple[str, ...], shape: Shape) -> Split:
    foreign = sorted(each.name for each in place.iterdir() if each.is_dir() and each.name not in classes and find_images(each))
    if foreign:
        raise BadData(f"{place.name}/ has classes that train/ lacks: {', '.join(foreign[:5])}", where=place)
    paths: list[Path] = []
    labels: list[int] = []
    for k, each in enumerate(classes):
        found = find_images(place / each)
        paths += found
        labels += [k] * len(found)
    if not paths:
        raise BadData(
            "the folder holds no images", where=place, fix="put the images of each class into a folder of its own there"
        )
    return Split(ImageFiles(paths, shape), torch.tensor(labels))


def _in_memory(splits: dict[str, Split], shape: Shape) -> dict[str, Split]:
    """Decoded once and kept, if there is room."""
    needed = sum(len(split) for split in splits.values()) * shape[0] * shape[1] * shape[2]
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > MEMORY_SHARE * free:
        return splits
    return {name: Split(split.images[:], split.labels) for name, split in splits.items()}


# ---------------------------------------------------------------------------------------------- split and describe


def _carve(whole: Split, share: float, seed: int) -> tuple[Split, Split]:
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


def fit(images: Tensor, shape: Shape) -> Tensor:
    """uint8 images (N, c, h, w) in another shape (C, H, W): bilinear with antialiasing; grey repeated, RGB to luminance."""
    channels, height, width = shape
    if images.shape[1] == 3 and channels == 1:
        weights = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)  # ITU-R BT.601, as PIL's "L"
        images = torch.cat(
            [(part * weights).sum(1, keepdim=True).round().to(torch.uint8) for part in torch.split(images, CHUNK)]
        )
    if images.shape[2:] != (height, width):
        images = torch.cat([_resized(part, height, width) for part in torch.split(images, CHUNK)])
    return images.expand(-1, channels, -1, -1).contiguous()


def _resized(images: Tensor, height: int, width: int) -> Tensor:
    large = interpolate(images.float(), (height, width), mode="bilinear", antialias=True, align_corners=False)
    return large.round().clamp(0, 255).to(torch.uint8)


def _describe(
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
        for chunk in split.chunks():
            total.update(chunk.contiguous().numpy().tobytes())
            if word == "train":
                pixels = chunk.float().div_(255)
                sums += pixels.sum((0, 2, 3)).double()
                squares += pixels.square_().sum((0, 2, 3)).double()
    count = len(splits["train"]) * shape[1] * shape[2]
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
