"""Products of factors that are kept while one optimiser step lasts, instead of being multiplied out at every use.

A weight that is used several times in a forward pass, or by several forward passes whose gradients are accumulated, is
composed once. A kept product takes any number of backward passes: its graph is not freed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.optim.optimizer import register_optimizer_step_post_hook

Multiply = Callable[..., Tensor]


class Kept:
    """The products of one layer, by name. Keeps nothing until it is switched on; a copy starts empty and switched off."""

    def __init__(self) -> None:
        self.on = False
        self._found: dict[str, tuple[object, Tensor]] = {}

    def get(self, name: str, multiply: Multiply, factors: Sequence[Tensor]) -> Tensor:
        """``multiply(*factors)``, kept from an earlier call if neither the factors nor the grad mode have changed."""
        if not self.on or torch.compiler.is_compiling() or any(factor.is_inference() for factor in factors):
            return multiply(*factors)
        key = (
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
            tuple((factor._version, factor.data_ptr(), factor.dtype, factor.requires_grad) for factor in factors),
        )
        found, product = self._found.get(name, (None, None))
        if found != key or product is None:
            self._found.pop(name, None)  # freed before the new one is made
            product = None
            product = _Product.apply(multiply, *factors)  # type: ignore[no-untyped-call]
            self._found[name] = (key, product)
        return product

    def clear(self) -> None:
        self._found.clear()

    def __deepcopy__(self, memo: dict[int, Any]) -> Kept:
        return Kept()


@contextmanager
def composed_once(model: nn.Module) -> Iterator[None]:
    """Inside, products of unchanged factors are worked out once; on leaving they are let go.

    They are worked out anew where a factor changes in place or is replaced, after the step of any torch optimiser (fused
    ones change parameters without a trace in their version counters), and where the grad mode changes. Changing
    ``factor.data`` in place by hand goes unnoticed.
    """
    stores: list[Kept] = [part.kept for part in model.modules() if isinstance(part.__dict__.get("kept"), Kept)]  # type: ignore[misc]

    def clear(*_: object) -> None:
        for store in stores:
            store.clear()

    outer = [store.on for store in stores]
    hook = register_optimizer_step_post_hook(clear)
    for store in stores:
        store.on = True
    try:
        yield
    finally:
        hook.remove()
        for store, on in zip(stores, outer, strict=True):
            store.on = on
            if not on:
                store.clear()


class _Product(torch.autograd.Function):
    """A product whose backward may run again: it keeps a small graph of its own, which only it lets go of."""

    @staticmethod
    def forward(ctx: Any, multiply: Multiply, *factors: Tensor) -> Tensor:
        ctx.leaves = [factor.detach().requires_grad_(factor.requires_grad) for factor in factors]
        with torch.set_grad_enabled(any(ctx.needs_input_grad)):
            ctx.product = multiply(*ctx.leaves)
        return ctx.product.detach()  # type: ignore[no-any-return]

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        wanted = [leaf for leaf in ctx.leaves if leaf.requires_grad]
        found = iter(torch.autograd.grad(ctx.product, wanted, gradient, retain_graph=True))
        return None, *(next(found) if leaf.requires_grad else None for leaf in ctx.leaves)
