"""Software stacks of targets, as data: what a JetPack holds, and what its TensorRT reads.

A `Profile` says which TensorRT, CUDA and Python a board runs, and the newest ONNX it takes; `operators_of` and `dtypes_of`
say what that TensorRT's parser imports. Both are read from TOML files under ``targets/``, each entry with its source.
"""

from __future__ import annotations

from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import pydantic

from .errors import BadTarget
from .records import Part, first_wrong
from .records.toml import read_toml

FROM_THE_PROFILE = ("opset", "opset_max", "ir_version", "ir_version_max")
"""Limits that a board's software stack fixes, not the board."""
DATA = Path(str(resources.files(__package__) / "targets"))


class Profile(Part):
    """What runs on a board: ``jp6.2`` in ``jetson-orin-nano@jp6.2``."""

    name: str
    title: str
    covers: tuple[str, ...]
    """Other spellings: the patch releases that hold the same versions."""
    l4t: tuple[str, ...]
    """Releases of Jetson Linux (or their beginnings) by which a board is recognised."""
    tensorrt: str
    cuda: str
    python: str
    opset: int
    """ONNX opset that is written."""
    opset_max: int
    ir_version: int
    ir_version_max: int
    dla: bool
    """This TensorRT can use a board's deep-learning accelerators."""
    source: str


class Importer(Part):
    """What one version of TensorRT's ONNX parser added."""

    operators: tuple[str, ...]
    dtypes: tuple[str, ...]
    source: str


@cache
def all_profiles() -> dict[str, Profile]:
    """By name, oldest first. Raises `BadTarget`."""
    return {
        name: _checked(Profile, {"name": name, **body}, name)
        for name, body in _toml(DATA / "profiles" / "jetpack.toml").items()
    }


def with_default_profile(body: dict[str, Any], path: Path) -> dict[str, Any]:
    """The content of a target file, with what its default profile fixes filled in. Raises `BadTarget`."""
    if "profile" in body:
        raise BadTarget(
            "profile: not an entry of target files", where=path, fix="write default_profile; others are picked as board@profile"
        )
    names, default, limits = body.get("profiles", ()), body.get("default_profile"), body.get("limits", {})
    if not names and default is None:
        return body
    if not isinstance(limits, dict) or not isinstance(names, tuple):
        return body  # said by the checks of the model
    unknown = [name for name in names if not isinstance(name, str) or name not in all_profiles()]
    if unknown:
        raise BadTarget(f"profiles: not known: {unknown[0]!r}", where=path, fix=f"known: {', '.join(all_profiles())}")
    if not isinstance(default, str) or default not in names:
        raise BadTarget(
            f"default_profile: {default!r} is not among the profiles", where=path, fix=f"one of: {', '.join(names)}"
        )
    twice = [key for key in FROM_THE_PROFILE if key in limits]
    if twice:
        raise BadTarget(f"limits.{twice[0]}: the profile says it", where=path, fix="leave it out, or leave out the profiles")
    profile = all_profiles()[default]
    fixed = {key: getattr(profile, key) for key in FROM_THE_PROFILE}
    return {**body, "limits": {**limits, **fixed}, "profile": profile}


def profile_of_l4t(release: str) -> Profile | None:
    """The stack of a board that runs this release of Jetson Linux, such as ``36.4.3``."""
    found = [
        (len(beginning), profile)
        for profile in all_profiles().values()
        for beginning in profile.l4t
        if f"{release}.".startswith(f"{beginning}.")
    ]
    return max(found, key=lambda each: each[0])[1] if found else None


def operators_of(tensorrt: str) -> frozenset[str]:
    """Names of the ONNX operators that this version imports, e.g. of ``10.3.0``."""
    return frozenset(name for _, added in _importers(tensorrt) for name in added.operators)


def dtypes_of(tensorrt: str) -> frozenset[str]:
    """Element types that this version imports, as ONNX names them without the case."""
    return frozenset(name for _, added in _importers(tensorrt) for name in added.dtypes)


def first_with(operator: str) -> str | None:
    """The first version of TensorRT that imports an operator; None where none does."""
    return next((version for version, added in _all_importers().items() if operator in added.operators), None)


def number(version: str) -> tuple[int, ...]:
    """``10.3.0`` as (10, 3, 0), for comparing; what is not a number ends it."""
    parts: list[int] = []
    for part in version.split("."):
        if not part.isdecimal():
            break
        parts.append(int(part))
    return tuple(parts)


def _importers(tensorrt: str) -> list[tuple[str, Importer]]:
    return [(version, added) for version, added in _all_importers().items() if number(version) <= number(tensorrt)]


@cache
def _all_importers() -> dict[str, Importer]:
    body = _toml(DATA / "operators" / "tensorrt.toml")
    split = {version: {**entry, "operators": entry["operators"].split()} for version, entry in body.items()}
    return {version: _checked(Importer, entry, version) for version, entry in split.items()}


def _toml(path: Path) -> dict[str, Any]:
    return read_toml(path, BadTarget, fix="install lorita-deploy again")


Kind = TypeVar("Kind", bound=Part)


def _checked(kind: type[Kind], body: dict[str, Any], where: str) -> Kind:
    try:
        return kind.model_validate({key: tuple(value) if isinstance(value, list) else value for key, value in body.items()})
    except pydantic.ValidationError as error:
        key, why = first_wrong(error)
        raise BadTarget(f"{key}: {why}", where=where, fix="install lorita-deploy again") from error
