"""The train stage: what it starts from, what it learns from, what it tells, and what it says of options that cannot work."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lorita_deploy.errors import BadCheckpoint, BadData, BadNetwork, LoritaDeployError, UnknownName
from lorita_deploy.networks import read_weights, save_weights
from lorita_deploy.pipeline import Watch, build, forecast, make_options
from lorita_deploy.pipeline.folder import BuildFolder, sha256_of
from lorita_deploy.ports import ModelSpec
from lorita_deploy.records import Accuracy, CollapsedRecord, DataSummary, Recipe, SampleRecord, StageRecord, TrainRecord
from lorita_deploy.train.composition import factored_layers, factorize
from lorita_deploy.train.factored import save_factored


def network(classes: int, input_size: int) -> nn.Module:
    """A small network with a batch norm."""
    layers = (nn.Conv2d(1, 12, 3, stride=2, bias=False), nn.BatchNorm2d(12), nn.ReLU(), nn.Flatten())
    return nn.Sequential(*layers, nn.Linear(12 * ((input_size - 1) // 2) ** 2, classes))


RECIPE = Recipe(epochs=3, batch_size=64, lr=0.1, weight_decay=1e-3, precision="fp32")
TINY = ModelSpec("tiny", "a small network", network, RECIPE, channels=1, input_size=8)
NAME = f"{__name__}:TINY"
FIXED = dataclasses.replace(TINY, name="fixed", build=lambda classes, size: network(classes, 8))
"""Bears images of one size only, as some families do."""


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """``--model test_training:TINY`` finds this very module."""
    monkeypatch.setitem(sys.modules, __name__, sys.modules[__name__])


class Told(Watch):
    def __init__(self) -> None:
        self.notes: list[str] = []
        self.texts: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def progress(self, done: float, total: float, text: str = "") -> None:
        self.texts.append(text)


def run(folder: Path, until: str = "train", **options: object) -> Told:
    told = Told()
    build(make_options(model=NAME, input_size=8, out=str(folder), **options), until=until, watch=told)
    return told


def record(folder: Path) -> TrainRecord:
    return TrainRecord.load(folder / "trained.json")


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Collapsed weights of a short training."""
    folder = tmp_path_factory.mktemp("dense")
    run(folder, until="collapse")
    return folder / "collapsed.safetensors"


