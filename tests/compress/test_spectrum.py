"""Spectra by layer name."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lorita_deploy.compress.spectrum import spectra
from lorita_deploy.errors import BadNetwork


def test_one_spectrum_per_layer(trained) -> None:
    found = spectra(trained.module, trained.geometries)
    assert list(found) == list(trained.geometries)
    for name, geometry in trained.geometries.items():
        assert len(found[name]) == min(geometry.m, geometry.n)
        expected = torch.linalg.svdvals(trained.module.get_submodule(name).weight.detach().flatten(1))
        torch.testing.assert_close(torch.tensor(found[name]), expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_the_layer_with_broken_weights_is_named(bad: float) -> None:
    network = nn.ModuleDict({"good": nn.Linear(4, 4), "broken": nn.Linear(4, 4)})
    with torch.no_grad():
        network["broken"].weight[1, 2] = bad
    with pytest.raises(BadNetwork, match="broken"):
        spectra(network, ["good", "broken"])
