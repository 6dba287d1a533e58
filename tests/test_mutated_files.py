"""Mutated recipes, options and weights: used as they are, or refused with the file named; no code is run from them."""

import pickle
import zipfile

import pytest
import torch
from hypothesis import strategies as st
from mutations import PLACE, clear, edited_lines, edits, line_edits, mutated, tiers, written
from safetensors.torch import save
from torch import nn

from lorita_deploy.errors import BadCheckpoint, BadRecord, LoritaDeployError
from lorita_deploy.inspection.weights import look_at_weights
from lorita_deploy.networks import load_weights
from lorita_deploy.pipeline.options import make_options, read_config
from lorita_deploy.ports import find_model, read_recipe
from lorita_deploy.records import Recipe
from lorita_deploy.report import facts

RECIPE = """\
epochs = 12
batch_size = 64
optimizer = "adamw"
lr = 0.05
momentum = 0.9
weight_decay = 1e-3
warm_up = 0.1
clip_norm = false
augment = ["flip", "crop"]
depth = 3
phases = [{ start = 5, depth = 1 }, { start = 9, weight_decay = 0.0 }]
narrow_gates = 2
ema = 0.999
"""
OPTIONS = """\
model = "fcn"
target = "jetson"
data = "digits"
epochs = 4
max-drop = 0.5
precision = "auto"
threads = 2
calibration-samples = 128
seed = 7
batch = 4
"""
values = st.sampled_from(
    [
        *("-1", "0", "nan", "inf", "1e400", "9" * 400, "9" * 5000, '"text"', "[]", "{}", "true", "false", "1979-05-27"),
        *("[" * 2000, "[" * 300 + "]" * 300, "{ start = 2 }", '"\\u0000"', "0x7fffffffffffffff", "[{ start = 3 }]"),
    ]
)


@tiers(line_edits(values), edits.map(lambda each: each[:1]))
def test_recipes(changes, byte_changes):
    path = written("mine.toml", mutated(edited_lines(RECIPE, changes), byte_changes if len(changes) % 2 else []))
    try:
        found = read_recipe(path)
    except BadRecord as error:
        clear(error, path)
        return
    assert Recipe.model_validate_json(found.model_dump_json()) == found, "it can be kept in a record"
    assert found.lasting(7).epochs == 7


@tiers(line_edits(values), edits.map(lambda each: each[:1]))
def test_options(changes, byte_changes):
    path = written("build.toml", mutated(edited_lines(OPTIONS, changes), byte_changes if len(changes) % 2 else []))
    try:
        options = read_config(path)
    except LoritaDeployError as error:
        clear(error, path)
        return
    try:
        found = make_options(**options)
    except LoritaDeployError as error:
        clear(error)
        return
    assert found.model_dump_json()


# ---------------------------------------------------------------------------------------------- weights

NETWORK = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3))


class Harm:
    """Code that a pickle would run when it is opened without care."""

    def __reduce__(self):
        return (open, (str(PLACE[0] / "harm"), "w"))


def used(path):
    """Looked at and loaded, or refused; the network is then whole and nothing else has happened."""
    before = {each.name for each in path.parent.iterdir()}
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3))
    for use in (lambda: facts.weights(look_at_weights(path)), lambda: load_weights(network, path)):
        try:
            use()
        except BadCheckpoint as error:
            clear(error, path)
    assert all(torch.isfinite(each).all() for each in network.parameters())
    assert {each.name for each in path.parent.iterdir()} == before


@tiers(edits)
def test_safetensors(changes):
    used(written("w.safetensors", mutated(save(NETWORK.state_dict(), metadata={"model": "small"}), changes)))


@tiers(edits, st.booleans())
def test_torch_files(changes, hostile):
    """Files of torch.save: only plain tensors come out of them, whatever is pickled inside."""
    path = PLACE[0] / "w.pt"
    torch.save(Harm() if hostile else NETWORK.state_dict(), path)
    used(written("w.pt", mutated(path.read_bytes(), changes)))


def test_the_harm_is_real(tmp_path):
    """What the files above would do where pickles are trusted."""
    PLACE[:] = [tmp_path]
    torch.save(Harm(), tmp_path / "w.pt")
    with zipfile.ZipFile(tmp_path / "w.pt") as archive:
        content = archive.read("w/data.pkl")
    pickle.loads(content)
    assert (tmp_path / "harm").exists()


@pytest.mark.parametrize("name", ["fcn"])
def test_a_recipe_of_that_kind_is_real(tmp_path, name):
    (tmp_path / "mine.toml").write_text(RECIPE)
    assert find_model(name).recipe_called(str(tmp_path / "mine.toml")).phases[1].start == 9
    (tmp_path / "build.toml").write_text(OPTIONS)
    assert make_options(**read_config(tmp_path / "build.toml")).max_drop == 0.5
