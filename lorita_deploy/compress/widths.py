"""Which channel groups of a network may become narrower, and what each width would cost on real inputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from ..records import Geometry, GroupCalibration
from .cuts import ChannelGroup
from .groups import channel_groups
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
