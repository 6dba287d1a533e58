"""Image files: found, decoded by a pool of threads, resized, as uint8 tensors (N, C, H, W).

`ImageFiles` is indexed like the tensor it stands for, so that a folder that does not fit into memory is used in the same
way as one that does.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from ..errors import BadData

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"})
Shape = tuple[int, int, int]
"""(channels, height, width); one channel is grey, three are RGB."""

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""What torchvision's and most of timm's classifiers were trained with (torchvision, "Models and pre-trained weights")."""


class ImageFiles:
    """Images on disk, decoded when they are asked for."""

    def __init__(self, paths: Sequence[Path], shape: Shape) -> None:
        self.paths = list(paths)
        self.shape = shape

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: slice | Tensor) -> Tensor:
        """uint8 (N, C, H, W). Raises `BadData` naming an image that cannot be read."""
        if isinstance(index, slice):
            return decode(self.paths[index], self.shape)
        return decode([self.paths[i] for i in index.tolist()], self.shape)

    def __iter__(self) -> Iterator[Tensor]:
        """One image after another; so that ``for`` ends."""
        return (self[i : i + 1][0] for i in range(len(self)))


Images = Tensor | ImageFiles


def find_images(folder: Path) -> list[Path]:
    """The image files under ``folder``, sorted; hidden files and other suffixes are passed over."""
    found = (
        Path(place) / name
        for place, _, names in os.walk(folder, followlinks=True)
        for name in names
        if not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES
    )
    return sorted(found)


def decode(paths: Sequence[Path], shape: Shape) -> Tensor:
    """uint8 (N, C, H, W): resized (bilinear) to cover the shape, then cut to its centre. Raises `BadData`."""
    channels, height, width = shape
    images = np.empty((len(paths), height, width, channels), dtype=np.uint8)

    def read(part: range) -> None:
        for i in part:
            images[i] = _read(paths[i], shape)

    workers = os.cpu_count() or 1
    step = max(1, min(256, -(-len(paths) // workers)))
    parts = [range(start, min(start + step, len(paths))) for start in range(0, len(paths), step)]
    with ThreadPoolExecutor(workers) as pool:  # PIL decodes outside the interpreter lock
        for _ in pool.map(read, parts):
            pass
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


def _read(path: Path, shape: Shape) -> NDArray[np.uint8]:
    channels, height, width = shape
    mode = "L" if channels == 1 else "RGB"
    try:
        with Image.open(path) as file:
            file.draft(mode, (width, height))  # lets the JPEG decoder skip detail that resizing would drop
            image = file.convert(mode)
            if image.size != (width, height):
                image = ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)
            return np.asarray(image).reshape(height, width, channels)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise BadData(
            f"this image cannot be read: {error}", where=path, fix="replace the file or take it out of the folder"
        ) from error


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


def load_images(
    path: Path | str,
    *,
    shape: Shape,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    limit: int = 256,
    batch_size: int = 32,
) -> ImageBatches:
    """Batches of inputs from a folder of images, flat or nested; labels, if any, are not looked at.

    Up to ``limit`` images, evenly spaced over the sorted names (so that class folders are mixed). ``mean`` and ``std`` are
    per channel, of pixels in 0..1; ImageNet's when not given. Raises `BadData`.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise BadData("there is no such folder", where=folder, fix="give a folder of images")
    paths = find_images(folder)
    if not paths:
        raise BadData("the folder holds no images", where=folder, fix=f"put images there ({', '.join(sorted(SUFFIXES))})")
    chosen = [paths[i] for i in evenly_spaced(len(paths), limit).tolist()]
    return ImageBatches(
        decode(chosen, shape),
        _per_channel(mean, IMAGENET_MEAN, shape[0]),
        _per_channel(std, IMAGENET_STD, shape[0]),
        batch_size,
    )


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """float32 (N, C, H, W) from uint8, on the device of ``images``: (pixel / 255 - mean) / std per channel."""
    scale = torch.tensor([1 / (255 * s) for s in std], device=images.device).view(1, -1, 1, 1)
    shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], device=images.device).view(1, -1, 1, 1)
    return images.float().mul_(scale).add_(shift)


def evenly_spaced(count: int, limit: int | None) -> Tensor:
    """At most ``limit`` of the indices 0 .. count-1, evenly spaced."""
    if limit is None or limit >= count:
        return torch.arange(count)
    return torch.arange(limit) * count // limit


def _per_channel(given: Sequence[float] | None, imagenet: Sequence[float], channels: int) -> tuple[float, ...]:
    if given is not None:
        return tuple(given)
    return tuple(imagenet) if channels == 3 else (sum(imagenet) / 3,) * channels
