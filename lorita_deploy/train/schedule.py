"""Learning rates, weight decay and the optimiser.

Rates are functions of the recipe, the step and the losses so far: nothing of them is saved, and a resumed training finds
them again.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Literal

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from ..records import Recipe
from .gates import gate_parameters

WARM_UP = 0.2
"""Share of the steps in which one-cycle's rate rises."""

PATIENCE, THRESHOLD, DROP = 10, 1e-4, 0.1
"""plateau: the rate falls to ``DROP`` of it after more than ``PATIENCE`` epochs in a row whose loss is not at least
``THRESHOLD`` (relative) below the best; what torch's ReduceLROnPlateau does by default."""

NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
"""Whose scales are no weights, even where they have several dimensions."""

Group = Literal["weights", "gates", "nothing"]


def learning_rate(recipe: Recipe, step: int, steps: int, losses: Sequence[float] = ()) -> float:
    """At ``step`` of ``steps`` (0 is the first); ``losses`` are those of the epochs so far.

    First up in a line for the share ``warm_up`` of the steps. Then one-cycle and cosine go down in half a cosine; plateau
    stays until the losses say otherwise.
    """
    share = recipe.warm_up if recipe.warm_up is not None else WARM_UP if recipe.schedule == "one-cycle" else 0.0
    rise = round(share * steps)
    if step < rise:
        return recipe.lr * (step + 1) / rise
    if recipe.schedule == "plateau":
        return recipe.lr * DROP ** plateaus(losses, recipe.restructured)
    return recipe.lr * 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def fading(recipe: Recipe, steps: int) -> float:
    """What decay alone leaves of a singular value that the loss does not hold, as a share, with ``steps`` an epoch.

    Each of its N factors shrinks by (1 - lr * decay) a step, and by 1 / (1 - momentum) as much with SGD, whose decay goes
    through the momentum: exp(-sum of N * lr * decay / (1 - momentum)) in all. ``plateau`` is taken to stay
    at its first rate.
    """
    momentum = recipe.momentum if recipe.optimizer == "sgd" else 0.0
    dose = 0.0
    for epoch in range(1, recipe.epochs + 1):
        walk = range((epoch - 1) * steps, epoch * steps)
        rates = sum(learning_rate(recipe, step, recipe.epochs * steps) for step in walk)
        dose += recipe.depth_at(epoch) * recipe.weight_decay_at(epoch) * rates
    return math.exp(-dose / (1 - momentum))


def plateaus(losses: Sequence[float], restructured: Collection[int] = ()) -> int:
    """How often ``losses`` (one an epoch) stood still. In epochs in which the network was ``restructured`` they are compared
    anew: it may have become another one."""
    best, waited, found = math.inf, 0, 0
    for epoch, loss in enumerate(losses, 1):
        if epoch in restructured:
            best, waited = math.inf, 0
        if loss < best * (1 - THRESHOLD):
            best, waited = loss, 0
        else:
            waited += 1
        if waited > PATIENCE:
            found, waited = found + 1, 0
    return found


def make_optimizer(module: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Weight decay on every weight matrix, factored or not, and on gates; none on biases, normalisation and embeddings of
    position, unless the recipe decays everything."""
    gates = {id(parameter) for parameter in gate_parameters(module)}
    normal = {id(each) for part in module.modules() if isinstance(part, NORMS) for each in part.parameters(recurse=False)}
    found: dict[Group, list[nn.Parameter]] = {"weights": [], "gates": [], "nothing": []}
    for name, parameter in module.named_parameters():
        leaf = name.rpartition(".")[2]
        named = leaf.endswith("weight") or leaf.startswith(("original", "weight_"))  # weight_ih_l0 of a GRU
        is_matrix = parameter.dim() >= 2 and named and id(parameter) not in normal
        if id(parameter) in gates:
            found["gates"].append(parameter)
        else:
            found["weights" if is_matrix or recipe.decay_on == "all" else "nothing"].append(parameter)
    groups = [{"params": parameters, "decays": group} for group, parameters in found.items() if parameters]
    optimizer: torch.optim.Optimizer
    if recipe.optimizer == "sgd":
        optimizer = torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum, fused=True)
    else:
        optimizer = torch.optim.AdamW(groups, lr=recipe.lr, fused=True)
    set_rates(optimizer, recipe, 1, recipe.lr)
    return optimizer


def set_rates(optimizer: torch.optim.Optimizer, recipe: Recipe, epoch: int, lr: float) -> None:
    """Learning rate and weight decay of every group, as they are in ``epoch``."""
    weights = recipe.weight_decay_at(epoch)
    decay = {"weights": weights, "gates": weights if recipe.gate_decay is None else recipe.gate_decay, "nothing": 0.0}
    for group in optimizer.param_groups:
        group["lr"] = lr
        group["weight_decay"] = decay[group["decays"]]
