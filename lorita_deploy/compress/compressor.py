"""From choices to the compressed network: channels first, then pairs, each layer fitted behind the ones before it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import PlanMismatch
from ..forms import install, replace_layer
from ..networks import load_weights
from ..records import Choice, Geometry, GroupChoice, Plan
from .calibrate import Calibration
from .cuts import ChannelGroup, Cut, take_shapes
from .heads import narrow_heads
from .moments import Moments, Truncation
from .narrow import narrow
from .readings import Readings, collect_readings
from .rewrite import duplicate, rewrite
from .sequential import DenseOutputs, dense_outputs, rewrite_in_sequence
from .widths import Sides, head_groups, head_widths, narrowable_groups

if TYPE_CHECKING:
    from torch import Tensor, nn

SAMPLES = 256
"""Examples that layers are fitted on in sequence: more of them changed nothing (ResNet20, CIFAR-10)."""


class Compressor:
    """Makes compressed copies of one dense network, and remembers what does not depend on the choices."""

    def __init__(
        self,
        dense: nn.Module,
        geometries: Mapping[str, Geometry],
        calibration: Calibration,
        batches: Iterable[tuple[Tensor, ...]],
        *,
        examples: Sequence[Tensor],
    ) -> None:
        """``geometries`` in order of execution; ``batches`` of calibration inputs; ``examples`` a batch of one."""
        self.dense, self.geometries, self.calibration, self.batches = dense, dict(geometries), calibration, batches
        self.examples = tuple(examples)
        self._known: dict[str, Truncation] = {}

    def network(self, choices: Iterable[Choice], groups: Iterable[GroupChoice] = ()) -> nn.Module:
        """A copy of the dense network in the forms of ``choices`` and with the channels that ``groups`` keep.

        With the criterion ``whitened`` all layers behind the first change are fitted to the dense network's outputs on what
        now arrives at them, also those that keep their form; the rules that are kept for comparison cut each layer by itself.
        Raises `PlanMismatch` for layers or groups that the network lacks, `BadNetwork` for weights that are not finite.
        """
        record, moments = self.calibration.record, self.calibration.moments
        ranks = {choice.layer: choice.rank for choice in choices}
        unknown = sorted(ranks.keys() - self.geometries.keys())
        if unknown:
            raise PlanMismatch(f"the plan names a layer that the network lacks: {unknown[0]}", where=unknown[0])
        groups = tuple(choice for choice in groups if choice.kept < choice.width)
        network, turned = self._with_narrow_heads(groups)
        cuts = self._cuts(groups)
        if cuts:
            network = narrow(network, cuts, self.readings)
        kept = {
            member.layer: sorted(member.positions[channel][0] for channel in channels)
            for group, channels in cuts
            for member in group.producers
        }
        moments = {name: _of_outputs(each, kept[name]) if name in kept else each for name, each in moments.items()}
        touched = {name for name, rank in ranks.items() if rank} | kept.keys() | turned
        if record.criterion != "whitened":
            pairs = {name: rank for name, rank in ranks.items() if rank}
            return rewrite(network, pairs, moments, criterion=record.criterion, known=None if groups else self._known)
        order = list(self.geometries)
        first = min((order.index(name) for name in touched), default=len(order))
        fitted = {name: ranks.get(name) for name in order[first:] if name not in turned}
        rewrite_in_sequence(network, fitted, moments, self.dense_outputs, kept=kept)
        return network

    def _with_narrow_heads(self, groups: Iterable[GroupChoice]) -> tuple[nn.Module, set[str]]:
        """A copy with narrower attention heads, and the layers whose outputs have another basis now."""
        widths = head_widths(self.heads, {choice.group: choice.kept for choice in groups}, self.geometries)
        network = duplicate(self.dense)
        turned: set[str] = set()
        for attention, (qk, vo) in widths.items():
            network = narrow_heads(network, attention, qk, vo, moments=self.calibration.moments)
            scores, values = (attention.q, attention.k), (attention.v, attention.o)
            whole = {
                side: width * attention.heads == self.geometries[side[0]].out_channels
                for side, width in ((scores, qk), (values, vo))
            }
            turned |= {name for side in (scores, values) if not whole[side] for name in side} - {attention.o}
            for name in (name for side in (scores, values) if whole[side] for name in side):
                replace_layer(network, name, duplicate(self.dense.get_submodule(name)))
        return network, turned

    def _cuts(self, groups: Iterable[GroupChoice]) -> list[Cut]:
        orders = {each.group: each.order for each in self.calibration.record.groups}
        cuts: list[Cut] = []
        for choice in groups:
            if choice.group in self.heads:
                continue
            group = self.groups.get(choice.group)
            if group is None or choice.group not in orders or group.width != choice.width:
                raise PlanMismatch(f"the network has no channel group {choice.group} of {choice.width}", where=choice.group)
            cuts.append((group, sorted(orders[choice.group][: choice.kept])))
        return cuts

    @cached_property
    def groups(self) -> dict[str, ChannelGroup]:
        """The groups that may become narrower."""
        return {group.name: group for group in narrowable_groups(self.dense, self.examples, self.geometries)}

    @cached_property
    def heads(self) -> Sides:
        """The attention heads that may."""
        return head_groups(self.dense, self.geometries)

    @cached_property
    def readings(self) -> Readings:
        record = self.calibration.record
        return collect_readings(self.dense, self.groups.values(), self.batches, samples=record.samples, seed=record.seed)

    @cached_property
    def dense_outputs(self) -> DenseOutputs:
        record = self.calibration.record
        samples, seed = record.samples, record.seed
        return dense_outputs(self.dense, list(self.geometries), self.batches, samples=samples, most=SAMPLES, seed=seed)


def load_compressed(blank: nn.Module, plan: Plan, path: Path) -> nn.Module:
    """``blank``, a plain network of the plan's architecture, brought into its forms and filled from ``path``, in place.

    Raises `PlanMismatch`, `BadCheckpoint`.
    """
    install(blank, plan.changed())
    take_shapes(blank, path)
    load_weights(blank, path)
    return blank


def _of_outputs(moments: Moments, kept: Sequence[int]) -> Moments:
    """Of a layer that only has the outputs ``kept``."""
    index = list(kept)
    return replace(
        moments,
        mean=moments.mean[index],
        covariance=moments.covariance[index][:, index],
        gradient=moments.gradient[index][:, index],
    )
