"""Weights files in factored form: where a weight W is of low rank, its two factors are stored, W = left right.

``<layer>.weight.left (m, r)`` and ``<layer>.weight.right (r, ...)``, the latter in the shape of the weight but for its first
side. Factors are balanced, all else is as it is. So a network that LoRITa trained is several times smaller on disk.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import BadCheckpoint
from ..records import write_atomically

if TYPE_CHECKING:
    from torch import Tensor

LEFT, RIGHT = ".left", ".right"
TOLERANCES = (1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5)
"""Shares of a weight's largest singular value below which directions are left out, the coarsest first."""


def multiplied_out(tensors: Mapping[str, Tensor], *, where: object = None) -> dict[str, Tensor]:
    """The plain state dict; what has no factors is as it was. Raises `BadCheckpoint` for factors that do not fit."""
    plain = {name: tensor for name, tensor in tensors.items() if not name.endswith((LEFT, RIGHT))}
    for name in (each.removesuffix(LEFT) for each in tensors if each.endswith(LEFT)):
        left, right = tensors[name + LEFT], tensors.get(name + RIGHT)
        if right is None or left.ndim != 2 or left.shape[1] != len(right):
            raise BadCheckpoint(f"the factors of {name} do not fit together", where=where, fix="copy the file again")
        product = left.double() @ right.double().flatten(1)
        plain[name] = product.to(left.dtype).reshape(len(left), *right.shape[1:])
    return plain


def factored(tensors: Mapping[str, Tensor], layers: Collection[str], tolerance: float) -> dict[str, Tensor]:
    """A plain state dict with the weights of ``layers`` as factors, where those are smaller.

    Singular values below ``tolerance`` of the largest are left out.
    """
    import torch

    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        rank = 0
        if name.removesuffix(".weight") in layers and name.endswith(".weight"):
            u, s, vh = torch.linalg.svd(tensor.double().flatten(1), full_matrices=False)
            rank = int((s > tolerance * s[0]).sum())
            smaller = rank * (len(tensor) + tensor[0].numel()) < tensor.numel()
        if not rank or not smaller:
            found[name] = tensor
            continue
        root = s[:rank].sqrt()
        found[name + LEFT] = (u[:, :rank] * root).to(tensor.dtype).contiguous()
        found[name + RIGHT] = (root[:, None] * vh[:rank]).to(tensor.dtype).reshape(rank, *tensor.shape[1:]).contiguous()
    return found


def save_factored(
    tensors: Mapping[str, Tensor], layers: Collection[str], path: Path, agrees: Callable[[Mapping[str, Tensor]], bool]
) -> float:
    """Write ``tensors`` to ``path`` (safetensors) at the coarsest of `TOLERANCES` that ``agrees`` with; returns it.

    Raises ``ValueError`` where none does.
    """
    from safetensors.torch import save

    for tolerance in TOLERANCES:
        small = factored(tensors, layers, tolerance)
        if agrees(multiplied_out(small)):
            write_atomically(path, save(small))
            return tolerance
    raise ValueError(f"no factored form of {path.name} computes the same")
