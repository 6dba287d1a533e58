"""Random changes of a training batch, as tensor operations on uint8 images, wherever these lie."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

ALL = slice(None)


def augment(
    images: Tensor, changes: Sequence[str], generator: torch.Generator, *, of: int | None = None, part: slice = ALL
) -> Tensor:
    """uint8 (N, C, H, W) -> same shape. ``generator`` is a CPU generator, so that every device draws the same numbers.

    ``flip`` mirrors an image with probability 1/2; ``crop`` shifts it by up to an eighth of its size, black beyond the edge.
    ``images`` may be the ``part`` of a batch ``of`` so many: they change as they do in the whole batch.
    """
    count = len(images) if of is None else of
    if "flip" in changes:
        mirrored = torch.rand(count, generator=generator).lt(0.5)[part].to(images.device)
        images = torch.where(mirrored.view(-1, 1, 1, 1), images.flip(3), images)
    if "crop" in changes:
        images = _shifted(images, generator, count, part)
    return images


def _shifted(images: Tensor, generator: torch.Generator, count: int, part: slice) -> Tensor:
    height, width = images.shape[2:]
    margins = (height // 8, width // 8)
    padded = pad(images, (margins[1], margins[1], margins[0], margins[0]))
    rows, columns = (
        torch.randint(2 * margin + 1, (count, 1), generator=generator)[part].add(torch.arange(size)).to(images.device)
        for margin, size in zip(margins, (height, width), strict=True)
    )
    which = torch.arange(len(images), device=images.device).view(-1, 1, 1)
    return padded[which, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)  # the gather gives (N, H, W, C)
