"""``train --dry-run``: a few real steps, on the command line as users see it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from lorita_deploy.cli.commands import cli
from lorita_deploy.records import TrainingForecast


def invoke(*arguments: object) -> str:
    done = CliRunner().invoke(cli, [str(each) for each in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_a_dry_run_forecasts_parameters_memory_and_time(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    given = ("train", "-m", "fcn", "--dry-run", "-o", folder, "--batch-size", 32, "--recipe", "paper", "-N", 2)
    found = TrainingForecast.parse(invoke(*given, "--json"), where="stdout")
    assert (found.params, found.epochs, found.steps_per_epoch) == (1_195_018, 300, 36)
    assert found.params < found.trained_params < 3 * found.params
    assert found.images_per_s > 0
    page = invoke(*given)
    for words in ("1,195,018, trained as", "peak memory", "images/s", "36 steps", "300 epochs"):
        assert words in page
    assert not folder.exists()


def test_a_dry_run_says_whether_the_decay_suffices_for_low_ranks() -> None:
    given = ("train", "-m", "fcn", "--dry-run", "--epochs", 2, "--batch-size", 64)
    weak = TrainingForecast.parse(invoke(*given, "--weight-decay", 1e-4, "--json"), where="stdout")
    assert 0.9 < weak.fading < 1
    assert re.search(
        r"decay fades them to 9\d\.\d % only: ranks stay high; give more decay", invoke(*given, "--weight-decay", 1e-4)
    )
    assert "ranks can fall" in invoke(*given, "--weight-decay", 0.5)


@pytest.mark.slow
def test_a_dry_run_tries_to_compile_where_it_is_asked_to(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    given = (sys.executable, "-m", "lorita_deploy", "train", "-m", "fcn", "--dry-run", "--compile")
    done = subprocess.run(given, capture_output=True, text=True, check=True)
    assert "not compiled, training goes on without" in done.stderr
    assert "images/s" in done.stdout


def test_models_show_names_the_recipes() -> None:
    assert json.loads(invoke("models", "show", "vit", "--json"))["recipes"] == ["fast", "annealed", "paper", "sample"]
    assert "fast, annealed, paper, sample" in invoke("models", "show", "vit")
