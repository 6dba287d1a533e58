"""Products of factors that are kept while one optimiser step lasts, instead of being multiplied out at every use.

A weight that is used several times in a forward pass, or by several forward passes whose gradients are accumulated, is
composed once. A kept product takes any number of backward passes.

Small layers cost more in overhead than in multiplications, above all where each comes after a convolution that has swept the
caches. So the first product that a step asks for brings along all small ones that the step before asked for, and their
gradients are worked out together as well, when the last one has come.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.optim.optimizer import register_optimizer_step_post_hook

Multiply = Callable[..., tuple[Tensor, Any]]
"""(*factors) -> their product, and what its gradients can use."""
Gradients = Callable[..., tuple[Tensor, ...]]
"""(gradient of the product, what they can use, *factors) -> gradient of each factor."""

SMALL = 2**18
"""Entries of the factors of a product. The gradients of larger ones do not wait for those of other layers: they take memory."""


class _Product(NamedTuple):
    """What a layer asks for: the name that it is kept by, how it is worked out, and from what."""

    name: str
    multiply: Multiply
    gradients: Gradients
    factors: Sequence[Tensor]

    def small(self) -> bool:
        return sum(factor.numel() for factor in self.factors) <= SMALL

    def key(self) -> object:
        """Changes where the value does, as far as one can tell without looking at it."""
        return (
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
            tuple(
                (id(factor), factor._version, factor.data_ptr(), factor.dtype, factor.requires_grad) for factor in self.factors
            ),
        )


class Kept:
    """The products of one layer, by name. Keeps nothing until it is switched on; a copy starts empty and switched off."""

    def __init__(self) -> None:
        self.step: _Step | None = None
        self.found: dict[str, tuple[object, Tensor]] = {}
        self.asked: dict[bool, dict[str, _Product]] = {True: {}, False: {}}
        """With gradients, and without: what was asked for in this step or, before it has begun, in the one before."""

    def get(self, name: str, multiply: Multiply, gradients: Gradients, factors: Sequence[Tensor]) -> Tensor:
        """The product by ``multiply``, kept from an earlier call if neither the factors nor the grad mode have changed."""
        if torch.compiler.is_compiling() or self.step is None or any(factor.is_inference() for factor in factors):
            return multiply(*factors)[0]
        return self.step.product(self, _Product(name, multiply, gradients, factors))

    def still(self, wanted: _Product) -> Tensor | None:
        """What was kept of it, if it is still right."""
        key, product = self.found.get(wanted.name, (None, None))
        return product if product is not None and key == wanted.key() else None

    def forget(self) -> None:
        """Lets go of the factors, which would otherwise wait in a cycle of references until somebody collects it."""
        self.found, self.asked = {}, {True: {}, False: {}}

    def __reduce__(self) -> tuple[type[Kept], tuple[()]]:
        return Kept, ()


class _Step:
    """What the layers ask for between two changes of their factors."""

    def __init__(self, stores: Sequence[Kept]) -> None:
        self.stores = stores
        self.begun: set[bool] = set()

    def product(self, store: Kept, wanted: _Product) -> Tensor:
        if torch.is_grad_enabled() not in self.begun:
            self._begin(torch.is_grad_enabled())
        store.asked[torch.is_grad_enabled()][wanted.name] = wanted
        product = store.still(wanted)
        return self._work_out([(store, wanted)])[0] if product is None else product

    def _begin(self, mode: bool) -> None:
        """With the small products that the step before asked for."""
        self.begun.add(mode)
        last = [(store, product) for store in self.stores for product in store.asked[mode].values()]
        for store in self.stores:
            store.asked[mode] = {}
        if along := [(store, product) for store, product in last if product.small() and store.still(product) is None]:
            self._work_out(along)

    def _work_out(self, wanted: Sequence[tuple[Kept, _Product]]) -> tuple[Tensor, ...]:
        for store, each in wanted:
            store.found.pop(each.name, None)  # freed before the new one is made
        products: tuple[Tensor, ...] = _Together.apply(  # type: ignore[no-untyped-call]
            [each for _, each in wanted], *(factor for _, each in wanted for factor in each.factors)
        )
        for (store, each), product in zip(wanted, products, strict=True):
            store.found[each.name] = (each.key(), product)
        return products

    def clear(self, *_: object) -> None:
        for store in self.stores:
            store.found.clear()
        self.begun.clear()


@contextmanager
def composed_once(model: nn.Module) -> Iterator[None]:
    """Inside, products of unchanged factors are worked out once; on leaving they are let go.

    They are worked out anew where a factor changes in place or is replaced, after the step of any torch optimiser (fused
    ones change parameters without a trace in their version counters), and where the grad mode changes. Changing
    ``factor.data`` in place by hand goes unnoticed. Their gradients cannot be differentiated again. A compiled model keeps
    nothing: it is one graph, in which each weight is composed where it is used.
    """
    stores: list[Kept] = [part.kept for part in model.modules() if isinstance(part.__dict__.get("kept"), Kept)]  # type: ignore[misc]
    step = _Step(stores)
    outer = [store.step for store in stores]
    hook = register_optimizer_step_post_hook(step.clear)
    for store in stores:
        store.step = step
    try:
        yield
    finally:
        hook.remove()
        for store, before in zip(stores, outer, strict=True):
            store.step = before
            if before is None:
                store.found.clear()


class _Together(torch.autograd.Function):
    """Products whose backward may run any number of times: it keeps the factors, no graph."""

    @staticmethod
    def forward(ctx: Any, wanted: Sequence[_Product], *factors: Tensor) -> tuple[Tensor, ...]:
        products, ctx.others = zip(*(each.multiply(*each.factors) for each in wanted), strict=True)
        ctx.wanted, ctx.versions = wanted, [factor._version for factor in factors]
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(
            *(product for each, product in zip(wanted, products, strict=True) if not any(f.requires_grad for f in each.factors))
        )
        return products

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        if ctx.versions != [factor._version for each in ctx.wanted for factor in each.factors]:
            raise RuntimeError(
                "a factor of a weight was modified by an inplace operation after the weight had been composed: "
                "gradients need it as it was"
            )
        found: list[Tensor | None] = [None]
        for each, gradient, other in zip(ctx.wanted, gradients, ctx.others, strict=True):
            found += [None] * len(each.factors) if gradient is None else each.gradients(gradient, other, *each.factors)
        return tuple(found)
