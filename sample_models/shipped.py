"""What ships with the sample models, as data: ``recipes/<family>-<name>.toml``, and trained networks in ``checkpoints/``."""

from __future__ import annotations

from pathlib import Path

from lorita_deploy.ports import read_recipe
from lorita_deploy.records import Recipe

FOLDER = Path(__file__).parent / "recipes"
DEFAULT = "fast"


def recipes(family: str) -> dict[str, Recipe]:
    """The recipes of ``family`` by name; `DEFAULT` is the first."""
    found = {path.stem.removeprefix(f"{family}-"): read_recipe(path) for path in sorted(FOLDER.glob(f"{family}-*.toml"))}
    return {DEFAULT: found.pop(DEFAULT), **found}


def sample(model: str) -> Path:
    """Where the trained network of ``model`` lies, if one ships."""
    return FOLDER.parent / "checkpoints" / f"{model}.safetensors"
