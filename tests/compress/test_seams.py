"""Linear seams: found where nothing non-linear lies between, one layer or a narrower seam with the function kept."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from lorita_deploy.compress.calibrate import calibrate
from lorita_deploy.compress.compressor import Compressor
from lorita_deploy.compress.cuts import take_shapes
from lorita_deploy.compress.seam_rewriting import Seam, multiply_out, narrow_seam, resize_seam
from lorita_deploy.compress.seams import Seams, linear_seams
from lorita_deploy.compress.widths import Narrowable
from lorita_deploy.errors import BadNetwork
from lorita_deploy.networks import load_weights, save_weights, survey
from lorita_deploy.ports import Task
from lorita_deploy.records import Accuracy, Geometry, GroupChoice


def seams_of(net: nn.Module, x: Tensor) -> Seams:
    return linear_seams(net, (x[:2],), survey(net, (x[:2],)).geometries)


def lively(net: nn.Module) -> nn.Module:
    """Batch norms with statistics of their own, in evaluation mode."""
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for values in (layer.running_var, layer.running_mean, layer.weight.data, layer.bias.data):
                values.uniform_(0.5, 1.5)
    return net.eval()


def assert_same(found: nn.Module, net: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        expected = net(x)
        assert (found(x) - expected).abs().max() <= 1e-5 * expected.abs().max()


@torch.no_grad()
def plant(first: nn.Module, rank: int) -> None:
    """Outputs of this rank."""
    rows = torch.randn(len(first.weight), rank) @ torch.randn(rank, first.weight[0].numel()) * 0.2
    first.weight.copy_(rows.view_as(first.weight))


class SmallCNN(nn.Module):
    """A k x k convolution, batch norm and a 1 x 1 with nothing between, and a 1 x 1 before a k x k. Inputs (N, 3, 12, 12)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 10, 3, stride=2, padding=1, dilation=2, bias=False)
        self.stem_norm = nn.BatchNorm2d(10)
        self.point = nn.Conv2d(10, 14, 1, stride=2)
        self.norm = nn.BatchNorm2d(14)
        self.reduce = nn.Conv2d(14, 8, 1, bias=False)
        self.wide = nn.Conv2d(8, 12, 3, padding=1)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.norm(self.point(self.stem_norm(self.stem(x)))))
        x = functional.relu(self.wide(self.reduce(x)))
        return self.head(x.mean((2, 3)))


IMAGES = torch.randn(8, 3, 12, 12, generator=torch.Generator().manual_seed(1))


def small_cnn() -> SmallCNN:
    torch.manual_seed(0)
    net = lively(SmallCNN())
    plant(net.stem, 4)
    plant(net.reduce, 3)
    return net


def test_seams_of_a_cnn_are_found_and_both_ways_of_rewriting_keep_the_function() -> None:
    net = small_cnn()
    found = seams_of(net, IMAGES)
    assert [(seam.first, seam.between, seam.second, seam.inner, seam.rank) for seam in found.seams] == [
        ("stem", ("stem_norm",), "point", 10, 4),
        ("reduce", (), "wide", 8, 3),
    ]
    assert not found.left_alone
    before = copy.deepcopy(net.state_dict())
    one = net
    for seam in found.seams:
        narrowed = narrow_seam(net, seam, seam.rank)
        assert_same(narrowed, net, IMAGES)
        assert narrowed.get_submodule(seam.first).out_channels == narrowed.get_submodule(seam.second).in_channels == seam.rank
        assert (narrow_seam(net, seam, seam.rank - 1)(IMAGES) - net(IMAGES)).abs().max() > 1e-3
        one = multiply_out(one, seam)
    assert_same(one, net, IMAGES)
    geometries = survey(one, (IMAGES[:1],)).geometries
    assert [geometries[seam.second] for seam in found.seams] == [seam.merged for seam in found.seams]
    assert geometries["point"].stride == (4, 4)
    assert list(geometries) == ["point", "wide", "head"]
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_a_chain_in_an_mlp_is_taken_one_seam_at_a_time() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(9, 12),
        nn.Dropout(0.5),
        nn.Linear(12, 7, bias=False),
        nn.Identity(),
        nn.Linear(7, 11),
        nn.ReLU(),
        nn.Linear(11, 4),
    ).eval()
    plant(net[2], 2)
    x = torch.randn(6, 5, 9)  # on sequences
    first, second = seams_of(net, x).seams
    assert [(seam.first, seam.between, seam.second) for seam in (first, second)] == [("0", ("1",), "2"), ("2", ("3",), "4")]
    assert (first.rank, second.rank) == (2, 2)
    net2 = multiply_out(net, first)
    (rest,) = seams_of(net2, x).seams
    assert (rest.first, rest.second, rest.rank, rest.inner) == ("2", "4", 2, 7)
    assert_same(narrow_seam(net2, rest, 2), net, x)
    one = multiply_out(net2, rest)
    assert_same(one, net, x)
    assert list(survey(one, (x[:1],)).geometries) == ["4", "6"]


