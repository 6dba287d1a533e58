"""What a training makes small: cross entropy, a loss of the caller's, or either together with a teacher's answers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from ..errors import BadData
from ..records import Recipe
from .splits import Dataset

Loss = Callable[[Tensor, Tensor], Tensor]
"""``loss(outputs, labels)``, the mean over the batch."""

Objective = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``objective(outputs, labels, inputs)``, the mean over the batch."""


def objective(recipe: Recipe, dataset: Dataset, loss: Loss | None, teacher: nn.Module | None) -> Objective:
    """``loss`` (cross entropy when None) and, in the recipe's share, the distance from what ``teacher`` answers.

    The distance is temperature^2 * KL(teacher || network) of the softened class probabilities (Hinton et al.,
    arXiv 1503.02531). Raises `BadData` when the outputs are too few for the classes.
    """
    plain = loss or _classification(recipe, dataset)

    def alone(outputs: Tensor, labels: Tensor, inputs: Tensor) -> Tensor:
        return plain(outputs, labels)

    if teacher is None:
        return alone
    teacher.eval()
    share, temperature = recipe.teacher_share, recipe.temperature

    def taught(outputs: Tensor, labels: Tensor, inputs: Tensor) -> Tensor:
        with torch.no_grad():
            expected = log_softmax(teacher(inputs).float() / temperature, 1)
        distance = kl_div(log_softmax(outputs / temperature, 1), expected, log_target=True, reduction="batchmean")
        return (1 - share) * plain(outputs, labels) + share * temperature**2 * distance

    return taught


def _classification(recipe: Recipe, dataset: Dataset) -> Loss:
    classes = len(dataset.summary.classes)

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        if logits.shape[-1] < classes:
            raise BadData(
                f"the network tells {logits.shape[-1]} classes apart, the data has {classes}",
                where=dataset.summary.name,
                fix=f"build the network for {classes} classes (--classes {classes}, or leave the option out)",
            )
        return cross_entropy(logits, labels, label_smoothing=recipe.label_smoothing)

    return loss
