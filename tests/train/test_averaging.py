"""The running average of the weights."""

from __future__ import annotations

import torch
from torch import nn

from lorita_deploy.train.averaging import Average
from lorita_deploy.train.checkpoint import weights_in
from lorita_deploy.train.composition import factorize


def test_the_average_is_the_weighted_mean_of_what_was_seen() -> None:
    module = nn.Linear(1, 1, bias=False)
    average = Average(module, 0.5)
    expected = module.weight.detach().clone()
    for value, share in ((4.0, 0.9), (2.0, 1 - 2 / 11), (8.0, 1 - 3 / 12)):  # t / (t + 9) of the average stays at first
        with torch.no_grad():
            module.weight.fill_(value)
        average.update(module)
        expected = (1 - share) * expected + share * value
        torch.testing.assert_close(average.tensors["weight"], expected)
    for _ in range(40):
        average.update(module)
    assert abs(float(average.tensors["weight"]) - 8) < 1e-6


def test_weights_in_a_state_are_those_that_it_was_judged_by() -> None:
    a, b = torch.ones(2), torch.zeros(2)
    assert weights_in({"model/x": a, "average/x": b, "optimizer/x": a}) == {"x": b}
    assert weights_in({"model/x": a, "optimizer/x": b}) == {"x": a}
    assert weights_in({"x": a}) == {"x": a}


def test_it_covers_factors_statistics_and_counters_and_is_swapped_in_and_out() -> None:
    torch.manual_seed(0)
    module = factorize(nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)), 3)
    average = Average(module, 0.9)
    for _ in range(3):
        module(torch.randn(4, 2, 5, 5) + 3)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(torch.randn_like(parameter))
        average.update(module)
    present = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    assert present.keys() == average.tensors.keys()
    with average.swapped_in(module):
        for name, tensor in module.state_dict().items():
            assert torch.equal(tensor, average.tensors[name])
            assert name.endswith("num_batches_tracked") or not torch.equal(tensor, present[name])
    assert all(torch.equal(tensor, present[name]) for name, tensor in module.state_dict().items())
    assert int(average.tensors["1.num_batches_tracked"]) == 3