class Net(nn.Module):
    """Two layers and whatever a test puts between."""

    def __init__(self, run: Callable[..., Tensor], first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second
        self.run = run

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def straight(net: Net, x: Tensor) -> Tensor:
    return net.second(net.first(x))


def read_twice(net: Net, x: Tensor) -> Tensor:
    y = net.first(x)
    return net.second(y) + y.mean(1, keepdim=True)


def hooked() -> Net:
    net = Net(straight, nn.Conv2d(3, 6, 1), nn.Conv2d(6, 5, 1))
    net.first.register_forward_hook(lambda *_: None)
    return net


LEFT = {
    "padding meets a constant": (lambda: Net(straight, nn.Conv2d(3, 6, 1), nn.Conv2d(6, 5, 3, padding=1)), "zero padding"),
    "two large kernels": (lambda: Net(straight, nn.Conv2d(3, 6, 3), nn.Conv2d(6, 5, 3)), "neither acts on single positions"),
    "a strided point": (lambda: Net(straight, nn.Conv2d(3, 6, 1, 2), nn.Conv2d(6, 5, 3)), "neither acts on single positions"),
    "read elsewhere too": (lambda: Net(read_twice, nn.Conv2d(3, 6, 1), nn.Conv2d(6, 5, 1)), "does not run|read elsewhere"),
    "hooks": (hooked, "hooks"),
}


@pytest.mark.parametrize("kind", LEFT)
def test_left_with_a_reason(kind: str) -> None:
    make, reason = LEFT[kind]
    torch.manual_seed(0)
    found = seams_of(make().eval(), IMAGES)
    assert not found.seams
    assert [each.layer for each in found.left_alone] == ["first"]
    assert any(part in found.left_alone[0].reason for part in reason.split("|")), found.left_alone


NOTHING_THERE = {
    "activation": lambda net, x: net.second(functional.relu(net.first(x))),
    "activation in place": lambda net, x: net.second(functional.relu_(net.first(x))),
    "scaled in place": lambda net, x: net.second(net.first(x).mul_(2)),
    "sum": lambda net, x: net.second(net.first(x) + x),
}


@pytest.mark.parametrize("kind", NOTHING_THERE)
def test_what_is_not_a_seam_is_not_mentioned(kind: str) -> None:
    found = seams_of(Net(NOTHING_THERE[kind], nn.Conv2d(3, 3, 1), nn.Conv2d(3, 5, 1)).eval(), IMAGES)
    assert found.seams == found.left_alone == ()


def test_norms_that_look_at_the_values_are_not_linear() -> None:
    x = torch.randn(6, 9)
    for norm in (nn.LayerNorm(7), nn.BatchNorm1d(7, track_running_stats=False), nn.Tanh()):
        found = seams_of(nn.Sequential(nn.Linear(9, 7), norm, nn.Linear(7, 4)).eval(), x)
        assert found.seams == found.left_alone == ()


def test_padding_over_no_constant_and_a_constant_without_padding_are_fine() -> None:
    torch.manual_seed(0)
    for first, second in (
        (nn.Conv2d(3, 6, 1, bias=False), nn.Conv2d(6, 5, 3, padding="same", bias=False)),
        (nn.Conv2d(3, 6, 1), nn.Conv2d(6, 5, 3, stride=2, bias=False)),
        (nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 5, 1, bias=False)),
    ):
        net = Net(straight, first, second).eval()
        (seam,) = seams_of(net, IMAGES).seams
        assert seam.rank == 3 if first.kernel_size == (1, 1) else seam.rank == 5
        assert_same(multiply_out(net, seam), net, IMAGES)
        assert_same(narrow_seam(net, seam, seam.rank), net, IMAGES)


