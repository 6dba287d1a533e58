"""Choices made real: narrow and factored, fitted, saved and loaded again."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from lorita_deploy.compress.calibrate import Calibration, calibrate
from lorita_deploy.compress.candidates import narrow_candidates, width_offers, width_variants
from lorita_deploy.compress.compressor import Compressor, load_compressed
from lorita_deploy.compress.widths import Narrowable
from lorita_deploy.errors import PlanMismatch
from lorita_deploy.networks import save_weights
from lorita_deploy.records import Budget, Choice, GroupChoice, Layer, Plan


@pytest.fixture(scope="module")
def compressor(trained) -> Compressor:
    found = calibrate(trained.module, trained.geometries, trained.task, samples=600)
    task = trained.task
    narrowable = Narrowable(trained.module, trained.geometries, task.calibration, examples=task.examples, samples=600)
    calibration = Calibration(found.record.model_copy(update={"groups": narrowable.calibrate(found.moments)}), found.moments)
    return Compressor(trained.module, trained.geometries, calibration, task.calibration, narrowable=narrowable)


def choice(layer: str, k_in: int, k_out: int, rank: int | None = None) -> Choice:
    form = "narrow" if rank is None else "narrow-pair"
    return Choice(layer=layer, form=form, k_in=k_in, k_out=k_out, rank=rank, predicted_loss=0.0, us=1.0, dense_us=2.0)


NARROW = [GroupChoice(group="stem.0", width=16, kept=8), GroupChoice(group="point", width=48, kept=24)]
CHOICES = [
    choice("stem.0", 1, 8),
    choice("down.0", 8, 32, 8),
    choice("point", 32, 24),
    choice("hidden", 24 * 16, 64, 16),
]


def test_the_groups_are_those_of_the_network(compressor) -> None:
    """The residual sum ties two producers; a flatten repeats channels; the outputs stay."""
    found = {each.group: (each.producers, each.consumers) for each in compressor.calibration.record.groups}
    assert found == {
        "stem.0": (("stem.0",), {"down.0": 1}),
        "down.0": (("down.0", "inner.0"), {"inner.0": 1, "point": 1}),
        "point": (("point",), {"hidden": 16}),
        "hidden": (("hidden",), {"head": 1}),
    }


def test_narrow_and_factored_at_once(trained, compressor) -> None:
    network = compressor.network(CHOICES, NARROW)
    assert network.stem[0].weight.shape == (8, 1, 3, 3)
    assert [tuple(layer.weight.shape) for layer in network.down[0]] == [(8, 8, 3, 3), (32, 8, 1, 1)]
    assert network.point.weight.shape == (24, 32, 1, 1)
    assert [tuple(layer.weight.shape) for layer in network.hidden] == [(16, 24 * 16), (64, 16)]
    assert trained.correct(network) >= trained.correct(trained.module) - 6, "of 597"


def test_layers_are_fitted_behind_what_was_cut(trained, compressor) -> None:
    """The same channels and ranks without fitting lose several times as much."""
    from lorita_deploy.compress.narrow import narrow
    from lorita_deploy.compress.rewrite import rewrite

    def kl(network: torch.nn.Module) -> float:
        with torch.no_grad():
            p, q = (net(trained.held_out).log_softmax(1) for net in (trained.module, network))
        return float(torch.nn.functional.kl_div(q, p, log_target=True, reduction="batchmean"))

    groups = [group.model_copy(update={"kept": group.width // 4}) for group in NARROW]
    choices = [choice("stem.0", 1, 4), choice("down.0", 4, 32, 8), choice("point", 32, 12), choice("hidden", 192, 64, 12)]
    fitted = compressor.network(choices, groups)
    narrowable, orders = compressor.narrowable, {each.group: each.order for each in compressor.calibration.record.groups}
    cuts = [(narrowable.groups[each.group], sorted(orders[each.group][: each.kept])) for each in groups]
    alone = narrow(trained.module, cuts, narrowable.readings)
    alone = rewrite(alone, {each.layer: each.rank for each in choices if each.rank}, None)
    assert kl(fitted) < 0.3 * kl(alone)


def test_what_is_saved_is_loaded_into_a_plain_network(trained, compressor, tmp_path: Path) -> None:
    network = compressor.network(CHOICES, NARROW)
    save_weights(network, tmp_path / "compressed.safetensors")
    plan = Plan(
        model="m", network_sha256="n", target="cpu", precision="fp32", budget=Budget(max_drop=1.0), provenance="measured",
        dense_us=1.0, predicted_us=1.0, predicted_loss=0.0, groups=tuple(NARROW), choices=tuple(CHOICES), solver="none",
    )  # fmt: skip
    loaded = load_compressed(type(trained.module)(), plan, tmp_path / "compressed.safetensors").eval()
    torch.testing.assert_close(loaded(trained.held_out), network(trained.held_out))
    assert loaded.point.out_channels == 24
    assert loaded.hidden[0].in_features == 24 * 16
    assert loaded.stem[1].num_features == 8


def test_the_dense_network_is_left_as_it_was(trained, compressor) -> None:
    before = copy.deepcopy(trained.module.state_dict())
    compressor.network(CHOICES, NARROW)
    for name, value in trained.module.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_strangers_are_named(compressor) -> None:
    with pytest.raises(PlanMismatch, match="lacks: tail"):
        compressor.network([choice("tail", 1, 8)])
    with pytest.raises(PlanMismatch, match=r"no channel group down\.0 of 64"):
        compressor.network([], [GroupChoice(group="down.0", width=64, kept=8)])


def test_widths_on_offer(trained, compressor) -> None:
    record = compressor.calibration.record
    widths = width_offers(record.groups, multiple=8)
    assert all(offer.kept[0] == compressor.narrowable.groups[offer.group].width for offer in widths)
    assert all(width % 8 == 0 for offer in widths for width in offer.kept)
    assert all(loss <= more for offer in widths for loss, more in zip(offer.losses, offer.losses[1:], strict=False))
    layers = [Layer(name=name, geometry=geo, group=name, spectrum=()) for name, geo in trained.geometries.items()]
    found = narrow_candidates(layers, record, widths, multiple=8, precision="fp32")
    assert {each.form for each in found} == {"narrow", "narrow-pair"}
    assert not any((each.k_in, each.k_out) == (16, 32) for each in found if each.layer == "down.0"), "that is no narrow one"
    every = {(each.layer, each.k_in, each.k_out) for each in found}
    kept = {offer.group: offer.kept for offer in widths}
    assert ("hidden", 16 * kept["point"][-1], kept["hidden"][-1]) in every
    seen = {(group, width) for variant in width_variants(widths) for group, width in variant.items()}
    assert seen >= {(offer.group, width) for offer in widths for width in offer.kept[1:]}
