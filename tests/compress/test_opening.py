"""Opened attention computes what it did, in torch and in ONNX Runtime; what cannot be opened is named with its reason."""

from __future__ import annotations

import copy
from pathlib import Path

import onnxruntime
import pytest
import torch
from lorita_exporters.onnx import EXPORTER
from torch import Tensor, nn

from lorita_deploy.attention import attentions
from lorita_deploy.compress.heads import head_spectra, narrow_heads, resize_heads
from lorita_deploy.compress.opening import open_attention, opened_weights
from lorita_deploy.forms import install
from lorita_deploy.networks import load_weights, read_weights, save_weights, survey
from lorita_deploy.ports import ExportJob
from lorita_deploy.records import Choice

HEADS, WIDTH = 3, 8
TOKENS = torch.randn(4, 6, HEADS * WIDTH, generator=torch.Generator().manual_seed(1))
IMAGES = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def torchvision_vit() -> nn.Module:
    models = pytest.importorskip("torchvision").models
    return models.VisionTransformer(16, 4, 2, HEADS, HEADS * WIDTH, 32, num_classes=5)


def timm_vit(**options: object) -> nn.Module:
    transformer = pytest.importorskip("timm.models.vision_transformer").VisionTransformer
    shape = {"img_size": 16, "patch_size": 4, "depth": 2, "num_heads": HEADS, "embed_dim": HEADS * WIDTH, "mlp_ratio": 1.5}
    return transformer(num_classes=5, **shape, **options)


def sample_vit() -> nn.Module:
    from lorita_sample_models.vit import VisionTransformer

    return VisionTransformer(5, 16, width=HEADS * WIDTH, depth=2, heads=HEADS, inner=32)


KINDS = {"sample": sample_vit, "torchvision": torchvision_vit, "timm": timm_vit}


def made(kind: str) -> nn.Module:
    """With all biases and weights at work: attention must matter to the outputs."""
    torch.manual_seed(0)
    net = KINDS[kind]().eval()
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if "norm" not in name and "ln" not in name and parameter.ndim <= 2:
                parameter.normal_(std=0.3)
    return net


def run_onnx(net: nn.Module, x: Tensor, folder: Path) -> Tensor:
    job = ExportJob(
        network=net, examples=(x[:1],), folder=folder, filename="net.onnx", role="dense", opset=17, ir_version=8, batch=len(x)
    )
    EXPORTER.export(job)
    session = onnxruntime.InferenceSession(str(folder / "net.onnx"), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])


def assert_same(found: Tensor, expected: Tensor) -> None:
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


# ---------------------------------------------------------------------------------------------- opening


@pytest.mark.parametrize("kind", ["torchvision", "timm"])
def test_opened_attention_is_the_same_function_and_every_projection_a_layer(kind: str) -> None:
    net = made(kind)
    before = copy.deepcopy(net)
    found = open_attention(net, (IMAGES[:1],))
    assert len(found.opened) == 2
    assert not found.left_alone
    assert_same(net(IMAGES), before(IMAGES))
    seen = survey(net, (IMAGES[:1],))
    assert {f"{name}.{child}" for name in found.opened for child in "qkvo"} <= seen.geometries.keys()
    assert not seen.left_alone
    assert sum(p.numel() for p in net.parameters()) == sum(p.numel() for p in before.parameters())
    again = open_attention(net, (IMAGES[:1],))
    assert again.opened == again.left_alone == ()


@pytest.mark.parametrize("kind", ["torchvision", "timm"])
def test_checkpoints_of_the_closed_network_fit_the_opened_one(kind: str, tmp_path: Path) -> None:
    closed = made(kind)
    save_weights(closed, path := tmp_path / "closed.safetensors")
    torch.manual_seed(7)
    net = KINDS[kind]().eval()
    open_attention(net, (IMAGES[:1],))
    load_weights(net, path, opened_weights(net, read_weights(path)))
    assert_same(net(IMAGES), closed(IMAGES))
    own = net.state_dict()
    assert opened_weights(net, own).keys() == own.keys()


@pytest.mark.parametrize("batch_first", [True, False])
def test_torchs_own_encoder_layers_take_opened_attention(batch_first: bool) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(HEADS * WIDTH, HEADS, 16, batch_first=batch_first)
    net = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    with torch.no_grad():
        expected = net(TOKENS)
        assert len(open_attention(net, (TOKENS,)).opened) == 2
        assert_same(net(TOKENS), expected)
    net.train()(TOKENS).sum().backward()  # and can still be trained
    assert net.layers[0].self_attn.q.weight.grad is not None


