"""Which layers can really be replaced: those that the network uses only by calling them.

A forward that reads ``layer.weight`` or asks for ``layer.in_features`` breaks when the layer becomes a pair; a weight that an
embedding shares would be in the network twice. Both are left, and named; so are layers that compute more than their weights
say, by a parametrization or a hook, and those whose effect on the network's outputs no gradient tells.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from ..forms import replace_layer
from ..networks import evaluating
from ..records import LeftAlone
from .feeding import float_tensors
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
    generator = torch.Generator().manual_seed(seed)
    examples = [varied(example, generator) for example in examples]
    reasons = _unfelt(module, layers, examples)
    reasons |= _shared(module, layers) | _computed(module, layers) | _hooked(module, layers, examples)

    def objection(names: list[str]) -> str | None:
        with evaluating(module):
            boxed = sharing_copy(module)
            expected = outputs(module, (), examples)
            called: set[str] = set()
            for name in names:
                box = nn.Sequential(boxed.get_submodule(name)).eval()
                box.register_forward_hook(lambda *_, name=name: called.add(name))
                replace_layer(boxed, name, box)
            try:
                differing = disagreement(expected, outputs(boxed, (), examples))
            except Exception as error:
                return f"the network uses more of it than its call: {first_line(error)}"
        if called != set(names):
            return "the network reaches it by other ways than its name"
        blind = not any(bool(torch.isfinite(each).any()) for each in expected[""])  # what is not finite is named elsewhere
        return None if differing is None or blind else "the network computes something else when it is replaced by its like"

    reasons |= dict(those_that_hold([name for name in layers if name not in reasons], objection)[1])
    return tuple(LeftAlone(layer=name, reason=reasons[name]) for name in layers if name in reasons)


def _computed(module: nn.Module, layers: Sequence[str]) -> dict[str, str]:
    """The layers whose weights are not parameters of theirs, but computed from others."""
    from torch import nn

    found = {}
    for name in layers:
        layer = module.get_submodule(name)
        if hasattr(layer, "parametrizations"):
            found[name] = "a parametrization computes its weight"
        elif not isinstance(layer._parameters.get("weight"), nn.Parameter):
            found[name] = "its weight is not a parameter"
    return found


def _unfelt(module: nn.Module, layers: Sequence[str], examples: Sequence[Tensor]) -> dict[str, str]:
    """The layers that no gradient of the outputs reaches: what they may lose would seem to cost nothing."""
    import torch

    kept: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(_: nn.Module, __: object, output: Tensor) -> Tensor:
            kept[name] = output if output.requires_grad else output.detach().requires_grad_(torch.is_grad_enabled())
            return kept[name].clone()

        return hook

    with evaluating(module), torch.enable_grad():
        network = sharing_copy(module)
        for name in layers:
            network.get_submodule(name).register_forward_hook(keep(name))
        felt = [each.sum() for each in float_tensors(network(*examples)) if each.requires_grad]
        watched = {name: each for name, each in kept.items() if each.requires_grad}
        if not felt or not watched:
            return {}
        try:
            found = torch.autograd.grad(felt, list(watched.values()), allow_unused=True)
        except RuntimeError:  # nothing can be differentiated; calibration, which has to, says what
            return {}
    unfelt = [name for name, gradient in zip(watched, found, strict=True) if gradient is None]
    return dict.fromkeys(unfelt, "no gradient reaches it from the outputs: it is detached from them, or they do not use it")


def _hooked(module: nn.Module, layers: Sequence[str], examples: Sequence[Tensor]) -> dict[str, str]:
    """The layers with a forward hook that changes their outputs: moments would be those of something else than W x + b."""
    import torch

    hooked = [name for name in layers if module.get_submodule(name)._forward_hooks]
    if not hooked:
        return {}
    plain: dict[str, Tensor] = {}
    with evaluating(module):
        network = sharing_copy(module)
        for name in hooked:
            layer = network.get_submodule(name)
            layer.register_forward_hook(lambda _, __, y, name=name: plain.update({name: y.clone()}), prepend=True)
        final = outputs(network, hooked, examples)
    changed = (name for name in hooked if not torch.equal(plain[name], final[name][0]))
    return dict.fromkeys(changed, "a forward hook changes its outputs")


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
