"""Opens attention: fused projections become plain linear layers, which every later stage can see, factor and narrow.

``nn.MultiheadAttention`` keeps its weights where no layer can be reached by name, and timm's ``Attention`` has three of them in
one; neither can hold narrower heads. What replaces them computes the same, with the same hooks, type, device and mode.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..forms import pass_hooks, replace_layer
from ..networks import evaluating, first_pass
from ..records import LeftAlone
from .trying import disagreement, first_line, outputs, sharing_copy, those_that_hold, varied

if TYPE_CHECKING:
    from torch import Tensor, nn

    from .plain_attention import PlainAttention


TIMM = {"timm.layers.attention", "timm.models.vision_transformer"}
"""Where timm keeps, and kept, its plain ``Attention``; classes of that name elsewhere do more."""


@dataclass(frozen=True)
class Opening:
    """The attentions that were opened, by name, and those that could not be."""

    opened: tuple[str, ...]
    left_alone: tuple[LeftAlone, ...]


def open_attention(module: nn.Module, examples: Sequence[Tensor], *, seed: int = 0) -> Opening:
    """Open every ``nn.MultiheadAttention`` and every timm ``Attention`` of ``module``, in place, where that is exact.

    Left alone, with the reason: norms, rotations or gates between projection and product, masks, cross-attention, attention
    weights that are asked for, weights shared or computed, kinds that are not known, and whatever differs when it is tried.
    An optimizer must be made afterwards: the parameters are new. Raises `BadNetwork` when the forward pass fails.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    examples = [varied(example, generator) for example in examples]
    kinds = {name: kind for name, part in module.named_modules() if (kind := _kind(part))}
    if not kinds:
        return Opening((), ())
    owners: dict[int, int] = {}
    for part in module.modules():
        for parameter in part.parameters(recurse=False):
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    reasons = {name: reason for name, kind in kinds.items() if (reason := _objection(module, name, kind, owners))}
    reasons = _objections_to_calls(module, [name for name in kinds if name not in reasons], examples) | reasons

    def objection(names: list[str]) -> str | None:
        tried = sharing_copy(module)
        try:
            with evaluating(module):
                tried.eval()
                expected = outputs(module, names, examples)
                for name in names:
                    replace_layer(tried, name, _opened(tried.get_submodule(name), kinds[name]))
                differing = disagreement(expected, outputs(tried, names, examples))
        except Exception as error:
            return f"the network does not run with it opened: {first_line(error)}"
        return None if differing is None else "it computes something else when it is opened"

    opened, failed = those_that_hold([name for name in kinds if name not in reasons], objection)
    reasons |= dict(failed)
    for name in opened:
        replace_layer(module, name, _opened(module.get_submodule(name), kinds[name]))
    return Opening(tuple(opened), tuple(LeftAlone(layer=name, reason=reasons[name]) for name in kinds if name in reasons))


# ---------------------------------------------------------------------------------------------- what may be opened


def _kind(part: nn.Module) -> str | None:
    """The kind of an attention: torch and timm can be opened; other is what else calls itself attention and has projections."""
    from torch import nn

    if type(part) is nn.MultiheadAttention:
        return "torch"
    if type(part).__name__ == "Attention" and type(part).__module__ in TIMM:
        return "timm"
    is_plain = all(isinstance(getattr(part, name, None), nn.Linear) for name in "qkvo")
    projects = isinstance(part, nn.MultiheadAttention) or any(isinstance(child, nn.Linear) for child in part.children())
    return "other" if "attention" in type(part).__name__.lower() and projects and not is_plain else None


def _objection(module: nn.Module, name: str, kind: str, owners: Mapping[int, int]) -> str | None:
    """Reasons that show in the module itself."""
    from torch import nn

    part = module.get_submodule(name)
    if not name:
        return "it is the whole network"
    if any(hasattr(each, "parametrizations") for each in part.modules()):
        return "its weights are computed by a parametrization"
    if kind == "other":
        return f"{type(part).__name__} is not a kind of attention that can be opened"
    if any(owners[id(parameter)] > 1 for parameter in part.parameters()):
        return "it shares its weights with another layer"
    if isinstance(part, nn.MultiheadAttention):
        if not part._qkv_same_embed_dim:
            return "keys and values have a width of their own"
        if part.bias_k is not None or part.bias_v is not None or part.add_zero_attn:
            return "it adds a key and a value of its own"
        return None
    known = {"qkv", "q_norm", "k_norm", "attn_drop", "norm", "proj", "proj_drop", "gate"}
    children = dict(part.named_children())
    if children.keys() - known or "gate" in children:
        return f"it has a {', '.join(sorted(children.keys() - known) or ['gate'])} of its own"
    normed = [each for each in ("q_norm", "k_norm", "norm") if not isinstance(children.get(each), nn.Identity | None)]
    if normed:
        return f"it normalises between projection and product ({', '.join(normed)})"
    if type(children["qkv"]) is not nn.Linear or type(children["proj"]) is not nn.Linear:
        return "its projections are not plain linear layers"
    if any(len(hooks) for hooks in (children["qkv"]._forward_hooks, children["qkv"]._forward_pre_hooks)):
        return "there are hooks on its fused projection"
    return None