def test_the_one_layer_keeps_what_belonged_to_the_second() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 5, 1)).double().eval()
    calls: list[str] = []
    net[1].register_forward_hook(lambda *_: calls.append("hook"))
    net[1].weight.requires_grad_(False)
    x = IMAGES.double()
    (seam,) = seams_of(net, x).seams
    calls.clear()
    for found in (multiply_out(net, seam), narrow_seam(net, seam, 3)):
        found(x)
        assert found[1].weight.dtype == torch.float64
        assert not found[1].weight.requires_grad
    assert calls == ["hook", "hook"]


@pytest.mark.parametrize("width", [None, 3])
def test_the_weights_travel_through_a_file(width: int | None, tmp_path: Path) -> None:
    net = small_cnn()
    seam = seams_of(net, IMAGES).seams[0]
    found = multiply_out(net, seam) if width is None else narrow_seam(net, seam, width)
    save_weights(found, tmp_path / "net.safetensors")
    skeleton = lively(SmallCNN())
    if width is None:
        resize_seam(skeleton, seam)
    else:
        take_shapes(skeleton, tmp_path / "net.safetensors")
    load_weights(skeleton, tmp_path / "net.safetensors")
    assert torch.equal(skeleton(IMAGES), found(IMAGES))


def test_weights_that_are_not_finite_are_named() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    seam = Seam("0", (), "1", 4, 2, Geometry(kind="linear", out_channels=2, in_channels=3))
    with torch.no_grad():
        net[1].weight[0, 0] = torch.nan
    for rewriting in (
        lambda: seams_of(net, torch.randn(2, 3)),
        lambda: multiply_out(net, seam),
        lambda: narrow_seam(net, seam, 2),
    ):
        with pytest.raises(BadNetwork, match="weight of 1"):
            rewriting()


@pytest.mark.slow
def test_mobilenets_linear_bottlenecks_are_seams() -> None:
    models = pytest.importorskip("torchvision").models
    torch.manual_seed(0)
    net = lively(models.mobilenet_v2())
    x = torch.randn(2, 3, 64, 64)
    found = seams_of(net, x).seams
    assert [seam.first for seam in found][:1] == ["features.1.conv.1"]
    for seam in found:
        assert_same(multiply_out(net, seam), net, x)


def test_below_its_rank_a_seam_goes_by_the_data() -> None:
    """Directions that inputs do not take, or whose outputs the loss does not mind, go first, and constants cost nothing."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 12, 3), nn.BatchNorm2d(12), nn.Conv2d(12, 6, 1), nn.Flatten(), nn.Linear(6 * 100, 4))
    net = lively(net)
    images = 1.0 + torch.randn(256, 3, 12, 12) * torch.tensor([1.0, 0.03, 1.0])[:, None, None]
    task = Task(
        examples=(images[:1],),
        calibration=[(images,)],
        evaluate=lambda _: Accuracy(metric="score", split="validation", correct=1.0, total=1),
    )
    geometries = survey(net, task.examples).geometries
    found = calibrate(net, geometries, task, samples=256)
    narrowable = Narrowable(net, geometries, task.calibration, examples=task.examples)
    (group,) = (each for each in narrowable.calibrate(found.moments) if each.group == "0.seam")
    assert (group.width, group.producers, group.consumers) == (12, ("0",), {"2": 1})
    assert group.loss_at_width[6] == 0.0 < group.loss_at_width[3]
    assert "0" not in narrowable.groups

    def error(network: nn.Module) -> float:
        with torch.no_grad():
            return float((network(images).softmax(1) - net(images).softmax(1)).norm())

    (seam,) = narrowable.seams.values()
    assert error(narrow_seam(net, seam, 3, found.moments["0"])) < 0.7 * error(narrow_seam(net, seam, 3))
    compressor = Compressor(net, geometries, found, task.calibration, narrowable=narrowable)
    fitted = compressor.network([], [GroupChoice(group="0.seam", width=12, kept=6)])
    assert (fitted[0].out_channels, fitted[1].num_features, fitted[2].in_channels) == (6, 6, 6)
    assert_same(fitted, net, images)
    timed = copy.deepcopy(net)
    narrowable.resize(timed, {"0.seam": 4})
    assert timed(images[:1]).shape == (1, 4)
    # Not whatever memory held: denormal numbers take many times as long.
    assert torch.equal(timed[0].weight, net[0].weight[:4])
    assert torch.equal(timed[2].weight, net[2].weight[:, :4])
