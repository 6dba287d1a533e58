"""TOML files, whatever is in them."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from ..errors import LoritaDeployError


def read_toml(path: Path, refused: type[LoritaDeployError], *, fix: str | None = None) -> dict[str, Any]:
    """The tables of a TOML file. Raises ``refused`` for one that is missing, damaged, or nested absurdly deep."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise refused("there is no such file", where=path, fix="check the path") from error
    except OSError as error:
        raise refused(f"cannot read: {error.strerror}", where=path, fix="check the path and its permissions") from error
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits are a ValueError of their own
        raise refused(f"cannot be read as TOML: {error}", where=path, fix=fix) from error
