"""How often a network, or a shipped artifact, is right: as counts, over batches of real inputs.

Two questions (right against labels, or in agreement with the dense network where there are none), two things to ask
(a module, an opened artifact), one loop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import BadData
from ..networks import evaluating
from ..records import Accuracy
from .fidelity import flatten, run_session

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..ports import Batch, Session

Predict = Callable[[tuple[Any, ...]], "Tensor"]
"""Inputs of a batch to predicted classes (examples,), on the CPU."""


def accuracy(module: nn.Module, batches: Iterable[Batch], split: str) -> Accuracy:
    """Right answers of ``module`` over ``batches`` of (inputs..., labels), on the module's device, in evaluation mode.

    Raises `BadData` when there is not one example.
    """
    with evaluating(module):
        return _count(_module_classes(module), _labelled(batches), "accuracy", split)


def agreement(module: nn.Module, reference: Sequence[Tensor], batches: Iterable[tuple[Tensor, ...]], split: str) -> Accuracy:
    """How often ``module`` answers as another network did: ``reference`` holds that one's outputs (examples, classes),
    or their argmax (examples,), for each of ``batches`` of inputs."""
    with evaluating(module):
        return _count(_module_classes(module), _referenced(batches, reference), "agreement", split)


def artifact_accuracy(
    session: Session, input_names: Sequence[str], batches: Iterable[Batch], split: str, batch: int = 1
) -> Accuracy:
    """`accuracy` of an opened artifact that takes ``batch`` examples at a time."""
    return _count(_artifact_classes(session, input_names, batch), _labelled(batches), "accuracy", split)


def artifact_agreement(
    session: Session,
    input_names: Sequence[str],
    reference: Sequence[Tensor],
    batches: Iterable[tuple[Tensor, ...]],
    split: str,
    batch: int = 1,
) -> Accuracy:
    """`agreement` of an opened artifact that takes ``batch`` examples at a time."""
    return _count(_artifact_classes(session, input_names, batch), _referenced(batches, reference), "agreement", split)


def predictions(module: nn.Module, batches: Iterable[tuple[Tensor, ...]]) -> list[Tensor]:
    """The classes (examples,) that ``module`` answers for each of ``batches`` of inputs: a reference for `agreement`."""
    with evaluating(module):
        predict = _module_classes(module)
        return [predict(tuple(inputs)) for inputs in batches]


# ---------------------------------------------------------------------------------------------- the loop


def _count(predict: Predict, pairs: Iterable[tuple[tuple[Any, ...], Tensor]], metric: Any, split: str) -> Accuracy:
    correct = total = 0
    for inputs, truth in pairs:
        truth = truth.detach().cpu()
        answers = predict(inputs)
        if answers.shape != truth.shape:
            raise BadData(
                f"{tuple(answers.shape)} answers for {tuple(truth.shape)} labels", where=split, fix="one label for each example"
            )
        correct += int((answers == truth).sum())
        total += truth.numel()
    if not total:
        raise BadData(f"there is no image in the {split} split", where=split, fix="check the folders of the data set")
    return Accuracy(metric=metric, split=split, correct=float(correct), total=total)


def _labelled(batches: Iterable[Batch]) -> Iterator[tuple[tuple[Any, ...], Tensor]]:
    for batch in batches:
        *inputs, labels = batch
        yield tuple(inputs), labels


def _referenced(batches: Iterable[tuple[Any, ...]], reference: Sequence[Tensor]) -> Iterator[tuple[tuple[Any, ...], Tensor]]:
    for inputs, outputs in zip(batches, reference, strict=True):
        yield tuple(inputs), outputs.argmax(1) if outputs.dim() > 1 else outputs


def _module_classes(module: nn.Module) -> Predict:
    import torch

    device = next((tensor.device for tensor in module.parameters()), torch.device("cpu"))

    @torch.inference_mode()
    def classes(inputs: tuple[Any, ...]) -> Tensor:
        outputs = next(flatten(module(*(tensor.to(device) for tensor in inputs))))
        return outputs.argmax(1).cpu()

    return classes


def _artifact_classes(session: Session, input_names: Sequence[str], batch: int) -> Predict:
    import torch

    def classes(inputs: tuple[Any, ...]) -> Tensor:
        arrays = [tensor.detach().cpu().numpy() for tensor in inputs]
        outputs = run_session(session, dict(zip(input_names, arrays, strict=True)), batch)
        return torch.from_numpy(outputs[0].argmax(1))

    return classes
