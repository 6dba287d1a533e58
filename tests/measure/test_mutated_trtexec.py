"""Mutated times of run.sh: what a board without Python sends home is read, or refused with the file named."""

import math
import shutil
from pathlib import Path

import pytest
from hypothesis import strategies as st
from mutations import clear, edits, mutated, tiers
from test_trtexec import raced  # noqa: F401

from lorita_deploy.errors import LoritaDeployError
from lorita_deploy.pipeline.again import read_receipt

HOME: list[Path] = []


@pytest.fixture(autouse=True)
def carried(raced, tmp_path):  # noqa: F811
    HOME[:] = [Path(shutil.copytree(raced[0] / "trtexec", tmp_path / "carried"))]


@tiers(st.integers(0, 1000), edits)
def test_times_of_trtexec(which, changes):
    """One of its files, at a time: the list of turns, the manifest, a log, or the times of a turn."""
    files = sorted(HOME[0].iterdir())
    first = [path for path in files if path.name in ("race.txt", "manifest.json")]
    path = (first * 8 + files)[which % (len(files) + 8 * len(first))]
    whole = path.read_bytes()
    path.write_bytes(mutated(whole, changes))
    try:
        receipt = read_receipt(HOME[0])
    except LoritaDeployError as error:
        clear(error, HOME[0])
    else:
        assert receipt.series
        assert all(math.isfinite(each.median_ms) and each.median_ms > 0 for each in receipt.series)
    finally:
        path.write_bytes(whole)
