"""Narrowing: planted dead and proportional channels go, exactly those, and the function stays; predicted losses are real."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from lorita_deploy.compress.calibrate import calibrate
from lorita_deploy.compress.cuts import ChannelGroup, Member, take_shapes
from lorita_deploy.compress.groups import channel_groups
from lorita_deploy.compress.moments import DAMPING, Moments
from lorita_deploy.compress.narrow import Selection, narrow, select_channels, sensitivity
from lorita_deploy.compress.readings import Reading, collect_readings
from lorita_deploy.errors import BadData, BadNetwork
from lorita_deploy.networks import load_weights, save_weights, survey
from lorita_deploy.records import Geometry


def made_up_moments(geometries: dict[str, Geometry]) -> dict[str, Moments]:
    """A gradient moment that is not the identity for every layer."""
    generator = torch.Generator().manual_seed(5)
    found = {}
    for name, geometry in geometries.items():
        root = torch.randn(geometry.m, geometry.m, generator=generator)
        nothing = torch.zeros(geometry.m)
        found[name] = Moments(nothing, torch.diag(nothing), root @ root.T / geometry.m, geometry.positions)
    return found


class Narrowable:
    """A network with all that narrowing needs to know of it."""

    def __init__(self, net: nn.Module, inputs: Tensor) -> None:
        self.net, self.inputs = net.eval(), inputs
        self.geometries = survey(net, (inputs[:1],)).geometries
        self.groups = {group.name: group for group in channel_groups(net, (inputs[:1],), self.geometries).groups}
        self.moments = made_up_moments(self.geometries)
        self.readings = collect_readings(net, self.groups.values(), [(inputs,)], samples=len(inputs))

    def select(self, group: str) -> Selection:
        return select_channels(self.net, self.groups[group], self.readings, self.moments)

    def without_the_free(self) -> tuple[nn.Module, dict[str, set[int]]]:
        """Every group at its free width, and the channels that went."""
        cuts, gone = [], {}
        for name, group in self.groups.items():
            selection = self.select(name)
            cuts.append((group, selection.kept(selection.free_width)))
            gone[name] = set(range(group.width)) - set(cuts[-1][1])
        return narrow(self.net, cuts, self.readings), gone


def assert_same_function(found: nn.Module, net: nn.Module, inputs: Tensor) -> None:
    with torch.no_grad():
        expected = net(inputs)
        assert (found(inputs) - expected).abs().max() <= 1e-5 * expected.abs().max()


class Net(nn.Module):
    """A stem, a residual sum with a projection, a concat, max-pools, a flatten into linear layers. Inputs (N, 3, 8, 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.stem_norm = nn.BatchNorm2d(12)
        self.inner = nn.Conv2d(12, 10, 3, padding=1, bias=False)
        self.inner_norm = nn.BatchNorm2d(10)
        self.outer = nn.Conv2d(10, 12, 3, padding=1)
        self.side = nn.Conv2d(12, 6, 1)
        self.down = nn.Conv2d(18, 14, 1, stride=2)
        self.hidden = nn.Linear(14 * 4, 20)
        self.head = nn.Linear(20, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.stem_norm(self.stem(x)))
        y = functional.relu(self.inner_norm(self.inner(x)))
        x = functional.relu(x + self.outer(y))
        x = torch.cat([functional.relu(self.side(x)), x], 1)
        x = functional.max_pool2d(functional.relu(self.down(x)), 2)
        return self.head(functional.relu(self.hidden(x.flatten(1))))


INPUTS = torch.randn(256, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    net = Net().eval()
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for values in (layer.running_var, layer.weight.data):
                values.uniform_(0.5, 1.5)
        elif isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.normal_(layer.weight, std=(2 / layer.weight[0].numel()) ** 0.5)
            if layer.bias is not None:
                nn.init.uniform_(layer.bias, 0.0, 0.3)
    centre = net.hidden.register_forward_hook(lambda layer, _, output: layer.bias.data.sub_(output.mean(0)))
    with torch.no_grad():
        net(INPUTS)  # no hidden unit is dead by chance
    centre.remove()
    return net


@torch.no_grad()
def dead(layer: nn.Module, *channels: int) -> None:
    for channel in channels:
        layer.weight[channel] = 0
        layer.bias[channel] = -1.0


@torch.no_grad()
def proportional(layer: nn.Module, channel: int, to: int, factor: float) -> None:
    layer.weight[channel] = factor * layer.weight[to]
    if layer.bias is not None:
        layer.bias[channel] = factor * layer.bias[to]


def test_nothing_goes_where_nothing_was_planted(net: Net) -> None:
    found, gone = Narrowable(net, INPUTS).without_the_free()
    assert gone == {name: set() for name in ("stem", "inner", "side", "down", "hidden")}
    assert_same_function(found, net, INPUTS)


def test_planted_channels_go_and_no_others(net: Net) -> None:
    with torch.no_grad():
        # inner: after batch norm and ReLU, one dead and one proportional
        net.inner_norm.weight[3], net.inner_norm.bias[3] = 0.0, -0.5
        proportional(net.inner, 7, 1, 3.0)
        net.inner_norm.running_mean[7], net.inner_norm.running_var[7] = 3 * net.inner_norm.running_mean[1], 2.0
        net.inner_norm.weight[7] = net.inner_norm.weight[1] * ((2.0 + 1e-5) / (net.inner_norm.running_var[1] + 1e-5)).sqrt() / 3
        net.inner_norm.bias[7] = net.inner_norm.bias[1]
        # the stream: channel 2 dead in both producers; channel 9 twice channel 4 in both (batch norm included)
        net.stem_norm.weight[2], net.stem_norm.bias[2] = 0.0, 0.0
        dead(net.outer, 2)
        proportional(net.stem, 9, 4, 1.0)
        proportional(net.outer, 9, 4, 2.0)
        for values in (net.stem_norm.running_mean, net.stem_norm.running_var):
            values[9] = values[4]
        for values in (net.stem_norm.weight, net.stem_norm.bias):
            values[9] = 2 * values[4]
        # behind a concat, through a max-pool and a flatten, before a linear layer
        proportional(net.side, 5, 0, 0.5)
        dead(net.down, 0, 13)
        proportional(net.down, 6, 11, 1.5)
        proportional(net.hidden, 19, 3, 4.0)
    found, gone = Narrowable(net, INPUTS).without_the_free()
    expected = {"stem": [{2, 9}, {2, 4}], "inner": [{3, 7}, {3, 1}], "side": [{5}, {0}], "down": [{0, 13, 6}, {0, 13, 11}]}
    expected["hidden"] = [{19}, {3}]
    assert all(gone[name] in either for name, either in expected.items()), gone
    assert gone.keys() == expected.keys()
    assert (found.stem.out_channels, found.stem_norm.num_features, found.outer.out_channels) == (10, 10, 10)
    assert (found.down.in_channels, found.down.out_channels, found.hidden.in_features) == (15, 11, 44)
    unseen = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    assert_same_function(found, net, INPUTS)
    assert_same_function(found, net, unseen)


def test_a_channel_dead_in_one_producer_of_a_sum_stays(net: Net) -> None:
    dead(net.outer, 2)
    _, gone = Narrowable(net, INPUTS).without_the_free()
    assert not gone["stem"]


def test_channels_that_nothing_uses_go(net: Net) -> None:
    with torch.no_grad():
        net.head.weight[:, [4, 8]] = 0
    found, gone = Narrowable(net, INPUTS).without_the_free()
    assert gone["hidden"] == {4, 8}
    assert_same_function(found, net, INPUTS)


def linear_pair(width: int = 9) -> Narrowable:
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 5))
    return Narrowable(net, torch.randn(300, 6))


