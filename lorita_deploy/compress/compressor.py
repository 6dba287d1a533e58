"""From choices to the compressed network: channels first, then pairs, each layer fitted behind the ones before it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import PlanMismatch
from ..forms import install
from ..networks import load_weights
from ..records import Choice, Geometry, GroupChoice, Plan
from .calibrate import Calibration
from .cuts import take_shapes
from .moments import Truncation
from .rewrite import duplicate, rewrite
from .sequential import DenseOutputs, dense_outputs, rewrite_in_sequence
from .widths import Narrowable

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
        narrowable: Narrowable,
    ) -> None:
        """``geometries`` in order of execution; ``batches`` of calibration inputs; ``narrowable`` of the dense network."""
        self.dense, self.geometries, self.calibration, self.batches = dense, dict(geometries), calibration, batches
        self.narrowable = narrowable
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
        network = duplicate(self.dense)
        orders = {each.group: each.order for each in record.groups}
        bases = self.narrowable.narrow(network, tuple(groups), orders, moments)
        moments = {name: bases[name].moments(each) if name in bases else each for name, each in moments.items()}
        if record.criterion != "whitened":
            pairs = {name: rank for name, rank in ranks.items() if rank}
            return rewrite(network, pairs, moments, criterion=record.criterion, known=None if bases else self._known)
        order = list(self.geometries)
        touched = {name for name, rank in ranks.items() if rank} | bases.keys()
        first = min((order.index(name) for name in touched), default=len(order))
        fitted = {name: ranks.get(name) for name in order[first:]}
        if fitted:
            rewrite_in_sequence(network, fitted, moments, self.dense_outputs, bases=bases)
        return network

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
