"""docs/python-api.md: its Python runs, block after block, as it stands there."""

import re
import shutil

import pytest
import torch
from pages import PAGES, blocks, section

import lorita_deploy as ld

PAGE = PAGES["docs/python-api.md"]
TITLES = re.findall(r"^## (.*)$", PAGE, flags=re.MULTILINE)


def run(title, names):
    """Execute the blocks of a section."""
    found = blocks(section(PAGE, title), "python")
    assert found, title
    for code in found:
        exec(compile(code, f"docs/python-api.md: {title}", "exec"), names)


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    return tmp_path


def test_all_but_the_build_runs_on_the_build_of_the_readme(place, readme_build, capsys):
    """Its network and data are the same, so that its build folder stands for the one that the page makes."""
    shutil.copytree(readme_build[0], place / "build" / "mine")
    names = {}
    for title in TITLES:
        if title != "Build":
            run(title, names)
    assert isinstance(names["race"], ld.BuildReport.load("build/mine/report.json").receipt.ratios[0].__class__)
    assert names["right"]("test")(names["small"]).value > 0.8, "ten classes: chance is 0.1"
    assert (place / "build" / "mine" / "again.json").exists()
    assert "there is no model called 'vgg61'" in capsys.readouterr().out


@pytest.mark.slow
def test_the_whole_page_runs(place, capsys):
    names = {}
    for title in TITLES:
        run(title, names)
    assert "bundle: bundle.tar.gz" in capsys.readouterr().out
    assert names["right"]("test")(names["small"]).value > 0.8


def test_every_public_name_is_told_of_or_has_a_docstring():
    for name in ld.__all__:
        assert re.search(rf"\b{name}\b", PAGE) or getattr(ld, name).__doc__, name
