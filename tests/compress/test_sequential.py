"""Fitting each layer behind the ones already compressed."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from lorita_deploy.compress.calibrate import calibrate
from lorita_deploy.compress.recover import distill
from lorita_deploy.compress.rewrite import duplicate, rewrite
from lorita_deploy.compress.sequential import SHRINKAGE, correction, dense_outputs, rewrite_in_sequence

HARD = {"stem.0": 4, "down.0": 9, "inner.0": 8, "point": 10, "hidden": 14}


@pytest.fixture(scope="module")
def moments(trained):
    return calibrate(trained.module, trained.geometries, trained.task, samples=600).moments


def fitted(trained, moments, ranks: dict[str, int | None], samples: int = 600) -> nn.Module:
    outputs = dense_outputs(trained.module, list(ranks), trained.task.calibration, samples=samples)
    network = duplicate(trained.module)
    rewrite_in_sequence(network, ranks, moments, outputs)
    return network


def kl(trained, network: nn.Module) -> float:
    with torch.no_grad():
        p, q = (net(trained.held_out).log_softmax(1) for net in (trained.module, network))
    return float(functional.kl_div(q, p, log_target=True, reduction="batchmean"))


@pytest.mark.parametrize(("rows", "outputs"), [(400, 6), (40, 64)])
def test_the_correction_is_the_ridge_regression_of_the_targets(rows: int, outputs: int) -> None:
    draw = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    z = random(rows, outputs) @ random(outputs, outputs)
    y = z @ random(outputs, outputs) + random(rows, outputs)
    z, y, eye = z - z.mean(0), y - y.mean(0), torch.eye(outputs, dtype=torch.float64)
    pull = (SHRINKAGE * float(z.square().mean()) * rows) ** 0.5 * eye
    T = torch.linalg.lstsq(torch.cat([z, pull]), torch.cat([y, pull])).solution.T
    found = correction(y + 3.0, z - 5.0)
    torch.testing.assert_close(found @ eye, T)
    torch.testing.assert_close(found.covariance, T @ (z.T @ z / rows) @ T.T, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close((found.mean, found.target_mean), ((z - 5.0).mean(0), (y + 3.0).mean(0)))


def test_where_nothing_has_drifted_nothing_is_corrected(trained, moments) -> None:
    same = fitted(trained, moments, dict.fromkeys(trained.geometries))
    torch.testing.assert_close(same(trained.held_out), trained.module(trained.held_out), rtol=1e-3, atol=1e-3)
    alone = fitted(trained, moments, {"inner.0": 8})
    plain = rewrite(trained.module, {"inner.0": 8}, moments)
    assert kl(trained, alone) == pytest.approx(kl(trained, plain), rel=0.05)


def test_later_layers_make_up_for_earlier_ones(trained, moments) -> None:
    """Same structure, same images, no training: a fraction of the loss, on images that calibration has not seen."""
    plain = rewrite(trained.module, HARD, moments)
    pairs_only = fitted(trained, moments, dict(HARD))
    assert [name for name, _ in plain.named_parameters()] == [name for name, _ in pairs_only.named_parameters()]
    assert kl(trained, pairs_only) < 0.5 * kl(trained, plain)


def test_layers_that_stay_dense_make_up_for_earlier_ones_too(trained, moments) -> None:
    early = {"stem.0": 3, "down.0": 5}
    names = list(trained.geometries)
    every = fitted(trained, moments, {name: early.get(name) for name in names})
    assert kl(trained, every) < 0.7 * kl(trained, fitted(trained, moments, dict(early)))


def test_both_networks_are_left_as_they_were(trained, moments) -> None:
    before = copy.deepcopy(trained.module.state_dict())
    network = fitted(trained, moments, {"down.0": 4, "inner.0": None}, samples=200)
    for name, value in trained.module.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    assert all(not part._forward_hooks for net in (trained.module, network) for part in net.modules())
    assert not network.training


def test_a_fitted_network_is_a_better_start_for_distillation(trained, moments) -> None:
    ranks = {"stem.0": 2, "down.0": 4, "inner.0": 3, "point": 4}
    batches = list(trained.task.calibration)
    plain = distill(rewrite(trained.module, ranks, moments), trained.module, batches, epochs=1)
    start = distill(fitted(trained, moments, dict(ranks)), trained.module, batches, epochs=1)
    assert kl(trained, start) < kl(trained, plain)


def test_images_sorted_by_class_are_sampled_evenly(trained) -> None:
    marked = torch.arange(200.0)[:, None, None, None].expand(200, 1, 16, 16)
    found = dense_outputs(trained.module, ["stem.0"], [(part,) for part in marked.split(64)], samples=200, most=5)
    assert found.inputs[0][:, 0, 0, 0].tolist() == [0, 50, 100, 149, 199]
