"""Accuracy comes back, and nothing else changes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from lorita_deploy.compress.calibrate import collect_moments
from lorita_deploy.compress.recover import distill
from lorita_deploy.compress.rewrite import rewrite
from lorita_deploy.errors import BadNetwork, TrainingDiverged


@pytest.fixture(scope="module")
def compressed(trained) -> nn.Module:
    """Cut hard enough to hurt: every convolution to a quarter of its rank or less."""
    moments, _ = collect_moments(trained.module, trained.geometries, trained.task, samples=400)
    ranks = {"stem.0": 2, "down.0": 4, "inner.0": 3, "point": 4}
    return rewrite(trained.module, ranks, moments)


def kl(trained, network: nn.Module) -> float:
    with torch.no_grad():
        p = trained.module(trained.held_out).log_softmax(1)
        q = network(trained.held_out).log_softmax(1)
    return float(functional.kl_div(q, p, log_target=True, reduction="batchmean"))


def statistics(network: nn.Module, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    norm = network.get_submodule(name)
    return norm.running_mean.clone(), norm.running_var.clone()


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("freeze", [True, False])
def test_distillation_brings_the_outputs_back(trained, compressed, optimizer, freeze) -> None:
    lr = 2e-3 if optimizer == "adamw" else 0.02
    student = copy.deepcopy(compressed)
    student = distill(
        student, trained.module, trained.task.calibration, epochs=4, lr=lr, optimizer=optimizer, freeze_batchnorm=freeze
    )
    assert kl(trained, student) < 0.25 * kl(trained, compressed)
    assert trained.correct(student) >= trained.correct(compressed)
    assert all(parameter.grad is None for parameter in student.parameters())
    unchanged = torch.equal(statistics(student, "stem.1")[0], statistics(compressed, "stem.1")[0])
    assert unchanged is freeze


def test_mixed_precision_distils_as_well_and_leaves_float32_weights(trained, compressed) -> None:
    student = distill(copy.deepcopy(compressed), trained.module, trained.task.calibration, epochs=4, lr=2e-3, bf16=True)
    assert kl(trained, student) < 0.25 * kl(trained, compressed)
    assert all(parameter.dtype is torch.float32 for parameter in student.parameters())
    plain = distill(copy.deepcopy(compressed), trained.module, trained.task.calibration, epochs=4, lr=2e-3)
    assert any(not torch.equal(a, b) for a, b in zip(student.parameters(), plain.parameters(), strict=True))


def test_the_same_seed_gives_the_same_network_and_the_callers_generator_is_left_alone(trained, compressed) -> None:
    batches = list(trained.task.calibration)[:4]
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, second = (distill(copy.deepcopy(compressed), trained.module, batches, epochs=1, seed=1) for _ in range(2))
    assert torch.equal(torch.rand(3), expected)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


def test_outputs_that_are_not_logits_are_matched_by_squared_error() -> None:
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 1))
    student = copy.deepcopy(teacher)
    with torch.no_grad():
        student[0].weight[:3] = 0
    batches = [(torch.randn(40, 6),) for _ in range(5)]
    before = functional.mse_loss(student(batches[0][0]), teacher(batches[0][0]))
    distill(student, teacher, batches, epochs=20, lr=1e-2)
    assert functional.mse_loss(student(batches[0][0]), teacher(batches[0][0])) < 0.1 * before


def test_a_loss_that_is_no_number_stops(trained, compressed) -> None:
    student = copy.deepcopy(compressed)
    with torch.no_grad():
        student.head.bias[0] = float("nan")
    with pytest.raises(TrainingDiverged, match="step 0"):
        distill(student, trained.module, trained.task.calibration, epochs=1)


def test_a_frozen_network_is_refused(trained, compressed) -> None:
    with pytest.raises(BadNetwork, match="requires_grad"):
        distill(copy.deepcopy(compressed).requires_grad_(False), trained.module, trained.task.calibration, epochs=1)


def test_a_network_of_several_outputs_is_distilled_too() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(6, 8)

        def forward(self, x: torch.Tensor) -> dict[str, object]:
            y = self.body(x)
            return {"logits": y[:, :5], "boxes": [y[:, 5:]], "best": y.argmax(1)}

    torch.manual_seed(0)
    teacher, student, x = Two(), Two(), torch.randn(64, 6)
    before = float((student.body.weight - teacher.body.weight).detach().norm())
    distill(student, teacher, [(x,)] * 20, epochs=5, lr=0.05)
    assert float((student.body.weight - teacher.body.weight).detach().norm()) < 0.3 * before
