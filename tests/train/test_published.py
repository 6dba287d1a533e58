"""Published checkpoints: the product is the chain."""

import os
from pathlib import Path

import pytest
import torch
from lorita_sample_models.resnet import RESNET20
from torch import nn

from lorita_deploy.errors import BadCheckpoint
from lorita_deploy.forms import replace_layer
from lorita_deploy.networks import read_weights
from lorita_deploy.train.published import collapse_chains, read_published

OFFICIAL = Path(os.environ.get("LORITA_DATA", "/nowhere")) / "lorita-official" / "resnet20-cifar10-n2.pt"


def test_a_chain_of_layers_is_one_layer():
    """A strided convolution followed by two 1x1s, and two linear layers, as layers run one after the other."""
    torch.manual_seed(0)
    convs = [nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.Conv2d(8, 8, 1, bias=False), nn.Conv2d(8, 8, 1)]
    linears = [nn.Linear(8, 8, bias=False), nn.Linear(8, 5)]
    state = {"bn.weight": torch.ones(8)}
    for prefix, chain in (("a.b", convs), ("head.net1", linears)):
        for place, layer in enumerate(chain):
            state |= {f"{prefix}.compress_{place}.{name}": value for name, value in layer.state_dict().items()}
    plain = collapse_chains(state)
    assert sorted(plain) == ["a.b.bias", "a.b.weight", "bn.weight", "head.bias", "head.weight"]
    x = torch.randn(2, 3, 9, 9)
    one = nn.functional.conv2d(x, plain["a.b.weight"], plain["a.b.bias"], 2, 1)
    torch.testing.assert_close(one, nn.Sequential(*convs)(x), rtol=1e-5, atol=1e-6)
    v = torch.randn(4, 8)
    torch.testing.assert_close(nn.functional.linear(v, plain["head.weight"], plain["head.bias"]), nn.Sequential(*linears)(v))


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"conv.weight": torch.ones(2, 2)}, "holds no compress"),
        ({"a.compress_1.weight": torch.ones(2, 2)}, "factors of a are missing"),
        ({"a.compress_0.weight": torch.ones(2, 2), "a.compress_1.weight": torch.ones(2, 3)}, "do not fit"),
    ],
)
def test_broken_chains_are_refused(state, message):
    with pytest.raises(BadCheckpoint, match=message):
        collapse_chains(state)


@pytest.mark.skipif(not OFFICIAL.exists(), reason="LORITA_DATA does not hold the authors' checkpoint")
def test_the_authors_network_is_collapsed_exactly():
    """Against the chain run as layers: at most 1e-5 relative."""
    factors = read_weights(OFFICIAL)
    collapsed, chain = RESNET20.build(10, 32).eval(), RESNET20.build(10, 32).eval()
    plain = read_published(OFFICIAL)
    collapsed.load_state_dict(plain)
    chain.load_state_dict(plain)
    for name, layer in list(chain.named_modules()):
        if isinstance(layer, nn.Conv2d):
            theirs = name.replace("stages.0", "layer1").replace("stages.1", "layer2").replace("stages.2", "layer3")
            theirs = "conv1" if theirs == "conv" else theirs
            first = nn.Conv2d(layer.in_channels, layer.out_channels, 3, layer.stride, 1, bias=False)
            second = nn.Conv2d(layer.out_channels, layer.out_channels, 1, bias=False)
            first.weight.data, second.weight.data = (factors[f"{theirs}.compress_{place}.weight"] for place in range(2))
            replace_layer(chain, name, nn.Sequential(first, second))
    torch.manual_seed(0)
    x = torch.randn(8, 3, 32, 32)
    with torch.inference_mode():
        expected, found = chain(x), collapsed(x)
    assert (expected - found).abs().max() <= 1e-5 * expected.abs().max()
