"""What every registered model has to stand: whoever adds one to the entry points is tested here without writing a line."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from lorita_deploy.errors import UnknownName
from lorita_deploy.networks import survey
from lorita_deploy.ports import MODELS, ModelSpec, find_model, names
from lorita_deploy.train.composition import collapse, factored_layers, factorize, left_alone, rank_fraction

CLASSES = 7


@pytest.fixture(scope="module", params=names(MODELS))
def spec(request: pytest.FixtureRequest) -> ModelSpec:
    return find_model(request.param)


@pytest.fixture(scope="module")
def network(spec: ModelSpec) -> nn.Module:
    torch.manual_seed(0)
    return spec.build(CLASSES, spec.input_size).eval()


@pytest.fixture(scope="module")
def inputs(spec: ModelSpec) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(2, *spec.input_shape())


def test_the_forward_pass_gives_one_row_of_logits_per_image(network: nn.Module, inputs: torch.Tensor) -> None:
    with torch.inference_mode():
        logits = network(inputs)
        assert logits.shape == (2, CLASSES)
        assert torch.isfinite(logits).all()
        torch.testing.assert_close(network(inputs[1:]), logits[1:], rtol=1e-4, atol=1e-5)  # images do not mix


def test_weights_are_the_same_for_the_same_seed(spec: ModelSpec, network: nn.Module) -> None:
    torch.manual_seed(0)
    twin = spec.build(CLASSES, spec.input_size)
    assert all(torch.equal(a, b) for a, b in zip(network.state_dict().values(), twin.state_dict().values(), strict=True))


def test_the_survey_covers_every_layer(network: nn.Module, inputs: torch.Tensor) -> None:
    found = survey(network, (inputs[:1],))
    layers = {name for name, layer in network.named_modules() if isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d)}
    assert set(found.geometries) | {each.layer for each in found.left_alone} == layers
    assert len(found.geometries) >= 2
    weights = sum(layer.weight.numel() for name, layer in network.named_modules() if name in found.geometries)  # type: ignore[misc]
    assert sum(geometry.m * geometry.n for geometry in found.geometries.values()) == weights


def test_factorize_keeps_the_function_and_collapse_is_exact(network: nn.Module, inputs: torch.Tensor) -> None:
    trained = copy.deepcopy(network)
    keys = list(network.state_dict())
    with torch.inference_mode():
        before = network(inputs)
    factorize(trained, 3)
    assert set(factored_layers(trained)) == set(survey(network, (inputs[:1],)).geometries)
    with torch.inference_mode():
        factored = trained(inputs)
        torch.testing.assert_close(factored, before, rtol=1e-3, atol=1e-4 * float(before.abs().max()) + 1e-5)
        assert torch.equal(collapse(trained)(inputs), factored)
    assert list(trained.state_dict()) == keys
    assert left_alone(network) == left_alone(trained)


def test_every_factor_gets_a_gradient(network: nn.Module, inputs: torch.Tensor) -> None:
    trained = factorize(copy.deepcopy(network), 3).train()
    trained(inputs).square().sum().backward()
    idle = [name for name, parameter in trained.named_parameters() if parameter.grad is None or not parameter.grad.any()]
    assert idle == []


def test_the_spec_is_filled_in(spec: ModelSpec, network: nn.Module) -> None:
    assert spec.name in names(MODELS)
    assert spec.summary
    assert spec.recipe.weight_decay > 0
    assert 0 < rank_fraction(network) <= 1


@pytest.mark.parametrize(
    ("name", "parameters"),
    # For 10 classes. VGG on CIFAR is usually counted with biases on the convolutions (vgg16: 14,728,266), BN needs none.
    [
        ("vgg11", 9_231_114 - 2_752),
        ("vgg13", 9_416_010 - 2_944),
        ("vgg16", 14_728_266 - 4_224),
        ("vgg19", 20_040_522 - 5_504),
        ("resnet20", 269_722),
    ],
)
def test_the_published_architectures_have_their_parameters(name: str, parameters: int) -> None:
    spec = find_model(name)
    assert sum(p.numel() for p in spec.build(10, spec.input_size).parameters()) == parameters


@pytest.mark.parametrize(("name", "size"), [("vgg11", 64), ("resnet20", 24), ("vit", 24), ("fcn", 20)])
def test_other_input_sizes(name: str, size: int) -> None:
    spec = find_model(name)
    network = spec.build(3, size).eval()
    assert network(torch.randn(2, *spec.input_shape(size))).shape == (2, 3)


def test_impossible_input_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 32"):
        find_model("vgg16").build(10, 28)
    with pytest.raises(ValueError, match="multiple of 4"):
        find_model("vit").build(10, 30)


def test_resnets_shortcut_is_every_second_pixel_and_zero_channels() -> None:
    network = find_model("resnet20").build(10, 32).eval()
    block = network.stages[1][0]
    nn.init.zeros_(block.conv2.weight)
    x = torch.rand(1, 16, 6, 6)
    y = block(x)
    assert y.shape == (1, 32, 3, 3)
    assert torch.equal(y[:, 8:24], x[:, :, ::2, ::2])
    assert not y[:, :8].any()
    assert not y[:, 24:].any()


def test_unknown_models_get_near_misses() -> None:
    with pytest.raises(UnknownName, match="did you mean vgg16"):
        find_model("vgg-16")
