"""Pairs in place of layers: exact at full rank, on every kind of layer; nothing of the old layer is lost."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn

from lorita_deploy.compress.moments import Moments
from lorita_deploy.compress.rewrite import factors, rewrite
from lorita_deploy.errors import BadNetwork, PlanMismatch
from lorita_deploy.networks import weight_matrix


def moments_of(layer: nn.Module, inputs: torch.Tensor) -> Moments:
    """By hand: outputs over examples and positions, and a G that is not the identity."""
    with torch.no_grad():
        y = layer(inputs)
    rows = y.reshape(-1, y.shape[-1]) if isinstance(layer, nn.Linear) else y.transpose(0, 1).flatten(1).T
    m = rows.shape[1]
    root = torch.randn(m, m, generator=torch.Generator().manual_seed(2))
    return Moments(rows.mean(0), torch.cov(rows.T.double(), correction=0).float(), root @ root.T, len(rows) // len(inputs))


KINDS = {
    "linear": (lambda: nn.Linear(10, 14), (6, 10)),
    "linear on sequences": (lambda: nn.Linear(14, 10, bias=False), (6, 5, 14)),
    "conv1d": (lambda: nn.Conv1d(6, 10, 3, padding=1), (6, 6, 20)),
    "conv2d": (lambda: nn.Conv2d(6, 12, 3, padding=1), (6, 6, 9, 9)),
    "1x1": (lambda: nn.Conv2d(12, 8, 1), (6, 12, 5, 5)),
    "1x1 strided": (lambda: nn.Conv2d(8, 12, 1, stride=2, bias=False), (6, 8, 9, 9)),
    "strided": (lambda: nn.Conv2d(6, 12, 5, stride=(2, 3), padding=2), (6, 6, 11, 11)),
    "dilated": (lambda: nn.Conv2d(6, 12, 3, dilation=2, padding=1), (6, 6, 11, 11)),
    "same": (lambda: nn.Conv2d(6, 12, (4, 3), padding="same"), (6, 6, 9, 9)),
    "valid": (lambda: nn.Conv1d(6, 12, 4, padding="valid"), (6, 6, 9)),
    "reflect": (lambda: nn.Conv2d(6, 12, 3, padding=1, padding_mode="reflect"), (6, 6, 9, 9)),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("criterion", ["whitened", "svd"])
def test_full_rank_computes_what_the_layer_computes(kind: str, criterion: str) -> None:
    make, shape = KINDS[kind]
    torch.manual_seed(0)
    network = nn.Sequential(make(), nn.Tanh())
    inputs = torch.randn(shape)
    moments = {"0": moments_of(network[0], inputs)}
    full = min(weight_matrix(network[0]).shape)
    for given in (moments, None):
        found = rewrite(network, {"0": full}, given, criterion=criterion)
        assert isinstance(found[0], nn.Sequential)
        assert isinstance(network[0], type(make()))
        unseen = torch.randn(shape)
        torch.testing.assert_close(found(unseen), network(unseen), rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_the_mean_output_is_kept_at_any_rank(kind: str) -> None:
    make, shape = KINDS[kind]
    torch.manual_seed(0)
    network = nn.Sequential(make())
    inputs = torch.randn(shape) + 1.0
    found = rewrite(network, {"0": 2}, {"0": moments_of(network[0], inputs)})
    axes = tuple(i for i in range(len(shape)) if i != (len(shape) - 1 if isinstance(network[0], nn.Linear) else 1))
    torch.testing.assert_close(found(inputs).mean(axes), network(inputs).mean(axes), rtol=1e-4, atol=1e-5)
    assert (found(inputs) - network(inputs)).abs().max() > 0.05  # and it is a real truncation


def test_factors_are_balanced() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(40, 20)
    with torch.no_grad():
        layer.weight *= torch.logspace(2, -3, 20)[:, None]
    moments = moments_of(layer, torch.randn(500, 40))
    for given in (moments, None):
        first, second, _ = factors(weight_matrix(layer), layer.bias, 12, given, "whitened")
        torch.testing.assert_close(first.norm(dim=1), second.norm(dim=0))


def test_what_belonged_to_the_layer_passes_to_the_pair() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(8, 16, 3), nn.BatchNorm2d(16)).double().to(memory_format=torch.channels_last)
    network.train()
    network[0].eval()
    network[0].weight.requires_grad_(False)
    calls: list[str] = []
    network[0].register_forward_hook(lambda *_: calls.append("forward"))
    network[0].register_forward_pre_hook(lambda *_: calls.append("before"))
    network[0].register_forward_hook(lambda module, inputs, kwargs, output: calls.append("kwargs"), with_kwargs=True)
    network[0].register_full_backward_hook(lambda *_: calls.append("backward"))
    found = rewrite(network, {"0": 4}, None)
    new = found[0]
    assert found.training
    assert not new.training
    assert not any(part.training for part in new)
    assert all(not parameter.requires_grad and parameter.dtype == torch.float64 for parameter in new.parameters())
    assert new[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert not new[0].weight.is_contiguous()
    found(torch.randn(2, 8, 5, 5, dtype=torch.float64).requires_grad_()).sum().backward()
    assert calls == ["before", "forward", "kwargs", "backward"]


def test_a_layer_registered_twice_is_replaced_in_both_places() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(8, 8)
            self.alias = self.first

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.alias(x)

    found = rewrite(Twice(), {"first": 2}, None)
    assert found.alias is found.first
    assert isinstance(found.alias, nn.Sequential)


def test_buffers_and_the_original_survive() -> None:
    network = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8))
    network.register_buffer("scale", torch.tensor(3.0))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    found = rewrite(network, {"0": 2}, None)
    assert found.scale == 3.0
    for name, value in network.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_what_cannot_be_rewritten_is_said() -> None:
    network = nn.Sequential(nn.Linear(8, 8))
    with pytest.raises(PlanMismatch, match="lacks: 7"):
        rewrite(network, {"7": 2}, None)
    network.lock = threading.Lock()
    with pytest.raises(BadNetwork, match="cannot be copied"):
        rewrite(network, {"0": 2}, None)
    broken = nn.Sequential(nn.Linear(8, 8))
    with torch.no_grad():
        broken[0].weight[0, 0] = float("nan")
    with pytest.raises(BadNetwork, match="weight of 0 holds NaN"):
        rewrite(broken, {"0": 2}, None)
