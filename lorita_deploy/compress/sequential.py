"""Rewriting in execution order: later layers are fitted behind the layers that are already compressed.

A truncated layer passes its error on, so the next one no longer sees the inputs that it was calibrated on. Legend, at one
layer: y its outputs (bias included) in the dense network, z in the network compressed so far, on the same inputs. The layer
becomes T W, T of rank r, with the least weighted error E |P (y - T z - c)|^2: a reduced-rank regression in the space of
outputs, so that nothing larger than (m, m) is formed here either.

All of it happens within a single forward pass over the calibration inputs: each layer is fitted to what arrives at it, and
what its new form puts out is what the next one sees.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from ..errors import BadNetwork
from ..forms import fill_pair, form, replace_layer
from ..networks import evaluating
from .bases import Basis
from .cuts import bias_of
from .moments import Criterion, Moments
from .rewrite import factors
from .spectrum import finite_matrix
from .sums import ALWAYS_CALLED, by_position, small_batches

if TYPE_CHECKING:
    from torch import Tensor, nn

SHRINKAGE = 1e-2
"""Pull of the correction towards the identity, as a share of the mean variance of z."""
ROWS = (8192, 16384)
"""Fewest and most rows (examples x positions) that are looked at of a layer, as far as there are so many."""
ROWS_PER_OUTPUT = 6
"""Rows for every output of a layer: a regression on m outputs needs several times m rows."""
ACTIVATION_BYTES = 400_000_000
"""What the largest activation of the whole batch may take; fewer examples are used where it would be more."""


@dataclass(frozen=True)
class DenseOutputs:
    """Outputs of layers of the dense network on a batch of calibration inputs, at sampled positions."""

    inputs: tuple[Tensor, ...]
    """One batch of all examples."""
    picked: Mapping[str, Tensor]
    """Layer to the positions sampled: (N, positions), other ones for every example."""
    values: Mapping[str, Tensor]
    """Layer to its outputs there: (N * positions, m), float32."""


def dense_outputs(
    module: nn.Module,
    layers: Sequence[str],
    batches: Iterable[tuple[Tensor, ...]],
    *,
    samples: int = 512,
    most: int | None = None,
    seed: int = 0,
) -> DenseOutputs:
    """Outputs of ``layers`` on the first ``samples`` examples of ``batches``.

    Of these at most ``most``, and as many as memory allows, spread evenly: calibration images may come sorted by class.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    device = next(module.parameters()).device
    parts = list(small_batches(batches, 64, samples))
    whole = tuple(torch.cat(each).to(device) for each in zip(*parts, strict=True))
    count = min(len(whole[0]), most or samples, ACTIVATION_BYTES // _largest_activation(module, tuple(x[:1] for x in whole)))
    spread = torch.linspace(0, len(whole[0]) - 1, max(1, count)).round().long()
    inputs = tuple(x[spread.to(x.device)] for x in whole)
    picked: dict[str, Tensor] = {}
    values: dict[str, Tensor] = {}

    def note(layer: nn.Module, _: object, output: Tensor, *, name: str) -> None:
        rows = by_position(layer, output)
        enough = min(max(ROWS_PER_OUTPUT * rows.shape[2], ROWS[0]), ROWS[1])
        random = torch.rand(rows.shape[:2], generator=generator).to(device)
        picked[name] = random.topk(min(rows.shape[1], -(-enough // len(rows)))).indices
        values[name] = _rows(layer, output, picked[name])

    _run(module, inputs, {name: partial(note, name=name) for name in layers})
    return DenseOutputs(inputs, picked, values)


def rewrite_in_sequence(
    network: nn.Module,
    ranks: Mapping[str, int | None],
    moments: Mapping[str, Moments],
    dense: DenseOutputs,
    *,
    criterion: Criterion = "whitened",
    bases: Mapping[str, Basis] | None = None,
) -> None:
    """Make pairs of the layers of ``ranks``, in place, each fitted to the dense outputs behind the layers before it.

    Rank None keeps a layer's form, and fits it as well. ``moments`` are of the dense network's outputs as far as the layers
    still have them (their gradients serve throughout); ``bases`` says what has become of those of narrowed layers. Raises
    `BadNetwork` for weights that are not finite, and for layers that are not called.
    """

    def fit(layer: nn.Module, inputs: tuple[Any, ...], output: Tensor, *, name: str) -> Tensor:
        target, found = dense.values[name], _rows(layer, output, dense.picked[name])
        if bases and name in bases:
            target = bases[name].outputs(target)
        for handle in handles.pop(name):  # before the hooks pass to what replaces the layer
            handle.remove()
        refit(network, name, ranks[name], correction(target, found), moments[name], criterion)
        refitted: Tensor = network.get_submodule(name)(*inputs)
        return refitted

    handles: dict[str, list[Any]] = {}
    _run(network, dense.inputs, {name: partial(fit, name=name) for name in ranks}, handles)
    if handles:  # of layers that were not fitted
        what = "the example reaches this layer, the calibration inputs together do not"
        raise BadNetwork(what, where=next(iter(handles)), fix=ALWAYS_CALLED)


def _run(
    network: nn.Module, inputs: tuple[Tensor, ...], hooks: Mapping[str, Any], handles: dict[str, list[Any]] | None = None
) -> None:
    """One forward pass with ``hooks`` on layers."""
    import torch

    handles = {} if handles is None else handles
    handles.update({name: [network.get_submodule(name).register_forward_hook(hook)] for name, hook in hooks.items()})
    try:
        with evaluating(network), torch.no_grad():
            network(*inputs)
    finally:
        for each in handles.values():
            for handle in each:
                handle.remove()


def _rows(layer: nn.Module, output: Tensor, picked: Tensor) -> Tensor:
    """The outputs (rows, m) at the positions ``picked (N, positions)``."""
    index = picked[:, :, None].expand(-1, -1, by_position(layer, output).shape[2])
    return by_position(layer, output).gather(1, index).flatten(0, 1).float()


def _largest_activation(module: nn.Module, one: tuple[Tensor, ...]) -> int:
    """Bytes of the largest tensor that a layer puts out for one example."""
    import torch

    sizes = [1]

    def note(layer: nn.Module, _: object, output: object) -> None:
        if isinstance(output, torch.Tensor):
            sizes.append(output.numel() * output.element_size())

    _run(module, one, {name: note for name, _ in module.named_modules()})
    return max(sizes)


# ---------------------------------------------------------------------------------------------- one layer


@dataclass(frozen=True)
class Correction:
    """What brings a layer's outputs z closest to those it had, y: z becomes T z plus a constant. float64 on the CPU."""

    mean: Tensor
    """(m,) of z."""
    target_mean: Tensor
    """(m,) of y."""
    left: Tensor
    right: Tensor | None
    """T = I + left right, (m, k) and (k, m); None: T = I + left."""
    covariance: Tensor
    """(m, m) of T z."""

    def __matmul__(self, matrix: Tensor) -> Tensor:
        """T ``matrix``"""
        found: Tensor = matrix + self.left @ (matrix if self.right is None else self.right @ matrix)
        return found


def correction(target: Tensor, found: Tensor) -> Correction:
    """From y = ``target`` and z = ``found``, both (rows, m): the ridge regression that is pulled towards T = I.

    T = I + (E y z' - E z z') (E z z' + p)^-1, centred. With fewer rows than outputs, as behind a flatten, it differs from I by
    a matrix of that rank, and is found from a system of so many equations.
    """
    import torch

    mean, target_mean = found.mean(0), target.mean(0)
    z, off = found - mean, (target - target_mean) - (found - mean)
    count, outputs = z.shape
    pull = SHRINKAGE * float(z.square().mean().clamp_min(1e-30))
    right: Tensor | None
    if count < outputs:
        z, off = z.double().cpu(), off.double().cpu()
        right = torch.linalg.solve(z @ z.T / count + pull * torch.eye(count, dtype=z.dtype), z)
        left = off.T / count
        z = z + (z @ right.T) @ left.T
        covariance = z.T @ z / count
    else:
        second, cross = ((each.T @ z / count).double().cpu() for each in (z, off))
        right, ridge = None, pull * torch.eye(outputs, dtype=torch.float64)
        left = torch.linalg.solve(second + ridge, cross.T).T
        covariance = second + left @ second
        covariance = covariance + covariance @ left.T
    return Correction(mean.double().cpu(), target_mean.double().cpu(), left, right, covariance)


def refit(
    network: nn.Module, name: str, rank: int | None, correction: Correction, moments: Moments, criterion: Criterion
) -> None:
    """Replace the layer ``name`` by the best pair for outputs that have drifted: the truncation of T W, T full.

    Without a rank the layer stays, with the weight T W.
    """
    layer = network.get_submodule(name)
    matrix = finite_matrix(network, name).double().cpu()
    old = bias_of(layer)
    unbiased = (correction @ (correction.mean - old)[:, None])[:, 0]
    if rank is None:
        weight = layer.get_parameter("weight")
        weight.data.copy_((correction @ matrix).reshape(weight.shape))
        if layer.bias is not None:
            layer.get_parameter("bias").data.copy_(correction.target_mean - unbiased)
        return
    corrected = replace(moments, mean=old + unbiased, covariance=correction.covariance)
    first, second, bias = factors(correction @ matrix, old, rank, corrected, criterion)
    pair = form("pair").build(layer, rank)
    fill_pair(pair, first, second, bias + correction.target_mean - corrected.mean)
    replace_layer(network, name, pair)
