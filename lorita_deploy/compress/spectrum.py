"""Singular values of each layer's weight."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from ..errors import BadNetwork
from ..networks import weight_matrix
from .moments import singular_values

if TYPE_CHECKING:
    from torch import Tensor, nn


def spectra(module: nn.Module, names: Iterable[str]) -> dict[str, tuple[float, ...]]:
    """Singular values of the layers ``names``, min(m, n) each, descending.

    Raises `BadNetwork`, naming the layer, for weights that hold NaN or infinite values.
    """
    return {name: tuple(singular_values(finite_matrix(module, name)).tolist()) for name in names}


def finite_matrix(module: nn.Module, name: str) -> Tensor:
    """The weight (m, n) of the layer ``name`` in float32. Raises `BadNetwork` for NaN and infinite values."""
    import torch

    matrix = weight_matrix(module.get_submodule(name))
    if not torch.isfinite(matrix).all():
        raise BadNetwork(
            f"the weight of {name} holds NaN or infinite values", where=name, fix="use an earlier checkpoint, or train again"
        )
    return matrix
