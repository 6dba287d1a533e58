"""Real inputs through the dense network: moments of every layer's outputs, and of the loss gradients there.

Each moment is a mean over examples and positions; that is all the compressor needs to know of the data, and no
matrix is larger than a layer's outputs squared.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import BadCheckpoint, BadData, BadNetwork, BadRecord
from ..networks import evaluating, read_weights, weights_digest
from ..ports import Task
from ..records import CalibrationRecord, Geometry, LayerCalibration, write_atomically
from .feeding import float_tensors
from .moments import Criterion, Moments, truncation
from .spectrum import finite_matrix
from .sums import OutputSums, small_batches, watched

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

POSITIONS = "lorita-deploy/positions"
"""Key of how many positions each layer's moments are of, in the metadata of their file; older files have a key a layer."""
SMOOTHING = 0.5
"""Share of the uniform distribution in the class probabilities whose curvature weights the outputs. The curvature of a nearly
certain network vanishes, but only until a truncation makes it less certain: without smoothing, large truncations look far too
cheap. 0 gives the exact second derivative of the loss, right for small truncations."""
ACTIVATION_BYTES = 1_000_000_000
"""What the kept activations of one forward and backward pass may take; batches are split to stay below it."""


@dataclass(frozen=True)
class Calibration:
    """What calibration found: the record for planning, the moments for rewriting."""

    record: CalibrationRecord
    moments: dict[str, Moments]

    def save(self, folder: Path) -> None:
        """Write ``calibration.json`` and ``calibration.safetensors``."""
        from safetensors.torch import save

        tensors: dict[str, Tensor] = {}
        for name, each in self.moments.items():
            tensors |= {f"{name}|mean": each.mean, f"{name}|covariance": each.covariance, f"{name}|gradient": each.gradient}
        # One entry: several are written in random order, and the file's digest decides what need not be done again.
        positions = json.dumps({name: each.positions for name, each in self.moments.items()})
        write_atomically(folder / "calibration.safetensors", save(tensors, metadata={POSITIONS: positions}))
        self.record.save(folder / "calibration.json")

    @classmethod
    def load(cls, folder: Path) -> Calibration:
        """Read what `save` wrote. Raises `BadRecord`, `BadCheckpoint`."""
        from safetensors import safe_open

        record = CalibrationRecord.load(folder / "calibration.json")
        path = folder / "calibration.safetensors"
        tensors = read_weights(path)
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        try:
            positions = json.loads(metadata[POSITIONS]) if POSITIONS in metadata else metadata
            moments = {
                name: Moments(tensors[f"{name}|mean"], tensors[f"{name}|covariance"], tensors[f"{name}|gradient"], int(count))
                for name, count in sorted(positions.items())
            }
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise BadCheckpoint(f"not the moments of a calibration: {error}", where=path, fix="calibrate again") from error
        if {each.layer for each in record.layers} != moments.keys():
            raise BadRecord("record and moments name different layers", where=folder, fix="calibrate again")
        return cls(record, moments)


def calibrate(
    module: nn.Module,
    geometries: Mapping[str, Geometry],
    task: Task,
    *,
    samples: int = 512,
    seed: int = 0,
    criterion: Criterion = "whitened",
    draws: int = 2,
    smoothing: float = SMOOTHING,
    network_sha256: str | None = None,
) -> Calibration:
    """Calibrate the layers of ``geometries`` on up to ``samples`` of the task's calibration inputs.

    ``draws`` gradients are drawn per example. ``network_sha256`` is what the record calls the network (default: the digest of
    its weights). Raises `BadData` for no, too few or constant inputs and `BadNetwork` for NaN in weights or outputs.
    """
    matrices = {name: finite_matrix(module, name) for name in geometries}
    moments: dict[str, Moments] = {}
    seen = 0
    if geometries:  # where no layer can be replaced, there is nothing to find out
        moments, seen = collect_moments(module, geometries, task, samples=samples, seed=seed, draws=draws, smoothing=smoothing)
    layers = tuple(
        LayerCalibration(layer=name, loss_at_rank=truncation(matrices[name], moments[name], criterion).loss_at_rank)
        for name in geometries
    )
    record = CalibrationRecord(
        network_sha256=network_sha256 or weights_digest(module), criterion=criterion, samples=seen, seed=seed, layers=layers
    )
    return Calibration(record, moments)


