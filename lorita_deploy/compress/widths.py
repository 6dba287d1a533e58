"""Which channel groups and attention heads of a network may become narrower, and what each width would cost on real inputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from ..records import Geometry, GroupCalibration
from .cuts import ChannelGroup
from .groups import channel_groups
from .head_losses import head_losses
from .heads import Attention, attentions
from .moments import Moments
from .narrow import select_channels
from .readings import collect_readings

if TYPE_CHECKING:
    from torch import Tensor, nn

WIDEST = 2048
"""Channels of the widest group that is looked at: choosing them costs their number cubed, for every consumer."""


def narrowable_groups(
    module: nn.Module, examples: Sequence[Tensor], geometries: Mapping[str, Geometry]
) -> tuple[ChannelGroup, ...]:
    """The channel groups that are all that their producers write and all that their consumers read.

    Layers that read several groups (behind a concat) would have to be priced at every combination of their widths; such
    groups keep their channels.
    """
    found = channel_groups(module, examples, geometries).groups
    return tuple(group for group in found if group.width <= WIDEST and _is_whole(group, geometries))


def _is_whole(group: ChannelGroup, geometries: Mapping[str, Geometry]) -> bool:
    written = all(geometries[member.layer].out_channels == group.width for member in group.producers)
    return written and all(geometries[member.layer].in_channels == group.width * member.repeats for member in group.consumers)


def calibrate_groups(
    module: nn.Module,
    groups: Sequence[ChannelGroup],
    moments: Mapping[str, Moments],
    batches: Iterable[tuple[Tensor, ...]],
    *,
    samples: int = 512,
    seed: int = 0,
) -> tuple[GroupCalibration, ...]:
    """The order in which the channels of each group are needed, and the loss at each width.

    Raises `BadData` for no inputs and `BadNetwork` for values that are not finite.
    """
    readings = collect_readings(module, groups, batches, samples=samples, seed=seed)
    found = []
    for group in groups:
        selection = select_channels(module, group, readings, moments)
        found.append(
            GroupCalibration(
                group=group.name,
                width=group.width,
                producers=tuple(member.layer for member in group.producers),
                consumers={member.layer: member.repeats for member in group.consumers},
                order=selection.order,
                loss_at_width=selection.loss_at_width,
            )
        )
    return tuple(found)


Sides = Mapping[str, tuple[Attention, bool]]
"""Name of a group of heads to its attention, and whether it is that of queries and keys (or of values)."""


def head_groups(module: nn.Module, geometries: Mapping[str, Geometry]) -> dict[str, tuple[Attention, bool]]:
    """The two groups of each attention whose four layers may all change."""
    found: dict[str, tuple[Attention, bool]] = {}
    for attention in attentions(module):
        if {attention.q, attention.k, attention.v, attention.o} <= geometries.keys():
            name = attention.q.rpartition(".")[0]
            found[f"{name}.qk".lstrip(".")] = (attention, True)
            found[f"{name}.vo".lstrip(".")] = (attention, False)
    return found


def calibrate_heads(module: nn.Module, sides: Sides, moments: Mapping[str, Moments]) -> tuple[GroupCalibration, ...]:
    """The loss of narrower heads. A group's width is that of all its heads together."""
    found = []
    for name, (attention, of_scores) in sides.items():
        losses = head_losses(module, attention, moments)
        each = losses.qk if of_scores else losses.vo
        found.append(
            GroupCalibration(
                group=name,
                width=attention.heads * (len(each) - 1),
                producers=(attention.q, attention.k) if of_scores else (attention.v,),
                consumers={} if of_scores else {attention.o: 1},
                order=(),
                loss_at_width=tuple(each[width // attention.heads] for width in range(attention.heads * (len(each) - 1) + 1)),
                heads=attention.heads,
            )
        )
    return tuple(found)


def head_widths(sides: Sides, kept: Mapping[str, int], geometries: Mapping[str, Geometry]) -> dict[Attention, tuple[int, int]]:
    """(width for queries and keys, width for values) per head, of the attentions that ``kept`` (group to width) narrows."""
    found: dict[Attention, tuple[int, int]] = {}
    for name, (attention, of_scores) in sides.items():
        if name in kept:
            full = (
                geometries[attention.q].out_channels // attention.heads,
                geometries[attention.v].out_channels // attention.heads,
            )
            qk, vo = found.get(attention, full)
            width = kept[name] // attention.heads
            found[attention] = (width, vo) if of_scores else (qk, width)
    return found
