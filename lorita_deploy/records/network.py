"""The collapsed network: "before" in every comparison."""

from __future__ import annotations

from typing import Literal

from .documents import Document, Part
from .environment import Accuracy
from .training import LeftAlone


class Geometry(Part):
    """What fixes a layer's cost. As a matrix the weight is (m, n): m outputs, n = inputs * kernel size."""

    kind: Literal["linear", "conv1d", "conv2d"]
    out_channels: int
    in_channels: int
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] | Literal["same", "valid"] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    bias: bool = True
    in_shape: tuple[int, ...] = ()
    """Spatial shape of one input (tokens for a linear layer on sequences; empty on vectors)."""
    out_shape: tuple[int, ...] = ()

    @property
    def m(self) -> int:
        return self.out_channels

    @property
    def n(self) -> int:
        size = self.in_channels // self.groups
        for extent in self.kernel:
            size *= extent
        return size

    @property
    def positions(self) -> int:
        """How often the matrix is applied to one input: H*W of a conv's output, tokens of a linear layer."""
        count = 1
        for extent in self.out_shape:
            count *= extent
        return count


class Layer(Part):
    """A layer that may change its form."""

    name: str
    geometry: Geometry
    group: str
    """The channel group its outputs belong to: channels that must stay or go together."""
    spectrum: tuple[float, ...]
    """Singular values of the weight matrix, descending."""


class CollapsedRecord(Document):
    """The plain dense network: "before" in every comparison. File ``collapsed.json``."""

    SCHEMA = "collapsed"

    model: str
    classes: int
    input_shapes: tuple[tuple[int, ...], ...]
    """Of one example, without the batch."""
    layers: tuple[Layer, ...]
    left_alone: tuple[LeftAlone, ...]
    params: int
    macs: int
    """Multiply-accumulates of the convolutions and linear layers for one example."""
    collapse_error: float
    """Largest difference of outputs between factored and collapsed network, over the largest output."""
    accuracy: tuple[Accuracy, ...]
    weights_sha256: str
