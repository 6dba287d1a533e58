"""The carriers: the only things that hold weights while they move between rooms, each beside its document.

`survey` finds the layers that LoRITa and the compressor may touch, by one traced forward pass; weights travel in
safetensors, never in pickles.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import BadCheckpoint, BadNetwork
from .records import CompressedRecord, Geometry, LeftAlone, Plan, TrainRecord, write_atomically

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass
class TrainedNetwork:
    """A network whose weights are still products of factors."""

    module: nn.Module
    record: TrainRecord


@dataclass
class CompressedNetwork:
    """The network in the forms of its plan."""

    module: nn.Module
    record: CompressedRecord
    plan: Plan


# ---------------------------------------------------------------------------------------------- what is in a network


@dataclass(frozen=True)
class Survey:
    """The layers of a network that may change, in the order of execution, and those that may not."""

    geometries: dict[str, Geometry]
    left_alone: tuple[LeftAlone, ...]

    @property
    def macs(self) -> int:
        return sum(geometry.m * geometry.n * geometry.positions for geometry in self.geometries.values())


@contextmanager
def first_pass(module: nn.Module, examples: Sequence[Tensor]) -> Iterator[None]:
    """Around a forward pass that shows whether ``module`` fits its inputs at all. Raises `BadNetwork` when it fails."""
    try:
        yield
    except Exception as error:
        raise BadNetwork(
            f"the forward pass fails on inputs of shape {[tuple(x.shape) for x in examples]}: {error}",
            where=type(module).__name__,
            fix="give the input size that the network expects (--input-size)",
        ) from error


def survey(module: nn.Module, examples: Sequence[Tensor]) -> Survey:
    """Run ``module`` once on ``examples`` (batch first) and describe every Linear, Conv1d and Conv2d that was called.

    Left alone, with the reason: grouped convolutions, layers called more than once, never called (functional use), or
    sharing their weight, transposed convolutions and other kinds. Raises `BadNetwork` when the forward pass fails.
    """
    import torch

    layers = {name: layer for name, layer in module.named_modules(remove_duplicate=True) if _has_matrix(layer)}
    shapes: dict[str, list[Any]] = {name: [] for name in layers}
    order: list[str] = []

    def note(name: str) -> Any:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            order.append(name)
            shapes[name].append((tuple(inputs[0].shape) if inputs else None, tuple(output.shape)))

        return hook

    handles = [layer.register_forward_hook(note(name)) for name, layer in layers.items()]
    try:
        with evaluating(module), torch.inference_mode(), first_pass(module, examples):
            module(*examples)
    finally:
        for handle in handles:
            handle.remove()

    owners: dict[int, list[str]] = {}
    for name, layer in layers.items():
        owners.setdefault(id(_source_of_weight(layer)), []).append(name)
    geometries: dict[str, Geometry] = {}
    left_alone = []
    for name in sorted(layers, key=lambda name: order.index(name) if name in order else len(order)):
        layer = layers[name]
        if reason := _reason_to_leave(layer, shapes[name], owners[id(_source_of_weight(layer))]):
            left_alone.append(LeftAlone(layer=name, reason=reason))
        else:
            in_shape, out_shape = shapes[name][0]
            geometries[name] = geometry_of(layer, in_shape, out_shape, len(examples[0]))
    return Survey(geometries, tuple(left_alone))


def geometry_of(layer: nn.Module, in_shape: tuple[int, ...], out_shape: tuple[int, ...], inputs: int = 1) -> Geometry:
    """The geometry of a Linear, Conv1d or Conv2d, called with ``in_shape`` for so many ``inputs`` of the network."""
    from torch import nn

    if isinstance(layer, nn.Linear):
        ours = len(out_shape) == 1 or out_shape[0] == inputs  # else the sequence comes first, or windows are in the batch
        rows = out_shape[1:-1] if ours else (max(1, prod(out_shape[:-1]) // inputs),)
        return Geometry(
            kind="linear",
            out_channels=layer.out_features,
            in_channels=layer.in_features,
            bias=layer.bias is not None,
            in_shape=rows,
            out_shape=rows,
        )
    assert isinstance(layer, nn.Conv1d | nn.Conv2d)
    padding = layer.padding if isinstance(layer.padding, str) else tuple(layer.padding)
    return Geometry(
        kind="conv2d" if isinstance(layer, nn.Conv2d) else "conv1d",
        out_channels=layer.out_channels,
        in_channels=layer.in_channels,
        kernel=tuple(layer.kernel_size),
        stride=tuple(layer.stride),
        padding=padding,  # type: ignore[arg-type]
        dilation=tuple(layer.dilation),
        groups=layer.groups,
        bias=layer.bias is not None,
        in_shape=in_shape[2:],
        out_shape=out_shape[2:],
    )


def weight_matrix(layer: nn.Module) -> Tensor:
    """The weight as the matrix (m, n), in float32."""
    weight: Tensor = layer.weight  # type: ignore[assignment]
    return weight.detach().float().flatten(1)


def _has_matrix(layer: nn.Module) -> bool:
    from torch import nn
    from torch.nn.modules.conv import _ConvNd

    return isinstance(layer, nn.Linear | _ConvNd)


def _source_of_weight(layer: nn.Module) -> object:
    """What makes two layers share a weight: the parameter itself, or the parametrization that computes it."""
    parametrizations = getattr(layer, "parametrizations", None)
    if parametrizations is not None and "weight" in parametrizations:
        return parametrizations["weight"]
    return layer.weight


def _reason_to_leave(layer: nn.Module, shapes: list[Any], owners: list[str]) -> str | None:
    from torch import nn

    if not isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d):
        return f"{type(layer).__name__} is not supported"
    if not computes_only_its_matrix(layer):
        return f"{type(layer).__name__} has a forward of its own"
    if not isinstance(layer, nn.Linear):
        if layer.groups > 1:
            return "depthwise" if layer.groups == layer.in_channels else f"grouped ({layer.groups} groups)"
        if layer.padding_mode != "zeros":
            return f"padding mode {layer.padding_mode}"
    if not shapes:
        return "never called as a module"
    if len(shapes) > 1:
        return f"called {len(shapes)} times"
    if len(owners) > 1:
        return f"shares its weight with {', '.join(owners)}"
    return "is given its input by name" if shapes[0][0] is None else None


def computes_only_its_matrix(layer: nn.Module) -> bool:
    """False for kinds of Linear, Conv1d and Conv2d that standardise the weight, pad by themselves, add an adapter."""
    from torch import nn
    from torch.nn.utils.parametrize import type_before_parametrizations

    kind = next(kind for kind in (nn.Linear, nn.Conv1d, nn.Conv2d) if isinstance(layer, kind))
    plain = type_before_parametrizations(layer)
    own = {"forward", "_conv_forward"}
    return not own & vars(layer).keys() and all(getattr(plain, name, 0) is getattr(kind, name, 0) for name in own)


# ---------------------------------------------------------------------------------------------- weights at rest


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside, each submodule's own mode restored after."""
    modes = {name: part.training for name, part in module.named_modules()}
    module.eval()
    try:
        yield
    finally:
        for name, part in module.named_modules():
            part.training = modes.get(name, part.training)