def damped(G: Tensor) -> Tensor:
    return G.double() + DAMPING * G.diagonal().mean() * torch.eye(len(G), dtype=torch.float64)


def test_the_predicted_loss_is_the_real_weighted_error() -> None:
    it = linear_pair()
    selection, group = it.select("0"), it.groups["0"]
    G = damped(it.moments["2"].gradient)
    assert len(selection.loss_at_width) == 10
    assert list(selection.loss_at_width) == sorted(selection.loss_at_width, reverse=True)
    for width in range(1, 10):
        found = narrow(it.net, [(group, selection.kept(width))], it.readings)
        with torch.no_grad():
            error = (found(it.inputs) - it.net(it.inputs)).double()
        loss = 0.5 * float(((error @ G) * error).sum(1).mean())
        assert loss == pytest.approx(selection.loss_at_width[width], rel=1e-4, abs=1e-9)
    with torch.no_grad():  # and nothing kept is nothing computed but the mean
        whole = functional.linear(functional.relu(it.net[0](it.inputs)), it.net[2].weight).double()
    whole = whole - whole.mean(0)
    assert 0.5 * float(((whole @ G) * whole).sum(1).mean()) == pytest.approx(selection.loss_at_width[0], rel=1e-4)


def test_each_channel_is_the_best_next_one() -> None:
    """Against Schur complements worked out anew for every candidate, over two consumers."""
    torch.manual_seed(4)
    width, names = 8, ("p", "q")
    layers = {name: nn.Linear(width, 6) for name in names}
    net = nn.ModuleDict(layers)
    members = tuple(Member(name, tuple((channel,) for channel in range(width))) for name in names)
    group = ChannelGroup("g", width, (), (), members)
    readings = {}
    for name in names:
        rows = torch.randn(50, width, dtype=torch.float64) @ torch.randn(width, width, dtype=torch.float64)
        readings["g", name] = Reading(rows.T @ rows / 50, 50, torch.zeros(width, dtype=torch.float64))
    geometry = Geometry(kind="linear", out_channels=6, in_channels=width)
    moments = made_up_moments(dict.fromkeys(names, geometry))
    A = [sensitivity(layers[member.layer], member, moments[member.layer]) for member in members]

    def loss(kept: list[int]) -> float:
        total = 0.0
        for weights, name in zip(A, names, strict=True):
            C = readings["g", name].second
            S = C - C[:, kept] @ torch.linalg.solve(C[kept][:, kept], C[kept]) if kept else C
            total += float((weights * S).sum())
        return total

    selection = select_channels(net, group, readings, moments)
    kept: list[int] = []
    for width_now, channel in enumerate(selection.order):
        assert selection.loss_at_width[width_now] == pytest.approx(loss(kept), rel=1e-5)
        others = [each for each in range(width) if each not in kept]
        assert channel == min(others, key=lambda each: loss([*kept, each]))
        kept.append(channel)
    assert selection.loss_at_width[width] == 0


