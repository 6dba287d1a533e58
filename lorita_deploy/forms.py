"""What layers can become. ``FORMS`` is a plain tuple: forms are mathematics that we vouch for.

With W the (m, n) weight matrix of a layer (m outputs, n inputs * kernel size):

    Dense   W itself
    Narrow  W without the rows and columns of channels that are gone (and a NarrowPair of what is left)
    Pair    second @ first, first (r, n) as a layer of the same kind, kernel, stride, padding and dilation without bias,
            second (m, r) as a 1x1 convolution (or linear layer) with the bias

Conv2d as "k x k to r channels, then 1x1 to m": low rank is induced in the output mode only (the input-mode and
spatially separable unfoldings stay full rank).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Protocol

from .errors import PlanMismatch
from .records import Geometry

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor, nn

    from .records import Choice


FormName = Literal["dense", "pair", "narrow", "narrow-pair"]


class Form(Protocol):
    """One class per form."""

    name: FormName

    def ranks(self, geometry: Geometry, multiple: int) -> tuple[int | None, ...]:
        """The sizes worth offering: multiples of ``multiple`` for which the form has fewer multiply-accumulates than dense."""
        ...

    def cost(self, geometry: Geometry, rank: int | None) -> tuple[int, int]:
        """(parameters, multiply-accumulates for one example)."""
        ...

    def build(self, layer: nn.Module, rank: int | None) -> nn.Module:
        """A new, unfilled layer of this form in place of ``layer``, on its device and in its type."""
        ...


class Dense:
    """The layer as it is."""

    name: FormName = "dense"

    def ranks(self, geometry: Geometry, multiple: int) -> tuple[int | None, ...]:
        return (None,)

    def cost(self, geometry: Geometry, rank: int | None) -> tuple[int, int]:
        macs = geometry.m * geometry.n * geometry.positions
        return geometry.m * geometry.n + (geometry.m if geometry.bias else 0), macs

    def build(self, layer: nn.Module, rank: int | None) -> nn.Module:
        return layer


class Pair:
    """Two factors of rank r."""

    name: FormName = "pair"

    def ranks(self, geometry: Geometry, multiple: int) -> tuple[int | None, ...]:
        m, n = geometry.m, geometry.n
        largest = (m * n - 1) // (m + n)  # r (m + n) < m n
        return tuple(range(multiple, largest + 1, multiple))

    def cost(self, geometry: Geometry, rank: int | None) -> tuple[int, int]:
        assert rank is not None
        factors = rank * (geometry.m + geometry.n)
        return factors + geometry.m, factors * geometry.positions

    def build(self, layer: nn.Module, rank: int | None) -> nn.Module:
        assert rank is not None
        return pair_module(layer, rank)


class Narrow(Dense):
    """A smaller dense layer: the layer itself, of whose channels some are gone. Geometries are those without them."""

    name: FormName = "narrow"


class NarrowPair(Pair):
    """A smaller dense layer, factored."""

    name: FormName = "narrow-pair"


FORMS: tuple[Form, ...] = (Dense(), Pair())
"""At a layer's full widths."""
NARROW_FORMS: tuple[Form, ...] = (Narrow(), NarrowPair())
"""With fewer channels read or written."""


def form(name: str) -> Form:
    """The form called ``name``. Raises ``KeyError``."""
    return {str(each.name): each for each in (*FORMS, *NARROW_FORMS)}[name]


def at_widths(geometry: Geometry, k_in: int, k_out: int) -> Geometry:
    """The layer with fewer channels read and written."""
    return geometry.model_copy(update={"in_channels": k_in, "out_channels": k_out})


def form_geometries(geometry: Geometry, rank: int | None) -> tuple[Geometry, ...]:
    """The layers that a form consists of: the layer itself, or a pair's two factors."""
    if rank is None:
        return (geometry,)
    first = geometry.model_copy(update={"out_channels": rank, "bias": False})
    ones = (1,) * len(geometry.kernel)
    second = geometry.model_copy(
        update={
            "in_channels": rank,
            "kernel": ones,
            "stride": ones,
            "padding": (0,) * len(ones),
            "dilation": ones,
            "in_shape": geometry.out_shape,
            "bias": True,
        }
    )
    return (first, second)


def pair_module(layer: nn.Module, rank: int) -> nn.Sequential:
    """An unfilled pair in place of a Linear, Conv1d or Conv2d: ``0`` is the first factor, ``1`` the second.

    It takes over the layer's hooks, device, type, memory format, training mode and requires_grad.
    """
    import torch
    from torch import nn

    weight: Tensor = layer.weight  # type: ignore[assignment]
    like: dict[str, Any] = {"device": weight.device, "dtype": weight.dtype}
    if isinstance(layer, nn.Linear):
        first: nn.Module = nn.Linear(layer.in_features, rank, bias=False, **like)
        second: nn.Module = nn.Linear(rank, layer.out_features, **like)
    elif isinstance(layer, nn.Conv1d | nn.Conv2d):
        kind = nn.Conv2d if isinstance(layer, nn.Conv2d) else nn.Conv1d
        shape: dict[str, Any] = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation}
        shape["padding_mode"] = layer.padding_mode
        first = kind(layer.in_channels, rank, layer.kernel_size, bias=False, **shape, **like)  # type: ignore[arg-type]
        second = kind(rank, layer.out_channels, 1, **like)
    else:
        raise TypeError(f"no pair for a {type(layer).__name__}")
    pair = nn.Sequential(first, second).train(layer.training)
    if weight.ndim == 4 and weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous():
        pair = pair.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for parameter in pair.parameters():
        parameter.requires_grad_(weight.requires_grad)
    pass_hooks(layer, pair)
    return pair


_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)
"""Where a module keeps the hooks that run around its call; those on its state dict name its own parameters and stay behind."""


def pass_hooks(old: nn.Module, new: nn.Module) -> None:
    """Give ``new`` the hooks that run around a call of ``old``."""
    for hooks in _HOOKS:
        getattr(new, hooks).update(getattr(old, hooks))
    new._is_full_backward_hook = old._is_full_backward_hook


def fill_pair(pair: nn.Module, first: Tensor, second: Tensor, bias: Tensor) -> None:
    """Put ``first (r, n)``, ``second (m, r)`` and ``bias (m,)`` into an unfilled pair."""
    import torch
    from torch import nn

    assert isinstance(pair, nn.Sequential)
    with torch.no_grad():
        for layer, values in zip(pair, (first, second), strict=True):
            weight = layer.get_parameter("weight")
            weight.copy_(values.reshape(weight.shape))
        pair[1].get_parameter("bias").copy_(bias)


def install(network: nn.Module, choices: Iterable[Choice]) -> None:
    """Give the layers of ``network`` the forms of ``choices``, unfilled, in place: a skeleton to load weights into.

    Raises `PlanMismatch` for layers that the network does not have.
    """
    modules = dict(network.named_modules())
    for choice in choices:
        if choice.layer not in modules:
            raise PlanMismatch(f"the plan names a layer that the network lacks: {choice.layer}", where=choice.layer)
        layer = modules[choice.layer]
        replace_layer(network, choice.layer, form(choice.form).build(layer, choice.rank))


def replace_layer(network: nn.Module, name: str, new: nn.Module) -> None:
    """Put ``new`` wherever the layer ``name`` was: a module may be registered under several names."""
    old = network.get_submodule(name)
    for parent in list(network.modules()):
        for child, part in list(parent._modules.items()):  # named_children() gives a part only once
            if part is old:
                setattr(parent, child, new)
