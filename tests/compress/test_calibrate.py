"""Moments against direct computation, and predictions against what really happens to a trained network."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from safetensors.torch import save_file
from scipy.stats import spearmanr
from torch import nn
from torch.nn import functional

from lorita_deploy.compress import calibrate as calibration_module, sums as sums_module
from lorita_deploy.compress.calibrate import Calibration, calibrate, collect_moments
from lorita_deploy.compress.rewrite import rewrite
from lorita_deploy.compress.sequential import dense_outputs, rewrite_in_sequence
from lorita_deploy.errors import BadCheckpoint, BadData, BadNetwork, BadRecord
from lorita_deploy.networks import read_weights, survey
from lorita_deploy.ports import Task


@pytest.fixture(scope="module")
def calibration(trained) -> Calibration:
    """Unsmoothed, so that predictions are of the Kullback-Leibler divergence itself."""
    return calibrate(trained.module, trained.geometries, trained.task, samples=1200, smoothing=0.0)


def curves(calibration: Calibration) -> dict[str, tuple[float, ...]]:
    return {each.layer: each.loss_at_rank for each in calibration.record.layers}


def outputs_of(module: nn.Module, layer: str, images: torch.Tensor) -> torch.Tensor:
    """(rows, m) of one layer, before anything works on them in place."""
    kept: list[torch.Tensor] = []
    handle = module.get_submodule(layer).register_forward_hook(lambda _, __, y: kept.append(y.clone()))
    with torch.no_grad():
        module(images)
    handle.remove()
    return kept[0].transpose(0, 1).flatten(1).T


def kl(trained, network: nn.Module, images: torch.Tensor) -> float:
    """Mean KL divergence of the network's class probabilities from the dense network's, in double precision."""
    with torch.no_grad():
        p = functional.log_softmax(copy.deepcopy(trained.module).double()(images.double()), 1)
        q = functional.log_softmax(copy.deepcopy(network).double()(images.double()), 1)
    return float(functional.kl_div(q, p, log_target=True, reduction="batchmean"))


# ---------------------------------------------------------------------------------------------- moments


def test_means_and_covariances_are_those_of_the_outputs(trained, calibration) -> None:
    for name, geometry in trained.geometries.items():
        rows = outputs_of(trained.module, name, trained.train).double()
        found = calibration.moments[name]
        torch.testing.assert_close(found.mean.double(), rows.mean(0), rtol=1e-3, atol=1e-4)
        expected = torch.cov(rows.T, correction=0)
        error = (found.covariance - expected).norm() / expected.norm()
        assert error < (1e-5 if geometry.positions <= 256 else 0.05)
        assert found.positions == geometry.positions


@pytest.mark.parametrize("smoothing", [0.0, 0.5])
def test_the_gradients_are_the_exact_fisher_information_of_the_logits(trained, smoothing) -> None:
    """At the last layer G is the mean of diag(p) - p p', which is known without sampling."""
    head = {"head": trained.geometries["head"]}
    moments, _ = collect_moments(trained.module, head, trained.task, samples=1200, draws=100, smoothing=smoothing)
    with torch.no_grad():
        p = (1 - smoothing) * trained.module(trained.train).softmax(1) + smoothing / 10
    exact = torch.diag(p.mean(0)) - p.T @ p / len(p)
    error = (moments["head"].gradient - exact).norm() / exact.norm()
    assert float(error) < 0.05  # few of the 1,200 examples carry most of it: some 1 / sqrt(100 * 10)


def test_splitting_batches_and_sampling_positions_change_nothing_but_noise(trained, monkeypatch) -> None:
    names = {name: trained.geometries[name] for name in ("down.0", "hidden")}
    whole, _ = collect_moments(trained.module, names, trained.task, samples=300)
    monkeypatch.setattr(calibration_module, "ACTIVATION_BYTES", 16 * 1024 * 40)
    split, seen = collect_moments(trained.module, names, trained.task, samples=300)
    assert seen == 300
    for name in names:
        torch.testing.assert_close(split[name].covariance, whole[name].covariance, rtol=1e-4, atol=1e-4)
    monkeypatch.setattr(sums_module, "POSITIONS", 16)
    sampled, _ = collect_moments(trained.module, names, trained.task, samples=300)
    difference = (sampled["down.0"].covariance - whole["down.0"].covariance).norm()
    assert 0 < difference < 0.1 * whole["down.0"].covariance.norm()
    assert sampled["down.0"].positions == whole["down.0"].positions == 64


