"""What is made small: labels, a loss of one's own, a teacher's answers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from torch.nn.functional import cross_entropy

from lorita_deploy.errors import BadData
from lorita_deploy.records import Accuracy, Recipe
from lorita_deploy.train.datasets import load_dataset
from lorita_deploy.train.epoch import Epochs
from lorita_deploy.train.loop import train
from lorita_deploy.train.objective import objective
from lorita_deploy.train.splits import Dataset

RECIPE = Recipe(epochs=12, batch_size=64, lr=0.5, weight_decay=1e-5, precision="fp32")


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset("digits", shape=(1, 8, 8))


def linear(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


def test_the_share_of_the_teacher_is_the_softened_divergence(digits: Dataset) -> None:
    torch.manual_seed(0)
    logits, inputs, labels = torch.randn(4, 10), torch.randn(4, 1, 8, 8), torch.arange(4)
    teacher = linear(1)
    recipe = RECIPE.model_copy(update={"teacher_share": 0.25, "temperature": 3.0})
    p, q = (teacher(inputs) / 3).softmax(1), (logits / 3).softmax(1)
    divergence = (p * (p / q).log()).sum(1).mean()
    expected = 0.75 * cross_entropy(logits, labels, label_smoothing=0.1) + 0.25 * 9 * divergence
    found = objective(recipe, digits, None, teacher)
    torch.testing.assert_close(found(logits, labels, found.answers(inputs)), expected)
    own = objective(recipe, digits, lambda outputs, _: outputs.mean(), None)
    torch.testing.assert_close(own(logits, labels, own.answers(inputs)), logits.mean())
    assert not teacher.training
    with pytest.raises(BadData, match=r"the teacher's answers are \(4, 1\), the network's \(4, 10\)"):
        found(logits, labels, found.answers(inputs)[:, :1])  # type: ignore[index]


def test_too_few_outputs_for_the_classes(digits: Dataset) -> None:
    with pytest.raises(BadData, match="7 classes apart, the data has 10"):
        objective(RECIPE, digits, None, None)(torch.randn(2, 7), torch.zeros(2, dtype=torch.long), None)


class Precise(nn.Module):
    """Linear, and notes in what precision it is run."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = linear(3)
        self.seen: set[torch.dtype] = set()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.linear(x)
        self.seen.add(y.dtype)
        return y


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_a_teacher_answers_in_the_precision_of_the_training(digits: Dataset, precision: str, dtype: torch.dtype) -> None:
    teacher = Precise()
    recipe = RECIPE.model_copy(update={"precision": precision})
    cpu = torch.device("cpu")
    epochs = Epochs(Accelerator(device_placement=False), cpu, digits, recipe, objective(recipe, digits, None, teacher))
    inputs, labels = next(epochs.batches(1))
    epochs.loss(linear(0), inputs, labels).backward()
    assert teacher.seen == {dtype}


def test_a_network_learns_from_a_teacher_alone(digits: Dataset, tmp_path: Path) -> None:
    """A random teacher, whose answers have nothing to do with the labels."""
    teacher = linear(7)
    images = torch.cat([x for x, _ in digits.batches("validation", 300)])

    def agreement(module: nn.Module) -> Accuracy:
        with torch.inference_mode():
            same = int((module(images).argmax(1) == teacher(images).argmax(1)).sum())
        return Accuracy(metric="agreement", split="validation", correct=same, total=len(images))

    recipe = RECIPE.model_copy(update={"teacher_share": 1.0})
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    trained = train(linear(0), digits, recipe, tmp_path, evaluate=agreement, model_name="linear", device="cpu", teacher=teacher)
    assert agreement(linear(0)).value < 0.3
    assert trained.record.epochs[-1].validation.value > 0.9
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())
