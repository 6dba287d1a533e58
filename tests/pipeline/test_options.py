"""Options: budgets, latencies, configuration files."""

from importlib import resources
from pathlib import Path

import pytest

from lorita_deploy.errors import BadRecord, LoritaDeployError, UnknownName
from lorita_deploy.pipeline import build, make_options, read_config
from lorita_deploy.pipeline.options import DEFAULT_MAX_DROP, milliseconds
from lorita_deploy.ports import find_model
from lorita_deploy.records import Phase, Recipe


@pytest.mark.parametrize(("text", "expected"), [("2.5ms", 2.5), ("900us", 0.9), ("0.01s", 10.0), ("3", 3.0), (" 4 ms", 4.0)])
def test_latencies(text, expected):
    assert milliseconds(text) == pytest.approx(expected)


@pytest.mark.parametrize("text", ["", "fast", "-1ms", "0", "nan", "infms", "1e999s"])
def test_bad_latencies_are_refused(text):
    with pytest.raises(LoritaDeployError, match="not a latency"):
        milliseconds(text)


def test_a_build_folder_is_called_after_model_and_target():
    assert make_options(model="torchvision:resnet18", target="jetson@jp6.2").folder == Path(
        "build/torchvision-resnet18-jetson@jp6.2"
    )
    assert make_options(model="fcn", target="boards/mine.toml").folder == Path("build/fcn-mine")


def test_budgets():
    assert make_options(model="vgg16").budget.max_drop == DEFAULT_MAX_DROP
    assert make_options(model="vgg16", speedup=3.0).budget.speedup == 3.0
    assert make_options(model="vgg16", max_latency="2ms").budget.max_latency_ms == 2.0
    with pytest.raises(LoritaDeployError, match="--max-drop and --speedup"):
        _ = make_options(model="vgg16", speedup=3.0, max_drop=1.0).budget


def test_the_folder_has_no_odd_characters():
    assert str(make_options(model="torchvision:resnet18", target="cpu").folder) == "build/torchvision-resnet18-cpu"
    assert str(make_options(model="vgg16", out="here").folder) == "here"


def test_a_wrong_value_names_its_option():
    with pytest.raises(LoritaDeployError, match="--batch-size") as caught:
        make_options(model="vgg16", batch_size=0)
    assert caught.value.exit_code == 2


def test_recipe_takes_only_what_was_given():
    default = Recipe(epochs=7, batch_size=64, lr=0.1, weight_decay=1e-3)
    changed = make_options(model="vgg16", epochs=3, weight_decay=0.0, seed=5).recipe_from(default)
    assert (changed.epochs, changed.weight_decay, changed.seed, changed.lr) == (3, 0.0, 5, 0.1)


def test_phases_move_with_the_epochs():
    phases = (Phase(start=15, weight_decay=0.0), Phase(start=20, depth=2))
    default = Recipe(epochs=20, batch_size=64, lr=0.1, weight_decay=1e-3, phases=phases)
    for epochs, starts in ((20, [15, 20]), (40, [29, 39]), (10, [8, 10]), (5, [4, 5]), (1, [2])):
        changed = make_options(model="vgg16", epochs=epochs).recipe_from(default)
        assert [phase.start for phase in changed.phases] == starts


def test_phases_never_have_more_factors_than_were_asked_for():
    phases = (Phase(start=5, trim=1e-2), Phase(start=10, depth=2, trim=1e-2), Phase(start=15, depth=1))
    default = Recipe(epochs=20, batch_size=64, lr=0.1, weight_decay=1e-3, phases=phases)
    for depth, expected in ((4, [4, 2, 1]), (2, [2, 2, 1]), (1, [1, 1, 1])):
        changed = make_options(model="vgg16", depth=depth).recipe_from(default)
        assert [changed.depth_at(epoch) for epoch in (1, 10, 15)] == expected
        assert [phase.trim for phase in changed.phases[:2]] == ([None] * 2 if depth == 1 else [1e-2] * 2)


def test_factors_may_come_later():
    grown = Recipe(epochs=9, batch_size=64, lr=0.1, weight_decay=1e-3, depth=1, phases=(Phase(start=4, depth=3, trim=1e-2),))
    assert grown.most_factors == 3
    for depth, course in ((None, "1, then 3"), (3, "1, then 3"), (2, "1, then 2"), (1, "1"), (4, "1, then 4")):
        changed = make_options(model="fcn", depth=depth).recipe_from(grown)
        assert changed.course == course
        assert changed.phases[0].trim == (None if depth == 1 else 1e-2)


