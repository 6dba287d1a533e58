"""What a user may ask of a build: one record, filled from the command line, a TOML file or Python."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pydantic
from pydantic import Field

from ..errors import BadRecord, LoritaDeployError, UnknownName
from ..records import Budget, Part, Recipe, first_wrong
from ..records.toml import read_toml

DEFAULT_DATA = "digits"
DEFAULT_MAX_DROP = 0.5
"""Points of validation accuracy that a build may lose where no budget is given."""
BUDGETS = ("max_drop", "max_latency", "speedup")
"""One at most is given."""

INPUTS = ("checkpoint", "teacher", "calibration", "plan", "layer_times", "receipt")
"""The options that name files or folders."""
CHANGES = ("depth", "epochs", "batch_size", "lr", "weight_decay", "accumulate", "narrow_gates", "per_head")
"""The options that change a recipe."""
WHOLE_COURSE: dict[str, Callable[[Recipe, Any], Recipe]] = {
    "epochs": Recipe.lasting,
    "depth": Recipe.with_factors,
    "weight_decay": Recipe.with_weight_decay,
}
"""Of these, the ones that change its phases too."""


class BuildOptions(Part):
    """Every option of ``lorita-deploy build``; None means the default, which the model, the data or the target decides."""

    model: str
    target: str = "cpu"
    out: str | None = None

    data: str | None = None
    data_root: str | None = None
    calibration: str | None = None
    """A folder of (unlabelled) images to calibrate on."""
    calibration_samples: int = Field(default=256, ge=1)
    input_size: int | None = Field(default=None, ge=1)
    classes: int | None = Field(default=None, ge=1)

    checkpoint: str | None = None
    checkpoint_format: Literal["plain", "lorita"] = "plain"
    """``lorita``: the published code's chains of factors."""
    sample: bool = False
    """Take the model's shipped network instead of training one."""
    train: bool = True
    recipe: str | None = None
    """The name of one of the model's recipes, or a TOML file."""
    teacher: str | None = None
    """Weights of the same architecture, whose answers are learnt."""
    depth: int | None = Field(default=None, ge=1)
    epochs: int | None = Field(default=None, ge=1)
    batch_size: int | None = Field(default=None, ge=1)
    lr: float | None = Field(default=None, gt=0)
    weight_decay: float | None = Field(default=None, ge=0)
    accumulate: int | None = Field(default=None, ge=1)
    narrow_gates: int | None = Field(default=None, ge=0)
    per_head: bool | None = None
    compile: bool = False
    seed: int = Field(default=0, ge=0, lt=2**32)
    torch_device: str = "auto"

    max_drop: float | None = Field(default=None, ge=0)
    max_latency: str | None = None
    speedup: float | None = Field(default=None, gt=0)
    objective: Literal["latency", "macs", "params"] = "latency"
    narrow: bool = True
    criterion: Literal["whitened", "svd", "paper"] = "whitened"
    plan: str | None = None
    device: str = "local"
    """Where times are taken: this machine, or ``ssh://user@host``."""
    layer_times: str | None = None
    receipt: str | None = None
    """Of this build's artifacts, from a board that no connection leads to: its plan is made again, with better prices."""
    trust_times: bool = False
    local_search: int = Field(default=0, ge=0)
    recover_epochs: int = Field(default=0, ge=0)
    require_speedup: float | None = Field(default=None, gt=0)

    precision: Literal["auto", "fp32", "fp16", "int8"] | None = None
    """``auto``: the fastest that keeps within the budget of accuracy."""
    opset: int | None = Field(default=None, ge=7)
    batch: int = Field(default=1, ge=1)
    dynamic_batch: bool = False
    simplify: bool = True
    rungs: int = Field(default=0, ge=0, le=9)
    """Further networks in the bundle, for a deadline that is set on the board."""
    threads: int = Field(default=1, ge=1)

    fresh: bool = False

    @property
    def inputs(self) -> dict[str, Path]:
        """The files and folders that options name, by the option."""
        given = {f"--{name.replace('_', '-')}": getattr(self, name) for name in INPUTS}
        return {option: Path(path) for option, path in given.items() if path is not None}

    @property
    def folder(self) -> Path:
        """The build folder."""
        target = Path(self.target).stem if self.target.endswith(".toml") else self.target
        name = f"{self.model}-{target}".replace(":", "-").replace("/", "-")
        return Path(self.out) if self.out else Path("build") / name

    @property
    def budgets(self) -> list[str]:
        """Those that were given, by name."""
        return [name for name in BUDGETS if getattr(self, name) is not None]

    @property
    def budget(self) -> Budget:
        """Raises `LoritaDeployError` when two budgets are given, or one that the objective cannot keep."""
        given = self.budgets
        if len(given) > 1:
            raise LoritaDeployError(
                f"two budgets were given: {' and '.join('--' + name.replace('_', '-') for name in given)}",
                fix="keep one of them",
            )
        if self.objective != "latency" and (self.max_latency, self.speedup) != (None, None):
            raise LoritaDeployError(
                f"--{given[0].replace('_', '-')} is a budget of time, and --objective {self.objective} counts something else",
                fix="give the budget as --max-drop, or leave --objective out",
            )
        if self.max_latency is not None:
            return Budget(max_latency_ms=milliseconds(self.max_latency))
        if self.speedup is not None:
            return Budget(speedup=self.speedup)
        drop = DEFAULT_MAX_DROP if self.max_drop is None else self.max_drop
        return Budget(max_drop=drop, objective=self.objective)

    def recipe_from(self, default: Recipe) -> Recipe:
        """A recipe with what the user changed. Raises `LoritaDeployError` for changes that do not go together."""
        given = {name: value for name in CHANGES if (value := getattr(self, name)) is not None}
        recipe = default
        for name, change in WHOLE_COURSE.items():
            recipe = change(recipe, given[name]) if name in given else recipe
        single = {name: value for name, value in given.items() if name not in WHOLE_COURSE}
        recipe = recipe.model_copy(update={**single, "seed": self.seed})
        try:
            return Recipe.model_validate_json(recipe.model_dump_json())
        except pydantic.ValidationError as error:
            where = ", ".join(f"--{name.replace('_', '-')}" for name in given)
            raise LoritaDeployError(first_wrong(error)[1], where=where, fix="change or leave out one of them") from error


