"""Weights that a build is given, into the plain network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..networks import load_weights, read_weights

if TYPE_CHECKING:
    from torch import Tensor, nn


def load_plain_weights(module: nn.Module, path: Path, form: str = "plain") -> None:
    """Load a checkpoint of the plain network, its attentions open or not and its weights factored or not, or one of a LoRITa
    training (its state between epochs, too), which is collapsed; ``form`` as in `BuildOptions.checkpoint_format`.

    Raises `BadCheckpoint`.
    """
    from ..compress.opening import opened_weights
    from ..train.checkpoint import weights_in
    from ..train.composition import collapse
    from ..train.factored import multiplied_out
    from ..train.published import read_published

    read = multiplied_out(weights_in(read_weights(path)), where=path) if form == "plain" else read_published(path)
    load_as_trained(module, path, opened_weights(module, read))
    collapse(module)


def load_as_trained(module: nn.Module, path: Path, tensors: dict[str, Tensor]) -> None:
    """Give the plain ``module`` the structure that ``tensors``, read from ``path``, were trained in, and load them."""
    from ..train.structure import shapes_of, structure_like

    load_weights(structure_like(module, shapes_of(tensors)), path, tensors)
