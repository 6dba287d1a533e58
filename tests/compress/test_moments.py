"""The exact facts behind truncation, on random matrices in float64."""

from __future__ import annotations

import itertools

import pytest
import torch

from lorita_deploy.compress.moments import DAMPING, Moments, singular_values, truncation


def layer(m: int, n: int, count: int = 4000) -> tuple[torch.Tensor, torch.Tensor, Moments]:
    """A weight, correlated inputs (count, n), and the moments of its outputs with a full, uneven G."""
    draw = torch.Generator().manual_seed(m * 100 + n)
    weight = torch.randn(m, n, generator=draw) * torch.logspace(0, -2, m)[torch.randperm(m, generator=draw)][:, None]
    inputs = torch.randn(count, n, generator=draw) @ torch.randn(n, n, generator=draw) + 1.0
    outputs = inputs @ weight.T
    sensitivity = torch.randn(m, m, generator=draw) * torch.logspace(0, -1.5, m)
    covariance = torch.cov(outputs.T.double(), correction=0)
    return weight, inputs, Moments(outputs.mean(0), covariance, sensitivity @ sensitivity.T, positions=9)


SHAPES = pytest.mark.parametrize(("m", "n"), [(12, 30), (30, 12), (16, 16)])


@SHAPES
@pytest.mark.parametrize("criterion", ["whitened", "svd", "paper"])
def test_full_rank_is_the_layer_itself(m: int, n: int, criterion: str) -> None:
    weight, _, moments = layer(m, n)
    best = truncation(weight, moments, criterion)
    torch.testing.assert_close(best.left @ best.right @ weight.double(), weight.double(), rtol=1e-6, atol=1e-7)
    assert len(best.loss_at_rank) == m + 1
    assert best.loss_at_rank[min(m, n)] == 0.0
    assert all(after <= before for before, after in zip(best.loss_at_rank, best.loss_at_rank[1:], strict=False))


@SHAPES
@pytest.mark.parametrize("criterion", ["whitened", "svd"])
def test_the_predicted_loss_is_the_weighted_error_on_the_inputs(m: int, n: int, criterion: str) -> None:
    """1/2 * positions * tr(G E), with E measured on the inputs and G damped within the outputs that the layer can reach."""
    weight, inputs, moments = layer(m, n)
    best = truncation(weight, moments, criterion)
    basis = torch.linalg.svd(weight.double(), full_matrices=False)[0]
    for rank in (0, 1, 5, min(m, n) - 1):
        error = inputs.double() @ (weight.double() - best.left[:, :rank] @ best.right[:rank] @ weight.double()).T
        E = basis.T @ torch.cov(error.T, correction=0) @ basis
        G = basis.T @ moments.gradient.double() @ basis
        G = G + DAMPING * G.diagonal().mean() * torch.eye(len(G))
        assert best.loss_at_rank[rank] == pytest.approx(float(4.5 * (G * E).sum()), rel=2e-4)


@SHAPES
def test_with_no_preference_among_outputs_the_error_is_the_dropped_eigenvalues(m: int, n: int) -> None:
    weight, inputs, moments = layer(m, n)
    plain = Moments(moments.mean, moments.covariance, torch.eye(m), positions=1)
    best = truncation(weight, plain, "whitened")
    eigenvalues = torch.linalg.eigvalsh(moments.covariance.double())
    for rank in range(min(m, n)):
        error = inputs.double() @ (weight.double() - best.left[:, :rank] @ best.right[:rank] @ weight.double()).T
        mean_square = torch.cov(error.T, correction=0).trace()
        assert float(mean_square) == pytest.approx(float(eigenvalues[: m - rank].clamp_min(0).sum()), rel=1e-3)
        assert 2 * best.loss_at_rank[rank] == pytest.approx((1 + DAMPING) * float(mean_square), rel=1e-3)


@SHAPES
def test_no_other_weight_of_that_rank_has_a_smaller_weighted_error(m: int, n: int) -> None:
    """Against the whitened SVD of P W C^(1/2), formed explicitly: the two must agree."""
    weight, inputs, moments = layer(m, n)
    best = truncation(weight, moments, "whitened")
    basis = torch.linalg.svd(weight.double(), full_matrices=False)[0]
    G = basis.T @ moments.gradient.double() @ basis
    values, vectors = torch.linalg.eigh(G + DAMPING * G.diagonal().mean() * torch.eye(len(G)))
    P = vectors * values.sqrt() @ vectors.T
    C = torch.cov(inputs.T.double(), correction=0)
    values, vectors = torch.linalg.eigh(C)
    sigma = torch.linalg.svdvals(P @ basis.T @ weight.double() @ (vectors * values.clamp_min(0).sqrt() @ vectors.T))
    for rank in range(0, min(m, n), 3):
        assert best.loss_at_rank[rank] == pytest.approx(float(4.5 * (sigma[rank:] ** 2).sum()), rel=2e-3)


def test_directions_that_the_inputs_never_took_are_cut_last_by_the_weights_own_size() -> None:
    """Three inputs only: beyond them the order is that of the singular values, and full rank is still exact."""
    weight, inputs, _ = layer(16, 24)
    outputs = (inputs[:3] @ weight.T).double()
    few = Moments(outputs.mean(0).float(), torch.cov(outputs.T, correction=0).float(), torch.eye(16), positions=1)
    best = truncation(weight, few, "whitened")
    rest = [float((weight.double() - best.left[:, :r] @ best.right[:r] @ weight.double()).norm()) for r in range(2, 17)]
    assert all(after < before for before, after in itertools.pairwise(rest))
    assert best.loss_at_rank[2] < 1e-4 * best.loss_at_rank[0]


