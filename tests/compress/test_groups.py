"""Channel groups: found across sums, concats and flattens; refused wherever channels do not go through one by one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from small_networks import Net
from torch import Tensor, nn
from torch.nn import functional

from lorita_deploy.compress.cuts import ChannelGroup, keep_channels, narrowed_geometries
from lorita_deploy.compress.groups import Grouping, channel_groups
from lorita_deploy.compress.trying import disagreement
from lorita_deploy.networks import survey


def grouping(module: nn.Module, *shape: int) -> Grouping:
    examples = (torch.zeros(1, *shape),)  # the worst example that a user can give
    return channel_groups(module, examples, survey(module, examples).geometries)


def names(group: ChannelGroup) -> tuple[list[str], list[str], list[str]]:
    return tuple([member.layer for member in part] for part in (group.producers, group.between, group.consumers))


def residual() -> Net:
    def forward(net: Net, x: Tensor) -> Tensor:
        x = functional.relu(net.norm1(net.first(x)))
        x = functional.relu(x + net.norm2(net.second(x)))
        return net.head(functional.max_pool2d(x, 2).flatten(1))

    torch.manual_seed(0)
    return Net(
        forward,
        first=nn.Conv2d(3, 8, 3, padding=1),
        norm1=nn.BatchNorm2d(8),
        second=nn.Conv2d(8, 8, 3, padding=1),
        norm2=nn.BatchNorm2d(8),
        head=nn.Linear(8 * 4, 5),
    )


def concat() -> Net:
    def forward(net: Net, x: Tensor) -> Tensor:
        x = net.a(x)
        x = torch.cat([functional.relu(net.b(x)), x], 1)
        return net.d(functional.relu(net.c(net.norm(x)))).mean((2, 3))

    torch.manual_seed(0)
    return Net(
        forward,
        a=nn.Conv2d(3, 6, 1),
        b=nn.Conv2d(6, 4, 3, padding=1),
        norm=nn.BatchNorm2d(10),
        c=nn.Conv2d(10, 7, 3),
        d=nn.Conv2d(7, 2, 1),
    )


def test_a_residual_sum_ties_its_producers_and_a_flatten_repeats_channels() -> None:
    found = grouping(residual(), 3, 4, 4)
    (group,) = found.groups
    assert (group.name, group.width) == ("first", 8)
    assert names(group) == (["first", "second"], ["norm1", "norm2"], ["second", "head"])
    assert group.consumers[1].positions == tuple(tuple(range(4 * c, 4 * c + 4)) for c in range(8))
    assert [each.layer for each in found.left_alone] == ["head"]
    assert "outputs of the network" in found.left_alone[0].reason


def test_a_concat_puts_channels_behind_an_offset() -> None:
    found = grouping(concat(), 3, 6, 6)
    a, b, c = found.groups
    assert names(a) == (["a"], ["norm"], ["b", "c"])
    assert names(b) == (["b"], ["norm"], ["c"])
    assert names(c) == (["c"], [], ["d"])
    assert a.consumers[1].positions == tuple((4 + channel,) for channel in range(6))
    assert b.between[0].positions == tuple((channel,) for channel in range(4))


def test_depthwise_convolutions_and_prelus_are_passed_through() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 6, 1),
        nn.GroupNorm(6, 6),
        nn.PReLU(6),
        nn.Conv2d(6, 6, 3, groups=6),
        nn.InstanceNorm2d(6, affine=True),
        nn.PReLU(),
        nn.Conv2d(6, 2, 1),
    )
    (group,) = grouping(net, 3, 6, 6).groups
    assert names(group) == (["0"], ["1", "2", "3", "4"], ["6"])
    before = net(x := torch.randn(2, 3, 6, 6))
    with torch.no_grad():
        net[6].weight[:, [0, 2, 5]] = 0
    expected = net(x)
    keep_channels(net, [(group, [1, 3, 4])])
    assert [net[1].num_groups, net[2].num_parameters, net[3].groups, net[4].num_features, net[6].in_channels] == [3] * 5
    torch.testing.assert_close(net(x), expected)
    assert not torch.allclose(before, expected)


def test_a_squeeze_and_excitation_gate_joins_the_group_it_scales() -> None:
    def forward(net: Net, x: Tensor) -> Tensor:
        x = functional.relu(net.a(x))
        gate = net.up(functional.relu(net.down(x.mean((2, 3), keepdim=True)))).sigmoid()
        return net.b(x * gate).flatten(1)

    net = Net(forward, a=nn.Conv2d(3, 8, 1), down=nn.Conv2d(8, 4, 1), up=nn.Conv2d(4, 8, 1), b=nn.Conv2d(8, 2, 1))
    a, down = grouping(net, 3, 4, 4).groups
    assert names(a) == (["a", "up"], [], ["down", "b"])
    assert names(down) == (["down"], [], ["up"])


def two(between: Callable[[Tensor], Tensor], **layers: nn.Module) -> Net:
    """A convolution to 8 channels, something, and a convolution that reads them."""
    net = Net(lambda net, x: net.b(between(net.a(x))), a=nn.Conv2d(8, 8, 1), b=nn.Conv2d(8, 2, 1), **layers)
    net.extra = layers.get("extra")
    return net


def shuffled(x: Tensor) -> Tensor:
    return x.unflatten(1, (2, 4)).transpose(1, 2).flatten(1, 2)


def added_to_the_input() -> Net:
    return Net(lambda net, x: net.b(x + net.a(x)), a=nn.Conv2d(8, 8, 1), b=nn.Conv2d(8, 2, 1))


def called_twice() -> Net:
    layers = {name: nn.Conv2d(8, 8, 1) for name in "abc"}
    return Net(lambda net, x: net.c(net.b(net.b(net.a(x)))), **layers)


def tied() -> Net:
    net = Net(lambda net, x: net.c(net.b(net.a(x))), **{name: nn.Conv2d(8, 8, 1) for name in "abc"})
    net.b.weight = net.c.weight
    return net


def batch_norm_called_twice() -> Net:
    net = two(lambda x: x, extra=nn.BatchNorm2d(8))
    net.run = lambda net, x: net.b(net.extra(net.extra(net.a(x))))
    return net


def own_parameter() -> Net:
    net = two(lambda x: x)
    net.scale = nn.Parameter(torch.rand(1, 8, 1, 1))
    net.run = lambda net, x: net.b(net.a(x) * net.scale)
    return net


def padded_shortcut() -> Net:
    def forward(net: Net, x: Tensor) -> Tensor:
        x = net.a(x)
        return net.c(functional.pad(x, (0, 0, 0, 0, 4, 4)) + net.b(x)).flatten(1)

    return Net(forward, a=nn.Conv2d(8, 8, 1), b=nn.Conv2d(8, 16, 1), c=nn.Conv2d(16, 2, 1))


def attention() -> Net:
    def forward(net: Net, x: Tensor) -> Tensor:
        x = x.flatten(2).transpose(1, 2)
        q, k, v = (layer(x).unflatten(2, (2, -1)).transpose(1, 2) for layer in (net.q, net.k, net.v))
        return net.o(((q @ k.transpose(2, 3)).softmax(-1) @ v).transpose(1, 2).flatten(2))

    return Net(forward, q=nn.Linear(8, 8), k=nn.Linear(8, 8), v=nn.Linear(8, 8), o=nn.Linear(8, 2))


def detached() -> Net:
    return two(lambda x: x.detach())


REFUSED = {
    "softmax over channels": (lambda: two(lambda x: x.softmax(1)), "one by one"),
    "mean over channels": (lambda: two(lambda x: x - x.mean(1, keepdim=True)), "one by one"),
    "shuffle": (lambda: two(shuffled), "one by one|does not run"),
    "reversed": (lambda: two(lambda x: x.flip(1)), "one by one"),
    "a number from the outside": (lambda: two(lambda x: x * torch.arange(8.0)[:, None, None]), "does not run"),
    "layer norm": (lambda: nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 2)), "LayerNorm"),
    "group norm": (lambda: nn.Sequential(nn.Conv2d(8, 8, 1), nn.GroupNorm(2, 8), nn.Conv2d(8, 2, 1)), "GroupNorm"),
    "grouped": (lambda: nn.Sequential(nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1, groups=2), nn.Conv2d(8, 2, 1)), "Conv2d"),
    "network input": (
        lambda: Net(lambda net, x: net.b(x + net.a(x)), a=nn.Conv2d(8, 8, 1), b=nn.Conv2d(8, 2, 1)),
        "does not run",
    ),
    "called twice": (called_twice, "tied to b, a Conv2d"),
    "norm called twice": (batch_norm_called_twice, "extra is called 2 times"),
    "shared weight": (tied, "tied to b, a Conv2d"),
    "own parameter": (own_parameter, "parameter of its own"),
    "padded shortcut": (padded_shortcut, "one by one|padded shortcut"),
    "attention": (attention, "one by one|does not run"),
    "detached": (detached, "cannot trace|no gradient path"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_refused_with_a_reason(kind: str) -> None:
    make, reason = REFUSED[kind]
    torch.manual_seed(0)
    net = make()
    found = grouping(net, 4) if kind == "layer norm" else grouping(net, 8, 4, 4)
    assert not found.groups
    reasons = " / ".join(each.reason for each in found.left_alone)
    assert any(part in reasons for part in reason.split("|")), reasons


def test_the_network_is_left_as_it_is() -> None:
    net = residual().train()
    net.first.weight.requires_grad_(False)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    grouping(net, 3, 4, 4)
    assert net.training
    assert not net.first.weight.requires_grad
    assert not net.first._forward_hooks
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name])


def test_cuts_of_several_groups_share_a_layer_and_geometries_follow() -> None:
    net = concat().eval()
    x = torch.randn(2, 3, 6, 6)
    geometries = survey(net, (x[:1],)).geometries
    a, b, c = channel_groups(net, (x[:1],), geometries).groups
    cuts = [(a, [0, 2, 5]), (b, [3]), (c, [1, 2])]
    keep_channels(net, cuts)
    assert (net.norm.num_features, net.c.in_channels, net.c.out_channels) == (4, 4, 2)
    assert net(x).shape == (2, 2)
    expected = survey(net, (x[:1],)).geometries
    assert narrowed_geometries(geometries, [(group, len(kept)) for group, kept in cuts]) == expected


@pytest.mark.parametrize("kept", [[], [0, 0], [0, 8]])
def test_channels_that_a_group_lacks_are_a_programming_error(kept: list[int]) -> None:
    net = residual()
    (group,) = grouping(net, 3, 4, 4).groups
    with pytest.raises(ValueError, match="cannot keep"):
        keep_channels(net, [(group, kept)])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size", "groups", "refused"),
    [
        ("vgg16", 64, 15, 1),
        ("resnet50", 64, 37, 1),
        ("mobilenet_v2", 64, 25, 1),
        ("densenet121", 64, 120, 1),
        ("efficientnet_b0", 64, 40, 1),
        ("convnext_tiny", 64, 18, 23),
    ],
)
def test_torchvision(name: str, size: int, groups: int, refused: int) -> None:
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    net = torchvision.models.get_model(name).eval()
    found = grouping(net, 3, size, size)
    assert (len(found.groups), len(found.left_alone)) == (groups, refused)
    keep_channels(net, [(group, range(0, group.width, 2)) for group in found.groups])
    assert net(torch.zeros(1, 3, size, size)).shape == (1, 1000)


def test_resnet20_inner_channels_are_free_and_padded_streams_are_not() -> None:
    from lorita_sample_models.resnet import RESNET20

    found = grouping(RESNET20.build(10, 32), 3, 16, 16)
    assert [group.name for group in found.groups] == [f"stages.{s}.{b}.conv1" for s in range(3) for b in range(3)]
    streams = {f"stages.{s}.{b}.conv2" for s in range(3) for b in range(3)} | {"conv", "head"}
    assert {each.layer for each in found.left_alone} == streams


@pytest.mark.parametrize("norm", ["functional", "without tensors"])
def test_what_needs_positive_inputs_is_tried_on_such(norm: str) -> None:
    """On noise of both signs its outputs would all be NaN, which says nothing against any claim."""

    def forward(net: Net, x: Tensor) -> Tensor:
        x = functional.group_norm(net.b(functional.relu(net.a(torch.log(x)))), 2 if norm == "functional" else 8)
        return net.c(x).mean((2, 3))

    torch.manual_seed(0)
    net = Net(forward, a=nn.Conv2d(3, 8, 1), b=nn.Conv2d(8, 8, 1), c=nn.Conv2d(8, 5, 1)).eval()
    examples = (torch.rand(1, 3, 6, 6) + 0.5,)
    found = channel_groups(net, examples, survey(net, examples).geometries).groups
    assert [names(group)[0] for group in found] == [["a"]]


def test_nothing_finite_shows_nothing() -> None:
    gone = {"": [torch.full((3,), torch.nan)]}
    assert disagreement(gone, gone) == ""
    partly = {"": [torch.tensor([torch.inf, 1.0])]}
    assert disagreement(partly, partly) is None
    assert disagreement({"": [torch.empty(0)]}, {"": [torch.empty(0)]}) is None
