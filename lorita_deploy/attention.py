"""Where a network has attention of plain projections, whose heads can be treated one by one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Attention:
    """Names of the four linear layers of one attention; whoever names them vouches that the head width is read from them."""

    q: str
    k: str
    v: str
    o: str
    heads: int


def attentions(module: nn.Module) -> tuple[Attention, ...]:
    """Attentions of plain projections, opened ones and those built like the sample ViT's: linear layers called q, k, v and o
    beside ``heads`` and a fixed ``scale``; not where a parametrization computes their weights."""
    from torch import nn

    found = []
    for name, part in module.named_modules():
        layers = [getattr(part, child, None) for child in "qkvo"]
        numbers = isinstance(getattr(part, "heads", None), int) and hasattr(part, "scale")
        if numbers and all(isinstance(layer, nn.Linear) and not hasattr(layer, "parametrizations") for layer in layers):
            q, k, v, o = (f"{name}.{child}".lstrip(".") for child in "qkvo")
            found.append(Attention(q, k, v, o, part.heads))
    return tuple(found)