def test_svd_without_moments_drops_the_smallest_singular_values() -> None:
    weight, _, _ = layer(12, 30)
    best = truncation(weight, None, "svd")
    sigma = torch.linalg.svdvals(weight.double())
    for rank in (1, 6, 11):
        error = (weight.double() - best.left[:, :rank] @ best.right[:rank] @ weight.double()).norm()
        assert float(error) == pytest.approx(float(sigma[rank:].square().sum().sqrt()), rel=1e-6)
        assert best.loss_at_rank[rank] == pytest.approx(float((sigma[rank:] / sigma[0]).square().sum()), rel=1e-5)


@pytest.mark.parametrize("shape", [(7, 40), (40, 7), (20, 20), (1, 5)])
def test_singular_values_are_torchs(shape: tuple[int, int]) -> None:
    matrix = torch.randn(*shape, generator=torch.Generator().manual_seed(1)) * torch.logspace(0, -5, shape[0])[:, None]
    torch.testing.assert_close(singular_values(matrix), torch.linalg.svdvals(matrix.double()), rtol=1e-4, atol=1e-7)


def test_a_zero_weight_has_no_loss_and_no_nan() -> None:
    moments = Moments(torch.zeros(6), torch.zeros(6, 6), torch.zeros(6, 6), positions=4)
    for criterion in ("whitened", "svd", "paper"):
        best = truncation(torch.zeros(6, 8), moments, criterion)
        assert best.loss_at_rank == (0.0,) * 7
        assert torch.isfinite(best.left).all()
        assert torch.isfinite(best.right).all()


def wide_layer(k: int = 160, samples: int = 30) -> tuple[torch.Tensor, torch.Tensor, Moments]:
    """Few calibration inputs for many outputs, as a wide classifier has them."""
    draw = torch.Generator().manual_seed(3)
    weight = torch.randn(k, 3 * k, generator=draw) / k**0.5
    outputs = torch.randn(samples, 3 * k, generator=draw) @ weight.T
    root = torch.randn(k, 12, generator=draw)
    covariance = torch.cov(outputs.T.double(), correction=0)
    return weight, outputs, Moments(outputs.mean(0), covariance.float(), root @ root.T, positions=1)


def test_a_wide_layer_is_sketched_to_the_same_truncation(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, outputs, moments = wide_layer()
    exact = truncation(weight, moments, "whitened")
    monkeypatch.setattr("lorita_deploy.compress.moments.WIDE", 100)
    monkeypatch.setattr("lorita_deploy.compress.moments._whitened", None)  # not the exact way
    found = truncation(weight, moments, "whitened")
    whole = exact.loss_at_rank[0]
    assert len(found.loss_at_rank) == 161
    assert found.loss_at_rank[160] == 0
    assert all(after <= before for before, after in itertools.pairwise(found.loss_at_rank))
    for rank in (0, 1, 5, 11, 20, 29, 35, 159):
        assert found.loss_at_rank[rank] == pytest.approx(exact.loss_at_rank[rank], rel=1e-3, abs=2e-5 * whole)
    # The weights are as good as the curve says, on the inputs themselves.
    centred = (outputs - outputs.mean(0)).double()
    G = moments.gradient.double()
    G = G + DAMPING * G.diagonal().mean() * torch.eye(160)
    for rank in (5, 20, 60):
        error = centred - centred @ (found.left[:, :rank] @ found.right[:rank]).T
        loss = 0.5 * float(((error @ G) * error).sum(1).mean())
        assert loss == pytest.approx(found.loss_at_rank[rank], rel=1e-3, abs=2e-5 * whole)
    torch.testing.assert_close(found.left @ found.right, torch.eye(160, dtype=torch.float64), rtol=0, atol=1e-4)


def test_beyond_the_calibration_a_sketched_layer_of_low_rank_is_whole_at_that_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, _, _ = wide_layer()
    draw = torch.Generator().manual_seed(4)
    weight = torch.randn(160, 60, generator=draw) @ torch.randn(60, 480, generator=draw) / 60
    outputs = torch.randn(30, 480, generator=draw) @ weight.T
    moments = Moments(outputs.mean(0), torch.cov(outputs.T, correction=0), torch.eye(160), positions=1)
    monkeypatch.setattr("lorita_deploy.compress.moments.WIDE", 100)
    monkeypatch.setattr("lorita_deploy.compress.moments._whitened", None)
    found = truncation(weight, moments, "whitened")
    for rank, largest in ((62, 1.0), (72, 1e-4)):  # ten more than its rank: 40 leading directions, of which 29 vary
        rest = (weight.double() - found.left[:, :rank] @ found.right[:rank] @ weight.double()).norm() / weight.norm()
        assert rest < largest


def test_a_wide_layer_whose_outputs_vary_in_all_directions_is_not_sketched(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, _, moments = wide_layer(samples=2000)
    exact = truncation(weight, moments, "whitened")
    monkeypatch.setattr("lorita_deploy.compress.moments.WIDE", 100)
    assert truncation(weight, moments, "whitened").loss_at_rank == exact.loss_at_rank