def test_the_network_is_left_as_it_was(trained) -> None:
    module = copy.deepcopy(trained.module).train()
    module.hidden.weight.requires_grad_(False)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    collect_moments(module, trained.geometries, trained.task, samples=100)
    assert module.training
    assert [name for name, parameter in module.named_parameters() if not parameter.requires_grad] == ["hidden.weight"]
    assert all(parameter.grad is None for parameter in module.parameters())
    assert all(not part._forward_hooks for part in module.modules())
    for name, value in module.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_the_same_seed_gives_the_same_calibration(trained) -> None:
    names = {"hidden": trained.geometries["hidden"], "stem.0": trained.geometries["stem.0"]}
    first, second, other = (calibrate(trained.module, names, trained.task, samples=200, seed=seed) for seed in (3, 3, 4))
    assert first.record == second.record
    assert first.record.layers != other.record.layers


# ---------------------------------------------------------------------------------------------- predictions


@pytest.mark.parametrize("name", ["stem.0", "down.0", "inner.0", "point", "hidden"])
def test_a_small_truncation_costs_the_predicted_kl_divergence(trained, calibration, name) -> None:
    """Where the quadratic approximation holds. Larger truncations cost more than predicted, all layers alike: a nearly certain
    network hides its curvature."""
    curve = curves(calibration)[name]
    rank = next(rank for rank, loss in enumerate(curve) if loss < 3e-5)
    network = rewrite(trained.module, {name: rank}, calibration.moments)
    real = kl(trained, network, trained.train)
    assert curve[rank] / 1.5 < real < curve[rank] * 1.5


def test_predictions_rank_truncations_of_different_layers_by_their_real_loss(trained, calibration) -> None:
    predicted, real = [], []
    for name, curve in curves(calibration).items():
        full = min(trained.geometries[name].m, trained.geometries[name].n)
        for share in (0.15, 0.3, 0.5, 0.7):
            rank = max(1, int(share * full))
            predicted.append(curve[rank])
            real.append(kl(trained, rewrite(trained.module, {name: rank}, calibration.moments), trained.held_out))
    assert spearmanr(predicted, real).statistic > 0.9


@pytest.mark.parametrize("share", [0.25, 0.4])
def test_the_whitened_criterion_loses_less_than_plain_svd(trained, calibration, share) -> None:
    """At the same ranks everywhere, on images that calibration has not seen."""
    choices = {name: max(1, int(share * min(g.m, g.n))) for name, g in trained.geometries.items() if name != "head"}
    whitened = kl(trained, rewrite(trained.module, choices, calibration.moments), trained.held_out)
    plain = kl(trained, rewrite(trained.module, choices, calibration.moments, criterion="svd"), trained.held_out)
    assert whitened < 0.5 * plain


@pytest.mark.parametrize("criterion", ["svd", "paper"])
def test_the_other_criteria_give_curves_of_the_same_shape(trained, criterion) -> None:
    found = calibrate(trained.module, trained.geometries, trained.task, samples=200, criterion=criterion)
    assert found.record.criterion == criterion
    for name, curve in curves(found).items():
        assert len(curve) == trained.geometries[name].m + 1
        assert list(curve) == sorted(curve, reverse=True)
        assert curve[0] > 0
        assert curve[-1] == 0


# ---------------------------------------------------------------------------------------------- other tasks


class TwoInputs(nn.Module):
    """Tokens (integers) and features in, a dictionary of two outputs out; one layer runs over the sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 12)
        self.mix = nn.Linear(12, 8)
        self.side = nn.Linear(5, 8, bias=False)
        self.out = nn.Linear(8, 3)

    def forward(self, tokens: torch.Tensor, features: torch.Tensor) -> dict[str, torch.Tensor]:
        x = torch.tanh(self.mix(self.embed(tokens))).mean(1) + self.side(features)
        return {"regression": self.out(x), "norm": x.norm(dim=1), "length": torch.tensor(tokens.shape[1])}


def two_inputs(loss=None) -> tuple[TwoInputs, Task]:
    torch.manual_seed(0)
    batches = [(torch.randint(11, (20, 7)), torch.randn(20, 5)) for _ in range(3)]
    task = Task(examples=tuple(x[:1] for x in batches[0]), calibration=batches, evaluate=lambda _: None, loss=loss)
    return TwoInputs(), task


def test_several_inputs_and_outputs_that_are_not_logits() -> None:
    module, task = two_inputs()
    found, seen = collect_moments(module, survey(module, task.examples).geometries, task, samples=60, draws=200)
    assert seen == 60
    assert found["mix"].positions == 7
    identity = torch.eye(3)  # half the squared error: Gauss-Newton's matrix at the output
    torch.testing.assert_close(found["out"].gradient, identity, rtol=0, atol=0.05)
    with torch.no_grad():
        x = torch.cat([torch.tanh(module.mix(module.embed(t))).mean(1) + module.side(f) for t, f in task.calibration])
    slope = x / x.norm(dim=1, keepdim=True)
    exact = module.out.weight.T.detach() @ module.out.weight.detach() + slope.T @ slope / len(x)
    torch.testing.assert_close(found["side"].gradient, exact, rtol=0, atol=0.05)


def test_a_loss_of_ones_own_gives_its_gradients_per_example() -> None:
    module, task = two_inputs(loss=lambda outputs, inputs: outputs["regression"].square().mean(0).sum())
    found, _ = collect_moments(module, survey(module, task.examples).geometries, task, samples=60)
    with torch.no_grad():
        y = torch.cat([module(*batch)["regression"] for batch in task.calibration])
    torch.testing.assert_close(found["out"].gradient, (2 * y).T @ (2 * y) / len(y), rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------------------------------------- files and bad input


def test_a_calibration_survives_its_files(calibration, tmp_path) -> None:
    calibration.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["calibration.json", "calibration.safetensors"]
    found = Calibration.load(tmp_path)
    assert found.record == calibration.record
    for name, moments in calibration.moments.items():
        for field in dataclasses.fields(moments):
            assert torch.equal(
                torch.as_tensor(getattr(found.moments[name], field.name)), torch.as_tensor(getattr(moments, field.name))
            )


def test_the_same_calibration_is_the_same_bytes(calibration, tmp_path) -> None:
    """Stages are skipped, and kept times found again, by the digests of files."""
    for count in range(6):
        calibration.save(tmp_path / str(count))
    assert len({path.read_bytes() for path in tmp_path.rglob("*.safetensors")}) == 1


def test_an_older_file_is_read(calibration, tmp_path) -> None:
    """It had the number of positions of each layer under the layer's own name."""
    calibration.save(tmp_path)
    path = tmp_path / "calibration.safetensors"
    positions = {name: str(each.positions) for name, each in calibration.moments.items()}
    save_file(read_weights(path), path, metadata=positions)
    found = Calibration.load(tmp_path)
    assert {name: str(each.positions) for name, each in found.moments.items()} == positions


