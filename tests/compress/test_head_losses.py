"""Narrower heads by the data: free where the products allow it, predictions of the size of the real loss, better than blind."""

from __future__ import annotations

import pytest
import torch
from lorita_sample_models.vit import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional

from lorita_deploy.attention import Attention, attentions
from lorita_deploy.compress.calibrate import collect_moments
from lorita_deploy.compress.head_losses import head_losses, weighed_products
from lorita_deploy.compress.heads import narrow_heads
from lorita_deploy.compress.moments import Moments
from lorita_deploy.networks import survey
from lorita_deploy.ports import Task
from lorita_deploy.records import Accuracy

HEADS, WIDTH = 3, 8


def images(count: int, seed: int) -> Tensor:
    """Mostly within twelve dimensions, as images are mostly smooth."""
    base = torch.randn(12, 3 * 256, generator=torch.Generator().manual_seed(0)) / 4
    draw = torch.Generator().manual_seed(seed)
    return (torch.randn(count, 12, generator=draw) @ base).view(count, 3, 16, 16) + 0.3 * torch.randn(
        count, 3, 16, 16, generator=draw
    )


def lively() -> VisionTransformer:
    torch.manual_seed(0)
    net = VisionTransformer(5, 16, width=HEADS * WIDTH, depth=2, heads=HEADS, inner=32).eval()
    for layer in net.modules():
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=0.3)
            nn.init.normal_(layer.bias, std=0.3)
    return net


def nothing(_: nn.Module) -> Accuracy:
    raise AssertionError("moments need no accuracy")


def moments_of(net: nn.Module) -> dict[str, Moments]:
    inputs = images(192, 1)
    task = Task(examples=(inputs[:1],), calibration=[(inputs,)], evaluate=nothing)
    return collect_moments(net, survey(net, (inputs[:1],)).geometries, task, samples=192, draws=4)[0]


@pytest.fixture(scope="module")
def calibrated() -> tuple[VisionTransformer, dict[str, Moments]]:
    net = lively()
    return net, moments_of(net)


def loss(net: nn.Module, found: nn.Module) -> float:
    """Kullback-Leibler divergence on images that calibration never saw."""
    inputs = images(384, 2)
    with torch.no_grad():
        expected, outputs = (each(inputs).log_softmax(1) for each in (net, found))
    return float(functional.kl_div(outputs, expected, log_target=True, reduction="batchmean"))


@pytest.mark.parametrize("block", [0, 1])
@pytest.mark.parametrize("width", [3, 5])
def test_predictions_have_the_size_of_the_real_loss(
    calibrated: tuple[VisionTransformer, dict[str, Moments]], block: int, width: int
) -> None:
    net, moments = calibrated
    attention: Attention = attentions(net)[block]
    predicted = head_losses(net, attention, moments)
    for curve, widths in ((predicted.qk, (width, WIDTH)), (predicted.vo, (WIDTH, width))):
        assert len(curve) == WIDTH + 1
        assert list(curve) == sorted(curve, reverse=True)
        assert curve[WIDTH] == 0
        real = loss(net, narrow_heads(net, attention, *widths, moments=moments))
        assert 0.25 < real / curve[width] < 4
        assert real < loss(net, narrow_heads(net, attention, *widths))  # blind to the data


def test_what_no_other_side_reads_is_free() -> None:
    net = lively()
    first = net.encoder[0].attention
    with torch.no_grad():
        for layer, rank in ((first.k, 3), (first.v, 5)):
            for weight, bias in zip(layer.weight.view(HEADS, WIDTH, -1), layer.bias.view(HEADS, WIDTH), strict=True):
                rows = torch.randn(WIDTH, rank)
                weight.copy_(rows @ torch.randn(rank, weight.shape[1]) * 0.2)
                bias.copy_(rows @ torch.randn(rank))
    moments = moments_of(net)
    attention = attentions(net)[0]
    predicted = head_losses(net, attention, moments)
    assert [curve.index(0.0) for curve in (predicted.qk, predicted.vo)] == [3, 5]
    inputs = images(16, 3)
    for widths in ((3, 5), (WIDTH, WIDTH), (4, 6)):
        found = narrow_heads(net, attention, *widths, moments=moments)
        torch.testing.assert_close(found(inputs), net(inputs), rtol=1e-4, atol=1e-5)


def test_the_mean_of_the_values_goes_to_the_output_bias(calibrated: tuple[VisionTransformer, dict[str, Moments]]) -> None:
    net, moments = calibrated
    attention = attentions(net)[0]

    def mean_output(each: nn.Module) -> Tensor:
        seen: list[Tensor] = []
        handle = each.get_submodule(attention.o).register_forward_hook(lambda _, __, output: seen.append(output.mean((0, 1))))
        with torch.no_grad():
            each(images(192, 1))
        handle.remove()
        return seen[0]

    found = narrow_heads(net, attention, WIDTH, 2, moments=moments)
    error = (mean_output(found) - mean_output(net)).norm()
    with torch.no_grad():
        found.encoder[0].attention.o.bias -= sum(each.mean_lost(2) for each in weighed_products(net, attention, moments)[1])
    assert error < 0.5 * (mean_output(found) - mean_output(net)).norm()
