"""Data and training."""

from __future__ import annotations

import itertools
import operator
from typing import Literal, Self

import pydantic
from pydantic import Field

from .documents import Document, Part
from .environment import Accuracy


class DataSummary(Document):
    """What the network is trained and judged on, after splitting. File ``data.json``."""

    SCHEMA = "data"

    name: str
    source: str
    classes: tuple[str, ...]
    """Class names; empty for unlabelled images."""
    shape: tuple[int, ...]
    """One input as the network gets it, e.g. (3, 32, 32)."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    """Per channel, of pixels in 0..1, over the training split."""
    counts: dict[str, int]
    """Images per split."""
    content_sha256: str
    """Over pixels, labels and split of every image."""


Augmentation = Literal["flip", "crop", "zoom", "erase"]
"""Random changes of training images (lorita_deploy/train/augment.py)."""


class Phase(Part):
    """What changes in the course of a training, from the beginning of epoch ``start`` on (the first epoch is 1)."""

    start: int = Field(ge=2)
    depth: int | None = Field(default=None, ge=1)
    """The weights are multiplied out and factored anew into so many factors, in balance: the function stays the same."""
    weight_decay: float | None = Field(default=None, ge=0)
    trim: float | None = Field(default=None, gt=0, lt=1, exclude_if=lambda share: share is None)
    """Directions whose singular value is below this share of their weight's largest are left out for good: factors become so
    much narrower, and steps cheaper. Not written where it is not given: what was trained before stays what it is."""


class Recipe(Part):
    """How a network is trained. Learning-rate units are per optimiser step."""

    epochs: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float = Field(gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(ge=0)
    """On every weight matrix, factored or not; never on BN, LN or biases, unless ``decay_on`` says so."""
    decay_on: Literal["matrices", "all"] = "matrices"
    schedule: Literal["one-cycle", "cosine", "plateau"] = "one-cycle"
    """plateau: a tenth of the rate where the training loss has not fallen for ten epochs."""
    warm_up: float | None = Field(default=None, ge=0, lt=1)
    """Share of the steps in which the rate rises in a line; None: a fifth in one-cycle, nothing in the others."""
    label_smoothing: float = Field(default=0.1, ge=0, lt=1)
    clip_norm: float | None = Field(default=1.0, gt=0)
    """Gradients longer than this (over all parameters together) are cut to it: a product of factors is steep."""
    augment: tuple[Augmentation, ...] = ()
    """In this order; those that do not suit the data are left out."""
    depth: int = Field(default=3, ge=1)
    """N of LoRITa: how many factors each weight is the product of, in the first epoch and until a phase changes it."""
    phases: tuple[Phase, ...] = ()
    """In ascending order of their starts."""
    narrow_gates: int = Field(default=0, ge=0)
    """K >= 2: batch norms scale each channel by a product of K gates under weight decay, so that channels fade out."""
    gate_decay: float | None = Field(default=None, ge=0)
    """Weight decay of the gates; None: that of the weights."""
    per_head: bool = Field(default=False, exclude_if=operator.not_)
    """Attentions are products for each head instead of for each projection, so that heads become narrower. Not written
    where it is off: what was trained before there was such a choice stays what it is."""
    accumulate: int = Field(default=1, ge=1)
    """Into how many parts a batch is cut, whose gradients are added up: takes less memory, gives the same step (batch
    normalisation sees only a part at a time)."""
    ema: float | None = Field(default=None, gt=0, lt=1)
    """Judge and keep a running average of the weights, of which so much stays at each step, such as 0.999."""
    teacher_share: float = Field(default=0.5, ge=0, le=1)
    """Where a teacher is given: how much of the loss is the distance from its answers."""
    temperature: float = Field(default=2.0, gt=0)
    """At which the teacher's answers are softened."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    seed: int = Field(default=0, ge=0, lt=2**32)
    """What ``--seed`` was; a recipe's file does not hold it."""

    @pydantic.model_validator(mode="after")
    def _makes_sense(self) -> Self:
        starts = [phase.start for phase in self.phases]
        if starts != sorted(set(starts)):
            raise ValueError(f"phases must start one after the other, not in epochs {starts}")
        if idle := [phase.start for phase in self.phases if phase.trim is not None and self.depth_at(phase.start) == 1]:
            raise ValueError(f"in epoch {idle[0]} there are no factors (N = 1) whose directions could be trimmed")
        if self.narrow_gates == 1:
            raise ValueError("narrow_gates is 0 (none) or at least 2: a single gate does nothing")
        if self.accumulate > self.batch_size:
            raise ValueError(f"a batch of {self.batch_size} cannot be cut into {self.accumulate} parts")
        return self

    def lasting(self, epochs: int) -> Recipe:
        """The same course over so many epochs: phases begin at the same share of it, in fewer epochs perhaps together."""
        phases: dict[int, Phase] = {}
        for phase in self.phases:
            start = max(2, 1 + (phase.start - 1) * epochs // self.epochs)
            changes = {**phase.model_dump(exclude_none=True), "start": start}
            phases[start] = phases.get(start, phase).model_copy(update=changes)
        return self.model_copy(update={"epochs": epochs, "phases": tuple(phases.values())})

    @property
    def keeps_from(self) -> int:
        """The first epoch whose weights may be kept: in the last quarter (of fewer than four: any), and where the last phase
        that factors anew or trims begins, or later. Before that the decay has not had its effect; of a training that starts
        from a trained network the first epoch is often the most accurate, and as large as it was."""
        if self.epochs < 4:
            return 1
        return max([self.epochs - self.epochs // 4 + 1, *self.restructured])

    @property
    def restructured(self) -> tuple[int, ...]:
        """The epochs that begin with weights which are factored anew, or trimmed."""
        starts = (phase.start for phase in self.phases if phase.start <= self.epochs)
        return tuple(n for n in starts if self.depth_at(n) != self.depth_at(n - 1) or self.trim_at(n) is not None)

    @property
    def most_factors(self) -> int:
        """The largest N of the course."""
        return max(map(self.depth_at, range(1, self.epochs + 1)))

    @property
    def course(self) -> str:
        """N, epoch after epoch: "3, then 2"."""
        depths = map(self.depth_at, range(1, self.epochs + 1))
        return ", then ".join(str(depth) for depth, _ in itertools.groupby(depths))

    def with_factors(self, depth: int) -> Recipe:
        """The same course with at most N = ``depth``: where it had most factors there are so many, elsewhere no more than it
        had; where no epoch has any there is nothing to trim."""

        def bounded(factors: int) -> int:
            return depth if factors == self.most_factors else min(factors, depth)

        def changed(phase: Phase) -> Phase:
            factors = None if phase.depth is None else bounded(phase.depth)
            return phase.model_copy(update={"depth": factors, "trim": phase.trim if depth > 1 else None})

        return self.model_copy(update={"depth": bounded(self.depth), "phases": tuple(map(changed, self.phases))})

    def with_weight_decay(self, decay: float) -> Recipe:
        """The same course with ``decay`` at the beginning; that of phases changes in proportion, where there was any before."""

        def scaled(phase: Phase) -> Phase:
            if phase.weight_decay is None or not self.weight_decay:
                return phase
            return phase.model_copy(update={"weight_decay": phase.weight_decay * decay / self.weight_decay})

        return self.model_copy(update={"weight_decay": decay, "phases": tuple(map(scaled, self.phases))})

    def depth_at(self, epoch: int) -> int:
        """N in ``epoch``, phases considered."""
        return next((p.depth for p in reversed(self.phases) if p.start <= epoch and p.depth is not None), self.depth)

    def trim_at(self, epoch: int) -> float | None:
        """The share to trim at, where a phase that trims begins with ``epoch``."""
        return next((p.trim for p in reversed(self.phases) if p.start == epoch and p.trim is not None), None)

    def weight_decay_at(self, epoch: int) -> float:
        """The weight decay in ``epoch``, phases considered."""
        changes = (p.weight_decay for p in reversed(self.phases) if p.start <= epoch and p.weight_decay is not None)
        return next(changes, self.weight_decay)


class LeftAlone(Part):
    """A layer that is not touched, and why."""

    layer: str
    reason: str


class EpochRecord(Part):
    epoch: int
    train_loss: float
    validation: Accuracy
    images_per_s: float
    rank_fraction: float
    """Mean over factored layers of the share of singular values above 1e-3 of the largest."""


class TrainRecord(Document):
    """What a training was and came to. File ``trained.json``; the weights (factors) lie beside it."""

    SCHEMA = "trained"

    model: str
    data_sha256: str
    recipe: Recipe
    device: str
    factored: tuple[str, ...]
    left_alone: tuple[LeftAlone, ...]
    epochs: tuple[EpochRecord, ...]
    best_epoch: int
    """By the validation split, in the last quarter (`Recipe.keeps_from`)."""
    weights_sha256: str
    started_from: str | None = Field(default=None, exclude_if=lambda digest: digest is None)
    """SHA-256 of the file of weights that it began with; None: with random ones."""
    teacher: str | None = Field(default=None, exclude_if=lambda digest: digest is None)
    """SHA-256 of the file of weights whose answers were learnt as well."""

    @property
    def best(self) -> EpochRecord:
        """The epoch whose weights were kept."""
        return self.epochs[self.best_epoch - 1]


class TrainingForecast(Document):
    """What a training will take, from a few of its steps (``train --dry-run``)."""

    SCHEMA = "training-forecast"

    model: str
    device: str
    params: int
    """Of the plain network."""
    trained_params: int
    """Factors and gates included."""
    peak_memory_bytes: int
    """Of the CUDA device, or of the whole process."""
    steps_per_epoch: int
    images_per_s: float
    epoch_s: float
    """Seconds for one epoch, with judging the validation images."""
    epochs: int
    fading: float = Field(ge=0, le=1)
    """What decay alone leaves of a direction that the loss does not hold, after all epochs: a share of its singular value."""

    @property
    def total_s(self) -> float:
        return self.epochs * self.epoch_s


class SampleRecord(Document):
    """A trained network that ships with the program. File ``<model>.json``; the weights lie beside it."""

    SCHEMA = "sample"

    data: DataSummary
    trained: TrainRecord
    dataset: str
    """The data set's name for ``--data``."""
    trained_on: str
    """What its images are called in a table, such as CIFAR-10 (JPEG)."""
    test: Accuracy
    """Of the network as it is stored."""
    weights_sha256: str
    """Of the file."""
    largest_difference: float
    """Of the logits from those of the network as it was trained, over all test images; the answers are the same."""
