"""Rewriting in execution order: later layers are fitted behind the layers that are already compressed.

A truncated layer passes its error on, so the next one no longer sees the inputs that it was calibrated on. Legend, at one
layer: y its outputs (bias included) in the dense network, z in the network compressed so far, on the same inputs. The layer
becomes T W, T of rank r, with the least weighted error E |P (y - T z - c)|^2: a reduced-rank regression in the space of
outputs, so that nothing larger than (m, m) is formed here either.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..forms import fill_pair, form, replace_layer
from ..networks import evaluating
from ..records import Choice
from .moments import Criterion, Moments
from .rewrite import duplicate, factors
from .spectrum import finite_matrix
from .sums import by_position, small_batches, some_positions

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

SHRINKAGE = 1e-2
"""Pull of the correction towards the identity, as a share of the mean variance of z."""
STEPS = 8
"""Most times that the outputs are measured again; neighbouring layers share a measurement in deeper networks."""


@dataclass(frozen=True)
class Drift:
    """What has become of a layer's outputs, over examples and positions, float64 on the CPU."""

    mean: Tensor
    """(m,) of z."""
    covariance: Tensor
    """(m, m) of z, centred."""
    target_mean: Tensor
    """(m,) of y."""
    cross: Tensor
    """(m, m) E[(y - E y)(z - E z)']"""

    def correction(self) -> Tensor:
        """(m, m) the linear map that brings z closest to y."""
        import torch

        identity = torch.eye(len(self.mean), dtype=torch.float64)
        pull = SHRINKAGE * self.covariance.diagonal().mean().clamp_min(1e-30) * identity
        found: Tensor = torch.linalg.solve(self.covariance + pull, (self.cross + pull).T)
        return found.T


def rewrite_in_sequence(
    module: nn.Module,
    choices: Iterable[Choice],
    moments: Mapping[str, Moments],
    batches: Iterable[tuple[Tensor, ...]],
    *,
    samples: int = 512,
    seed: int = 0,
    criterion: Criterion = "whitened",
    steps: int = STEPS,
) -> nn.Module:
    """What `rewrite` does, each layer fitted to the dense network's outputs behind the layers before it.

    ``choices`` in execution order, as plans have them; ``moments`` of the dense network (their gradients serve throughout);
    ``batches`` of inputs, read up to ``steps`` times. Raises as `rewrite` does.
    """
    network = duplicate(module)
    pairs = [choice for choice in choices if choice.form == "pair"]
    size = -(-len(pairs) // steps) or 1
    for start in range(0, len(pairs), size):
        group = pairs[start : start + size]
        drifts = measure_drift(module, network, [choice.layer for choice in group], batches, samples=samples, seed=seed)
        for choice in group:
            assert choice.rank is not None
            _refit(network, choice.layer, choice.rank, drifts[choice.layer], moments[choice.layer], criterion)
    return network


def _refit(network: nn.Module, name: str, rank: int, drift: Drift, moments: Moments, criterion: Criterion) -> None:
    """Replace the layer ``name`` by the best pair for outputs that have drifted: the truncation of T W, T full."""
    import torch

    layer = network.get_submodule(name)
    matrix = finite_matrix(network, name).double().cpu()
    old = torch.zeros(len(matrix), dtype=torch.float64)
    if layer.bias is not None:
        old = layer.get_parameter("bias").detach().double().cpu()
    T = drift.correction()
    corrected = replace(moments, mean=old + T @ (drift.mean - old), covariance=T @ drift.covariance @ T.T)
    first, second, bias = factors(T @ matrix, old, rank, corrected, criterion)
    pair = form("pair").build(layer, rank)
    fill_pair(pair, first, second, bias + drift.target_mean - corrected.mean)
    replace_layer(network, name, pair)


def measure_drift(
    dense: nn.Module,
    network: nn.Module,
    names: Sequence[str],
    batches: Iterable[tuple[Tensor, ...]],
    *,
    samples: int,
    seed: int = 0,
) -> dict[str, Drift]:
    """Both networks on the same inputs: joint moments of the outputs of the layers ``names``, which both still have."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    sums = {name: _JointSums(generator) for name in names}
    handles = [
        net.get_submodule(name).register_forward_hook(hook)
        for name, each in sums.items()
        for net, hook in ((dense, each.note_target), (network, each.add))
    ]
    device = next(network.parameters()).device
    try:
        with evaluating(dense), evaluating(network), torch.no_grad():
            for inputs in small_batches(batches, 64, samples):
                inputs = tuple(x.to(device) for x in inputs)
                dense(*inputs)
                network(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    return {name: each.drift() for name, each in sums.items()}


class _JointSums:
    """Running joint moments of (y, z), shifted by y's first batch mean; products in float32, totals in float64."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator
        self.count = 0

    def note_target(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        values = by_position(layer, output)
        self.picked = some_positions(values, self.generator)
        self.target = values[:, self.picked].flatten(0, 1).float()

    def add(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        import torch

        found = by_position(layer, output)[:, self.picked].flatten(0, 1).float()
        if self.count == 0:
            self.shift = self.target.mean(0)
            self.total = torch.zeros(2 * found.shape[1], dtype=torch.float64)
            self.square = torch.zeros(2 * found.shape[1], found.shape[1], dtype=torch.float64)
        found = found - self.shift
        both = torch.cat([self.target - self.shift, found], 1)
        self.count += len(found)
        self.total += both.sum(0).double().cpu()
        self.square += (both.T @ found).double().cpu()
        del self.target

    def drift(self) -> Drift:
        import torch

        mean, m = self.total / self.count, len(self.shift)
        square = self.square / self.count - torch.outer(mean, mean[m:])
        shift = self.shift.double().cpu()
        return Drift(mean[m:] + shift, square[m:], mean[:m] + shift, square[:m])
