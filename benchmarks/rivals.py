"""What others do to make a network smaller, for compressors.py: two rules for ranks, and torch-pruning.

All of them are asked for a network of so many times fewer multiply-adds, which is what these methods are steered by.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from lorita_deploy.compress.rewrite import duplicate, rewrite
from lorita_deploy.forms import form
from lorita_deploy.networks import survey
from lorita_deploy.records import Layer

if TYPE_CHECKING:
    from torch import Tensor, nn

STEPS = 40
"""torch-pruning takes away so large a part of all channels at a time, ranking those that are left anew before each."""
ROUND_TO = 8
"""The multiple of channels that its documentation advises for speed."""

Ranks = dict[str, int]


def low_rank(network: nn.Module, ranks: Ranks) -> nn.Module:
    """Pairs by plain singular value decomposition; layers without a rank stay as they are."""
    return rewrite(network, ranks, None, criterion="svd")


def uniform_ranks(layers: Sequence[Layer], shrink: float) -> Ranks:
    """Every layer but the last, the output layer, a pair cut to one share of its full rank."""

    def ranks(share: float) -> Ranks:
        return {each.name: max(1, round(share * min(each.geometry.m, each.geometry.n))) for each in layers[:-1]}

    return _bisected(layers, lambda cut: ranks(1 - cut), shrink)


def threshold_ranks(layers: Sequence[Layer], shrink: float) -> Ranks:
    """The paper's rule: singular values below one share of their layer's largest are dropped, the share being the same for
    the whole network; a layer becomes a pair where that saves multiply-adds."""

    def ranks(cut: float) -> Ranks:
        kept = {each.name: max(1, sum(value > cut * each.spectrum[0] for value in each.spectrum)) for each in layers}
        return {each.name: kept[each.name] for each in layers if _macs(each, kept[each.name]) < _macs(each, None)}

    return _bisected(layers, ranks, shrink)


def _bisected(layers: Sequence[Layer], ranks: Callable[[float], Ranks], shrink: float) -> Ranks:
    """``ranks`` at the weakest cut, from 0 to 1, that leaves at most 1 / ``shrink`` of the multiply-adds."""
    allowed = sum(_macs(each, None) for each in layers) / shrink
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        found = ranks(middle)
        if sum(_macs(each, found.get(each.name)) for each in layers) > allowed:
            low = middle
        else:
            high = middle
    return ranks(high)


def _macs(layer: Layer, rank: int | None) -> int:
    return form("dense" if rank is None else "pair").cost(layer.geometry, rank)[1]


# ---------------------------------------------------------------------------------------------- torch-pruning


def torch_pruned(
    network: nn.Module,
    examples: tuple[Tensor, ...],
    classes: int,
    shrinks: Sequence[float],
    labelled: Iterable[tuple[Tensor, Tensor]] | None,
) -> Iterator[tuple[float, nn.Module]]:
    """Networks of ``shrinks`` (ascending) times fewer multiply-adds, by torch-pruning; fewer where it arrives at none.

    Group importance by magnitude, or with batches of ``labelled`` images by Taylor expansion, the gradients taken anew before
    each step. As its examples do: one ranking for the whole network, pruned step by step until the target is reached, the
    output layer left alone, all heads of an attention alike.
    """
    import torch_pruning
    from torch import nn
    from torch.nn.functional import cross_entropy

    model = duplicate(network).eval().requires_grad_(True)
    importance = torch_pruning.importance.GroupMagnitudeImportance(p=2)
    if labelled is not None:
        importance = torch_pruning.importance.GroupTaylorImportance()
    pruner = torch_pruning.pruner.BasePruner(
        model,
        examples[0],
        importance=importance,
        global_pruning=True,
        pruning_ratio=1.0,
        iterative_steps=STEPS,
        round_to=ROUND_TO,
        ignored_layers=[
            *(layer for layer in model.modules() if isinstance(layer, nn.Linear) and layer.out_features == classes),
            *_tied_by_padding(model),
        ],
        num_heads=_heads(model),
        in_channel_groups={},
        out_channel_groups={},
    )
    dense, waiting = survey(model, examples).macs, list(shrinks)
    for _ in range(STEPS - 1):
        for images, labels in labelled or ():
            cross_entropy(model(images), labels).backward()
        pruner.step()
        model.zero_grad()
        shrunk = dense / survey(model, examples).macs
        if shrunk >= waiting[0]:
            yield waiting[0], duplicate(model)
            waiting = [shrink for shrink in waiting if shrink > shrunk]
        if not waiting:
            return


def _heads(model: nn.Module) -> dict[nn.Module, int]:
    """Queries, keys and values with their number of heads: how torch-pruning is told of attention."""
    attentions = [part for part in model.modules() if hasattr(part, "heads") and hasattr(part, "q")]
    return {layer: part.heads for part in attentions for layer in (part.q, part.k, part.v)}  # type: ignore[misc]


def _tied_by_padding(model: nn.Module) -> list[nn.Module]:
    """Layers that write into a shortcut which is padded with zero channels: torch-pruning takes the channels before and behind
    the padding for the same ones. Only channels inside the blocks are left to it then, as they are to this compressor."""
    blocks = [part for part in model.modules() if getattr(part, "new_channels", None) is not None]
    return [*(part.conv2 for part in blocks), model.conv] if blocks else []  # type: ignore[list-item]