def test_metrics_lie_in_the_build_folder_and_progress_tells_the_last_epoch(tmp_path: Path) -> None:
    told = run(tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    assert told.texts[0] == "epoch 1/3"
    assert "rank 100 %" in told.texts[-1]


def test_a_training_may_start_from_a_network_in_balance_and_learn_from_it(dense: Path, tmp_path: Path) -> None:
    run(tmp_path / "fresh", epochs=1, lr=1e-6)
    run(tmp_path / "tuned", epochs=1, lr=1e-6, checkpoint=str(dense), teacher=str(dense), depth=2)
    fresh, tuned = (record(tmp_path / name).epochs[0].validation.value for name in ("fresh", "tuned"))
    before = CollapsedRecord.load(dense.parent / "collapsed.json").accuracy[0].value
    assert tuned == pytest.approx(before, abs=0.02)  # factored, it is still that network
    assert fresh < before - 0.2
    assert record(tmp_path / "tuned").recipe.depth == 2
    assert record(tmp_path / "tuned").started_from == record(tmp_path / "tuned").teacher == sha256_of(dense)
    assert record(tmp_path / "fresh").started_from is record(tmp_path / "fresh").teacher is None
    assert len(factored_layers(factorize(network(10, 8), 2))) == len(record(tmp_path / "tuned").factored) == 2


def test_images_are_divided_alike_for_all_seeds(dense: Path, tmp_path: Path) -> None:
    for seed in (0, 1):
        run(tmp_path / str(seed), until="data", seed=seed)
    first, second = (DataSummary.load(tmp_path / name / "data.json").content_sha256 for name in ("0", "1"))
    assert first == second, "weights of seed 0, to start from or to teach, have learnt what seed 1 is judged by"


def test_another_teacher_trains_anew(dense: Path, tmp_path: Path) -> None:
    run(tmp_path, epochs=1)
    first = record(tmp_path).weights_sha256
    run(tmp_path, epochs=1, teacher=str(dense))
    assert record(tmp_path).weights_sha256 != first


@pytest.mark.parametrize("option", ["checkpoint", "teacher"])
def test_a_training_starts_from_nothing_that_it_writes_over(tmp_path: Path, option: str) -> None:
    """Its own record would say that it started from itself, and no later run would find it done."""
    run(tmp_path, until="collapse", epochs=1)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    (tmp_path / "link").symlink_to("collapsed.safetensors")
    for name in ("trained.safetensors", "link"):
        with pytest.raises(LoritaDeployError, match="weights that it writes over"):
            run(tmp_path, epochs=1, **{option: str(tmp_path / name)})
    assert all(path.read_bytes() == content for path, content in before.items())
    given = {"checkpoint": str(tmp_path / "trained.safetensors"), "train": False}
    run(tmp_path, until="collapse", **given)
    assert StageRecord.load(tmp_path / "stages" / "collapse.json").outputs["collapsed.safetensors"]


def test_what_was_trained_by_other_options_is_not_written_over(tmp_path: Path) -> None:
    run(tmp_path, epochs=1)
    first, weights = record(tmp_path), (tmp_path / "trained.safetensors").read_bytes()
    assert run(tmp_path, epochs=1).notes == []
    told = run(tmp_path, epochs=2)
    assert any("is kept as trained.before.safetensors" in note for note in told.notes)
    assert record(tmp_path).recipe.epochs == 2
    assert TrainRecord.load(tmp_path / "trained.before.json") == first
    assert (tmp_path / "trained.before.safetensors").read_bytes() == weights
    second = record(tmp_path)
    told = run(tmp_path, epochs=1, lr=0.01)
    assert any("is kept as trained.before-2.safetensors" in note for note in told.notes)
    assert TrainRecord.load(tmp_path / "trained.before-2.json") == second
    assert TrainRecord.load(tmp_path / "trained.before.json") == first
    run(tmp_path, epochs=3, fresh=True)
    assert TrainRecord.load(tmp_path / "trained.before.json") == first, "--fresh gives up what it finds"


def test_killed_before_the_stage_is_on_record_nothing_is_trained_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finish = BuildFolder.finish

    def killed(folder: BuildFolder, name: str, *others: Any) -> StageRecord:
        if name == "train":
            raise KeyboardInterrupt
        return finish(folder, name, *others)

    with monkeypatch.context() as patch:
        patch.setattr(BuildFolder, "finish", killed)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path)
    weights = (tmp_path / "trained.safetensors").read_bytes()
    told = run(tmp_path)
    assert told.texts == []
    assert (tmp_path / "trained.safetensors").read_bytes() == weights
    assert not any((tmp_path / "training").iterdir())


def test_the_state_between_epochs_is_a_checkpoint_too(tmp_path: Path) -> None:
    """What a training that was stopped, or diverged, has kept is of use."""

    class Stop(Told):
        def progress(self, done: float, total: float, text: str = "") -> None:
            if text.startswith("epoch 2"):
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(make_options(model=NAME, input_size=8, out=str(tmp_path / "a")), until="train", watch=Stop())
    (best,) = (tmp_path / "a" / "training").glob("*/best.safetensors")
    run(tmp_path / "b", epochs=1, checkpoint=str(best))
    assert record(tmp_path / "b").started_from == sha256_of(best)


def test_gates_and_phases_go_through_to_the_collapsed_network(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        "epochs = 3\nbatch_size = 64\nlr = 0.1\nweight_decay = 1e-3\nnarrow_gates = 2\nema = 0.9\n"
        "[[phases]]\nstart = 2\ndepth = 1\n"
    )
    run(tmp_path / "out", until="collapse", recipe=str(recipe))
    found = CollapsedRecord.load(tmp_path / "out" / "collapsed.json")
    assert found.collapse_error < 1e-5
    assert found.accuracy[0] == record(tmp_path / "out").epochs[record(tmp_path / "out").best_epoch - 1].validation
    assert set(read_weights(tmp_path / "out" / "collapsed.safetensors")) == set(network(10, 8).state_dict())
    assert record(tmp_path / "out").recipe.narrow_gates == 2


