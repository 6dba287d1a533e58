"""Cuts: channels taken out of every layer that they run through.

A channel group is a set of channels that several layers share and that must stay or go together; a cut says which of them
stay.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..networks import read_weights
from ..records import Geometry

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Member:
    """One layer's part in a group."""

    layer: str
    positions: tuple[tuple[int, ...], ...]
    """Where channel c of the group lies among the layer's channels: once, behind an offset after a concat, or as often as a
    flatten repeats it (H * W times). As many positions for every channel."""

    @property
    def repeats(self) -> int:
        return len(self.positions[0])


@dataclass(frozen=True)
class ChannelGroup:
    """``width`` channels that several layers share."""

    name: str
    """The first of the producers, in order of execution."""
    width: int
    producers: tuple[Member, ...]
    """Layers whose outputs they are: one, or all that are summed."""
    between: tuple[Member, ...]
    """Layers on the way that act on each channel by itself: batch and instance norms, PReLUs, depthwise convolutions."""
    consumers: tuple[Member, ...]
    """Layers whose inputs they are."""


Cut = tuple[ChannelGroup, Sequence[int]]
"""A group and the channels it keeps, ascending."""


def keep_channels(network: nn.Module, cuts: Iterable[Cut]) -> None:
    """Cut all but the kept channels out of every layer of the groups, in place.

    The layers stay the same objects, with their hooks, type, device and memory format. Several groups may share a layer.
    Consumers that can take up a constant get a bias where they have none. Raises ``ValueError`` for channels that a group does
    not have, or none.
    """
    for (name, side), gone in removed_positions(cuts).items():
        layer = network.get_submodule(name)
        _cut_layer(layer, side, gone)
        if side == "in" and takes_constants(layer):
            ensure_bias(layer)


def narrowed_geometries(geometries: Mapping[str, Geometry], widths: Iterable[tuple[ChannelGroup, int]]) -> dict[str, Geometry]:
    """What the layers of ``geometries`` would be with each group at its width (for pricing; no tensors)."""
    found = dict(geometries)
    for group, width in widths:
        for member in group.producers:
            less = found[member.layer].out_channels - (group.width - width)
            found[member.layer] = found[member.layer].model_copy(update={"out_channels": less})
        for member in group.consumers:
            less = found[member.layer].in_channels - (group.width - width) * member.repeats
            found[member.layer] = found[member.layer].model_copy(update={"in_channels": less})
    return found


Side = Literal["in", "out", "both"]
_WIDTHS: dict[Side, tuple[str, ...]] = {
    "in": ("in_channels", "in_features"),
    "out": ("out_channels", "out_features"),
    "both": ("in_channels", "out_channels", "groups", "num_features", "num_channels", "num_groups", "num_parameters"),
}
"""Attributes in which layers keep the number of their channels; those on both sides have one number for all."""


def removed_positions(cuts: Iterable[Cut]) -> dict[tuple[str, Side], set[int]]:
    """The positions that go, per layer and side, in the numbering of the uncut network."""
    removed: dict[tuple[str, Side], set[int]] = {}
    for group, kept in cuts:
        gone = set(range(group.width)) - set(kept)
        if not kept or len(gone) + len(kept) != group.width:
            raise ValueError(f"group {group.name} of {group.width} channels cannot keep {list(kept)}")
        sides: tuple[tuple[Side, tuple[Member, ...]], ...]
        sides = (("out", group.producers), ("both", group.between), ("in", group.consumers))
        for side, members in sides:
            for member in members:
                removed.setdefault((member.layer, side), set()).update(p for c in gone for p in member.positions[c])
    return removed


def _cut_layer(layer: nn.Module, side: Side, gone: set[int]) -> None:
    import torch

    kept = torch.tensor(remaining(channel_count(layer, side), gone))
    for name in _WIDTHS[side]:
        if hasattr(layer, name):
            setattr(layer, name, len(kept))
    for name in ("weight",) if side == "in" else ("weight", "bias", "running_mean", "running_var"):
        if getattr(layer, name, None) is not None:
            old: Tensor = getattr(layer, name)
            replace_tensor(layer, name, old.detach().index_select(1 if side == "in" else 0, kept.to(old.device)))


def take_shapes(network: nn.Module, path: Path) -> None:
    """Give every layer of ``network`` the channels that its tensors have in the weights file ``path``, in place.

    A skeleton to load a narrowed network into. Raises `BadCheckpoint` for a file that is none.
    """
    import torch

    for name, stored in read_weights(path).items():
        parent, _, leaf = name.rpartition(".")
        layer = network.get_submodule(parent) if parent in dict(network.named_modules()) else None
        if leaf == "bias" and getattr(layer, "bias", stored) is None:  # given to a consumer for the constants it takes up
            ensure_bias(network.get_submodule(parent))
        old = getattr(layer, leaf, None)
        if layer is None or not isinstance(old, torch.Tensor) or old.shape == stored.shape or old.ndim != stored.ndim:
            continue
        if leaf == "weight" and old.ndim > 1:
            depthwise = getattr(layer, "groups", 1) > 1
            sides: tuple[tuple[Side, int], ...] = (("both", 0),) if depthwise else (("out", 0), ("in", 1))
            counts = {attribute: stored.shape[dim] for side, dim in sides for attribute in _WIDTHS[side]}
        else:
            counts = {
                attribute: len(stored) for attribute in _WIDTHS["both"] if not attribute.startswith(("in_", "out_", "groups"))
            }
        for attribute, count in counts.items():
            if hasattr(layer, attribute):
                setattr(layer, attribute, count)
        replace_tensor(layer, leaf, torch.empty(stored.shape))


def channel_count(layer: nn.Module, side: Side) -> int:
    """How many channels a layer has on one side."""
    count: int = next(getattr(layer, name) for name in _WIDTHS[side] if hasattr(layer, name))
    return count


def remaining(size: int, gone: set[int]) -> list[int]:
    """The positions that stay, ascending."""
    return [position for position in range(size) if position not in gone]


def takes_constants(layer: nn.Module) -> bool:
    """Whether a constant input channel can become part of the bias: not where zero padding stands beside the constant."""
    padding = getattr(layer, "padding", 0)
    if isinstance(padding, str):
        return padding == "valid" or set(layer.kernel_size) <= {1}  # type: ignore[arg-type]
    return not any(padding) if isinstance(padding, tuple) else not padding


def bias_of(layer: nn.Module) -> Tensor:
    """(m,) float64 on the CPU; zeros where there is none."""
    weight, bias = layer.get_parameter("weight").detach(), layer.bias
    return (weight.new_zeros(len(weight)) if bias is None else layer.get_parameter("bias").detach()).double().cpu()


def ensure_bias(layer: nn.Module) -> None:
    """Give the layer a bias of zeros where it has none."""
    from torch import nn

    if layer.bias is None:
        weight = layer.get_parameter("weight")
        layer.bias = nn.Parameter(weight.new_zeros(len(weight)), weight.requires_grad)  # type: ignore[assignment]


def replace_tensor(layer: nn.Module, name: str, new: Tensor) -> None:
    """Put ``new`` in place of a parameter or buffer, with its type, device, requires_grad and memory format."""
    import torch
    from torch import nn

    old: Tensor = getattr(layer, name)
    new = new.to(old.device, old.dtype)
    if old.ndim == 4 and old.is_contiguous(memory_format=torch.channels_last) and not old.is_contiguous():
        new = new.contiguous(memory_format=torch.channels_last)
    setattr(layer, name, nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new)
