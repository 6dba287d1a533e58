"""What the README shows is true: its Python runs, its commands exist, its recipes work, its two main commands pass."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from pages import PAGES, blocks, commands, section

from lorita_deploy.cli import cli
from lorita_deploy.pipeline.build import STAGES
from lorita_deploy.ports import Exporter, ModelSpec
from lorita_deploy.records import BuildReport
from lorita_deploy.targets import load_target

README = PAGES["README.md"]
OURS = [words for words in commands(README) if words[0] == "lorita-deploy"]


def under(title, language):
    """The fenced blocks of a language in one section."""
    return blocks(section(README, title), language)


def test_every_command_is_told_of():
    for name in cli.commands:
        assert re.search(rf"\b{name}\b", README), f"the README does not mention {name}"


def test_the_python_of_the_readme_runs(readme_build):
    folder, printed = readme_build
    report = BuildReport.load(folder / "report.json")
    assert printed.strip() == report.headline
    assert (folder / "model.onnx").exists()
    assert report.validation["dense"].value > 0.8, "ten classes: chance is 0.1"


def test_the_model_of_the_readme_is_one():
    names = {}
    exec(under("Adding a model", "python")[0], names)
    spec = names["TINY"]
    assert isinstance(spec, ModelSpec)
    assert spec.build(7, 32)(torch.zeros(2, *spec.input_shape())).shape == (2, 7)
    assert "lorita_deploy.models" in tomllib.loads(under("Adding a model", "toml")[0])["project"]["entry-points"]


def test_the_exporter_of_the_readme_is_one():
    names = {}
    exec(under("Adding an exporter", "python")[0], names)
    assert isinstance(names["EXPORTER"], Exporter)


def test_the_target_of_the_readme_is_one(tmp_path):
    path = tmp_path / "my-board.toml"
    path.write_text(under("Adding a target", "toml")[0])
    assert load_target(str(path)).name == "my-board"


def vgg16_commands():
    """The README's builds of vgg16: the main job, and the same for this machine."""
    found = {words[words.index("--target") + 1]: words for words in OURS if words[1] == "build" and "vgg16" in words}
    assert next(iter(found.values())) == ["lorita-deploy", "build", "--model", "vgg16", "--target", "jetson"]
    return found


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("target", "folder"), [("jetson", "vgg16-jetson"), ("cpu", "vgg16-cpu")])
def test_the_main_command_passes_and_is_as_good_as_shown(target, folder, tmp_path):
    command = shutil.which("lorita-deploy", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    asked = [command, *vgg16_commands()[target][1:]]
    done = subprocess.run(asked, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    *_, artifact, headline = done.stdout.splitlines()
    assert (tmp_path / artifact).is_file()
    report = BuildReport.load(tmp_path / "build" / folder / "report.json")
    assert report.headline == headline
    dense, shipped = report.accuracy["dense"], report.accuracy[report.shipped]
    assert dense.value >= 0.97
    assert shipped.correct >= dense.correct - 5
    if target == "cpu":
        assert report.provenance == "measured"
        assert report.receipt.ratios[0].speedup >= 3
    else:
        assert report.provenance == "estimated"
        assert report.estimated_ratio < 1
    again = subprocess.run(asked, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert again.returncode == 0
    assert len(re.findall(r"^\w+ +cached", again.stderr, flags=re.MULTILINE)) == len(STAGES)
    assert again.stdout.splitlines()[-1] == headline


def test_the_main_job_comes_first():
    assert list(vgg16_commands()) == ["jetson", "cpu"]
