"""Image files: found, decoded by a pool of threads, resized, as uint8 tensors (N, C, H, W).

`ImageFiles` is indexed like the tensor it stands for, so that a folder that does not fit into memory is used in the same
way as one that does.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn.functional import interpolate

from ..errors import BadData

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"})
Shape = tuple[int, int, int]
"""(channels, height, width); one channel is grey, three are RGB."""

CHUNK = 4096
"""Images resized, summed or hashed together."""


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
            image = _eight_bits(file).convert(mode)
            if image.size != (width, height):
                image = ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)
            return np.asarray(image).reshape(height, width, channels)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise BadData(
            f"this image cannot be read: {error}", where=path, fix="replace the file or take it out of the folder"
        ) from error


def _eight_bits(image: Image.Image) -> Image.Image:
    """An image of 16 bits with the same tones in 8, which PIL would cut off at 255. Raises ``ValueError`` for types of pixels
    that do not say what is white."""
    if image.mode.startswith("I;16"):
        return Image.fromarray(np.rint(np.asarray(image) / 257).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of type {image.mode} do not say what is white; save it with 8 or 16 bits")
    return image


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
