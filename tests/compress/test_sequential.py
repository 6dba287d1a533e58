"""Fitting each layer behind the ones already compressed."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from lorita_deploy.compress.calibrate import calibrate
from lorita_deploy.compress.recover import distill
from lorita_deploy.compress.rewrite import rewrite
from lorita_deploy.compress.sequential import SHRINKAGE, Drift, measure_drift, rewrite_in_sequence
from lorita_deploy.records import Choice


@pytest.fixture(scope="module")
def moments(trained):
    return calibrate(trained.module, trained.geometries, trained.task, samples=600).moments


def pairs(**ranks: int) -> list[Choice]:
    return [
        Choice(layer=name.replace("_", "."), form="pair", k_in=1, k_out=1, rank=rank, predicted_loss=0.0, us=1.0, dense_us=2.0)
        for name, rank in ranks.items()
    ]


def kl(trained, network: nn.Module) -> float:
    with torch.no_grad():
        p, q = (net(trained.held_out).log_softmax(1) for net in (trained.module, network))
    return float(functional.kl_div(q, p, log_target=True, reduction="batchmean"))


def test_the_correction_is_the_ridge_regression_of_the_targets() -> None:
    draw = torch.Generator().manual_seed(0)
    z = torch.randn(400, 6, generator=draw, dtype=torch.float64) @ torch.randn(6, 6, generator=draw, dtype=torch.float64)
    y = z @ torch.randn(6, 6, generator=draw, dtype=torch.float64) + torch.randn(400, 6, generator=draw, dtype=torch.float64)
    z, y = z - z.mean(0), y - y.mean(0)
    drift = Drift(z.mean(0), z.T @ z / 400, y.mean(0), y.T @ z / 400)
    pull = (SHRINKAGE * float(z.square().mean()) * 400) ** 0.5 * torch.eye(6, dtype=torch.float64)
    expected = torch.linalg.lstsq(torch.cat([z, pull]), torch.cat([y, pull])).solution.T
    torch.testing.assert_close(drift.correction(), expected)


def test_where_nothing_has_drifted_nothing_is_corrected(trained, moments) -> None:
    names = ["down.0", "hidden"]
    found = measure_drift(trained.module, trained.module, names, trained.task.calibration, samples=300)
    for drift in found.values():
        torch.testing.assert_close(drift.correction(), torch.eye(len(drift.mean), dtype=torch.float64), rtol=0, atol=1e-4)
        torch.testing.assert_close(drift.mean, drift.target_mean, rtol=0, atol=1e-5)
    alone = rewrite_in_sequence(trained.module, pairs(inner_0=8), moments, trained.task.calibration, samples=600)
    plain = rewrite(trained.module, pairs(inner_0=8), moments)
    torch.testing.assert_close(alone(trained.held_out), plain(trained.held_out), rtol=0.02, atol=0.02)


def test_later_layers_make_up_for_earlier_ones(trained, moments) -> None:
    """Same structure, same images, no training: a fraction of the loss, on images that calibration has not seen."""
    choices = pairs(stem_0=4, down_0=9, inner_0=8, point=10, hidden=14)
    plain = rewrite(trained.module, choices, moments)
    fitted = rewrite_in_sequence(trained.module, choices, moments, trained.task.calibration, samples=600)
    assert [name for name, _ in plain.named_parameters()] == [name for name, _ in fitted.named_parameters()]
    assert kl(trained, fitted) < 0.5 * kl(trained, plain)
    coarse = rewrite_in_sequence(trained.module, choices, moments, trained.task.calibration, samples=600, steps=2)
    assert kl(trained, fitted) < kl(trained, coarse) < kl(trained, plain)


def test_both_networks_are_left_as_they_were(trained, moments) -> None:
    before = copy.deepcopy(trained.module.state_dict())
    fitted = rewrite_in_sequence(trained.module, pairs(down_0=4), moments, trained.task.calibration, samples=200)
    for name, value in trained.module.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    assert all(not part._forward_hooks for net in (trained.module, fitted) for part in net.modules())
    assert not fitted.training


def test_a_fitted_network_is_a_better_start_for_distillation(trained, moments) -> None:
    choices = pairs(stem_0=2, down_0=4, inner_0=3, point=4)
    batches = list(trained.task.calibration)
    plain = distill(rewrite(trained.module, choices, moments), trained.module, batches, epochs=1)
    fitted = distill(rewrite_in_sequence(trained.module, choices, moments, batches), trained.module, batches, epochs=1)
    assert kl(trained, fitted) < kl(trained, plain)
