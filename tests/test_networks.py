"""The carriers: what a survey finds, and weights on their way to and from the disk."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from lorita_deploy.errors import BadCheckpoint, BadNetwork
from lorita_deploy.networks import evaluating, load_weights, read_weights, save_weights, survey, weights_digest
from lorita_deploy.train.composition import collapse, factorize


class Mixed(nn.Module):
    """A layer of every kind that matters to a survey."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.grouped = nn.Conv2d(8, 8, 1, groups=2)
        self.twice = nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 4)
        self.tied = nn.Linear(4, 4)
        self.also_tied = nn.Linear(4, 4)
        self.also_tied.weight = self.tied.weight
        self.functional = nn.Linear(4, 4)
        self.up = nn.ConvTranspose2d(8, 8, 2)

    def forward(self, x):
        x = self.twice(self.twice(self.grouped(self.depthwise(self.conv(x)))))
        x = self.head(self.up(x).flatten(2).transpose(1, 2))
        return nn.functional.linear(self.also_tied(self.tied(x)), self.functional.weight)


def test_a_survey_finds_what_may_change_and_says_why_the_rest_may_not():
    found = survey(Mixed(), (torch.randn(2, 3, 8, 8),))
    assert list(found.geometries) == ["conv", "head"]
    conv, head = found.geometries.values()
    assert (conv.m, conv.n, conv.out_shape, conv.stride) == (8, 27, (4, 4), (2, 2))
    assert (head.m, head.n, head.positions) == (4, 8, 25)
    assert found.macs == 8 * 27 * 16 + 4 * 8 * 25
    assert {each.layer: each.reason for each in found.left_alone} == {
        "depthwise": "depthwise",
        "grouped": "grouped (2 groups)",
        "twice": "called 2 times",
        "tied": "shares its weight with tied, also_tied",
        "also_tied": "shares its weight with tied, also_tied",
        "functional": "never called as a module",
        "up": "ConvTranspose2d is not supported",
    }


def test_a_layer_with_a_forward_of_its_own_is_left_alone():
    class Standardised(nn.Conv2d):
        def forward(self, x):
            return self._conv_forward(x, self.weight - self.weight.mean(), self.bias)

    class Padded(nn.Conv2d):
        def _conv_forward(self, x, weight, bias):
            return super()._conv_forward(nn.functional.pad(x, (0, 1, 0, 1)), weight, bias)

    class OnlyNamedAnew(nn.Conv2d):
        pass

    found = survey(nn.Sequential(Standardised(3, 4, 3), Padded(4, 4, 3), OnlyNamedAnew(4, 4, 3)), (torch.randn(1, 3, 9, 9),))
    assert list(found.geometries) == ["2"]
    assert [each.reason for each in found.left_alone] == [
        "Standardised has a forward of its own",
        "Padded has a forward of its own",
    ]


def test_a_layer_that_gets_its_input_by_name_trains_and_stays():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.head = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x):
            return self.head(input=torch.relu(self.first(x)))

    net, x = Named(), torch.randn(2, 6)
    expected = net(x)
    torch.testing.assert_close(factorize(net, 3)(x), expected)
    collapse(net)
    found = survey(net, (x,))
    assert list(found.geometries) == ["first"]
    assert [(each.layer, each.reason) for each in found.left_alone] == [("head", "is given its input by name")]


def test_a_file_whose_tensors_have_no_names_is_refused(tmp_path):
    torch.save({0: torch.ones(2)}, tmp_path / "w.pt")
    with pytest.raises(BadCheckpoint, match="other than named tensors"):
        read_weights(tmp_path / "w.pt")


def test_a_survey_leaves_modes_and_hooks_alone():
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    model[0].eval()
    survey(model, (torch.randn(1, 2),))
    assert (model.training, model[0].training, model[1].training) == (True, False, True)
    assert not model[0]._forward_hooks


def test_a_forward_pass_that_fails_is_explained():
    with pytest.raises(BadNetwork, match=r"fails on inputs of shape \[\(1, 3\)\]"):
        survey(nn.Linear(2, 2), (torch.randn(1, 3),))


def test_evaluating_restores_each_mode_after_an_error():
    model = nn.Sequential(nn.Dropout(), nn.Dropout().eval())
    with pytest.raises(RuntimeError, match="in evaluation mode"), evaluating(model):
        raise RuntimeError("in training mode" if model[0].training else "in evaluation mode")
    assert model[0].training
    assert not model[1].training


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_weights_survive_the_disk(tmp_path, suffix):
    model, path = net(), tmp_path / f"w{suffix}"
    if suffix == ".pt":
        torch.save({"model_state_dict": {f"module.{name}": value for name, value in model.state_dict().items()}}, path)
    else:
        save_weights(model, path)
    other = net()
    nn.init.zeros_(other[3].weight)
    assert weights_digest(other) != weights_digest(model)
    load_weights(other, path)
    assert weights_digest(other) == weights_digest(model)


def test_the_same_weights_are_the_same_bytes(tmp_path):
    assert save_weights(net(), tmp_path / "a.safetensors") == save_weights(net(), tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_another_architecture_is_described(tmp_path):
    state = net().state_dict()
    state["0.weight"] = torch.zeros(4, 1, 3, 3)
    del state["3.bias"]
    state["extra"] = torch.zeros(1)
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(BadCheckpoint) as caught:
        load_weights(net(), tmp_path / "w.safetensors")
    message = str(caught.value)
    assert "1 missing: 3.bias" in message
    assert "1 unexpected: extra" in message
    assert "0.weight is (4, 1, 3, 3), expected (4, 3, 3, 3)" in message


def test_nan_weights_are_named(tmp_path):
    model = net()
    nn.init.constant_(model[3].weight, float("nan"))
    save_weights(model, tmp_path / "w.safetensors")
    with pytest.raises(BadCheckpoint, match=r"NaN or infinite values in 3\.weight"):
        load_weights(net(), tmp_path / "w.safetensors")


def test_damaged_and_unsafe_files_are_refused(tmp_path):
    save_weights(net(), tmp_path / "w.safetensors")
    whole = (tmp_path / "w.safetensors").read_bytes()
    for content in (b"", whole[:50], whole[:-1], b"\xff" * 100):
        (tmp_path / "w.safetensors").write_bytes(content)
        with pytest.raises(BadCheckpoint, match="not a whole safetensors file"):
            read_weights(tmp_path / "w.safetensors")
    torch.save(net(), tmp_path / "pickled.pt")
    with pytest.raises(BadCheckpoint, match="weights_only"):
        read_weights(tmp_path / "pickled.pt")
    torch.save({"epoch": 3}, tmp_path / "other.pt")
    with pytest.raises(BadCheckpoint, match="something other than named tensors"):
        read_weights(tmp_path / "other.pt")
    with pytest.raises(BadCheckpoint, match="no such file"):
        read_weights(tmp_path / "none.pt")


@pytest.mark.parametrize("count", [1, 3])
def test_positions_of_a_linear_layer_wherever_the_batch_is(count):
    """In front, behind the sequence, or with windows in it."""

    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.windows, self.pooled = (nn.Linear(8, 8) for _ in range(4))

        def forward(self, x):  # (N, 16, 8)
            y = self.first(x)
            y = self.second(y.transpose(0, 1)).transpose(0, 1)
            y = self.windows(y.reshape(-1, 4, 8)).reshape(x.shape)
            return self.pooled(y.mean(1))

    found = survey(Mixed(), (torch.randn(count, 16, 8),)).geometries
    assert {name: each.positions for name, each in found.items()} == {"first": 16, "second": 16, "windows": 16, "pooled": 1}
