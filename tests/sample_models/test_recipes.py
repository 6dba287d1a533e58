"""The recipes that ship: read, named, and true to what they say."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from PIL import Image

from lorita_deploy.errors import BadRecord, UnknownName
from lorita_deploy.measure.accuracy import accuracy
from lorita_deploy.ports import ModelSpec, find_model, read_recipe
from lorita_deploy.records import Recipe
from lorita_deploy.train.datasets import load_dataset
from lorita_deploy.train.loop import train

FOLDER = Path(__file__).parents[2] / "sample_models" / "recipes"
MODELS = ("fcn", "resnet20", "vgg11", "vgg16", "vit")


@pytest.mark.parametrize("name", MODELS)
def test_every_model_has_a_fast_and_a_published_recipe(name: str) -> None:
    spec = find_model(name)
    assert next(iter(spec.recipes)) == "fast"
    assert {"annealed", "paper"} <= spec.recipes.keys()
    assert spec.recipe == spec.recipe_called("fast") == spec.recipe_called(None)
    paper = spec.recipe_called("paper")
    assert (paper.lr, paper.momentum, paper.weight_decay, paper.batch_size, paper.epochs) == (0.01, 0.9, 1e-3, 128, 300)
    assert (paper.optimizer, paper.schedule, paper.decay_on, paper.label_smoothing) == ("sgd", "plateau", "all", 0.1)
    fast = spec.recipe
    assert fast.schedule == "one-cycle"
    assert fast.epochs <= 20
    assert fast.precision == "auto"  # bf16 where it pays
    assert fast.depth == paper.depth == 3


@pytest.mark.parametrize("name", MODELS)
def test_the_annealed_recipe_is_the_fast_one_without_decay_in_its_last_third(name: str) -> None:
    spec = find_model(name)
    annealed = spec.recipe_called("annealed")
    assert annealed.model_copy(update={"phases": ()}) == spec.recipe
    decays = [annealed.weight_decay_at(epoch) for epoch in range(1, annealed.epochs + 1)]
    last = round(annealed.epochs / 3)
    assert decays == [spec.recipe.weight_decay] * (annealed.epochs - last) + [0.0] * last
    assert {annealed.depth_at(epoch) for epoch in range(1, annealed.epochs + 1)} == {3}


def test_what_a_build_without_options_trains_by() -> None:
    """README's main command takes 3.5 minutes with this."""
    expected = Recipe(epochs=8, batch_size=64, lr=0.05, weight_decay=2e-3, clip_norm=None, augment=("flip", "crop"))
    assert find_model("vgg16").recipe == expected


def test_all_files_can_be_read_and_belong_to_a_model() -> None:
    used = [recipe for name in (*MODELS, "torchvision:resnet18") for recipe in find_model(name).recipes.values()]
    for path in FOLDER.iterdir():
        assert path.suffix == ".toml"
        assert read_recipe(path) in used


def test_a_recipe_may_be_a_file_of_ones_own(tmp_path: Path) -> None:
    spec = find_model("fcn")
    path = tmp_path / "mine.toml"
    path.write_text(
        "epochs = 5\nbatch_size = 8\nlr = 1\nweight_decay = 0\nclip_norm = false\n[[phases]]\nstart = 3\ndepth = 2\n"
    )
    found = spec.recipe_called(str(path))
    assert (found.epochs, found.lr, found.clip_norm, found.depth_at(2), found.depth_at(3)) == (5, 1.0, None, 3, 2)
    assert dataclasses.replace(spec, recipes={}).recipe_called(None) == spec.recipe  # a third party's, with one recipe
    with pytest.raises(UnknownName, match="did you mean paper"):
        spec.recipe_called("papers")
    with pytest.raises(BadRecord, match="there is no such file"):
        spec.recipe_called(str(tmp_path / "none.toml"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epochs = ", "TOML"),
        ("batch_size = 8\nlr = 1\nweight_decay = 0", "epochs: Field required"),
        ("epochs = 5\nbatch_size = 8\nlr = 1\nweight_decay = 0\nepoch = 3", "epoch: Extra"),
        ("epochs = 5\nbatch_size = 8\nlr = -1\nweight_decay = 0", "lr: .*greater than 0"),
        ("epochs = 5\nbatch_size = 8\nlr = nan\nweight_decay = 0", "lr"),
        ("epochs = 5\nbatch_size = 8\nlr = 1\nweight_decay = 0\naccumulate = 9", "8 cannot be cut into 9"),
        ("epochs = 5\nbatch_size = 8\nlr = 1\nweight_decay = 0\nnarrow_gates = 1", "single gate"),
        (
            "epochs = 5\nbatch_size = 8\nlr = 1\nweight_decay = 0\n[[phases]]\nstart = 4\n[[phases]]\nstart = 3",
            "one after the other",
        ),
        ("epochs = 5\nbatch_size = 8\nlr = 1\nweight_decay = 0\nschedule = 2020-01-01", "no recipe"),
        ("epochs = 5\nbatch_size = 8\nlr = 1\nweight_decay = 0\nseed = 7", "does not hold the seed"),
    ],
)
def test_a_bad_file_names_the_field(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(BadRecord, match=message) as caught:
        read_recipe(path)
    assert caught.value.where == str(path)


def test_the_recipe_for_224_pixels_trains_on_a_few_images(tmp_path: Path) -> None:
    """Warm-up, half a cosine, batches in parts, averaged weights, at full size."""
    for place, count in (("train", 6), ("test", 2)):
        for k in range(2):
            for i in range(count):
                path = tmp_path / "images" / place / str(k) / f"{i}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (256, 240), (200 * k, 10 * i, 128)).save(path)
    spec: ModelSpec = find_model("torchvision:resnet18")
    recipe = spec.recipe_called("imagenet").model_copy(update={"epochs": 1, "batch_size": 8})
    data = load_dataset(f"folder:{tmp_path / 'images'}", shape=spec.input_shape())
    assert data.summary.shape == (3, 224, 224)
    torch.manual_seed(0)
    trained = train(
        spec.build(2, spec.input_size),
        data,
        recipe,
        tmp_path / "state",
        evaluate=lambda module: accuracy(module, data.batches("validation", 2), "validation"),
        model_name=spec.name,
        device="cpu",
    )
    assert len(trained.record.epochs) == 1
    assert all(torch.isfinite(tensor).all() for tensor in trained.module.state_dict().values())
