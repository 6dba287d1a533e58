"""How much of a network's work compression can reach at all: the share of multiply-accumulates that have a candidate."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..attention import Attention
from ..forms import FORMS
from ..networks import Survey, evaluating
from ..records import LeftAlone
from .cuts import ChannelGroup
from .opening import plain_encoder_layers
from .seam_rewriting import Seam

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Coverage:
    """Multiply-accumulates of ungrouped convolutions and linear layers for one example."""

    macs: int
    """Of all weights, also of those that are used outside of their layer's call."""
    covered: int
    """Of the layers that have a candidate."""
    forms: dict[str, tuple[str, ...]]
    """Layer to what it could become beside dense: the forms' names, narrow, heads, seam."""
    bare: tuple[LeftAlone, ...]
    """What has none, and why: most work first."""

    @property
    def share(self) -> float:
        return self.covered / self.macs if self.macs else 0.0


def coverage(
    module: nn.Module,
    examples: Sequence[Tensor],
    found: Survey,
    *,
    multiple: int = 8,
    groups: Iterable[ChannelGroup] = (),
    attentions: Iterable[Attention] = (),
    seams: Iterable[Seam] = (),
    irreplaceable: Iterable[LeftAlone] = (),
) -> Coverage:
    """What could become of the layers of ``found``, with ranks that are multiples of ``multiple``.

    Of ``irreplaceable`` layers nothing can.
    """
    forms: dict[str, list[str]] = {name: [] for name in found.geometries}
    for name, geometry in found.geometries.items():
        forms[name] += [form.name for form in FORMS if form.ranks(geometry, multiple) not in ((), (None,))]
    for group in groups:
        for member in (*group.producers, *group.consumers):
            forms[member.layer].append("narrow")
    for attention in attentions:
        for name in (attention.q, attention.k, attention.v, attention.o):
            forms.setdefault(name, []).append("heads")
    for seam in seams:
        for name in seam.ends:
            forms[name].append("seam")
    reasons = {each.layer: each.reason for each in found.left_alone}
    for each in irreplaceable:
        forms.pop(each.layer, None)
        reasons[each.layer] = each.reason

    macs = _macs_of_weights(module, examples)
    covered = {name: tuple(dict.fromkeys(each)) for name, each in forms.items() if each}
    bare = []
    for weight in sorted(macs, key=lambda weight: -macs[weight]):
        layer = weight.removesuffix(".weight")
        if layer not in covered:
            reason = reasons.get(layer) or (
                "too small for any rank that the target likes" if layer in forms else "used outside of a layer's call"
            )
            bare.append(LeftAlone(layer=layer, reason=reason))
    reached = sum(macs.get(f"{name}.weight", 0) for name in covered)
    return Coverage(sum(macs.values()), reached, covered, tuple(bare))


def _macs_of_weights(module: nn.Module, examples: Sequence[Tensor]) -> dict[str, int]:
    """Parameter to the multiply-accumulates that it takes part in, in ungrouped convolutions and matrix products.

    Seen below the layers, where torch dispatches its operators: functional code counts like a layer's call. Convolutions by
    weights that are computed stand under "a computed weight".
    """
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    aten = torch.ops.aten
    products = {aten.mm.default: 0, aten.addmm.default: 1, aten.bmm.default: 0, aten.baddbmm.default: 1, aten.mv.default: 0}
    convolutions = {aten.convolution.default, aten._convolution.default}
    names = {parameter.untyped_storage().data_ptr(): name for name, parameter in module.named_parameters()}
    macs: dict[str, int] = {}

    def count(weight: str, number: int) -> None:
        macs[weight] = macs.get(weight, 0) + number

    class Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            output = func(*args, **(kwargs or {}))
            if func in convolutions and args[8] == 1:
                per_value = args[1][0].numel()
                transposed = bool(args[6])
                values = args[0].numel() if transposed else output.numel()
                count(names.get(args[1].untyped_storage().data_ptr(), "a computed weight"), values * per_value)
            elif func in products:
                left, right = args[products[func] : products[func] + 2]
                for tensor in tree_leaves((left, right)):
                    weight = names.get(tensor.untyped_storage().data_ptr())
                    if weight:
                        count(weight, output.numel() * left.shape[-1])
                        break
            return output

    with evaluating(module), torch.no_grad(), plain_encoder_layers(), Counter():  # type: ignore[no-untyped-call]
        module(*examples)
    return {name: number // len(examples[0]) for name, number in macs.items()}
