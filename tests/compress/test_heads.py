"""Narrower heads of the sample ViT: exact down to the numerical rank, best beyond it."""

from __future__ import annotations

import pytest
import torch
from lorita_sample_models.vit import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional

from lorita_deploy.attention import attentions
from lorita_deploy.compress.heads import head_spectra, narrow_heads, true_attentions

HEADS, WIDTH = 3, 8


@pytest.fixture
def net() -> VisionTransformer:
    torch.manual_seed(0)
    net = VisionTransformer(5, 16, width=HEADS * WIDTH, depth=2, heads=HEADS, inner=32).eval()
    for layer in net.modules():
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=0.4)
            nn.init.normal_(layer.bias, std=0.4)
    return net


INPUTS = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def plant(net: VisionTransformer, qk: int, vo: int) -> None:
    """Give the heads of the first layer products of these ranks; the query's bias counts in the first."""
    attention = net.encoder[0].attention
    with torch.no_grad():
        for rank, layers in ((qk, (attention.q,)), (vo, (attention.v,))):
            for layer in layers:
                for head in layer.weight.view(HEADS, WIDTH, -1):
                    head.copy_(torch.randn(WIDTH, rank) @ torch.randn(rank, head.shape[1]) * 0.2)
        attention.q.bias.zero_()


def test_full_width_keeps_the_function(net: VisionTransformer) -> None:
    first, second = attentions(net)
    assert (second.q, second.heads) == ("encoder.1.attention.q", HEADS)
    found = narrow_heads(narrow_heads(net, first, WIDTH, WIDTH), second, WIDTH, WIDTH)
    torch.testing.assert_close(found(INPUTS), net(INPUTS), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("moments", [False, True])
def test_exact_down_to_the_numerical_rank(net: VisionTransformer, moments: bool) -> None:
    plant(net, 3, 5)
    first = attentions(net)[0]
    second = None
    if moments:
        root = torch.randn(WIDTH * HEADS, WIDTH * HEADS)
        second = root @ root.T
    assert head_spectra(net, first, second).free_widths == (3, 5)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    found = narrow_heads(net, first, 3, 5, second)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    attention = found.encoder[0].attention
    assert (attention.q.out_features, attention.k.weight.shape) == (9, (9, 24))
    assert (attention.v.weight.shape, attention.o.in_features, attention.o.weight.shape) == ((15, 24), 15, (24, 15))
    torch.testing.assert_close(found(INPUTS), net(INPUTS), rtol=1e-5, atol=1e-5)
    assert (narrow_heads(net, first, 2, 5, second)(INPUTS) - net(INPUTS)).abs().max() > 1e-3
    assert (narrow_heads(net, first, 3, 4, second)(INPUTS) - net(INPUTS)).abs().max() > 1e-3


def test_the_query_bias_counts(net: VisionTransformer) -> None:
    plant(net, 3, 5)
    with torch.no_grad():
        net.encoder[0].attention.q.bias.normal_()
    assert head_spectra(net, attentions(net)[0]).free_widths == (4, 5)


def test_the_dropped_values_are_the_error_of_the_products(net: VisionTransformer) -> None:
    first = attentions(net)[0]
    rows = torch.randn(400, WIDTH * HEADS, dtype=torch.float64) * torch.linspace(0.1, 2, WIDTH * HEADS)
    second = rows.T @ rows / len(rows)
    found = narrow_heads(net, first, WIDTH, 5, second)

    def outputs(network: nn.Module) -> torch.Tensor:
        """Of each head, for one token alone: W_o W_v x without biases."""
        attention = network.encoder[0].attention
        values = attention.v.weight.double().view(HEADS, -1, WIDTH * HEADS)
        outer = attention.o.weight.double().T.reshape(HEADS, -1, WIDTH * HEADS)
        return torch.einsum("hdo,hdi,ni->hno", outer, values, rows)

    with torch.no_grad():
        error = (outputs(found) - outputs(net)).square().sum(2).mean(1)
    dropped = head_spectra(net, first, second).vo[:, 5:].square().sum(1)
    torch.testing.assert_close(error, dropped, rtol=1e-4, atol=1e-8)


def test_a_missing_output_bias_takes_up_the_value_bias(net: VisionTransformer) -> None:
    net.encoder[0].attention.o.bias = None
    found = narrow_heads(net, attentions(net)[0], WIDTH, WIDTH)
    torch.testing.assert_close(found(INPUTS), net(INPUTS), rtol=1e-5, atol=1e-5)


class Named(nn.Module):
    """Four layers q, k, v and o, ``heads`` and ``scale``, as an attention has; ``kind`` says what is done with them."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.kind, self.heads, self.scale, self.width = kind, 2, 0.35, 8
        keys = 8 if kind == "grouped" else 16
        self.q, self.k, self.v, self.o = nn.Linear(16, 16), nn.Linear(16, keys), nn.Linear(16, keys), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        width = self.width if self.kind == "fixed" else -1
        q, k, v = (
            layer(x).view(*x.shape[:2], count, width).transpose(1, 2)
            for layer, count in ((self.q, 2), *((each, 1 if self.kind == "grouped" else 2) for each in (self.k, self.v)))
        )
        if self.kind == "cosine":
            q, k = functional.normalize(q, dim=-1), functional.normalize(k, dim=-1)
        if self.kind == "rotated":
            turn = torch.linspace(0, 1, x.shape[1])[:, None]
            q, k = (each * turn.cos() + each.roll(1, -1) * turn.sin() for each in (q, k))
        return self.o(((q @ k.mT) * self.scale).softmax(-1).matmul(v).transpose(1, 2).flatten(2))


@pytest.mark.parametrize(
    ("kind", "true"), [("plain", True), ("cosine", False), ("rotated", False), ("grouped", False), ("fixed", False)]
)
def test_an_attention_is_one_by_what_it_computes_not_by_its_names(kind: str, true: bool) -> None:
    module = nn.Sequential(Named(kind), Named("plain"))
    assert len(attentions(module)) == 2
    found = true_attentions(module, (torch.randn(1, 5, 16),))
    assert [each.q for each in found] == (["0.q", "1.q"] if true else ["1.q"])
