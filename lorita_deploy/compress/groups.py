"""Channel groups: channels that must stay or go together when a network becomes narrower.

torch-pruning's DependencyGraph proposes the groups from one traced pass. It takes every operation that it does not know for one
that acts on each channel by itself, so a proposal is only believed when it holds on a copy of the network: with random channels
cut out, all consumers and the whole network must compute the same as the uncut copy does when its consumers ignore those
channels. Softmax or norms over channels, shuffles, attention, padded shortcuts and network outputs all fail that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..records import Geometry, LeftAlone
from .cuts import ChannelGroup, Cut, Member, Side, channel_count, keep_channels, remaining, removed_positions, replace_tensor
from .trying import disagreement, first_line, moved_copy, outputs, sharing_copy, those_that_hold, varied

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


@dataclass(frozen=True)
class Grouping:
    """The groups of a network, in order of execution, and the producers whose channels must stay as they are."""

    groups: tuple[ChannelGroup, ...]
    left_alone: tuple[LeftAlone, ...]


def channel_groups(
    module: nn.Module, examples: Sequence[Tensor], geometries: Mapping[str, Geometry], *, seed: int = 0
) -> Grouping:
    """The channel groups of ``module`` among the layers of ``geometries`` (`survey`'s, in order of execution).

    Left alone, with the reason: groups that are read by nothing (network outputs), that hold a layer which may not change or a
    norm over channels, or that do not hold when they are tried. Raises `BadNetwork` when the network cannot be copied.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    probe = moved_copy(module, generator)
    examples = [varied(example, generator) for example in examples]
    proposals = _Proposals(probe, geometries)
    try:
        proposals.trace(examples)
    except Exception as error:
        reason = f"torch-pruning cannot trace the network: {first_line(error)}"
        return Grouping((), tuple(LeftAlone(layer=name, reason=reason) for name in geometries))
    found, refused = proposals.all()
    groups, failed = those_that_hold(found, lambda some: _objection_when_cut(probe, some, examples, generator))
    refused |= {member.layer: reason for group, reason in failed for member in group.producers}
    return Grouping(tuple(groups), tuple(LeftAlone(layer=name, reason=refused[name]) for name in geometries if name in refused))


# ---------------------------------------------------------------------------------------------- proposals


class _Proposals:
    """What torch-pruning takes for groups, among layers that may be cut."""

    def __init__(self, probe: nn.Module, geometries: Mapping[str, Geometry]) -> None:
        self.probe = probe
        self.geometries = geometries
        self.names = {layer: name for name, layer in probe.named_modules()}
        self.calls: dict[nn.Module, int] = {}
        self.owners: dict[int, int] = {}
        for layer in probe.modules():
            for parameter in layer.parameters(recurse=False):
                self.owners[id(parameter)] = self.owners.get(id(parameter), 0) + 1

    def trace(self, examples: Sequence[Tensor]) -> None:
        import torch
        from torch_pruning import DependencyGraph

        def count(layer: nn.Module, *_: object) -> None:
            self.calls[layer] = self.calls.get(layer, 0) + 1

        handles = [layer.register_forward_hook(count) for layer in self.names]
        with torch.enable_grad():
            self.graph = DependencyGraph().build_dependency(self.probe, tuple(examples), verbose=False)
        for handle in handles:
            handle.remove()

    def all(self) -> tuple[list[ChannelGroup], dict[str, str]]:
        """The groups worth trying, and the reasons against the producers of the others."""
        found, refused = [], {}
        covered: dict[str, set[int]] = {name: set() for name in self.geometries}
        for name, geometry in self.geometries.items():
            channels = [channel for channel in range(geometry.out_channels) if channel not in covered[name]]
            if not channels:
                continue
            layer = self.probe.get_submodule(name)
            if layer not in self.graph.module2node:
                refused[name] = "no gradient path from the network's outputs to it"
                continue
            members = self.members(layer, channels)
            for (other, side), positions in members.items():
                if side == "out" and other in covered:
                    covered[other].update(position for each in positions for position in each)
            reason = self.objection(members)
            if reason is None:
                found.append(self.group(name, members))
                continue
            refused |= {other: reason for other, side in members if side == "out" and other in self.geometries}
        return found, refused

    def members(self, root: nn.Module, channels: list[int]) -> dict[tuple[str, Side], list[list[int]]]:
        """(layer, side) to the positions of each of the root's ``channels``; operations without a name are passed over."""
        import torch

        cut = self.graph.get_pruner_of_module(root).prune_out_channels
        number = {channel: index for index, channel in enumerate(channels)}
        members: dict[tuple[str, Side], list[list[int]]] = {}
        for item in self.graph.get_pruning_group(root, cut, channels):
            layer = item.dep.target.module
            name = self.names.get(layer, "a parameter" if isinstance(layer, torch.nn.Parameter) else "")
            if not name or (isinstance(layer, torch.nn.PReLU) and layer.num_parameters == 1):
                continue
            pruner = self.graph.get_pruner_of_module(layer)
            if pruner.prune_in_channels == pruner.prune_out_channels:
                side: Side = "both"
            else:
                side = "out" if item.dep.handler == pruner.prune_out_channels else "in"
            positions = members.setdefault((name, side), [[] for _ in channels])
            for position, channel in zip(item.idxs, item.root_idxs, strict=True):
                if channel in number:
                    positions[number[channel]].append(position)
        return members

    def objection(self, members: Mapping[tuple[str, Side], list[list[int]]]) -> str | None:
        for (name, side), positions in members.items():
            if name == "a parameter":
                return "tied to a parameter of its own, outside any layer"
            layer = self.probe.get_submodule(name)
            if name not in self.geometries and not _acts_per_channel(layer):
                return f"tied to {name}, a {type(layer).__name__} that cannot be cut channel by channel"
            if hasattr(layer, "parametrizations"):
                return f"the weight of {name} is computed by a parametrization"
            if self.calls.get(layer, 0) != 1:
                return f"{name} is called {self.calls.get(layer, 0)} times"
            if any(self.owners[id(parameter)] > 1 for parameter in layer.parameters(recurse=False)):
                return f"{name} shares its parameters with another layer"
            repeats = {len(each) for each in positions}
            if max(max(each, default=0) for each in positions) >= channel_count(layer, side):
                return f"{name} does not have the channels that torch-pruning ascribes to it (a padded shortcut, for example)"
            if len(repeats) > 1 or 0 in repeats:
                return f"{name} has only some of the channels, or not all of them equally often"
            if side == "out" and name in self.geometries and repeats != {1}:
                return f"outputs of {name} are spread over several channels"
        if len(next(iter(members.values()))) < 2:
            return "a single channel"
        if not any(side == "in" and name in self.geometries for name, side in members):
            return "its channels are outputs of the network"
        return None

    def group(self, name: str, members: Mapping[tuple[str, Side], list[list[int]]]) -> ChannelGroup:
        order = {layer: index for index, layer in enumerate(self.geometries)}
        parts: dict[Side, list[Member]] = {"out": [], "both": [], "in": []}
        for (layer, side), positions in members.items():
            parts[side].append(Member(layer, tuple(tuple(sorted(each)) for each in positions)))
        for part in (parts["out"], parts["in"]):
            part.sort(key=lambda member: order[member.layer])
        width = len(next(iter(members.values())))
        return ChannelGroup(name, width, tuple(parts["out"]), tuple(parts["both"]), tuple(parts["in"]))


def _acts_per_channel(layer: nn.Module) -> bool:
    from torch import nn
    from torch.nn.modules.batchnorm import _BatchNorm
    from torch.nn.modules.instancenorm import _InstanceNorm

    if isinstance(layer, nn.GroupNorm):
        return layer.num_groups == layer.num_channels and layer.affine  # without tensors nothing would tell its width
    if isinstance(layer, nn.Conv1d | nn.Conv2d):
        return layer.groups == layer.in_channels == layer.out_channels
    return isinstance(layer, _BatchNorm | _InstanceNorm | nn.PReLU)


# ---------------------------------------------------------------------------------------------- trying


def _objection_when_cut(
    probe: nn.Module, groups: list[ChannelGroup], examples: Sequence[Tensor], generator: torch.Generator
) -> str | None:
    """Cut half of each group's channels, at random, and compare with consumers that ignore them."""
    import torch

    cuts: list[Cut] = []
    for group in groups:
        order = torch.randperm(group.width, generator=generator)
        cuts.append((group, sorted(order[: (group.width + 1) // 2].tolist())))
    removed = removed_positions(cuts)
    ignoring, cut = sharing_copy(probe), sharing_copy(probe)
    try:
        for (name, side), gone in removed.items():
            if side == "in":
                layer = ignoring.get_submodule(name)
                weight = layer.get_parameter("weight").detach().clone()
                weight[:, sorted(gone)] = 0
                replace_tensor(layer, "weight", weight)
        keep_channels(cut, cuts)
        consumers = sorted({member.layer for group in groups for member in group.consumers})
        expected, found = outputs(ignoring, consumers, examples), outputs(cut, consumers, examples)
    except Exception as error:
        return f"the network does not run with fewer of these channels: {first_line(error)}"
    for name in consumers:
        gone = removed.get((name, "out"), set())
        dim = -1 if isinstance(ignoring.get_submodule(name), torch.nn.Linear) else 1
        kept = torch.tensor(remaining(expected[name][0].shape[dim], gone), device=expected[name][0].device)
        expected[name] = [expected[name][0].index_select(dim, kept)]
    differing = disagreement(expected, found)
    if differing is None:
        return None
    return f"its channels do not go through to {differing or 'the outputs of the network'} one by one"