def test_few_rows_are_not_believed() -> None:
    it = linear_pair(40)
    few = collect_readings(it.net, it.groups.values(), [(it.inputs,)], samples=20)
    curve = select_channels(it.net, it.groups["0"], few, it.moments).loss_at_width
    assert curve[10] == curve[39] > 0 == curve[40]  # 20 rows could be rebuilt from any 20 channels
    assert it.select("0").loss_at_width[39] < curve[39]


def test_a_strided_point_convolution_does_not_read_what_it_skips() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1, stride=(2, 3)))
    inputs = torch.randn(8, 3, 6, 6)
    it = Narrowable(net, inputs)
    with torch.no_grad():
        seen = net[0](inputs)[:, :, ::2, ::3].transpose(0, 1).flatten(1).double()
    reading = it.readings["0", "1"]
    assert reading.rows == seen.shape[1] == 8 * 6
    torch.testing.assert_close(reading.second, seen @ seen.T / seen.shape[1])


@pytest.mark.parametrize(
    ("value", "consumer", "goes"),
    [
        (0.7, nn.Conv2d(8, 5, 1, bias=False), True),
        (0.7, nn.Conv2d(8, 5, 3), True),
        (0.7, nn.Conv2d(8, 5, 1, stride=2), True),
        (0.7, nn.Conv2d(8, 5, 3, padding="valid"), True),
        (0.7, nn.Conv2d(8, 5, 3, padding=1), False),
        (0.7, nn.Conv2d(8, 5, (1, 3), padding=(0, 1)), False),
        (0.7, nn.Conv2d(8, 5, 3, padding="same"), False),
        (-0.7, nn.Conv2d(8, 5, 3, padding=1), True),  # zero behind the ReLU: padding cannot tell
    ],
)
def test_a_constant_channel_goes_unless_zero_padding_sees_it(value: float, consumer: nn.Conv2d, goes: bool) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), consumer, nn.ReLU(), nn.Conv2d(5, 2, 1))
    nn.init.uniform_(net[1].bias, 0.1, 0.3)
    with torch.no_grad():
        net[1].weight[6], net[1].bias[6] = 0.0, value
    it = Narrowable(net, INPUTS)
    group = it.groups["0"]
    selection = it.select("0")
    assert (set(range(8)) - set(selection.kept(selection.free_width))) == ({6} if goes else set())
    found = narrow(net, [(group, selection.kept(selection.free_width))], it.readings)
    assert_same_function(found, net, torch.randn(16, 3, 11, 11, generator=torch.Generator().manual_seed(9)))
    without = narrow(net, [(group, [0, 1, 2, 3, 4, 5, 7])], it.readings)  # forced, it is worse than nothing gone
    error = (without(INPUTS) - net(INPUTS)).abs().max()
    assert (error < 1e-5) == goes


