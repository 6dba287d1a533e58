"""What of a network may become narrower: channel groups, attention heads and linear seams, and what each width would cost."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from ..attention import Attention
from ..errors import PlanMismatch
from ..records import Geometry, GroupCalibration, GroupChoice
from .bases import Basis, Kept
from .cuts import ChannelGroup, Cut, keep_channels
from .feeding import on_device_of
from .groups import channel_groups
from .head_losses import head_losses
from .heads import narrow_heads_in_place, resize_heads, true_attentions
from .moments import Moments
from .narrow import narrow_in_place, select_channels
from .readings import Readings, collect_readings
from .seam_rewriting import Seam, narrow_seam_in_place, resize_between, weighed_seam
from .seams import linear_seams

if TYPE_CHECKING:
    from torch import Tensor, nn

WIDEST = 2048
"""Channels of the widest group that is looked at: choosing them costs their number cubed, for every consumer."""


class Narrowable:
    """Of one network; each part is looked for once, when it is first asked for.

    A group's name is that of its first producer, with ``.qk``, ``.vo`` or ``.seam`` behind it where directions are kept and not
    channels.
    """

    def __init__(
        self,
        module: nn.Module,
        geometries: Mapping[str, Geometry],
        batches: Iterable[tuple[Tensor, ...]],
        *,
        examples: Sequence[Tensor],
        samples: int = 512,
        seed: int = 0,
    ) -> None:
        """``geometries`` in order of execution; ``samples``: most inputs of ``batches`` read; ``examples`` a batch of one."""
        self.module, self.geometries, self.batches = module, dict(geometries), batches
        self.examples, self.samples, self.seed = on_device_of(module, examples), samples, seed

    @cached_property
    def groups(self) -> dict[str, ChannelGroup]:
        """The channel groups that are all that their producers write and all that their consumers read.

        Layers that read several groups (behind a concat) would have to be priced at every combination of their widths; such
        groups keep their channels. So do seams, whose directions are a better choice.
        """
        found = channel_groups(self.module, self.examples, self.geometries).groups
        seams = {seam.first for seam in self.seams.values()}
        return {
            group.name: group
            for group in found
            if group.width <= WIDEST and group.name not in seams and _is_whole(group, self.geometries)
        }

    @cached_property
    def heads(self) -> dict[str, tuple[Attention, bool]]:
        """The two sides of each attention whose four layers may all change; whether it is that of queries and keys."""
        found: dict[str, tuple[Attention, bool]] = {}
        for attention in true_attentions(self.module, self.examples, seed=self.seed):
            if {attention.q, attention.k, attention.v, attention.o} <= self.geometries.keys():
                name = attention.q.rpartition(".")[0]
                found[f"{name}.qk".lstrip(".")] = (attention, True)
                found[f"{name}.vo".lstrip(".")] = (attention, False)
        return found

    @cached_property
    def seams(self) -> dict[str, Seam]:
        """The linear seams."""
        found = linear_seams(self.module, self.examples, self.geometries, seed=self.seed).seams
        return {f"{seam.first}.seam": seam for seam in found if seam.inner <= WIDEST}

    @cached_property
    def readings(self) -> Readings:
        """What the consumers of the channel groups read. Raises `BadData` for no inputs."""
        return collect_readings(self.module, self.groups.values(), self.batches, samples=self.samples, seed=self.seed)

    def calibrate(self, moments: Mapping[str, Moments]) -> tuple[GroupCalibration, ...]:
        """What each width of each group would lose. A group of heads is as wide as all its heads together.

        Raises `BadData` for no inputs and `BadNetwork` for values that are not finite.
        """
        found = [self._channels(group, moments) for group in self.groups.values()]
        found += [self._heads(name, moments) for name in self.heads]
        return (*found, *(self._seam(name, moments) for name in self.seams))

    def narrow(
        self,
        network: nn.Module,
        choices: Sequence[GroupChoice],
        orders: Mapping[str, Sequence[int]],
        moments: Mapping[str, Moments],
    ) -> dict[str, Basis]:
        """Give ``network``, a copy of the module, the widths of ``choices``, in place: what became of its layers' outputs.

        ``orders`` are those of the calibrated groups. Raises `PlanMismatch` for groups that the network lacks.
        """
        kept = {choice.group: choice.kept for choice in choices if choice.kept < choice.width}
        cuts: list[Cut] = []
        for choice in choices:
            if choice.group not in kept or choice.group in self.heads or choice.group in self.seams:
                continue
            group = self.groups.get(choice.group)
            if group is None or choice.group not in orders or group.width != choice.width:
                raise PlanMismatch(f"the network has no channel group {choice.group} of {choice.width}", where=choice.group)
            cuts.append((group, sorted(orders[choice.group][: choice.kept])))
        bases: dict[str, Basis] = {}
        for attention, (qk, vo) in self.head_widths(kept).items():
            bases |= narrow_heads_in_place(network, attention, qk, vo, moments=moments)
        for name in (each for each in self.seams if each in kept):
            seam = self.seams[name]
            bases[seam.first] = narrow_seam_in_place(network, seam, kept[name], moments[seam.first])
        if cuts:
            narrow_in_place(network, cuts, self.readings)
        for group, channels in cuts:
            for member in group.producers:
                bases[member.layer] = Kept(sorted(member.positions[channel][0] for channel in channels))
        return bases

    def resize(self, network: nn.Module, kept: Mapping[str, int]) -> None:
        """Give ``network`` the widths ``kept`` of groups, in place, with weights of no meaning: for timing."""
        keep_channels(network, [(self.groups[group], range(count)) for group, count in kept.items() if group in self.groups])
        for attention, (qk, vo) in self.head_widths(kept).items():
            resize_heads(network, attention, qk, vo)
        for name in (each for each in self.seams if each in kept):
            resize_between(network, self.seams[name], kept[name])

    def head_widths(self, kept: Mapping[str, int]) -> dict[Attention, tuple[int | None, int | None]]:
        """(width for queries and keys, width for values) per head, of the attentions that ``kept`` (group to width) narrows.

        None: as it is.
        """
        found: dict[Attention, tuple[int | None, int | None]] = {}
        for name, (attention, of_scores) in self.heads.items():
            if name in kept:
                qk, vo = found.get(attention, (None, None))
                width = kept[name] // attention.heads
                found[attention] = (width, vo) if of_scores else (qk, width)
        return found

    def _channels(self, group: ChannelGroup, moments: Mapping[str, Moments]) -> GroupCalibration:
        selection = select_channels(self.module, group, self.readings, moments)
        return GroupCalibration(
            group=group.name,
            width=group.width,
            producers=tuple(member.layer for member in group.producers),
            consumers={member.layer: member.repeats for member in group.consumers},
            order=selection.order,
            loss_at_width=selection.loss_at_width,
        )

    def _heads(self, name: str, moments: Mapping[str, Moments]) -> GroupCalibration:
        attention, of_scores = self.heads[name]
        losses = head_losses(self.module, attention, moments)
        each = losses.qk if of_scores else losses.vo
        width = attention.heads * (len(each) - 1)
        return GroupCalibration(
            group=name,
            width=width,
            producers=(attention.q, attention.k) if of_scores else (attention.v,),
            consumers={} if of_scores else {attention.o: 1},
            order=(),
            loss_at_width=tuple(each[kept // attention.heads] for kept in range(width + 1)),
            heads=attention.heads,
        )

    def _seam(self, name: str, moments: Mapping[str, Moments]) -> GroupCalibration:
        seam = self.seams[name]
        losses = weighed_seam(self.module, seam, moments[seam.first]).losses
        consumers = {seam.second: 1}
        return GroupCalibration(
            group=name, width=seam.inner, producers=(seam.first,), consumers=consumers, order=(), loss_at_width=losses
        )


def _is_whole(group: ChannelGroup, geometries: Mapping[str, Geometry]) -> bool:
    written = all(geometries[member.layer].out_channels == group.width for member in group.producers)
    return written and all(geometries[member.layer].in_channels == group.width * member.repeats for member in group.consumers)