def test_trained_weights_with_gates_and_factors_are_checkpoints_too(tmp_path: Path) -> None:
    run(tmp_path / "a", until="collapse", narrow_gates=3)
    run(tmp_path / "b", until="collapse", train=False, checkpoint=str(tmp_path / "a" / "trained.safetensors"))
    first, second = (CollapsedRecord.load(tmp_path / name / "collapsed.json").weights_sha256 for name in "ab")
    assert first == second


def test_a_forecast_writes_nothing(tmp_path: Path) -> None:
    found = forecast(make_options(model=NAME, input_size=8, out=str(tmp_path / "out"), batch_size=32, epochs=7))
    plain = network(10, 8)
    assert found.params == sum(p.numel() for p in plain.parameters())
    assert found.trained_params == sum(p.numel() for p in factorize(plain, 3).parameters())
    assert found.steps_per_epoch == 1169 // 32
    assert found.total_s == 7 * found.epoch_s > 0
    assert 10**7 < found.peak_memory_bytes < 10**11
    assert not (tmp_path / "out").exists()
    with pytest.raises(LoritaDeployError, match="nothing to train"):
        forecast(make_options(model=NAME, input_size=8, train=False))


def test_a_forecast_is_of_the_epochs_with_most_factors_and_of_the_teacher(dense: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        "epochs = 4\nbatch_size = 64\nlr = 0.1\nweight_decay = 1e-3\ndepth = 1\n[[phases]]\nstart = 3\ndepth = 3\n"
    )
    found = forecast(make_options(model=NAME, input_size=8, recipe=str(recipe), teacher=str(dense)))
    assert found.trained_params == sum(p.numel() for p in factorize(network(10, 8), 3).parameters()) > found.params
    with pytest.raises(LoritaDeployError, match="--teacher: there is no such file"):
        forecast(make_options(model=NAME, input_size=8, teacher=str(tmp_path / "none.safetensors")))


# ---------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("until", ["train", "collapse"])
def test_a_training_of_another_network_is_not_given_up_unasked(tmp_path: Path, until: str) -> None:
    run(tmp_path, until, epochs=1)
    before = record(tmp_path)
    with pytest.raises(LoritaDeployError, match=f"holds a build of {NAME}, not of vit") as error:
        build(make_options(model="vit", epochs=1, out=str(tmp_path)), until="train", watch=Told())
    assert "--fresh" in str(error.value.fix)
    assert record(tmp_path) == before


def test_images_that_the_network_does_not_bear_are_told_before_the_first_step(tmp_path: Path) -> None:
    for start in (forecast, lambda options: build(options, until="train")):
        with pytest.raises(BadNetwork, match=r"forward pass fails on inputs of shape \[\(1, 1, 16, 16\)\]") as caught:
            start(make_options(model=f"{__name__}:FIXED", input_size=16, out=str(tmp_path)))
        assert "--input-size" in caught.value.fix


def test_what_makes_a_training_pointless_is_noted(tmp_path: Path) -> None:
    told = run(tmp_path, epochs=1, weight_decay=0.0, batch_size=5000)
    assert any("weight decay 0" in note for note in told.notes)
    assert any("a batch of 5000 is more than the 1169 training images" in note for note in told.notes)


def test_a_network_for_fewer_classes_than_the_data_has(tmp_path: Path) -> None:
    with pytest.raises(BadData, match="4 classes apart, the data has 10"):
        run(tmp_path, classes=4)


@pytest.mark.parametrize("option", ["checkpoint", "teacher"])
def test_weights_of_another_number_of_classes_are_named(tmp_path: Path, option: str) -> None:
    path = tmp_path / "seven.safetensors"
    save_weights(network(7, 8), path)
    with pytest.raises(BadCheckpoint, match=r"4\.bias is \(7,\), expected \(10,\)") as caught:
        run(tmp_path / "out", **{option: str(path)})
    assert caught.value.where == str(path)


