"""What makes a stage run again: everything that decides what it writes, and nothing else."""

import json
import sys

import numpy as np
import onnx
import pytest
from fcn_builds import Seen
from PIL import Image

from lorita_deploy.pipeline import build, make_options, preview
from lorita_deploy.records import DataSummary
from lorita_deploy.targets import load_target

UNTRAINED = {"model": "fcn", "train": False, "calibration_samples": 32, "speedup": 1.1}
"""A build in seconds: random weights, and estimated times."""


def made(folder, until="export", **options):
    """The stages that ran."""
    given = {**UNTRAINED, "target": "jetson-orin-nano", "out": str(folder), **options}
    seen = Seen()
    build(make_options(**given), until=until, watch=seen)
    return seen.run


def images(folder, seed=0, names=("left", "right")):
    """An image folder of two classes."""
    generator = np.random.default_rng(seed)
    for split, count in (("train", 12), ("val", 8), ("test", 8)):
        for name in names:
            (folder / split / name).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                pixels = generator.integers(0, 256, (28, 28), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{number}.png")
    return folder


@pytest.fixture
def on_images(tmp_path):
    """``on_images()`` builds on the image folder of the test."""
    place = images(tmp_path / "images")
    return place, lambda until="export": made(tmp_path / "out", until, data=f"folder:{place}")


def test_other_images_to_judge_by_judge_anew(on_images):
    """Though those that calibrate are the same."""
    place, on = on_images
    assert "compress" in on()
    assert on() == []
    for path in (place / "val").rglob("*.png"):
        Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
    assert {"data", "collapse", "plan", "compress"} <= set(on())
    assert on() == []


def test_class_names_that_change_are_written_anew(on_images, tmp_path):
    place, on = on_images

    def written():
        facts = onnx.load(tmp_path / "out" / "dense.onnx").metadata_props
        return json.loads(next(fact.value for fact in facts if fact.key == "classes"))

    on()
    assert written() == ["left", "right"]
    for split in ("train", "val", "test"):
        (place / split / "left").rename(place / split / "larboard")
    assert on() == ["data", "export"]
    assert written() == ["larboard", "right"]


def test_images_below_the_home_folder_are_watched(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    place = images(tmp_path / "images")
    assert made(tmp_path / "out", "data", data="folder:~/images") == ["data"]
    assert made(tmp_path / "out", "data", data="folder:~/images") == []
    images(place, seed=1)
    assert made(tmp_path / "out", "data", data="folder:~/images") == ["data"]


def test_another_place_of_data_sets_is_read(tmp_path, monkeypatch):
    summaries = []
    for seed, name in enumerate(("here", "there")):
        images(tmp_path / name / "fashion-mnist", seed)
        (tmp_path / name / "of-no-concern").write_text("another data set")
        monkeypatch.setenv("LORITA_DATA", str(tmp_path / name))
        assert made(tmp_path / "out", "data", data="fashion-mnist") == ["data"]
        assert made(tmp_path / "out", "data", data="fashion-mnist") == []
        summaries.append(DataSummary.load(tmp_path / "out" / "data.json"))
    assert summaries[0].content_sha256 != summaries[1].content_sha256
    (tmp_path / "there" / "of-no-concern").write_text("has changed")
    assert made(tmp_path / "out", "data", data="fashion-mnist") == []


def test_artifacts_are_judged_for_the_target_that_is_asked_for(tmp_path):
    def judged():
        return " ".join(json.loads((tmp_path / "artifacts.json").read_text())["artifacts"][0]["notes"])

    made(tmp_path, target="jetson-orin-nano@jp6.2")
    assert "export" in made(tmp_path, target="jetson-orin-nano@jp7.2")
    line = json.loads((tmp_path / "stages" / "export.json").read_text())["line"]
    assert line.endswith(f"for {load_target('jetson-orin-nano@jp7.2').spelled}")
    assert made(tmp_path, target="jetson-orin-nano@jp7.2") == []
    assert "would not load" not in judged()


FACTORY = """
from torch import nn


def network(classes, input_size):
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * input_size**2, {hidden}), nn.ReLU(), nn.Linear({hidden}, classes))
"""


def test_a_network_of_ones_own_that_was_rewritten_is_another_one(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def cached(hidden):
        (tmp_path / "mine.py").write_text(FACTORY.format(hidden=hidden))
        monkeypatch.delitem(sys.modules, "mine", raising=False)
        options = make_options(model="mine:network", epochs=1, input_size=8, out=str(tmp_path / "out"))
        before = [stage.name for stage in preview(options, "collapse") if stage.cached]
        build(options, until="collapse")
        return before

    assert cached(16) == []
    assert cached(16) == ["data", "train", "collapse"]
    assert cached(24) == ["data"]
    assert (tmp_path / "out" / "trained.before.safetensors").exists()
