"""Weights files in factored form."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from lorita_deploy.errors import BadCheckpoint
from lorita_deploy.networks import read_weights
from lorita_deploy.pipeline.weights import load_plain_weights
from lorita_deploy.train.factored import multiplied_out, save_factored


def low_rank() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 36, 40), nn.Linear(40, 4)
    )
    with torch.no_grad():
        for layer, rank in ((net[0], 4), (net[4], 6)):
            flat = layer.weight.flatten(1)
            layer.weight.copy_((torch.randn(len(flat), rank) @ torch.randn(rank, flat.shape[1])).view_as(layer.weight) / 30)
            layer.weight.add_(1e-6 * torch.randn_like(layer.weight))
    return net.eval()


def test_a_low_rank_network_is_small_on_disk_and_loads_as_before(tmp_path: Path) -> None:
    net, images = low_rank(), torch.randn(8, 3, 8, 8)
    expected = net(images)

    def agrees(tensors) -> bool:
        other = low_rank()
        other.load_state_dict(tensors)
        return bool((other(images) - expected).abs().max() < 1e-3)

    path = tmp_path / "net.safetensors"
    assert save_factored(net.state_dict(), {"0", "4", "5"}, path, agrees) == 1e-2
    save_file(net.state_dict(), tmp_path / "plain.safetensors")
    assert path.stat().st_size < 0.3 * (tmp_path / "plain.safetensors").stat().st_size
    stored = read_weights(path)
    assert stored["0.weight.left"].shape == (32, 4)
    assert stored["0.weight.right"].shape == (4, 3, 3, 3)
    assert "5.weight" in stored, "full rank: whole"
    other = low_rank()
    nn.init.zeros_(other[0].weight)
    load_plain_weights(other, path)
    torch.testing.assert_close(other(images), expected, rtol=0, atol=1e-3)


def test_the_tolerance_is_as_fine_as_it_must_be(tmp_path: Path) -> None:
    net, images = low_rank(), torch.randn(8, 3, 8, 8)
    with torch.no_grad():
        net[4].weight.add_(torch.randn(40, 1) @ torch.randn(1, 32 * 36) * 1e-4)
        expected = net(images)

    def agrees(tensors) -> bool:
        other = low_rank()
        other.load_state_dict(tensors)
        return bool((other(images) - expected).abs().max() < 1e-4)

    assert 1e-5 <= save_factored(net.state_dict(), {"0", "4"}, tmp_path / "net.safetensors", agrees) < 1e-2
    with pytest.raises(ValueError, match="computes the same"):
        save_factored(net.state_dict(), {"0", "4"}, tmp_path / "none.safetensors", lambda _: False)
    assert not (tmp_path / "none.safetensors").exists()


@pytest.mark.parametrize("right", [None, torch.zeros(3, 5)])
def test_factors_that_do_not_fit_are_named(right: torch.Tensor | None) -> None:
    tensors = {"a.weight.left": torch.zeros(4, 2), **({} if right is None else {"a.weight.right": right})}
    with pytest.raises(BadCheckpoint, match=r"factors of a\.weight"):
        multiplied_out(tensors)
