"""Classifiers of torchvision and timm by name."""

from __future__ import annotations

import sys

import pytest
import torch

from lorita_deploy.errors import BadNetwork, UnknownName
from lorita_deploy.networks import survey
from lorita_deploy.ports import find_model
from lorita_deploy.train.composition import collapse, factorize


@pytest.mark.parametrize(
    ("name", "own_size", "size"),
    [
        ("torchvision:resnet18", 224, 64),
        ("torchvision:mobilenet_v3_small", 224, 64),
        pytest.param("torchvision:vit_b_32", 224, 64, marks=pytest.mark.slow),
        ("timm:resnet10t", 176, 64),
        ("timm:vit_tiny_patch16_224", 224, 64),
    ],
)
def test_a_network_by_name_is_factored_and_collapsed(name: str, own_size: int, size: int) -> None:
    if name.startswith("timm"):
        pytest.importorskip("timm")
    spec = find_model(name)
    assert (spec.name, spec.input_size, spec.classes, spec.channels) == (name, own_size, 1000, 3)
    torch.manual_seed(0)
    network = spec.build(5, size).eval()
    x = torch.randn(2, *spec.input_shape(size))
    with torch.inference_mode():
        before = network(x)
        assert before.shape == (2, 5)
        factored = factorize(network, 2)(x)
        torch.testing.assert_close(factored, before, rtol=1e-3, atol=1e-3 * float(before.abs().max()))
        assert torch.equal(collapse(network)(x), factored)
    assert survey(network, (x[:1],)).geometries


def test_fixed_size_transformers_keep_their_own_size_too() -> None:
    network = find_model("torchvision:vit_b_32").build(3, 224).eval()
    with torch.inference_mode():
        assert network(torch.randn(1, 3, 224, 224)).shape == (1, 3)


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_networks_with_side_outputs_give_plain_logits_while_training(name: str) -> None:
    spec = find_model(f"torchvision:{name}")
    network = spec.build(3, spec.input_size).train()
    assert network(torch.randn(2, *spec.input_shape(96))).shape == (2, 3)


@pytest.mark.parametrize(("name", "near"), [("torchvision:resnet-18", "resnet18"), ("timm:resnet_18", "resnet18")])
def test_unknown_names_get_near_misses(name: str, near: str) -> None:
    if name.startswith("timm"):
        pytest.importorskip("timm")
    with pytest.raises(UnknownName, match=f"did you mean .*{near}"):
        find_model(name)


def test_unknown_training_tags_of_timm_are_told_apart() -> None:
    pytest.importorskip("timm")
    with pytest.raises(UnknownName, match=r"resnet18\.a1_in1k"):
        find_model("timm:resnet18.a1_in2k")


def test_without_timm_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)  # what Python itself does for a package that cannot be imported
    with pytest.raises(BadNetwork, match=r"lorita-deploy\[timm\]"):
        find_model("timm:resnet18")
