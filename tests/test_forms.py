"""Conformance of every form in FORMS: what it costs is what its modules hold and compute."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lorita_deploy.errors import PlanMismatch
from lorita_deploy.forms import FORMS, form, install
from lorita_deploy.networks import load_weights, save_weights, survey
from lorita_deploy.records import Choice

LAYERS = {
    "linear": (nn.Linear(40, 30), (2, 40)),
    "linear on sequences": (nn.Linear(40, 30, bias=False), (2, 7, 40)),
    "conv1d": (nn.Conv1d(16, 24, 5, stride=2, bias=False), (2, 16, 30)),
    "conv2d": (nn.Conv2d(16, 24, 3, padding="same", dilation=2), (2, 16, 9, 9)),
    "1x1": (nn.Conv2d(32, 24, 1), (2, 32, 4, 4)),
}


@pytest.mark.parametrize("each", FORMS, ids=lambda each: each.name)
@pytest.mark.parametrize("kind", LAYERS)
def test_cost_is_what_the_built_layer_has(each, kind) -> None:
    layer, shape = LAYERS[kind]
    geometry = survey(nn.Sequential(layer), (torch.randn(shape),)).geometries["0"]
    ranks = each.ranks(geometry, 4)
    assert ranks
    dense_macs = form("dense").cost(geometry, None)[1]
    for rank in ranks:
        built = each.build(layer, rank)
        params, macs = each.cost(geometry, rank)
        assert params == sum(parameter.numel() for parameter in built.parameters())
        assert macs == survey(nn.Sequential(built), (torch.randn(shape),)).macs
        assert built(torch.randn(shape)).shape == layer(torch.randn(shape)).shape
        assert rank is None or (rank % 4 == 0 and macs < dense_macs)


def test_a_skeleton_takes_the_weights_of_the_rewritten_network(tmp_path) -> None:
    choices = [
        Choice(layer="0", form="pair", k_in=3, k_out=16, rank=4, predicted_loss=0.0, us=1.0, dense_us=1.0),
        Choice(layer="2", form="dense", k_in=16, k_out=8, rank=None, predicted_loss=0.0, us=1.0, dense_us=1.0),
    ]

    def network() -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 16, 3, bias=False), nn.ReLU(), nn.Conv2d(16, 8, 3))

    first, second = network(), network()
    install(first, choices)
    install(second, choices)
    save_weights(first, tmp_path / "weights.safetensors")
    load_weights(second, tmp_path / "weights.safetensors")
    x = torch.randn(1, 3, 8, 8)
    assert torch.equal(first(x), second(x))
    assert [name for name, _ in second.named_parameters()] == ["0.0.weight", "0.1.weight", "0.1.bias", "2.weight", "2.bias"]


def test_a_plan_for_a_layer_that_is_not_there_is_refused() -> None:
    choice = Choice(layer="9", form="pair", k_in=3, k_out=16, rank=4, predicted_loss=0.0, us=1.0, dense_us=1.0)
    with pytest.raises(PlanMismatch, match="lacks: 9"):
        install(nn.Sequential(nn.Linear(3, 3)), [choice])


def test_an_unknown_form_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        form("sparse")
