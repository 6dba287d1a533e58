"""Random changes of a training batch, as tensor operations on uint8 images, wherever these lie.

All numbers are drawn for the whole batch, by a generator on the CPU, so that every device and every process draws the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample, pad

from ..records import Augmentation

ALL = slice(None)

AREA, ASPECT = (0.25, 1.0), (3 / 4, 4 / 3)
"""Of what ``zoom`` cuts out: as a share of the image, and width over height (Szegedy et al., arXiv 1409.4842)."""


def augment(
    images: Tensor, changes: Sequence[Augmentation], generator: torch.Generator, *, of: int | None = None, part: slice = ALL
) -> Tensor:
    """uint8 (N, C, H, W) -> same shape, after all ``changes`` in their order.

    ``flip`` mirrors an image with probability 1/2; ``crop`` shifts it by up to an eighth of its size, black beyond the edge;
    ``zoom`` cuts out a rectangle of between a quarter of the area and all of it and enlarges it to the whole; ``erase`` makes a
    square of half the size black, which may reach beyond the edge (Cutout, arXiv 1708.04552).
    ``images`` may be the ``part`` of a batch ``of`` so many: they change as they do in the whole batch.
    """
    count = len(images) if of is None else of
    for change in changes:
        images = CHANGES[change](images, _Draw(generator, count, part, images.device))
    return images


class _Draw:
    """Random numbers for some images of a batch."""

    def __init__(self, generator: torch.Generator, count: int, part: slice, device: torch.device) -> None:
        self.generator, self.count, self.part, self.device = generator, count, part, device

    def share(self) -> Tensor:
        """(N,), in [0, 1)."""
        return torch.rand(self.count, generator=self.generator)[self.part].to(self.device)

    def whole(self, below: int) -> Tensor:
        """(N, 1), of 0 ... ``below`` - 1."""
        return torch.randint(below, (self.count, 1), generator=self.generator)[self.part].to(self.device)


def _mirrored(images: Tensor, draw: _Draw) -> Tensor:
    return torch.where(draw.share().lt(0.5).view(-1, 1, 1, 1), images.flip(3), images)


def _shifted(images: Tensor, draw: _Draw) -> Tensor:
    height, width = images.shape[2:]
    margins = (height // 8, width // 8)
    padded = pad(images, (margins[1], margins[1], margins[0], margins[0]))
    rows, columns = (
        draw.whole(2 * margin + 1) + torch.arange(size, device=images.device)
        for margin, size in zip(margins, (height, width), strict=True)
    )
    which = torch.arange(len(images), device=images.device).view(-1, 1, 1)
    return padded[which, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)  # the gather gives (N, H, W, C)


def _zoomed(images: Tensor, draw: _Draw) -> Tensor:
    """An affine map takes places of the result, from -1 to 1 on each axis, to places in the image."""
    area = AREA[0] + (AREA[1] - AREA[0]) * draw.share()
    low, high = map(math.log, ASPECT)
    aspect = (low + (high - low) * draw.share()).exp()
    sizes = [(area * aspect).sqrt().clamp(max=1), (area / aspect).sqrt().clamp(max=1)]  # width, height
    theta = torch.zeros(len(images), 2, 3, device=images.device)
    for axis, size in enumerate(sizes):
        theta[:, axis, axis] = size
        theta[:, axis, 2] = (1 - size) * (2 * draw.share() - 1)
    grid = affine_grid(theta, list(images.shape), align_corners=False)
    found = grid_sample(images.float(), grid, padding_mode="border", align_corners=False)
    return found.round_().to(images.dtype)


def _erased(images: Tensor, draw: _Draw) -> Tensor:
    inside = []
    for size in images.shape[2:]:
        start = draw.whole(size) - size // 4  # its middle may lie anywhere
        place = torch.arange(size, device=images.device)
        inside.append((place >= start) & (place < start + size // 2))
    rows, columns = inside
    return images.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], 0)


CHANGES: dict[Augmentation, Callable[[Tensor, _Draw], Tensor]] = {
    "flip": _mirrored,
    "crop": _shifted,
    "zoom": _zoomed,
    "erase": _erased,
}