def test_a_bias_that_took_up_a_constant_travels_through_a_file(tmp_path: Path) -> None:
    def make() -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 1, bias=False), nn.ReLU(), nn.Conv2d(6, 2, 1))

    torch.manual_seed(0)
    it = Narrowable(make(), INPUTS)
    found = narrow(it.net, [(it.groups["0"], [0, 1, 4, 6, 7]), (it.groups["2"], [0, 2, 3])], it.readings)
    assert found[2].bias is not None
    save_weights(found, tmp_path / "net.safetensors")
    skeleton = make().eval()
    take_shapes(skeleton, tmp_path / "net.safetensors")
    load_weights(skeleton, tmp_path / "net.safetensors")
    assert torch.equal(skeleton(INPUTS), found(INPUTS))


def test_of_two_constants_that_zero_padding_sees_one_stays_for_both() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 5, 3, padding=1))
    nn.init.uniform_(net[1].bias, 0.1, 0.3)
    with torch.no_grad():
        net[1].weight[[2, 6]] = 0.0
    net.append(nn.Conv2d(5, 2, 1))
    it = Narrowable(net, INPUTS)
    cuts = [(it.groups["0"], it.select("0").kept(it.select("0").free_width))]
    assert set(range(8)) - set(cuts[0][1]) in ({2}, {6})
    assert_same_function(narrow(net, cuts, it.readings), net, INPUTS)


def test_a_constant_read_with_and_without_padding_stays() -> None:
    class Fork(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.norm = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)
            self.point, self.wide = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            x = functional.relu(self.norm(self.stem(x)))
            return self.point(x) * self.wide(x)

    torch.manual_seed(0)
    net = Fork()
    nn.init.uniform_(net.norm.bias, 0.1, 0.3)
    with torch.no_grad():
        net.norm.weight[5] = 0.0
    it = Narrowable(net, INPUTS)
    assert it.select("stem").free_width == 8


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.short: nn.Module = nn.Identity()
        if stride > 1:
            self.short = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        return functional.relu(y + self.short(x))


