"""Checkpoints of the published LoRITa code, collapsed: each weight is stored as a chain of layers run one after the other.

``<layer>.compress_0`` is applied first, then ``compress_1``, ...: a convolution and 1x1 convolutions, or linear layers
(named ``<layer>.net1.compress_*``). The last one carries the bias. As matrices W = W_k ... W_1 W_0, in float64.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import BadCheckpoint
from ..networks import read_weights

if TYPE_CHECKING:
    from torch import Tensor

FACTOR = re.compile(r"(?P<layer>.+?)(\.net1)?\.compress_(?P<place>\d+)\.(?P<part>weight|bias)$")
RESNET = (("conv1.", "conv."), ("bn1.", "bn."), *((f"layer{k + 1}.", f"stages.{k}.") for k in range(3)), ("linear.", "head."))
"""Beginnings of the published ResNets' names, and of ours."""


def read_published(path: Path) -> dict[str, Tensor]:
    """The plain state dict of a published checkpoint, under the names of our sample models.

    Raises `BadCheckpoint` for a damaged file, and for chains that are broken or do not fit together.
    """
    return {_renamed(name): tensor for name, tensor in collapse_chains(read_weights(path), where=path).items()}


def collapse_chains(tensors: Mapping[str, Tensor], *, where: object = None) -> dict[str, Tensor]:
    """Chains multiplied out, everything else as it is; names without the chain's parts."""
    plain: dict[str, Tensor] = {}
    chains: dict[str, dict[int, Tensor]] = {}
    for name, tensor in tensors.items():
        found = FACTOR.match(name)
        if found is None:
            plain[name] = tensor
        elif found["part"] == "bias":
            plain[f"{found['layer']}.bias"] = tensor
        else:
            chains.setdefault(found["layer"], {})[int(found["place"])] = tensor
    if not chains:
        raise BadCheckpoint("holds no compress_* factors", where=where, fix="leave out --checkpoint-format for plain weights")
    for layer, factors in chains.items():
        if sorted(factors) != list(range(len(factors))):
            raise BadCheckpoint(f"factors of {layer} are missing: there are {sorted(factors)}", where=where)
        plain[f"{layer}.weight"] = _product(layer, [factors[place] for place in range(len(factors))], where)
    return plain


def _product(layer: str, chain: list[Tensor], where: object) -> Tensor:
    first, *squares = chain
    matrix = first.double().flatten(1)
    for square in squares:
        if square[0].numel() != len(matrix):
            raise BadCheckpoint(f"the factors of {layer} do not fit: {[tuple(each.shape) for each in chain]}", where=where)
        matrix = square.double().flatten(1) @ matrix
    return matrix.reshape(len(matrix), *first.shape[1:]).to(first.dtype)


def _renamed(name: str) -> str:
    for theirs, ours in RESNET:
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return name
