"""What is gathered from a layer's outputs and gradients while calibration inputs pass through the network."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ..errors import BadNetwork
from ..records import Geometry
from .moments import Moments

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

POSITIONS = 256
"""Most positions of one example that enter the moments; more are sampled without bias, anew for every batch."""


def small_batches(batches: Iterable[tuple[Tensor, ...]], size: int, samples: int) -> Iterator[tuple[Tensor, ...]]:
    """The first ``samples`` examples of ``batches``, at most ``size`` at a time."""
    for inputs in batches:
        for start in range(0, len(inputs[0]), size):
            part = tuple(x[start : min(start + size, start + samples)] for x in inputs)
            samples -= len(part[0])
            yield part
            if samples <= 0:
                return


ALWAYS_CALLED = "layers must be called for every input: turn branches on the data into arithmetic"


class OutputSums:
    """Running first and second moments of one layer's outputs and gradients.

    Products are float32 on the network's device, of values shifted by the first batch's mean so that nothing cancels; totals
    are float64 on the CPU.
    """

    def __init__(self, geometry: Geometry, generator: torch.Generator) -> None:
        import torch

        self.generator = generator
        self.shift: Tensor | None = None
        self.applied = self.count = self.gradients = 0
        self.total = torch.zeros(geometry.m, dtype=torch.float64)
        self.square = torch.zeros(geometry.m, geometry.m, dtype=torch.float64)
        self.gradient = torch.zeros_like(self.square)

    def hook(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        import torch

        if not torch.is_grad_enabled():
            raise BadNetwork(
                f"{type(layer).__name__} runs under torch.no_grad(), so nothing is known of its effect on the loss",
                where="calibration",
                fix="remove no_grad from forward (evaluation code can set it outside)",
            )
        values = by_position(layer, output.detach())
        picked = some_positions(values, self.generator)
        rows = values[:, picked].flatten(0, 1).float()
        self.applied += values.shape[0] * values.shape[1]
        if self.shift is None:
            self.shift = rows.mean(0)
        rows = rows - self.shift
        self.count += len(rows)
        self.total += rows.sum(0).double().cpu()
        self.square += (rows.T @ rows).double().cpu()
        if not output.requires_grad:  # the first layers: gradients need flow no further back than here
            output = output.detach().requires_grad_().clone()

        def receive(gradient: Tensor) -> None:
            rows = by_position(layer, gradient)[:, picked].flatten(0, 1).float()
            self.gradients += len(rows)
            self.gradient += (rows.T @ rows).double().cpu()

        output.register_hook(receive)  # type: ignore[no-untyped-call]
        return output

    def moments(self, name: str, examples: int) -> Moments:
        """Raises `BadNetwork` for outputs that are not finite, or that there are none of."""
        import torch

        if self.shift is None:
            raise BadNetwork(
                "the example reaches this layer, none of the calibration inputs does", where=name, fix=ALWAYS_CALLED
            )
        mean = self.total / self.count
        covariance = self.square / self.count - torch.outer(mean, mean)
        gradient = self.gradient / max(self.gradients, 1)
        if not (torch.isfinite(covariance).all() and torch.isfinite(gradient).all()):
            raise BadNetwork(
                f"outputs or gradients of {name} are NaN or infinite on the calibration inputs",
                where=name,
                fix="check the network and the preprocessing of the calibration inputs",
            )
        shifted = mean + self.shift.double().cpu()
        return Moments(shifted.float(), covariance.float(), gradient.float(), self.applied // examples)


def by_position(layer: nn.Module, values: Tensor) -> Tensor:
    """(N, m, ...) of a convolution or (N, ..., m) of a linear layer to (N, positions, m)."""
    from torch import nn

    if isinstance(layer, nn.Linear):
        return values.reshape(len(values), -1, values.shape[-1])
    return values.flatten(2).transpose(1, 2)


def some_positions(values: Tensor, generator: torch.Generator) -> Tensor:
    """Indices of at most `POSITIONS` random positions of ``values (N, positions, m)``."""
    import torch

    return torch.randperm(values.shape[1], generator=generator)[:POSITIONS].to(values.device)


@contextmanager
def watched(module: nn.Module, sums: Mapping[str, OutputSums]) -> Iterator[None]:
    """Inside, each layer named in ``sums`` tells its outputs and their gradients to its sums."""
    handles = [module.get_submodule(name).register_forward_hook(each.hook) for name, each in sums.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