def test_identity_and_projection_shortcuts_lose_little_at_three_quarters() -> None:
    torch.manual_seed(0)
    blocks = [Block(8, 8, 1), Block(8, 16, 2), Block(16, 16, 1)]
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5))
    for _ in range(5):
        net.train()(INPUTS)  # running statistics
    it = Narrowable(net, INPUTS)
    assert list(it.groups) == ["0", "1.conv1", "2.conv1", "2.conv2", "3.conv1"]
    assert [member.layer for member in it.groups["2.conv2"].producers] == ["2.conv2", "2.short.0", "3.conv2"]
    chosen = [(group, it.select(name).kept(group.width * 3 // 4)) for name, group in it.groups.items()]
    least = [(group, it.select(name).order[::-1][: group.width * 3 // 4]) for name, group in it.groups.items()]
    with torch.no_grad():
        expected = net(INPUTS)
        best, worst = ((narrow(net, cuts, it.readings)(INPUTS) - expected).norm() for cuts in (chosen, least))
    assert best < worst
    assert best < 0.5 * expected.norm()


def test_predictions_have_the_size_of_the_real_loss(trained) -> None:
    """On a trained network, behind real gradients: within a factor of ten, at a half and three quarters of the channels."""
    module, task = trained.module, trained.task
    moments = calibrate(module, trained.geometries, task).moments
    groups = channel_groups(module, task.examples, trained.geometries).groups
    readings = collect_readings(module, groups, task.calibration)
    inputs = trained.train[:512]
    with torch.no_grad():
        expected = module(inputs).log_softmax(1)
    assert [group.name for group in groups] == ["stem.0", "down.0", "point", "hidden"]
    for group in groups:
        selection = select_channels(module, group, readings, moments)
        for width in (group.width // 2, group.width * 3 // 4):
            found = narrow(module, [(group, selection.kept(width))], readings)
            with torch.no_grad():
                loss = functional.kl_div(found(inputs).log_softmax(1), expected, log_target=True, reduction="batchmean")
            assert 0.1 < loss / selection.loss_at_width[width] < 10
            assert trained.correct(found) >= trained.correct(module) - 6  # one per cent


def test_layers_keep_what_belongs_to_them() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3)).double()
    net = net.to(memory_format=torch.channels_last)
    it = Narrowable(net, torch.randn(6, 3, 7, 7, dtype=torch.float64))
    net.train()
    net[0].eval()
    net[3].weight.requires_grad_(False)
    calls: list[str] = []
    net[3].register_forward_hook(lambda *_: calls.append("forward"))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    found = narrow(net, [(it.groups["0"], [0, 2, 3, 5, 6])], it.readings)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert [part.training for part in found] == [False, True, True, True]
    assert [found[0].weight.requires_grad, found[3].weight.requires_grad] == [True, False]
    for layer in (found[0], found[3]):
        assert layer.weight.dtype == torch.float64
        assert layer.weight.is_contiguous(memory_format=torch.channels_last)
        assert not layer.weight.is_contiguous()
    found(it.inputs)
    assert calls == ["forward"]


def test_bad_readings() -> None:
    it = linear_pair()
    with pytest.raises(BadData, match="got none"):
        collect_readings(it.net, it.groups.values(), [])
    with pytest.raises(BadNetwork, match="inputs of 2 are NaN"):
        collect_readings(it.net, it.groups.values(), [(it.inputs * torch.nan,)])
    with torch.no_grad():
        it.net[2].weight[0, 0] = torch.nan
    with pytest.raises(BadNetwork, match="weight of 2"):
        it.select("0")
    with pytest.raises(BadNetwork, match="weight of 2"):
        narrow(it.net, [(it.groups["0"], [1])], it.readings)


@pytest.mark.slow
def test_resnet18_works_with_every_group_at_three_quarters() -> None:
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    it = Narrowable(torchvision.models.resnet18(), torch.randn(16, 3, 64, 64))
    cuts = [(group, it.select(name).kept(group.width * 3 // 4)) for name, group in it.groups.items()]
    found = narrow(it.net, cuts, it.readings)
    assert found(it.inputs[:2]).shape == (2, 1000)
    assert found.layer4[1].conv2.weight.shape == (384, 384, 3, 3)
