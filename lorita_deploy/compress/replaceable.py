"""Which layers can really be replaced: those that the network uses only by calling them.

A forward that reads ``layer.weight`` or asks for ``layer.in_features`` breaks when the layer becomes a pair; a weight that an
embedding shares would be in the network twice. Both are left, and named.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from ..forms import replace_layer
from ..networks import evaluating
from ..records import LeftAlone
from .trying import disagreement, first_line, outputs, sharing_copy, those_that_hold, varied

if TYPE_CHECKING:
    from torch import Tensor, nn


def irreplaceable(
    module: nn.Module, examples: Sequence[Tensor], layers: Iterable[str], *, seed: int = 0
) -> tuple[LeftAlone, ...]:
    """Those of ``layers`` (called once each, see `survey`) that must stay as they are, and why.

    Tried on a copy in which every layer lies in a box of its own. Raises `BadNetwork` when the network cannot be copied.
    """
    import torch
    from torch import nn

    layers = list(layers)
    reasons = _shared(module, layers)
    generator = torch.Generator().manual_seed(seed)
    examples = [varied(example, generator) for example in examples]

    def objection(names: list[str]) -> str | None:
        with evaluating(module):
            boxed = sharing_copy(module)
            expected = outputs(module, (), examples)
            for name in names:
                replace_layer(boxed, name, nn.Sequential(boxed.get_submodule(name)).eval())
            try:
                differing = disagreement(expected, outputs(boxed, (), examples))
            except Exception as error:
                return f"the network uses more of it than its call: {first_line(error)}"
        return None if differing is None else "the network computes something else when it is replaced by its like"

    reasons |= dict(those_that_hold([name for name in layers if name not in reasons], objection)[1])
    return tuple(LeftAlone(layer=name, reason=reasons[name]) for name in layers if name in reasons)


def _shared(module: nn.Module, layers: Sequence[str]) -> dict[str, str]:
    """The layers whose parameters belong to another module too, of whatever kind."""
    owners: dict[int, list[str]] = {}
    for name, part in module.named_modules():
        for parameter in part.parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(name or "the network itself")
    found = {}
    for name in layers:
        for parameter in module.get_submodule(name).parameters():
            others = [owner for owner in owners[id(parameter)] if owner.split(".parametrizations.")[0] != name]
            if others:
                found[name] = f"shares a parameter with {', '.join(others)}"
    return found