def collect_moments(
    module: nn.Module,
    geometries: Mapping[str, Geometry],
    task: Task,
    *,
    samples: int,
    seed: int = 0,
    draws: int = 2,
    smoothing: float = SMOOTHING,
) -> tuple[dict[str, Moments], int]:
    """Moments of the layers of ``geometries``, and how many examples they come from."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    sums = {name: OutputSums(geometry, generator) for name, geometry in geometries.items()}
    per_example = 16 * sum(geometry.m * geometry.positions for geometry in geometries.values())
    like = next(module.parameters())
    seen, varied, first = 0, False, None
    with evaluating(module), _only_activations_need_gradients(module), watched(module, sums):
        for inputs in small_batches(task.calibration, max(1, ACTIVATION_BYTES // max(per_example, 1)), samples):
            first = first or tuple(x[:1].clone() for x in inputs)
            varied = varied or any(not torch.equal(x, one.expand_as(x)) for x, one in zip(inputs, first, strict=True))
            with torch.enable_grad():
                outputs = module(*(x.to(like.device) for x in inputs))
                _backward(outputs, inputs, task, generator, draws, smoothing)
            seen += len(inputs[0])
    if seen < 2 or not varied:
        raise BadData(
            f"calibration needs real, varied inputs; got {seen}" + ("" if seen < 2 else " that are all the same"),
            where="calibration inputs",
            fix="give at least a few dozen real images (--calibration DIR)",
        )
    return {name: each.moments(name, seen) for name, each in sums.items()}, seen


# ---------------------------------------------------------------------------------------------- gradients


def _backward(
    outputs: Any, inputs: tuple[Tensor, ...], task: Task, generator: torch.Generator, draws: int, smoothing: float
) -> None:
    """Send gradients of each single example's loss back through the network; hooks on the outputs receive them.

    With ``task.loss`` its own gradient, batch mean undone. For logits a draw v with E[v v'] = diag(p) - p p', the covariance of
    the log-likelihood's gradient under labels drawn from p: the same Fisher information as sampled labels give, without waiting
    for the rare labels of a nearly certain network; p are the model's probabilities, smoothed. For any other output
    v ~ N(0, I), the Gauss-Newton matrix of half the squared error.
    """
    import torch

    if task.loss is not None:
        loss = task.loss(outputs, inputs) * len(inputs[0])
        loss.backward()  # type: ignore[no-untyped-call]
        return
    tensors = [x for x in float_tensors(outputs) if x.requires_grad]
    if not tensors:
        raise BadNetwork(
            "no gradient flows from the network's output to its layers",
            where="calibration",
            fix="forward must return tensors that depend on the layers, not detached from them",
        )
    logits = len(tensors) == 1 and tensors[0].ndim == 2 and tensors[0].shape[1] > 1
    for draw in range(draws):
        directions = [torch.randn(x.shape, generator=generator).to(x.device, x.dtype) for x in tensors]
        if logits:
            p = tensors[0].detach().float().softmax(1)
            p = (1 - smoothing) * p + smoothing / p.shape[1]
            noise = p.sqrt() * directions[0]
            directions = [(noise - p * noise.sum(1, keepdim=True)).to(tensors[0].dtype)]
        torch.autograd.backward(tensors, directions, retain_graph=draw + 1 < draws)


@contextmanager
def _only_activations_need_gradients(module: nn.Module) -> Iterator[None]:
    """No parameter asks for a gradient inside: half the work of a backward pass, and nothing is left behind."""
    asking = [parameter for parameter in module.parameters() if parameter.requires_grad]
    try:
        for parameter in asking:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in asking:
            parameter.requires_grad_(True)
