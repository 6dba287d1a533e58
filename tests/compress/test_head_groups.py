"""Attention heads as groups of the plan: calibrated, narrowed, fitted around, saved and loaded."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from lorita_sample_models.vit import VisionTransformer
from torch import nn

from lorita_deploy.compress.calibrate import Calibration, calibrate
from lorita_deploy.compress.candidates import narrow_candidates, width_offers
from lorita_deploy.compress.compressor import Compressor, load_compressed
from lorita_deploy.compress.widths import Narrowable
from lorita_deploy.networks import save_weights, survey
from lorita_deploy.ports import Task
from lorita_deploy.records import Accuracy, Budget, Choice, Geometry, GroupChoice, Layer, Plan


def small_vit() -> nn.Module:
    torch.manual_seed(0)
    return VisionTransformer(10, 16, patch=4, width=32, heads=4, depth=2).eval()


@pytest.fixture(scope="module")
def made() -> tuple[nn.Module, dict[str, Geometry], Compressor]:
    module = small_vit()
    with torch.no_grad():  # heads of the second block: queries of rank 3, values of rank 5, of 8
        for layer, rank in ((module.encoder[1].attention.q, 3), (module.encoder[1].attention.v, 5)):
            blocks = layer.weight.view(4, 8, 32)
            u, s, vh = torch.linalg.svd(blocks, full_matrices=False)
            layer.weight.copy_(((u[:, :, :rank] * s[:, None, :rank]) @ vh[:, :rank]).view(32, 32))
            layer.bias.zero_()
    images = torch.randn(64, 3, 16, 16)
    task = Task(
        examples=(images[:1],),
        calibration=[(images,)],
        evaluate=lambda _: Accuracy(metric="score", split="validation", correct=1.0, total=1),
    )
    geometries = survey(module, task.examples).geometries
    found = calibrate(module, geometries, task, samples=64)
    narrowable = Narrowable(module, geometries, task.calibration, examples=task.examples, samples=64)
    calibration = Calibration(found.record.model_copy(update={"groups": narrowable.calibrate(found.moments)}), found.moments)
    return module, geometries, Compressor(module, geometries, calibration, task.calibration, narrowable=narrowable)


def choice(layer: str, k_in: int, k_out: int, rank: int | None = None) -> Choice:
    form = "narrow" if rank is None else "pair"
    return Choice(layer=layer, form=form, k_in=k_in, k_out=k_out, rank=rank, predicted_loss=0.0, us=1.0, dense_us=2.0)


def test_planted_ranks_are_free_and_the_function_is_kept(made) -> None:
    module, _, compressor = made
    groups = {each.group: each for each in compressor.calibration.record.groups}
    assert set(groups) >= {f"encoder.{block}.attention.{side}" for block in (0, 1) for side in ("qk", "vo")}
    curve = groups["encoder.1.attention.qk"].loss_at_width
    assert len(curve) == 33
    assert curve[4 * 3] <= 1e-6 * curve[0] < curve[4 * 2]
    network = compressor.network(
        [choice(f"encoder.1.attention.{side}", 32, 12) for side in "qk"]
        + [choice("encoder.1.attention.v", 32, 20), choice("encoder.1.attention.o", 20, 32)],
        [
            GroupChoice(group="encoder.1.attention.qk", width=32, kept=12),
            GroupChoice(group="encoder.1.attention.vo", width=32, kept=20),
        ],
    )
    images = compressor.dense_outputs.inputs[0]
    torch.testing.assert_close(network(images), module(images), rtol=1e-3, atol=1e-3)
    assert network.encoder[1].attention.q.weight.shape == (12, 32)


def test_one_side_alone_leaves_the_other_as_it_is_and_factors_beside_it(made, tmp_path: Path) -> None:
    module, _, compressor = made
    groups = [GroupChoice(group="encoder.0.attention.vo", width=32, kept=16)]
    choices = [
        choice("encoder.0.attention.q", 32, 32, 8),
        choice("encoder.0.attention.v", 32, 16),
        choice("encoder.0.attention.o", 16, 32),
    ]
    network = compressor.network(choices, groups)
    torch.testing.assert_close(network.encoder[0].attention.k.weight, module.encoder[0].attention.k.weight, rtol=0, atol=5e-3)
    assert isinstance(network.encoder[0].attention.q, nn.Sequential)
    save_weights(network, tmp_path / "w.safetensors")
    plan = Plan(
        model="m", network_sha256="n", target="cpu", precision="fp32", budget=Budget(max_drop=1.0), provenance="measured",
        dense_us=1.0, predicted_us=1.0, predicted_loss=0.0, groups=tuple(groups), choices=tuple(choices), solver="none",
    )  # fmt: skip
    images = compressor.dense_outputs.inputs[0]
    loaded = load_compressed(small_vit(), plan, tmp_path / "w.safetensors").eval()
    torch.testing.assert_close(loaded(images), network(images))


def test_queries_of_narrower_heads_are_fitted_behind_what_was_cut_and_can_be_factored(made) -> None:
    """Without fitting, narrow queries and keys of the second block would keep the error of the first one's."""
    module, _, compressor = made
    groups = [
        GroupChoice(group="encoder.0.attention.vo", width=32, kept=8),
        GroupChoice(group="encoder.1.attention.qk", width=32, kept=24),
    ]
    images = compressor.dense_outputs.inputs[0]

    def queries(network: nn.Module) -> torch.Tensor:
        seen: list[torch.Tensor] = []
        handle = network.encoder[1].attention.q.register_forward_hook(lambda _, __, output: seen.append(output.flatten(0, 1)))
        with torch.no_grad():
            network(images)
        handle.remove()
        return seen[0]

    fitted, alone = compressor.network([], groups), copy.deepcopy(module)
    bases = compressor.narrowable.narrow(alone, groups, {}, compressor.calibration.moments)
    expected = bases["encoder.1.attention.q"].outputs(queries(module))
    assert (queries(fitted) - expected).norm() < 0.9 * (queries(alone) - expected).norm()
    factored = compressor.network([choice("encoder.1.attention.q", 32, 24, 12)], groups)
    assert [tuple(part.weight.shape) for part in factored.encoder[1].attention.q] == [(12, 32), (24, 12)]


def test_widths_keep_heads_whole(made) -> None:
    _, geometries, compressor = made
    record = compressor.calibration.record
    widths = width_offers(record.groups, multiple=8)
    assert all(kept % 8 == 0 and kept % 4 == 0 for offer in widths for kept in offer.kept)
    layers = [Layer(name=name, geometry=geometry, group=name, spectrum=()) for name, geometry in geometries.items()]
    found = narrow_candidates(layers, record, widths, multiple=8, precision="fp32")
    assert any(each.rank and each.layer.endswith(".q") and each.k_out < 32 for each in found)
    widths_per_head = compressor.narrowable.head_widths({"encoder.0.attention.vo": 16})
    assert list(widths_per_head.values()) == [(None, 4)]
