"""Networks with habits of their own survive compression: what cannot be replaced is named, and the function stays."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from small_networks import Net
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm

from lorita_deploy.compress.groups import channel_groups
from lorita_deploy.compress.narrow import narrow
from lorita_deploy.compress.readings import collect_readings
from lorita_deploy.compress.replaceable import irreplaceable
from lorita_deploy.compress.rewrite import duplicate, rewrite_layer
from lorita_deploy.networks import survey


def three(forward: Callable[..., Tensor]) -> Net:
    return Net(forward, a=nn.Linear(6, 8), b=nn.Linear(8, 8), c=nn.Linear(8, 4))


def embedding_and_head() -> Net:
    def forward(net: Net, x: Tensor) -> Tensor:
        return net.head(functional.relu(net.a(net.embed((x.abs() * 10).long() % 8))))

    net = Net(forward, embed=nn.Embedding(8, 8), a=nn.Linear(8, 8), head=nn.Linear(8, 8, bias=False))
    net.head.weight = net.embed.weight
    return net


def own_name_for_a_weight() -> Net:
    net = three(lambda net, x: net.c(functional.relu(net.b(net.a(x)))) + net.penalty.mean())
    net.penalty = net.b.weight
    return net


def tied_pair() -> Net:
    net = three(lambda net, x: net.c(functional.relu(net.b(functional.relu(net.a(x))))))
    net.c = nn.Linear(8, 8)
    net.c.weight = net.b.weight
    return net


def type_asked() -> Net:
    return three(lambda net, x: net.c(functional.relu(net.b(net.a(x).to(net.b.weight.dtype)))))


def width_asked() -> Net:
    return three(lambda net, x: net.c(functional.relu(net.b(net.a(x)))) * net.c.in_features)


def functional_code() -> Net:
    return three(lambda net, x: net.c(functional.relu(functional.linear(net.a(x), net.b.weight, net.b.bias))))


def called_and_functional() -> Net:
    return three(lambda net, x: net.c(functional.relu(net.b(net.a(x)) + net.a(x[:1]) @ net.b.weight)))


def called_twice() -> Net:
    return three(lambda net, x: net.c(functional.relu(net.b(functional.relu(net.b(net.a(x)))))))


def two_names() -> Net:
    net = three(lambda net, x: net.c(functional.relu(net.again(net.a(x)))))
    net.again = net.b
    return net


def with_a_buffer() -> Net:
    net = three(lambda net, x: net.c(functional.relu(net.b(net.a(x) * net.scale + net.shift))))
    net.register_buffer("scale", torch.rand(8))
    net.register_buffer("shift", torch.rand(8), persistent=False)
    return net


def with_hooks() -> Net:
    net = three(lambda net, x: net.c(functional.relu(net.b(net.a(x)))))
    net.b.register_forward_hook(lambda layer, inputs, output: output * 3)
    net.c.register_forward_pre_hook(lambda layer, inputs: (inputs[0] + 1,))
    return net


def computed_weight() -> Net:
    net = three(lambda net, x: net.c(functional.relu(net.b(net.a(x)))))
    weight_norm(net.b)
    return net


def called_by_a_list() -> Net:
    net = three(lambda net, x: net.c(functional.relu(net.todo[0](net.a(x)))))
    net.todo = [net.b]
    return net


def detached() -> Net:
    return three(lambda net, x: net.c(functional.relu(net.b(net.a(x))).detach()))


def output_unused() -> Net:
    def forward(net: Net, x: Tensor) -> Tensor:
        x = net.a(x)
        net.b(x)
        return net.c(functional.relu_(x))

    return three(forward)


def frozen() -> Net:
    return three(lambda net, x: net.c(functional.relu(net.b(net.a(x))))).requires_grad_(False)


def weight_in_a_buffer() -> Net:
    net = three(lambda net, x: net.c(functional.relu(net.b(net.a(x)))))
    weight = net.b.weight.detach()
    del net.b.weight
    net.b.register_buffer("weight", weight)
    return net


NETS: dict[str, tuple[Callable[[], Net], dict[str, str], set[str]]] = {
    # what makes it, what must stay with its reason, what is rewritten
    "embedding and head": (embedding_and_head, {"head": "shares a parameter with embed"}, {"a"}),
    "a name of its own for a weight": (own_name_for_a_weight, {"b": "shares a parameter with the network itself"}, {"a", "c"}),
    "tied layers": (tied_pair, {"b": "shares its weight with b, c", "c": "shares its weight with b, c"}, {"a"}),
    "type asked": (type_asked, {"b": "more of it than its call"}, {"a", "c"}),
    "width asked": (width_asked, {"c": "more of it than its call"}, {"a", "b"}),
    "functional code": (functional_code, {"b": "never called"}, {"a", "c"}),
    "called and functional": (called_and_functional, {"a": "called 2 times", "b": "more of it than its call"}, {"c"}),
    "called twice": (called_twice, {"b": "called 2 times"}, {"a", "c"}),
    "two names": (two_names, {}, {"a", "b", "c"}),
    "buffers": (with_a_buffer, {}, {"a", "b", "c"}),
    "hooks": (with_hooks, {"b": "a forward hook changes its outputs"}, {"a", "c"}),
    "a weight that is computed": (computed_weight, {"b": "a parametrization computes its weight"}, {"a", "c"}),
    "detached": (detached, {"a": "no gradient reaches it", "b": "no gradient reaches it"}, {"c"}),
    "an output that is not used": (output_unused, {"b": "no gradient reaches it"}, {"a", "c"}),
    "frozen": (frozen, {}, {"a", "b", "c"}),
    "a weight in a buffer": (weight_in_a_buffer, {"b": "its weight is not a parameter"}, {"a", "c"}),
    "a list beside the modules": (called_by_a_list, {"b": "other ways than its name"}, {"a", "c"}),
}


@pytest.mark.parametrize("kind", NETS)
def test_pairs_in_place_of_all_that_can_be_replaced(kind: str) -> None:
    make, stay, change = NETS[kind]
    torch.manual_seed(0)
    net = make().eval()
    x = torch.randn(5, 6)
    found = survey(net, (x[:1],))
    left = irreplaceable(net, (x[:1],), found.geometries)
    reasons = {each.layer: each.reason for each in (*found.left_alone, *left)}
    assert reasons.keys() == stay.keys()
    for name, part in stay.items():
        assert part in reasons[name]
    expected, buffers = net(x), {name: buffer.clone() for name, buffer in net.named_buffers()}
    small = duplicate(net)
    for name, geometry in found.geometries.items():
        if name not in reasons:
            rewrite_layer(small, name, min(geometry.m, geometry.n), None, "whitened")
    assert {name for name, _ in small.named_children() if isinstance(small.get_submodule(name), nn.Sequential)} == change
    torch.testing.assert_close(small(x), expected, rtol=1e-5, atol=1e-5)
    assert {name: buffer.tolist() for name, buffer in small.named_buffers()} == {
        name: buffer.tolist() for name, buffer in buffers.items()
    }
    if kind == "two names":
        assert small.again is small.b


@pytest.mark.parametrize("kind", NETS)
def test_groups_of_such_networks_can_be_cut(kind: str) -> None:
    make, _, _ = NETS[kind]
    torch.manual_seed(0)
    net = make().eval()
    x = torch.randn(64, 6)
    expected = net(x)
    geometries = survey(net, (x[:1],)).geometries
    groups = channel_groups(net, (x[:1],), geometries).groups
    readings = collect_readings(net, groups, [(x,)])
    found = narrow(net, [(group, range(group.width)) for group in groups], readings)
    torch.testing.assert_close(found(x), expected, rtol=1e-5, atol=1e-5)
    halved = narrow(net, [(group, range(group.width // 2)) for group in groups], readings)
    assert halved(x).shape == expected.shape  # whatever was believed to be a group can be cut
    assert {name for name, _ in halved.named_buffers()} == {name for name, _ in net.named_buffers()}


def test_the_network_is_left_as_it_is() -> None:
    net = type_asked().train()
    modules = dict(net.named_modules())
    irreplaceable(net, (torch.randn(2, 6),), ["a", "b", "c"])
    assert dict(net.named_modules()) == modules
    assert net.training
    assert not net.b._forward_hooks


def test_weights_that_are_not_finite_are_nothing_against_a_layer() -> None:
    """They are found, and named, where weights are looked at."""
    net = with_a_buffer().eval()
    with torch.no_grad():
        net.a.weight[0, 0] = torch.nan
    assert not irreplaceable(net, (torch.randn(2, 6),), ["a", "b", "c"])