def test_opened_attention_keeps_what_belonged_to_it() -> None:
    torch.manual_seed(0)
    net = Calling(lambda a, x: a(x, x, x, need_weights=False)[0], dropout=0.3).double()
    net.attention.in_proj_weight.requires_grad_(False)
    calls: list[str] = []
    net.attention.register_forward_hook(lambda *_: calls.append("hook"))
    net.eval().attention.train()
    x = TOKENS.double()
    assert open_attention(net, (x,)).opened == ("attention",)
    calls.clear()
    a = net.attention
    assert [a.training, a.q.training, net.training, a.dropout] == [True, True, False, 0.3]
    assert [a.q.weight.requires_grad, a.q.bias.requires_grad, a.o.weight.requires_grad] == [False, True, True]
    assert a.v.weight.dtype == a.o.bias.dtype == torch.float64
    assert not torch.equal(net(x), net(x))  # dropout still drops
    assert calls == ["hook", "hook"]
    with pytest.raises(ValueError, match="without a mask"):
        a(x, x, x, attn_mask=torch.zeros(6, 6))


def test_attention_called_twice_or_known_by_two_names_is_opened_once() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.MultiheadAttention(HEADS * WIDTH, HEADS, batch_first=True)
            self.again = self.first

        def forward(self, x: Tensor) -> Tensor:
            for attention in (self.first, self.again):
                x = x + attention(x, x, x, need_weights=False)[0]
            return x

    torch.manual_seed(0)
    net = Twice().eval()
    expected = net(TOKENS)
    assert open_attention(net, (TOKENS,)).opened == ("first",)
    assert net.first is net.again
    assert_same(net(TOKENS), expected)
    assert all("called 2 times" in each.reason for each in survey(net, (TOKENS,)).left_alone)
    (attention,) = attentions(net)
    assert_same(narrow_heads(net, attention, WIDTH, WIDTH)(TOKENS), expected)


class Calling(nn.Module):
    """An attention, called as a test says."""

    def __init__(self, call: object, **options: object) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(HEADS * WIDTH, HEADS, batch_first=True, **options)
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self.attention, x)


def tied() -> nn.Module:
    first, second = (Calling(lambda a, x: a(x, x, x, need_weights=False)[0]) for _ in range(2))
    first.attention.in_proj_weight = second.attention.in_proj_weight
    return nn.Sequential(first, second)


def parametrized() -> nn.Module:
    net = Calling(lambda a, x: a(x, x, x, need_weights=False)[0])
    nn.utils.parametrizations.weight_norm(net.attention, "in_proj_weight")
    return net


def read_from_outside() -> nn.Module:
    return Calling(lambda a, x: a(x, x, x, need_weights=False)[0] * a.in_proj_weight.mean())


def subclass() -> nn.Module:
    class RotaryAttention(nn.MultiheadAttention):
        pass

    net = Calling(lambda a, x: a(x, x, x, need_weights=False)[0])
    net.attention = RotaryAttention(HEADS * WIDTH, HEADS, batch_first=True)
    return net


LEFT = {
    "mask": (lambda: Calling(lambda a, x: a(x, x, x, attn_mask=torch.ones(6, 6).tril(), need_weights=False)[0]), "with a mask"),
    "weights": (lambda: Calling(lambda a, x: a(x, x, x)[1]), "weights are asked for"),
    "cross": (lambda: Calling(lambda a, x: a(x, x.flip(1), x.flip(1), need_weights=False)[0]), "not self-attention"),
    "alone": (lambda: Calling(lambda a, x: a(y := x[0], y, y, need_weights=False)[0]), "without a batch"),
    "never": (lambda: Calling(lambda a, x: x), "never called"),
    "key of its own": (lambda: Calling(lambda a, x: a(x, x, x, need_weights=False)[0], add_bias_kv=True), "adds a key"),
    "tied": (tied, "shares its weights"),
    "parametrized": (parametrized, "parametrization"),
    "read from outside": (read_from_outside, "does not run with it opened"),
    "subclass": (subclass, "RotaryAttention is not a kind"),
}


@pytest.mark.parametrize("kind", LEFT)
def test_left_with_a_reason(kind: str) -> None:
    make, reason = LEFT[kind]
    torch.manual_seed(0)
    net = make().eval()
    before = dict(net.named_modules())
    expected = net(TOKENS)
    found = open_attention(net, (TOKENS,))
    assert not found.opened
    assert found.left_alone
    assert all(reason in each.reason for each in found.left_alone), found.left_alone
    assert dict(net.named_modules()) == before
    torch.testing.assert_close(net(TOKENS), expected)