@pytest.mark.parametrize("option", ["checkpoint", "teacher"])
def test_weights_that_are_not_there(tmp_path: Path, option: str) -> None:
    with pytest.raises(LoritaDeployError, match=f"--{option}: there is no such file"):
        run(tmp_path / "out", **{option: str(tmp_path / "none.safetensors")})


def test_options_that_do_not_go_together_name_themselves(tmp_path: Path) -> None:
    with pytest.raises(LoritaDeployError, match=r"^a batch of 10 cannot be cut into 20 parts") as caught:
        run(tmp_path, batch_size=10, accumulate=20)
    assert "--accumulate" in str(caught.value.where)
    with pytest.raises(UnknownName, match="no recipe of tiny called 'fast'"):
        run(tmp_path / "out", recipe="fast")
    assert not list(tmp_path.iterdir())


def test_a_shipped_network_is_taken_with_its_data(dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = tmp_path / "tiny.safetensors"
    save_factored(read_weights(dense), {"4"}, weights, lambda _: True)
    trained, test = record(dense.parent), Accuracy(metric="accuracy", split="test", correct=1.0, total=1)
    summary = DataSummary.load(dense.parent / "data.json")
    elsewhere = summary.model_copy(update={"mean": (summary.mean[0] + 0.001,)})  # what the network was trained with counts
    shipped = SampleRecord(
        data=elsewhere, trained=trained, dataset="digits", trained_on="digits", test=test,
        weights_sha256="0" * 64, largest_difference=0.0,
    )  # fmt: skip
    shipped.save(tmp_path / "tiny.json")
    monkeypatch.setattr(sys.modules[__name__], "TINY", dataclasses.replace(TINY, sample=weights))
    assert run(tmp_path / "build", until="collapse", sample=True).notes == []
    assert DataSummary.load(tmp_path / "build" / "data.json").mean == shipped.data.mean
    assert not (tmp_path / "build" / "trained.json").exists()
    found, expected = (CollapsedRecord.load(folder / "collapsed.json") for folder in (tmp_path / "build", dense.parent))
    assert found.accuracy[0].total == expected.accuracy[0].total
    assert abs(found.accuracy[0].correct - expected.accuracy[0].correct) <= 3
    shipped.model_copy(update={"data": elsewhere.model_copy(update={"content_sha256": "0" * 64})}).save(tmp_path / "tiny.json")
    told = run(tmp_path / "seed", until="data", sample=True, seed=1)
    assert any("these are not the images that the shipped network was trained on (digits)" in note for note in told.notes)
    run(tmp_path / "build", until="data", checkpoint=str(dense), train=False)
    assert DataSummary.load(tmp_path / "build" / "data.json").mean == summary.mean, "without --sample the data's own"
    with pytest.raises(LoritaDeployError, match="both name weights"):
        run(tmp_path / "two", sample=True, checkpoint=str(dense))


def test_where_nothing_ships_it_is_said(tmp_path: Path) -> None:
    with pytest.raises(LoritaDeployError, match="no trained network of tiny ships"):
        run(tmp_path, until="collapse", sample=True)


def test_a_stopped_training_keeps_its_checkpoint_and_goes_on(tmp_path: Path) -> None:
    class Stop(Told):
        def progress(self, done: float, total: float, text: str = "") -> None:
            if text.startswith("epoch 2"):
                raise KeyboardInterrupt

    options = make_options(model=NAME, input_size=8, out=str(tmp_path / "cut"))
    with pytest.raises(KeyboardInterrupt):
        build(options, until="train", watch=Stop())
    (kept,) = (tmp_path / "cut" / "training").glob("*/last.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in read_weights(kept).values())
    told = run(tmp_path / "cut")
    assert told.texts[0].startswith("epoch 2/3, loss")
    run(tmp_path / "whole")
    assert record(tmp_path / "cut").weights_sha256 == record(tmp_path / "whole").weights_sha256