def test_damaged_or_mixed_files_are_refused(trained, calibration, tmp_path) -> None:
    calibration.save(tmp_path / "whole")
    part = calibrate(trained.module, {"head": trained.geometries["head"]}, trained.task, samples=50)
    part.save(tmp_path / "part")
    content = (tmp_path / "whole" / "calibration.safetensors").read_bytes()
    (tmp_path / "part" / "calibration.safetensors").write_bytes(content)
    with pytest.raises(BadRecord, match="different layers"):
        Calibration.load(tmp_path / "part")
    (tmp_path / "part" / "calibration.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(BadCheckpoint):
        Calibration.load(tmp_path / "part")


@pytest.mark.parametrize(
    ("batches", "word"),
    [([], "got 0"), ([torch.rand(1, 1, 16, 16)], "got 1"), ([torch.full((8, 1, 16, 16), 0.5)] * 2, "all the same")],
)
def test_too_few_or_constant_inputs_are_refused(trained, batches, word) -> None:
    task = dataclasses.replace(trained.task, calibration=[(batch,) for batch in batches])
    with pytest.raises(BadData, match=word):
        calibrate(trained.module, trained.geometries, task)


def test_outputs_that_are_not_finite_are_traced_to_their_layer(trained) -> None:
    module = copy.deepcopy(trained.module)
    with torch.no_grad():
        module.down[1].running_var.fill_(float("nan"))
    with pytest.raises(BadNetwork, match=r"of (stem|down|inner)\.0 are NaN"):
        calibrate(module, trained.geometries, trained.task, samples=50)


def test_a_network_that_hides_its_gradients_is_refused(trained) -> None:
    module = copy.deepcopy(trained.module)
    module.forward = torch.no_grad()(module.forward)
    with pytest.raises(BadNetwork, match="no_grad"):
        calibrate(module, trained.geometries, trained.task, samples=50)
    detached = nn.Sequential(trained.module, nn.Identity())
    detached[1].register_forward_hook(lambda *args: args[2].detach())
    with pytest.raises(BadNetwork, match="no gradient"):
        calibrate(detached, survey(detached, trained.task.examples).geometries, trained.task, samples=50)


class OnlyForBright(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.a(x)
        return self.c(self.b(y) if float(x.mean()) > 0 else y)


def test_a_layer_that_the_calibration_inputs_do_not_reach_is_named() -> None:
    module = OnlyForBright()
    bright, dark = [(torch.rand(20, 4),)], [(-torch.rand(20, 4),)]
    task = Task(examples=(torch.rand(1, 4),), calibration=dark, evaluate=lambda _: None)
    geometries = survey(module, task.examples).geometries
    with pytest.raises(BadNetwork, match=r"none of the calibration inputs does\n.*b\n"):
        calibrate(module, geometries, task, samples=20)
    moments = calibrate(module, geometries, Task(task.examples, bright, lambda _: None), samples=20).moments
    with pytest.raises(BadNetwork, match="the calibration inputs together do not"):
        rewrite_in_sequence(module, {"a": None, "b": 2}, moments, dense_outputs(module, ["a", "b"], dark))
