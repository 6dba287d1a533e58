"""A small vision transformer for 32 x 32 images (Dosovitskiy et al., arXiv 2010.11929), pre-norm, without dropout.

Queries, keys and values are projections of their own, so that each is a weight matrix of its own. The head width is
whatever the projections give, while the softmax keeps its scale: a narrower head is still the same function.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lorita_deploy.ports import ModelSpec

from .shipped import DEFAULT, recipes, sample


class Attention(nn.Module):
    """(N, T, width) -> same, T tokens."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.q = nn.Linear(width, width)
        self.k = nn.Linear(width, width)
        self.v = nn.Linear(width, width)
        self.o = nn.Linear(width, width)
        self.heads = heads
        self.scale = (width // heads) ** -0.5

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        weights = (q @ k.transpose(2, 3) * self.scale).softmax(-1)
        return self.o((weights @ v).transpose(1, 2).flatten(2))


class Encoder(nn.Module):
    """One layer: attention, then two linear layers, each on normalised inputs and beside a shortcut."""

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class VisionTransformer(nn.Module):
    """(N, 3, size, size) -> (N, classes), from the mean over the tokens."""

    def __init__(
        self,
        classes: int,
        input_size: int,
        *,
        patch: int = 4,
        width: int = 192,
        depth: int = 6,
        heads: int = 6,
        inner: int = 384,
    ) -> None:
        super().__init__()
        if input_size % patch:
            raise ValueError(f"the input size must be a multiple of {patch}, got {input_size}")
        self.patches = nn.Conv2d(3, width, patch, stride=patch)
        self.position = nn.Parameter(torch.zeros(1, (input_size // patch) ** 2, width))
        nn.init.normal_(self.position, std=0.5)  # as large as an embedded patch: a short training has no time to grow it
        self.encoder = nn.Sequential(*(Encoder(width, heads, inner) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2) + self.position
        return self.head(self.norm(self.encoder(x)).mean(1))


RECIPES = recipes("vit")

VIT = ModelSpec(
    name="vit",
    summary="vision transformer, 6 layers of width 192, 4 x 4 patches of RGB 32 x 32 images",
    build=VisionTransformer,
    recipe=RECIPES[DEFAULT],
    recipes=RECIPES,
    sample=sample("vit"),
)
