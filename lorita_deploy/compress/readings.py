"""What the consumers of channel groups read on real inputs: all that narrowing needs to know of the data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from ..errors import BadData, BadNetwork
from ..networks import evaluating
from .cuts import ChannelGroup, Member
from .sums import by_position, small_batches, some_positions

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Reading:
    """What one consumer reads of a group's channels."""

    second: Tensor
    """(C, C) uncentred second moment over examples, positions and repeats, float64 on the CPU."""
    rows: int
    """How many of those it comes from."""
    mean: Tensor
    """(C,) float64"""


Readings = Mapping[tuple[str, str], Reading]
"""By (group, consumer)."""


def collect_readings(
    module: nn.Module,
    groups: Iterable[ChannelGroup],
    batches: Iterable[tuple[Tensor, ...]],
    *,
    samples: int = 512,
    seed: int = 0,
) -> dict[tuple[str, str], Reading]:
    """What every consumer of ``groups`` reads, on the first ``samples`` examples of ``batches`` (inputs only).

    Raises `BadData` for no inputs and `BadNetwork` for readings that are not finite.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    sums: dict[str, dict[str, _Sum]] = {}
    for group in groups:
        for member in group.consumers:
            sums.setdefault(member.layer, {})[group.name] = _Sum(member)

    def read(layer: nn.Module, inputs: tuple[Tensor, ...], *, into: Mapping[str, _Sum]) -> None:
        values = by_position(layer, _pixels_read(layer, inputs[0].detach()))
        values = values[:, some_positions(values, generator)]
        for each in into.values():
            each.add(values)

    handles = [module.get_submodule(name).register_forward_pre_hook(partial(read, into=into)) for name, into in sums.items()]
    device = next(module.parameters()).device
    try:
        with evaluating(module), torch.no_grad():
            for inputs in small_batches(batches, 64, samples):
                module(*(x.to(device) for x in inputs))
    finally:
        for handle in handles:
            handle.remove()
    return {(group, name): each.reading(name) for name, into in sums.items() for group, each in into.items()}


def _pixels_read(layer: nn.Module, values: Tensor) -> Tensor:
    """Strided 1 x 1 convolutions skip pixels; what they skip does not count."""
    from torch import nn

    if isinstance(layer, nn.Conv1d | nn.Conv2d):
        steps = [stride if extent == 1 else 1 for extent, stride in zip(layer.kernel_size, layer.stride, strict=True)]
        for dim, step in enumerate(steps, start=2):
            values = values.unfold(dim, 1, step).squeeze(-1)
    return values


class _Sum:
    """Running second moment of one group's channels as one consumer reads them.

    In float64 throughout: a proportional channel must be told from one that is nearly so.
    """

    def __init__(self, member: Member) -> None:
        import torch

        self.positions = torch.tensor(member.positions)
        self.rows = 0
        self.total = torch.zeros(len(self.positions), len(self.positions), dtype=torch.float64)
        self.sum = torch.zeros(len(self.positions), dtype=torch.float64)

    def add(self, values: Tensor) -> None:
        """``values (N, positions, inputs of the consumer)``."""
        mine = values[:, :, self.positions.to(values.device)]  # (N, positions, C, repeats)
        rows = mine.transpose(2, 3).flatten(0, 2).double()
        self.rows += len(rows)
        self.total += (rows.T @ rows).cpu()
        self.sum += rows.sum(0).cpu()

    def reading(self, name: str) -> Reading:
        import torch

        if not self.rows:
            raise BadData(
                "calibration needs inputs; got none", where="calibration inputs", fix="give real images (--calibration DIR)"
            )
        if not torch.isfinite(self.total).all():
            raise BadNetwork(
                f"inputs of {name} are NaN or infinite on the calibration inputs",
                where=name,
                fix="check the network and the preprocessing of the calibration inputs",
            )
        return Reading(self.total / self.rows, self.rows, self.sum / self.rows)
