"""Finds linear seams: two linear layers with nothing non-linear between (seam_rewriting.py says what becomes of them).

A seam is seen where the very tensor that one layer gives is what the next one reads, and believed when a copy with one layer in
place of the two computes the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..networks import evaluating
from ..records import Geometry, LeftAlone
from .seam_rewriting import Seam, affine, check_finite, multiply_out_in_place, seam_rank
from .trying import disagreement, first_line, outputs, sharing_copy, those_that_hold, varied

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Seams:
    """In order of execution, and the first layers of those that do not hold."""

    seams: tuple[Seam, ...]
    left_alone: tuple[LeftAlone, ...]


def linear_seams(module: nn.Module, examples: Sequence[Tensor], geometries: Mapping[str, Geometry], *, seed: int = 0) -> Seams:
    """The seams among the layers of ``geometries`` (`survey`'s: ungrouped, called once, weights of their own).

    Left alone, with the reason: shapes that do not go together, constants that zero padding would meet, hooks that would see
    something else, and whatever differs when it is tried. Raises `BadNetwork` (cannot be copied, weights not finite).
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    examples = [varied(example, generator) for example in examples]
    found, reasons = [], {}
    for first, between, second in _neighbours(module, examples, geometries):
        merged = _merged_geometry(geometries[first], geometries[second])
        if isinstance(merged, str):
            reasons[first] = f"{second} follows with nothing non-linear between, but {merged}"
            continue
        seam = Seam(first, between, second, geometries[first].m, 0, merged)
        reason = _objection(module, seam, geometries)
        if reason:
            reasons[first] = f"{second} follows with nothing non-linear between, but {reason}"
            continue
        found.append(replace(seam, rank=seam_rank(module, seam)))

    def objection(seams: list[Seam]) -> str | None:
        seconds = [seam.second for seam in seams]
        with evaluating(module):
            tried = sharing_copy(module)
            try:
                for seam in seams:
                    multiply_out_in_place(tried, seam)
                differing = disagreement(outputs(module, seconds, examples), outputs(tried, seconds, examples))
            except Exception as error:
                return f"the network does not run with {seams[0].second} in one layer with it: {first_line(error)}"
        return None if differing is None else "what is between it and the next layer is read elsewhere too"

    shared = {seam.second for seam in found} & {seam.first for seam in found}  # of chains: not tried together
    held: list[Seam] = []
    for chained in (False, True):
        good, failed = those_that_hold([seam for seam in found if (seam.first in shared) == chained], objection)
        held += good
        reasons |= {seam.first: reason for seam, reason in failed}
    left = tuple(LeftAlone(layer=name, reason=reasons[name]) for name in geometries if name in reasons)
    return Seams(tuple(seam for seam in found if seam in held), left)


# ---------------------------------------------------------------------------------------------- finding


def _neighbours(
    module: nn.Module, examples: Sequence[Tensor], geometries: Mapping[str, Geometry]
) -> list[tuple[str, tuple[str, ...], str]]:
    """(first, between, second) where the very tensor that ``first`` gives is read, untouched, by ``second``."""
    import torch

    origin: dict[int, tuple[Tensor, int, str, tuple[str, ...]]] = {}
    found = []

    def hook(name: str) -> Any:
        def note(layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            read = inputs[0] if inputs else None
            source = origin.get(id(read))
            if source and source[0]._version != source[1]:  # changed in place since: by an activation, for example
                source = None
            if name in geometries and source:
                found.append((source[2], source[3], name))
            if name in geometries:
                origin[id(output)] = (output, output._version, name, ())
            elif source:
                origin[id(output)] = (output, output._version, source[2], (*source[3], name))

        return note

    wanted = [name for name, layer in module.named_modules() if name in geometries or _is_affine(layer)]
    handles = [module.get_submodule(name).register_forward_hook(hook(name)) for name in wanted]
    try:
        with evaluating(module), torch.no_grad():
            module(*examples)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _is_affine(layer: nn.Module) -> bool:
    """Channel by channel, in evaluation mode; dropout and identities among them."""
    from torch import nn
    from torch.nn.modules.batchnorm import _BatchNorm

    if isinstance(layer, _BatchNorm):
        return layer.running_var is not None
    return isinstance(layer, nn.Identity | nn.modules.dropout._DropoutNd)


def _merged_geometry(first: Geometry, second: Geometry) -> Geometry | str:
    """The geometry of the one layer, or why there is none."""
    if first.kind != second.kind:
        return "the two are of different kinds"
    if _is_pointwise(second):
        steps = tuple(a * b for a, b in zip(first.stride, second.stride, strict=True))
        new = {"out_channels": second.m, "stride": steps, "out_shape": second.out_shape, "bias": True}
        return first.model_copy(update=new)
    if _is_pointwise(first) and set(first.stride) <= {1}:
        return second.model_copy(update={"in_channels": first.in_channels, "in_shape": first.in_shape, "bias": True})
    return "neither acts on single positions"


def _is_pointwise(geometry: Geometry) -> bool:
    return set(geometry.kernel) <= {1} and not _pads(geometry)


def _pads(geometry: Geometry) -> bool:
    if isinstance(geometry.padding, str):
        return geometry.padding == "same" and not set(geometry.kernel) <= {1}
    return any(geometry.padding)


def _objection(module: nn.Module, seam: Seam, geometries: Mapping[str, Geometry]) -> str | None:
    check_finite(module, seam)
    layers = [module.get_submodule(name) for name in (seam.first, *seam.between, seam.second)]
    if any(hasattr(layer, "parametrizations") for layer in layers):
        return "a parametrization computes their weights"
    if any(layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks for layer in layers[:-1]):
        return "there are hooks on what would go"
    if _pads(geometries[seam.second]) and bool(affine(module, seam)[1].any()):
        return "its zero padding would meet a constant"
    return None