def _objections_to_calls(module: nn.Module, names: Sequence[str], examples: Sequence[Tensor]) -> dict[str, str]:
    """Reasons that show in how the network calls its attentions."""
    import torch

    calls: dict[str, list[tuple[tuple[Any, ...], dict[str, Any]]]] = {name: [] for name in names}

    def note(name: str) -> Any:
        return lambda part, arguments, named: calls[name].append((arguments, named))

    handles = [module.get_submodule(name).register_forward_pre_hook(note(name), with_kwargs=True) for name in names]
    try:
        with evaluating(module), torch.no_grad(), plain_encoder_layers(), first_pass(module, examples):
            module(*examples)
    finally:
        for handle in handles:
            handle.remove()
    found = {}
    for name, seen in calls.items():
        reasons = [_objection_to_call(module.get_submodule(name), *call) for call in seen] or ["it is never called"]
        if any(reasons):
            found[name] = next(reason for reason in reasons if reason)
    return found


def _objection_to_call(part: nn.Module, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> str | None:
    import inspect

    given = inspect.signature(part.forward).bind(*arguments, **named)
    given.apply_defaults()
    values = given.arguments
    if any(values.get(mask) is not None for mask in ("attn_mask", "key_padding_mask")) or values.get("is_causal"):
        return "it is called with a mask"
    if "query" not in values:
        return None
    if values["need_weights"]:
        return "its attention weights are asked for"
    if values["key"] is not values["query"] or values["value"] is not values["query"]:
        return "it is not self-attention"
    return None if values["query"].ndim == 3 else "it is called without a batch"


@contextmanager
def plain_encoder_layers() -> Iterator[None]:
    """Inside, torch's encoder layers call their parts instead of a fused routine around them."""
    import torch

    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


# ---------------------------------------------------------------------------------------------- opening


def _opened(part: Any, kind: str) -> PlainAttention:
    """What replaces ``part``, with copies of its weights."""
    from .plain_attention import PlainMultiheadAttention, PlainTimmAttention

    new: PlainAttention
    if kind == "torch":
        q, k, v = _thirds(part.in_proj_weight, part.in_proj_bias)
        o = _linear(part.out_proj.weight, part.out_proj.bias)
        scale = (part.embed_dim // part.num_heads) ** -0.5
        new = PlainMultiheadAttention(q, k, v, o, heads=part.num_heads, scale=scale, dropout=part.dropout)
        new.batch_first = part.batch_first
    else:
        q, k, v = _thirds(part.qkv.weight, part.qkv.bias)
        o = _linear(part.proj.weight, part.proj.bias)
        shape = {"heads": part.num_heads, "scale": float(part.scale)}
        new = PlainTimmAttention(q, k, v, o, dropout=part.attn_drop.p, output_dropout=part.proj_drop.p, **shape)
        pass_hooks(part.proj, o)
    for each in new.modules():
        each.training = part.training
    pass_hooks(part, new)
    return new


def _thirds(weight: Tensor, bias: Tensor | None) -> list[nn.Linear]:
    biases = (None, None, None) if bias is None else bias.chunk(3)
    return [_linear(*each) for each in zip(weight.chunk(3), biases, strict=True)]


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A linear layer with copies of these."""
    from torch import nn

    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.detach().clone(), weight.requires_grad)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone(), bias.requires_grad)
    return layer


def opened_weights(module: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``tensors`` of a network whose attentions are closed under the names of ``module``, whose attentions are open.

    Tensors that carry the names of open attentions already stay as they are.
    """
    from .plain_attention import PlainAttention

    renamed = dict(tensors)
    for name, part in module.named_modules():
        if not isinstance(part, PlainAttention):
            continue
        for fused, output in (("in_proj_", "out_proj."), ("qkv.", "proj.")):
            for kind in ("weight", "bias"):
                if f"{name}.{fused}{kind}" in renamed:
                    thirds = renamed.pop(f"{name}.{fused}{kind}").chunk(3)
                    renamed |= {f"{name}.{child}.{kind}": third for child, third in zip("qkv", thirds, strict=True)}
                if f"{name}.{output}{kind}" in renamed:
                    renamed[f"{name}.o.{kind}"] = renamed.pop(f"{name}.{output}{kind}")
    return renamed