def test_what_is_kept_comes_after_the_last_change_of_structure():
    phases = (Phase(start=5, depth=2), Phase(start=18, trim=1e-2), Phase(start=19, weight_decay=0.0))
    course = Recipe(epochs=20, batch_size=64, lr=0.1, weight_decay=1e-3, phases=phases)
    assert course.keeps_from == 18
    assert course.model_copy(update={"phases": phases[:1]}).keeps_from == 16
    assert course.model_copy(update={"epochs": 12}).keeps_from == 10, "the phase of epoch 18 never begins"


def test_phases_that_never_begin_count_for_nothing():
    grown = Recipe(epochs=3, batch_size=64, lr=0.1, weight_decay=1e-3, depth=1, phases=(Phase(start=4, depth=3),))
    assert grown.most_factors == 1


def test_the_decay_of_phases_changes_in_proportion():
    phases = (Phase(start=5, weight_decay=2e-4), Phase(start=10, weight_decay=0.0), Phase(start=15, depth=2))
    default = Recipe(epochs=20, batch_size=64, lr=0.1, weight_decay=1e-3, phases=phases)
    for decay, expected in ((2e-3, [2e-3, 4e-4, 0.0, 0.0]), (0.0, [0.0] * 4)):
        changed = make_options(model="vgg16", weight_decay=decay).recipe_from(default)
        assert [changed.weight_decay_at(epoch) for epoch in (1, 5, 10, 15)] == pytest.approx(expected)
    rising = default.model_copy(update={"weight_decay": 0.0})
    changed = make_options(model="vgg16", weight_decay=1e-3).recipe_from(rising)
    assert [changed.weight_decay_at(epoch) for epoch in (1, 5, 10)] == [1e-3, 2e-4, 0.0]


def test_in_few_epochs_phases_may_begin_together():
    recipe = make_options(model="vgg16", epochs=6).recipe_from(find_model("vgg16").recipe_called("sample"))
    starts = [phase.start for phase in recipe.phases]
    assert starts == sorted(set(starts))
    assert len(starts) < len(find_model("vgg16").recipe_called("sample").phases)
    assert recipe.weight_decay_at(6) == pytest.approx(4e-4)
    assert recipe.depth_at(6) == 2
    assert [recipe.trim_at(start) for start in starts] == [1e-2] * len(starts)


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_seeds_that_no_generator_takes_are_refused(seed):
    with pytest.raises(LoritaDeployError, match="seed"):
        make_options(model="fcn", seed=seed)


def test_config_file(tmp_path):
    path = tmp_path / "build.toml"
    path.write_text('target = "jetson"\nmax-drop = 1.0\nepochs = 3\n')
    assert read_config(path) == {"target": "jetson", "max_drop": 1.0, "epochs": 3}
    path.write_text("epoch = 3\n")
    with pytest.raises(UnknownName, match="did you mean epochs"):
        read_config(path)
    path.write_text("epochs = \n")
    with pytest.raises(BadRecord, match="TOML"):
        read_config(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"checkpoint": "none.safetensors"}, "--checkpoint: there is no such file"),
        ({"layer_times": "none.json"}, "--layer-times: there is no such file"),
        ({"target": "jetson-nano", "precision": "int8"}, "jetson-nano does not run int8"),
        ({"opset": 21}, "cpu reads opsets up to 20"),
        ({"max_drop": 1.0, "speedup": 2.0}, "two budgets"),
        ({"speedup": 2.0, "objective": "macs"}, "counts something else"),
    ],
)
def test_what_cannot_work_is_said_before_anything_runs(tmp_path, changes, message):
    out = tmp_path / "out"
    with pytest.raises(LoritaDeployError, match=message):
        build(make_options(**{"model": "fcn", "out": str(out), **changes}))
    assert not out.exists()


def test_an_exporter_that_nobody_has_is_said_before_anything_runs(tmp_path):
    own, out = tmp_path / "own.toml", tmp_path / "out"
    text = (resources.files("lorita_deploy") / "targets" / "cpu.toml").read_text()
    own.write_text(text.replace('exporters = ["onnx"]', 'exporters = ["onnx", "onx"]'))
    with pytest.raises(UnknownName, match="no exporter called 'onx'; did you mean onnx"):
        build(make_options(model="fcn", target=str(own), out=str(out)))
    assert not out.exists()
