"""Coverage: all work of convolutions and linear layers is counted, what can change and what cannot, with the reason."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from lorita_deploy.attention import attentions
from lorita_deploy.compress.coverage import Coverage, coverage
from lorita_deploy.compress.groups import channel_groups
from lorita_deploy.compress.opening import open_attention
from lorita_deploy.compress.replaceable import irreplaceable
from lorita_deploy.compress.seams import linear_seams
from lorita_deploy.networks import survey


def everything(net: nn.Module, x: Tensor, *, groups: bool = True, multiple: int = 8) -> Coverage:
    examples = (x[:1],)
    found = survey(net, examples)
    left = irreplaceable(net, examples, found.geometries)
    geometries = {name: each for name, each in found.geometries.items() if name not in {part.layer for part in left}}
    return coverage(
        net,
        examples,
        found,
        multiple=multiple,
        groups=channel_groups(net, examples, geometries).groups if groups else (),
        attentions=attentions(net),
        seams=linear_seams(net, examples, geometries).seams,
        irreplaceable=left,
    )


class Mixed(nn.Module):
    """Layers of every fate. Inputs (N, 16, 6, 6)."""

    def __init__(self) -> None:
        super().__init__()
        self.free = nn.Conv2d(16, 32, 3, padding=1)
        self.depthwise = nn.Conv2d(32, 32, 3, padding=1, groups=32)
        self.twice = nn.Conv2d(32, 32, 1)
        self.small = nn.Conv2d(32, 4, 1)
        self.up = nn.ConvTranspose2d(4, 6, 2, stride=2)
        self.functional = nn.Linear(6, 24)
        self.read = nn.Linear(24, 24)
        self.kernel = nn.Parameter(torch.randn(24, 24))

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.depthwise(self.free(x)))
        x = functional.relu(self.twice(torch.tanh(self.twice(x))))
        x = self.up(torch.tanh(self.small(x))).mean((2, 3))
        x = functional.linear(x, self.functional.weight, self.functional.bias)
        x = torch.tanh(self.read(x)) * self.read.weight.mean()
        return x @ self.kernel


def test_everything_is_counted_and_what_has_no_candidate_is_named() -> None:
    torch.manual_seed(0)
    found = everything(Mixed().eval(), torch.randn(1, 16, 6, 6))
    pixels = 36
    macs = {
        "free": 16 * 9 * 32 * pixels,
        "twice": 2 * 32 * 32 * pixels,
        "small": 32 * 4 * pixels,
        "up": 4 * 6 * 4 * pixels,
        "functional": 6 * 24,
        "read": 24 * 24,
        "kernel": 24 * 24,
    }
    assert found.macs == sum(macs.values())
    assert found.covered == macs["free"]
    assert found.forms == {"free": ("pair",)}
    assert [each.layer for each in found.bare] == ["twice", "small", "up", "read", "kernel", "functional"]
    reasons = [each.reason for each in found.bare]
    for reason, part in zip(
        reasons,
        ("called 2 times", "too small", "ConvTranspose2d", "more of it than its call", "outside", "never called"),
        strict=True,
    ):
        assert part in reason


def test_narrow_layers_heads_and_seams_count() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 6), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
    found = everything(net, torch.randn(1, 3))
    assert found.share == 1
    assert found.forms == {"0": ("narrow", "seam"), "1": ("narrow", "seam"), "3": ("narrow",)}
    layer = nn.TransformerEncoderLayer(24, 3, 16, batch_first=True).eval()
    x = torch.randn(1, 5, 24)
    closed = everything(layer, x, groups=False)
    assert (closed.macs, closed.covered) == (5 * (4 * 24 * 24 + 2 * 24 * 16), 5 * 2 * 24 * 16)
    assert closed.bare[0].layer == "self_attn.in_proj_weight"
    open_attention(layer, (x,))
    opened = everything(layer, x, groups=False)
    assert opened.macs == closed.macs
    assert opened.share == 1
    assert opened.forms["self_attn.q"] == ("pair", "heads")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("resnet18", 0.9),
        ("resnet50", 0.9),
        ("vgg16_bn", 0.9),
        ("mobilenet_v2", 0.9),
        ("densenet121", 0.9),
        ("efficientnet_b0", 0.9),
        ("convnext_tiny", 0.9),
        ("vit_b_16", 0.7),
    ],
)
def test_torchvision(name: str, least: float) -> None:
    models = pytest.importorskip("torchvision").models
    torch.manual_seed(0)
    net = models.get_model(name, weights=None).eval()
    x = torch.randn(1, 3, 224, 224)
    if name.startswith("vit"):
        assert everything(net, x, groups=False).share < least  # two thirds: the attention's projections cannot be reached
        assert not open_attention(net, (x,)).left_alone
    found = everything(net, x, groups=False)
    assert found.share >= least
    assert found.macs == survey(net, (x,)).macs  # counted in two ways
    assert all(each.reason for each in found.bare)