def weights_digest(module: nn.Module) -> str:
    """sha256 over names, shapes, types and bytes of everything in the state dict."""
    import torch

    total = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        total.update(f"{name}|{tuple(tensor.shape)}|{tensor.dtype}|".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        total.update(flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b"")
    return total.hexdigest()


def save_weights(module: nn.Module, path: Path, metadata: dict[str, str] | None = None) -> str:
    """Write the state dict as safetensors; tensors that share memory are written once each. Returns the file's sha256."""
    from safetensors.torch import save

    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in module.state_dict().items()}
    content = save(tensors, metadata=metadata)
    write_atomically(path, content)
    return hashlib.sha256(content).hexdigest()


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a state dict from ``.safetensors``, or from ``.pt``/``.pth`` with ``weights_only=True``.

    Raises `BadCheckpoint` for a missing, damaged or unsafe file.
    """
    import torch
    from safetensors.torch import load_file

    if not path.is_file():
        raise BadCheckpoint("there is no such file", where=path)
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except Exception as error:
            fix = "copy the file again; it may have been cut short"
            raise BadCheckpoint(f"not a whole safetensors file: {error}", where=path, fix=fix) from error
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise BadCheckpoint(
            "cannot be read as a plain file of tensors (torch.load with weights_only=True)",
            where=path,
            fix="save the state_dict as safetensors; files that hold pickled code are not opened",
        ) from error
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in content.items()
    ):
        raise BadCheckpoint("holds something other than named tensors", where=path, fix="save model.state_dict() alone")
    return {name.removeprefix("module."): value for name, value in content.items()}


def load_weights(module: nn.Module, path: Path, tensors: dict[str, Tensor] | None = None) -> None:
    """Load ``path`` (or ``tensors``, which were read from it) into ``module``.

    Raises `BadCheckpoint` naming missing, unexpected and misshapen tensors.
    """
    import torch

    tensors = read_weights(path) if tensors is None else tensors
    expected = module.state_dict()
    missing = sorted(name for name in expected.keys() - tensors.keys() if not name.endswith("num_batches_tracked"))
    unexpected = sorted(tensors.keys() - expected.keys())
    misshapen = [
        f"{name} is {tuple(tensors[name].shape)}, expected {tuple(expected[name].shape)}"
        for name in sorted(expected.keys() & tensors.keys())
        if expected[name].shape != tensors[name].shape
    ]
    findings = [
        f"{len(names)} {word}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
        for word, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", misshapen))
        if names
    ]
    if findings:
        raise BadCheckpoint(
            "the weights belong to another architecture; " + "; ".join(findings),
            where=path,
            fix="choose the --model (and number of classes) that the weights were saved from",
        )
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise BadCheckpoint(
                f"the weights hold NaN or infinite values in {name}", where=path, fix="use an earlier checkpoint"
            )
    module.load_state_dict(tensors, strict=False)
