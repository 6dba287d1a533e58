"""Diagonal composition: gates keep the function, collapse exactly, and let channels fade so that they can be removed."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from lorita_deploy.compress.cuts import keep_channels
from lorita_deploy.compress.groups import channel_groups
from lorita_deploy.networks import survey
from lorita_deploy.ports import find_model
from lorita_deploy.train.composition import collapse, factorize
from lorita_deploy.train.gates import Gates, add_gates, faded_channels, gate_parameters, gated_norms, remove_gates, silence


def norm(channels: int = 6) -> nn.BatchNorm2d:
    torch.manual_seed(0)
    layer = nn.BatchNorm2d(channels)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([1.0, -0.5, 0.0, 2.0, 1e-9, 0.1][:channels]))
        layer.bias.copy_(torch.tensor([0.3, 1.0, 0.0, -1.0, 0.0, 0.0][:channels]))
    return layer


@pytest.mark.parametrize("count", [2, 3, 4])
def test_gates_keep_the_function_and_are_removed_exactly(count: int) -> None:
    layer, x = norm(), torch.randn(8, 6, 3, 3)
    before, keys = layer(x), list(layer.state_dict())
    assert add_gates(layer, count) is layer
    torch.testing.assert_close(layer(x), before, rtol=1e-5, atol=1e-6)
    assert len(list(gate_parameters(layer))) == count
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    layer.eval()
    expected = layer(x)
    assert remove_gates(layer) is layer
    assert torch.equal(layer(x), expected)
    assert type(layer) is nn.BatchNorm2d
    assert list(layer.state_dict()) == keys
    assert [name for name, _ in layer.named_parameters()] == ["weight", "bias"]


def test_what_is_frozen_stays_so() -> None:
    layer = norm()
    layer.bias.requires_grad_(False)
    assert [p.requires_grad for p in remove_gates(add_gates(layer, 2)).parameters()] == [True, False]


def test_a_scale_of_zero_is_lifted_only_where_it_carries_a_shift_and_can_grow_elsewhere() -> None:
    layer = nn.BatchNorm2d(2)
    nn.init.zeros_(layer.weight)
    with torch.no_grad():
        layer.bias[1] = 2.0
    add_gates(layer, 3)
    assert layer.weight.tolist() == pytest.approx([0.0, 1e-3])
    assert layer.bias.tolist() == pytest.approx([0.0, 2.0])
    first = next(gate_parameters(layer))
    x = torch.randn(4, 2, 3, 3)
    (layer(x) * x).sum().backward()
    assert abs(float(first.grad[0])) > 1  # type: ignore[index]


def test_decay_on_gates_is_the_quasi_norm_at_the_start() -> None:
    gamma = torch.tensor([0.5, -2.0, 1.0])
    gates = Gates(3).right_inverse(gamma)
    assert sum(float(gate.square().sum()) for gate in gates) == pytest.approx(3 * float(gamma.abs().pow(2 / 3).sum()))


def test_one_gate_and_gates_on_gates_are_refused_and_norms_without_scale_pass() -> None:
    with pytest.raises(ValueError, match="at least two"):
        add_gates(norm(), 1)
    with pytest.raises(ValueError, match="already"):
        add_gates(add_gates(norm(), 2), 2)
    plain = nn.Sequential(nn.BatchNorm2d(3, affine=False), nn.LayerNorm(3))
    assert not list(gated_norms(add_gates(plain, 2)))


def test_copies_are_collapsed_apart_and_with_the_factors() -> None:
    model = add_gates(factorize(find_model("resnet20").build(10, 32), 3), 2).eval()
    twin, x = copy.deepcopy(model), torch.randn(1, 3, 32, 32)
    with torch.inference_mode():
        expected = model(x)
        assert torch.equal(collapse(twin)(x), expected)
        assert torch.equal(model(x), expected)
    assert len(list(gated_norms(model))) == 19
    assert list(twin.state_dict()) == list(find_model("resnet20").build(10, 32).state_dict())


class Stack(nn.Module):
    """Two convolutions between which channels may fade, and a head."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.second = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.head = nn.Linear(width, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm1(self.first(x)).relu()
        return self.head(self.norm2(self.second(x)).relu().mean((2, 3)))


def data() -> tuple[torch.Tensor, torch.Tensor]:
    """Four kinds of stripes in noise: a few channels are enough."""
    torch.manual_seed(1)
    labels = torch.arange(64) % 4
    ramp = torch.arange(6.0)
    kinds = torch.stack([(ramp % 2)[None].expand(6, 6), (ramp % 2)[:, None].expand(6, 6), torch.zeros(6, 6), torch.ones(6, 6)])
    return kinds[labels][:, None] + 0.1 * torch.randn(64, 1, 6, 6), labels


def trained(gates: int, decay: float = 2e-2) -> Stack:
    torch.manual_seed(0)
    model, (x, y) = Stack(), data()
    if gates:
        add_gates(model, gates)
    fading = {id(gate) for gate in gate_parameters(model)} or {id(model.norm1.weight), id(model.norm2.weight)}
    groups = [
        {"params": [p for p in model.parameters() if id(p) in fading], "weight_decay": decay},
        {"params": [p for p in model.parameters() if id(p) not in fading], "weight_decay": 1e-3},
    ]
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
    for _ in range(250):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return collapse(model).eval()  # type: ignore[return-value]


def test_channels_fade_under_decay_and_the_faded_ones_are_removed_from_the_network() -> None:
    x, y = data()
    model = trained(3)
    right = (model(x).argmax(1) == y).float().mean()
    assert float(right) == 1.0
    faded = faded_channels(model)
    assert all(len(channels) >= 4 for channels in faded.values())
    with torch.no_grad():
        expected = model(x)
        assert silence(model) == sum(map(len, faded.values()))
        torch.testing.assert_close(model(x), expected, rtol=0, atol=0.02 * float(expected.abs().max()))
        expected = model(x)
        grouping = channel_groups(model, (x[:2],), survey(model, (x[:2],)).geometries)
        groups = {group.name: group for group in grouping.groups}
        between = {group: groups[group].between[0].layer for group in ("first", "second")}
        assert between == {"first": "norm1", "second": "norm2"}
        cuts = [(groups[name], [c for c in range(16) if c not in faded[layer]]) for name, layer in between.items()]
        keep_channels(model, cuts)
        assert model.first.out_channels == 16 - len(faded["norm1"])
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)  # smaller dense layers, the same function


def test_a_norm_that_is_gone_is_faded_whole_and_only_plain_norms_are_silenced() -> None:
    model = Stack()
    with torch.no_grad():
        model.norm1.weight.zero_()
    assert faded_channels(model)["norm1"] == tuple(range(16))
    assert silence(model) == 16
    assert not model.norm1.bias.any()
    add_gates(model, 2)
    assert silence(model) == 0


def test_the_same_decay_on_a_plain_scale_fades_nothing() -> None:
    assert not any(faded_channels(trained(0)).values())
