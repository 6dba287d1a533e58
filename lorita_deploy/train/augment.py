"""Random changes of a training batch, as tensor operations on uint8 images, wherever these lie."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad


def augment(images: Tensor, changes: Sequence[str], generator: torch.Generator) -> Tensor:
    """uint8 (N, C, H, W) -> same shape. ``generator`` is a CPU generator, so that every device draws the same numbers.

    ``flip`` mirrors an image with probability 1/2; ``crop`` shifts it by up to an eighth of its size, black beyond the edge.
    """
    if "flip" in changes:
        mirrored = torch.rand(len(images), generator=generator).lt(0.5).to(images.device)
        images = torch.where(mirrored.view(-1, 1, 1, 1), images.flip(3), images)
    if "crop" in changes:
        images = _shifted(images, generator)
    return images


def _shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    count, _, height, width = images.shape
    margins = (height // 8, width // 8)
    padded = pad(images, (margins[1], margins[1], margins[0], margins[0]))
    rows, columns = (
        torch.randint(2 * margin + 1, (count, 1), generator=generator).add(torch.arange(size)).to(images.device)
        for margin, size in zip(margins, (height, width), strict=True)
    )
    which = torch.arange(count, device=images.device).view(-1, 1, 1)
    return padded[which, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)  # the gather gives (N, H, W, C)
