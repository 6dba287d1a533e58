"""What a training makes small: cross entropy, a loss of the caller's, or either together with a teacher's answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from ..errors import BadData
from ..records import Recipe
from .splits import Dataset

Loss = Callable[[Tensor, Tensor], Tensor]
"""``loss(outputs, labels)``, the mean over the batch."""


@dataclass(frozen=True)
class Objective:
    """``objective(outputs, labels, answers)``, the mean over the batch: ``loss``, and in the ``share`` of a teacher the
    distance from its ``answers``.

    The distance is temperature^2 * KL(teacher || network) of the softened class probabilities (Hinton et al.,
    arXiv 1503.02531).
    """

    loss: Loss
    teacher: nn.Module | None = None
    share: float = 0.0
    temperature: float = 1.0

    def answers(self, inputs: Tensor) -> Tensor | None:
        """Of the teacher, in float32; in the precision of the network where it is called beside it, under autocast."""
        if self.teacher is None:
            return None
        with torch.no_grad():
            outputs: Tensor = self.teacher(inputs)
        return outputs.float()

    def __call__(self, outputs: Tensor, labels: Tensor, answers: Tensor | None) -> Tensor:
        if answers is None:
            return self.loss(outputs, labels)
        if answers.shape != outputs.shape:
            raise BadData(
                f"the teacher's answers are {tuple(answers.shape)}, the network's {tuple(outputs.shape)}",
                where="teacher",
                fix="take a teacher of the same classes",
            )
        softened, expected = (log_softmax(each / self.temperature, 1) for each in (outputs, answers))
        distance = kl_div(softened, expected, log_target=True, reduction="batchmean")
        return (1 - self.share) * self.loss(outputs, labels) + self.share * self.temperature**2 * distance


def objective(recipe: Recipe, dataset: Dataset, loss: Loss | None, teacher: nn.Module | None) -> Objective:
    """With ``loss``, cross entropy when None, and what ``teacher`` answers in the recipe's share. Raises `BadData`, when it is
    called, where the outputs are too few for the classes."""
    if teacher is not None:
        teacher.eval()
    return Objective(loss or _classification(recipe, dataset), teacher, recipe.teacher_share, recipe.temperature)


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