@pytest.mark.parametrize(
    ("options", "reason"),
    [({"qk_norm": True}, "q_norm, k_norm"), ({"scale_attn_norm": True}, r"\(norm\)")],
)
def test_timm_with_norms_is_left(options: dict[str, object], reason: str) -> None:
    found = open_attention(timm_vit(**options).eval(), (IMAGES[:1],))
    assert len(found.left_alone) == 2
    assert reason.replace("\\", "") in found.left_alone[0].reason


class Around(nn.Module):
    """One layer, on tokens or, for windows, on their square."""

    def __init__(self, attention: nn.Module, square: bool = False) -> None:
        super().__init__()
        self.attention = attention
        self.square = square

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x.unflatten(1, (2, 2)) if self.square else x)


def test_rotations_cosines_and_windows_are_left_by_their_names() -> None:
    layers = pytest.importorskip("timm.layers")
    swin = pytest.importorskip("torchvision.models.swin_transformer")
    beit = pytest.importorskip("timm.models.beit")
    torch.manual_seed(0)
    tokens = torch.randn(2, 4, HEADS * WIDTH)
    made = [
        (Around(layers.AttentionRope(HEADS * WIDTH, HEADS)), "AttentionRope"),
        (Around(swin.ShiftedWindowAttentionV2(HEADS * WIDTH, [2, 2], [0, 0], HEADS), square=True), "ShiftedWindowAttentionV2"),
        (Around(beit.Attention(HEADS * WIDTH, HEADS)), "Attention"),
    ]
    for net, name in made:
        found = open_attention(net.eval(), (tokens,))
        assert [each.layer for each in found.left_alone] == ["attention"]
        assert found.left_alone[0].reason.startswith(f"{name} is not a kind")


# ---------------------------------------------------------------------------------------------- narrower heads of all kinds


def plant(layer: nn.Linear, rank: int) -> None:
    """Each head's rows of this rank, and a bias within them."""
    with torch.no_grad():
        for weight, bias in zip(layer.weight.view(HEADS, WIDTH, -1), layer.bias.view(HEADS, WIDTH), strict=True):
            rows = torch.randn(WIDTH, rank)
            weight.copy_(rows @ torch.randn(rank, weight.shape[1]) * 0.2)
            bias.copy_(rows @ torch.randn(rank) * 0.2)


@pytest.mark.parametrize("kind", KINDS)
def test_planted_products_give_exactly_their_width(kind: str, tmp_path: Path) -> None:
    net = made(kind)
    open_attention(net, (IMAGES[:1],))
    first, second = attentions(net)
    plant(net.get_submodule(first.k), 3)  # the key's bias drops out: only the query's could add a dimension
    plant(net.get_submodule(first.v), 5)
    assert head_spectra(net, first).free_widths == (3, 5)
    assert head_spectra(net, second).free_widths == (WIDTH, WIDTH)
    expected = net(IMAGES)
    found = narrow_heads(net, first, 3, 5)
    assert_same(found(IMAGES), expected)
    assert_same(run_onnx(found, IMAGES, tmp_path), expected)
    for qk, vo in ((2, 5), (3, 4)):
        assert (narrow_heads(net, first, qk, vo)(IMAGES) - expected).abs().max() > 1e-3 * expected.abs().max()


@pytest.mark.parametrize("kind", KINDS)
def test_weights_of_narrow_heads_and_pairs_travel_through_a_file(kind: str, tmp_path: Path) -> None:
    net = made(kind)
    open_attention(net, (IMAGES[:1],))
    first, second = attentions(net)
    found = narrow_heads(net, first, 4, 6)
    pair = Choice(layer=second.q, form="pair", k_in=24, k_out=24, rank=8, predicted_loss=0, us=1, dense_us=2)
    install(found, [pair])
    save_weights(found, tmp_path / "net.safetensors")

    torch.manual_seed(5)
    skeleton = KINDS[kind]().eval()
    open_attention(skeleton, (torch.zeros(1, 3, 16, 16),))
    before = {name: tensor.clone() for name, tensor in skeleton.state_dict().items()}
    resize_heads(skeleton, attentions(skeleton)[0], 4, 6)
    for name in (first.q, first.k, first.v):  # what is timed with them is no slower than real weights: no denormal numbers
        for tensor in ("weight", "bias"):
            if (resized := skeleton.state_dict().get(f"{name}.{tensor}")) is not None:
                assert torch.equal(resized, before[f"{name}.{tensor}"][: len(resized)])
    resized = skeleton.get_submodule(first.o).weight
    assert torch.equal(resized, before[f"{first.o}.weight"][:, : resized.shape[1]])
    install(skeleton, [pair])
    load_weights(skeleton, tmp_path / "net.safetensors")
    assert torch.equal(skeleton(IMAGES), found(IMAGES))
