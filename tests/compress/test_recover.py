"""Accuracy comes back, and nothing else changes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from lorita_deploy.compress.calibrate import collect_moments
from lorita_deploy.compress.recover import distill, reestimate_batchnorm
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


def test_statistics_are_those_of_what_each_norm_now_sees(trained, compressed) -> None:
    network = reestimate_batchnorm(copy.deepcopy(compressed), trained.task.calibration)
    with torch.no_grad():
        parts = [network.stem[0](batch[0]).transpose(0, 1).flatten(1) for batch in trained.task.calibration]
    mean, var = statistics(network, "stem.1")
    torch.testing.assert_close(mean, torch.stack([part.mean(1) for part in parts]).mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(var, torch.stack([part.var(1) for part in parts]).mean(0), rtol=1e-4, atol=1e-5)
    assert not network.training
    assert network.stem[1].momentum == compressed.stem[1].momentum


def test_only_norms_behind_rewritten_layers_are_estimated_anew(trained, compressed) -> None:
    network = reestimate_batchnorm(copy.deepcopy(compressed), trained.task.calibration, behind=["inner.0"])
    for name, changed in (("stem.1", False), ("down.1", False), ("inner.1", True)):
        same = torch.equal(statistics(network, name)[0], statistics(compressed, name)[0])
        assert same is not changed


def test_single_examples_leave_the_statistics_alone(trained, compressed) -> None:
    network = reestimate_batchnorm(copy.deepcopy(compressed), [(trained.train[:1],)] * 3)
    torch.testing.assert_close(statistics(network, "stem.1"), statistics(compressed, "stem.1"), rtol=0, atol=0)


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
