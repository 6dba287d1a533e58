"""Whether a rewriting may be believed: it is tried on a copy, which must compute what the network computes.

What is claimed of a network's structure comes from traces and from libraries that guess; what counts is that it holds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from .feeding import float_tensors
from .rewrite import duplicate

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

Claim = TypeVar("Claim")


def those_that_hold(
    claims: list[Claim], objection: Callable[[list[Claim]], str | None]
) -> tuple[list[Claim], list[tuple[Claim, str]]]:
    """The claims without an ``objection``, and the others with theirs: all are tried at once; where that fails, each half."""
    reason = objection(claims) if claims else None
    if reason is None:
        return claims, []
    if len(claims) == 1:
        return [], [(claims[0], reason)]
    half = len(claims) // 2
    first, failed = those_that_hold(claims[:half], objection)
    second, failed_too = those_that_hold(claims[half:], objection)
    return first + second, failed + failed_too


def moved_copy(module: nn.Module, generator: torch.Generator) -> nn.Module:
    """A copy to try things on, in evaluation mode: vectors (biases, scales) are moved a little, so that no channel is dead or
    like another. Raises `BadNetwork` when the network cannot be copied."""
    import torch
    from torch import nn

    memo: dict[int, Any] = {id(buffer): buffer.detach().clone() for buffer in module.buffers()}
    for parameter in module.parameters():
        values = parameter.detach()
        if values.ndim == 1 and values.is_floating_point():
            values = values + 0.1 * torch.rand(values.shape, generator=generator).to(values.device, values.dtype)
        memo[id(parameter)] = nn.Parameter(values, requires_grad=values.is_floating_point())
    return duplicate(module, memo).eval()


def sharing_copy(module: nn.Module) -> nn.Module:
    """A copy whose tensors are the same objects: layers can be given other tensors, at no cost in memory.

    Raises `BadNetwork` when the network cannot be copied.
    """
    shared = [*module.parameters(), *module.buffers()]
    return duplicate(module, {id(tensor): tensor for tensor in shared})


def varied(example: Tensor, generator: torch.Generator) -> Tensor:
    """``example`` with noise of its own size: on constant inputs much looks independent that is not. Its values stay within
    those of ``example``, unless that is constant: a network may take logarithms or roots of what is never negative."""
    import torch

    if not example.is_floating_point() or not torch.isfinite(example).all():
        return example
    noise = torch.randn(example.shape, generator=generator).to(example.device, example.dtype)
    noisy = example + noise * (example.abs().mean() or 1.0)
    lowest, highest = example.aminmax()
    return noisy.clamp(lowest, highest) if lowest < highest else noisy


def outputs(network: nn.Module, layers: Sequence[str], examples: Sequence[Tensor]) -> dict[str, list[Tensor]]:
    """The outputs of ``layers`` and, under the empty name, of the network; floating-point tensors only."""
    import torch

    found: dict[str, list[Tensor]] = {}

    def keep(name: str) -> Any:
        def hook(_: nn.Module, __: object, output: object) -> None:
            found[name] = [tensor.detach().clone() for tensor in float_tensors(output)]  # an activation in place may follow

        return hook

    handles = [network.get_submodule(name).register_forward_hook(keep(name)) for name in layers]
    try:
        with torch.no_grad():
            found[""] = float_tensors(network(*examples))
    finally:
        for handle in handles:
            handle.remove()
    return found


def disagreement(expected: dict[str, list[Tensor]], found: dict[str, list[Tensor]]) -> str | None:
    """The first name under which two networks' `outputs` differ; None where they are the same."""
    for name, tensors in expected.items():
        if len(tensors) != len(found[name]) or not all(map(_agree, tensors, found[name])):
            return name
    return None


def _agree(expected: Tensor, found: Tensor) -> bool:
    """To half the digits of the type: what goes wrong with a wrong claim is of the size of the values themselves. Where nothing
    is finite, nothing has been shown."""
    import torch

    if expected.shape != found.shape:
        return False
    finite = torch.isfinite(expected)  # what is not finite says nothing for or against a claim
    if not torch.equal(finite, torch.isfinite(found)):
        return False
    expected, found = expected[finite], found[finite]
    tolerance = torch.finfo(expected.dtype).eps ** 0.5
    if not expected.numel():
        return not finite.numel()
    return bool((expected - found).abs().max() <= tolerance * expected.abs().max())


def first_line(error: Exception) -> str:
    """Of the error's message; its type where it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0]