def milliseconds(text: str) -> float:
    """``2.5ms``, ``900us``, ``0.01s`` or a bare number of milliseconds. Raises `LoritaDeployError`."""
    units = {"us": 1e-3, "µs": 1e-3, "ms": 1.0, "s": 1e3}
    number, scale = text.strip(), 1.0
    for unit, factor in units.items():
        if number.endswith(unit):
            number, scale = number.removesuffix(unit), factor
            break
    try:
        value = float(number) * scale
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise LoritaDeployError(f"{text!r} is not a latency", where="--max-latency", fix="write for example 2.5ms")
    return value


def read_config(path: Path) -> dict[str, Any]:
    """The options in a TOML file, names as in `BuildOptions` (dashes allowed). Raises `BadRecord`, `UnknownName`."""
    options = {key.replace("-", "_"): value for key, value in read_toml(path, BadRecord).items()}
    for key in options:
        if key not in BuildOptions.model_fields:
            raise UnknownName("option", key, BuildOptions.model_fields, fix=f"mend {path}")
    return options


def make_options(**given: Any) -> BuildOptions:
    """`BuildOptions` from loose values. Raises `LoritaDeployError` naming the option."""
    try:
        return BuildOptions.model_validate(given)
    except pydantic.ValidationError as error:
        key, why = first_wrong(error)
        name = "--" + key.replace("_", "-")
        what, fix = f"{why} (got {error.errors()[0]['input']!r})", "lorita-deploy build -h says what can be given"
        raise LoritaDeployError(what, where=name, fix=fix) from error
