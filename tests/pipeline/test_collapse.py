"""The dense network that a build starts from: attentions open, and layers that cannot be replaced named."""

from pathlib import Path

import pytest
import torch
from torch import nn

from lorita_deploy.networks import load_weights, save_weights, survey
from lorita_deploy.pipeline import build, make_options
from lorita_deploy.pipeline.weights import load_plain_weights
from lorita_deploy.ports import Task
from lorita_deploy.records import Accuracy, CollapsedRecord


class Own(nn.Module):
    """Tokens (N, 5, 24) -> (N, 4), with one layer whose type is asked for and one attention that cannot be opened."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(24, 3, batch_first=True)
        self.masked = nn.MultiheadAttention(24, 3, batch_first=True)
        self.hidden = nn.Linear(24, 32)
        self.head = nn.Linear(32, 4)

    def forward(self, x):
        x = x + self.attention(x, x, x, need_weights=False)[0]
        x = x + self.masked(x, x, x, attn_mask=torch.ones(5, 5).triu(1).bool(), need_weights=False)[0]
        return self.head(self.hidden(x.to(self.hidden.weight.dtype)).relu().mean(1))


def test_attentions_are_open_and_what_must_stay_is_named(tmp_path):
    torch.manual_seed(0)
    net = Own().eval()
    tokens = torch.randn(32, 5, 24)
    with torch.no_grad():
        labels = net(tokens).argmax(1)

    def evaluate(module):
        with torch.no_grad():
            right = int((module.eval()(tokens).argmax(1) == labels).sum())
        return Accuracy(metric="agreement", split="validation", correct=right, total=32)

    task = Task(examples=(tokens[:1],), calibration=[(tokens,)], evaluate=evaluate)
    options = make_options(model="own", target="cpu", out=str(tmp_path))
    build(options, until="collapse", model=net, task=task)
    record = CollapsedRecord.load(Path(options.folder) / "collapsed.json")
    assert [layer.name for layer in record.layers] == [*(f"attention.{child}" for child in "qkvo"), "head"]
    reasons = {each.layer: each.reason for each in record.left_alone}
    assert "with a mask" in reasons["masked"]
    assert "more of it than its call" in reasons["hidden"]
    assert record.accuracy[0].value == 1
    assert isinstance(net.attention, nn.MultiheadAttention), "the network handed in stays as it was"


def test_a_checkpoint_of_the_closed_network_is_loaded(tmp_path):
    models = pytest.importorskip("torchvision").models
    from lorita_deploy.compress.opening import open_attention

    torch.manual_seed(0)
    shape = {"image_size": 16, "patch_size": 4, "num_layers": 1, "num_heads": 3, "hidden_dim": 24, "mlp_dim": 32}
    closed, opened = (models.VisionTransformer(**shape, num_classes=5).eval() for _ in range(2))
    nn.init.normal_(closed.heads.head.weight)
    images = torch.randn(2, 3, 16, 16)
    open_attention(opened, (images,))
    save_weights(closed, path := tmp_path / "closed.safetensors")
    load_plain_weights(opened, path)
    torch.testing.assert_close(opened(images), closed(images))
    save_weights(opened, path := tmp_path / "opened.safetensors")
    load_weights(opened, path)
    load_plain_weights(opened, path)
    assert "encoder.layers.encoder_layer_0.self_attention.q" in survey(opened, (images,)).geometries
