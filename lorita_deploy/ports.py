"""What a plug-in must offer, and how it is found by name.

Plug-ins hang outside the walls: they are registered through entry points, our own through the same groups as anybody's.

    lorita_deploy.models          name = "package.module:SPEC"       a `ModelSpec`
    lorita_deploy.model_families  name = "package.module:function"   function(rest) -> `ModelSpec`, for ``family:rest``
    lorita_deploy.exporters       name = "package.module:EXPORTER"   an `Exporter`
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import pydantic

from .errors import BadNetwork, BadRecord, UnknownName
from .records import Accuracy, Artifact, Candidate, Host, Precision, PriceTable, Receipt, Recipe, Role, first_wrong
from .records.toml import read_toml

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

MODELS = "lorita_deploy.models"
MODEL_FAMILIES = "lorita_deploy.model_families"
EXPORTERS = "lorita_deploy.exporters"


# ---------------------------------------------------------------------------------------------- models and tasks


@dataclass(frozen=True)
class ModelSpec:
    """A network that can be built by name. ``build(classes, input_size)`` returns an ordinary ``nn.Module``."""

    name: str
    summary: str
    build: Callable[[int, int], nn.Module]
    recipe: Recipe
    channels: int = 3
    input_size: int = 32
    """Height and width of the images the network is made for."""
    classes: int | None = None
    """Number of classes of the network as published; None: as many as the data has."""
    recipes: Mapping[str, Recipe] = field(default_factory=dict)
    """Recipes by name, ``recipe`` among them or not."""
    sample: Path | None = None
    """Weights of a network that was trained before and ships with the plug-in, its `SampleRecord` beside it (.json)."""

    def recipe_called(self, name: str | None) -> Recipe:
        """The recipe of this name, or in this TOML file; None: ``recipe``. Raises `UnknownName`, `BadRecord`."""
        if name is None or name in self.recipes:
            return self.recipe if name is None else self.recipes[name]
        if Path(name).suffix == ".toml" or Path(name).exists():
            return read_recipe(Path(name))
        raise UnknownName(f"recipe of {self.name}", name, self.recipes, fix="or give a TOML file with the fields of a recipe")

    def input_shape(self, input_size: int | None = None) -> tuple[int, int, int]:
        """(channels, height, width) of one example."""
        size = input_size or self.input_size
        return (self.channels, size, size)


Batch = tuple[Any, ...]
"""One batch: the network's inputs (tensors, batch first), then the target where there is one."""


@dataclass
class Task:
    """What a network is for, as functions: how it is judged, and what real inputs look like.

    Handed to the rooms by the pipeline, and by people who bring their own network (several inputs, any output).
    """

    examples: tuple[Tensor, ...]
    """One real example per input, batch of 1: fixes the input shapes."""
    calibration: Iterable[tuple[Tensor, ...]]
    """Batches of inputs only; can be iterated more than once."""
    evaluate: Callable[[nn.Module], Accuracy]
    """On the validation split (or agreement with the dense network); higher is better."""
    test: Callable[[nn.Module], Accuracy] | None = None
    """On the test split; looked at once, at the end."""
    loss: Callable[[Any, tuple[Tensor, ...]], Tensor] | None = None
    """``loss(outputs, inputs)`` as a scalar mean over the batch. None: a classifier's log-likelihood with labels drawn
    from the model itself (outputs are logits)."""
    golden: tuple[Tensor, ...] = ()
    """A batch of real inputs for verification; empty: the first calibration batch."""
    input_names: tuple[str, ...] = ("input",)
    output_names: tuple[str, ...] = ("output",)


def read_recipe(path: Path) -> Recipe:
    """The recipe in a TOML file: the fields of `Recipe`, where ``false`` switches off what is on by default.

    Raises `BadRecord`.
    """
    body = read_toml(path, BadRecord)
    if "seed" in body:
        raise BadRecord("a recipe does not hold the seed", where=path, fix="leave it out, and give --seed")
    switches = {key for key, field in Recipe.model_fields.items() if field.annotation is bool}
    try:
        text = json.dumps(
            {key: None if value is False and key not in switches else value for key, value in body.items()}, allow_nan=False
        )
        return Recipe.model_validate_json(text)
    except (ValueError, TypeError, RecursionError) as error:  # pydantic's are ValueErrors
        key, why = first_wrong(error) if isinstance(error, pydantic.ValidationError) else ("", str(error))
        known = ", ".join(name for name in Recipe.model_fields if name != "seed")
        raise BadRecord(f"this is no recipe: {key}{': ' if key else ''}{why}", where=path, fix=f"fields: {known}") from error


# ---------------------------------------------------------------------------------------------- exporters


@dataclass
class ExportJob:
    """One artifact to write. ``network`` is in evaluation mode on the CPU; ``source`` is the artifact to chain from."""

    folder: Path
    filename: str
    role: Role
    network: nn.Module | None
    examples: tuple[Tensor, ...]
    """Batch of 1 each."""
    opset: int
    ir_version: int
    precision: Precision = "fp32"
    batch: int = 1
    dynamic_batch: bool = False
    rung: int = 0
    input_names: tuple[str, ...] = ("input",)
    output_names: tuple[str, ...] = ("output",)
    metadata: Mapping[str, str] = field(default_factory=dict)
    """Strings for the artifact's own metadata; no paths."""
    simplify: bool = True
    """Try onnxsim (kept only if outputs agree)."""
    source: Artifact | None = None
    workspace_bytes: int | None = None
    """Most scratch memory that a builder of engines may use; None: as much as there is."""
    capabilities: tuple[str, ...] = ()
    """GPUs to build for ahead of time, such as ``SM86``; empty: the one of this machine, or all that can be built for."""
    timing_caches: Path | None = None
    """Folder where builders of engines keep what they timed."""
    runtime: str = "onnxruntime"
    """What will run the file (a target's ``runtime``): int8 is written differently for each."""
    calibration: Iterable[tuple[Tensor, ...]] = ()
    """Batches of real inputs, which a lower precision is calibrated on."""
    accepts: Callable[[Session], bool] | None = None
    """Whether an opened artifact of lower precision is right often enough; None: it is."""


Session = Callable[[Mapping[str, "np.ndarray[Any, Any]"]], "list[np.ndarray[Any, Any]]"]
"""An opened artifact: named inputs in, outputs in the artifact's order out."""


@runtime_checkable
class Exporter(Protocol):
    """Writes artifacts of one kind and opens them again."""

    name: str
    summary: str
    source: str
    """``network``, or the name of the exporter whose artifact this one starts from."""
    suffix: str
    precisions: tuple[Precision, ...]
    """What it can write today."""

    def check(self) -> list[str]:
        """What is missing here to run, each with its remedy; empty when all is well."""
        ...

    def export(self, job: ExportJob) -> Artifact: ...

    def open(self, path: Path) -> Session: ...


@runtime_checkable
class ForTiming(Protocol):
    """What an exporter of several precisions offers besides, so that candidates are priced in each."""

    def for_timing(self, content: bytes, precision: Precision, runtime: str) -> bytes:
        """A serialized fp32 artifact in another precision, as fast as the real thing and of no other use."""
        ...


@runtime_checkable
class ForRunning(Protocol):
    """What an exporter offers besides, so that its artifacts are verified, raced and shipped as the ONNX files are."""

    runner: Path
    """A file with a class ``Runtime`` as ``lorita_deploy/bundle/runtimes.py`` describes them: Python 3.6, imports nothing but
    its framework, numpy and the runner's own files. It travels with the artifacts; ``run.py --runtime NAME`` uses it."""


# ---------------------------------------------------------------------------------------------- devices and prices


class Device(Protocol):
    """A place where a bundle's runner can run."""

    name: str

    def host(self, kind: str = "cpu") -> Host:
        """The machine; ``kind`` is the target it stands for. Raises `DeviceUnreachable`, `DeviceUnfit`."""
        ...

    def run(self, folder: Path, job: Mapping[str, Any], *, timeout_s: float) -> Path:
        """Run the runner over ``job`` (the job file's content, paths relative to ``folder``); the result file comes back.

        Raises `BadArtifact`, `VerificationFailed`, `DeviceUnreachable`, `DeviceUnfit`, `OutOfResource` (`DeviceBusy`).
        """
        ...


class Pricer(Protocol):
    """Says what candidates cost: ladder variants on a device, a stored table, a receipt, or the roofline estimate."""

    def price(self, candidates: Sequence[Candidate]) -> PriceTable: ...


Race = Callable[[Sequence[Artifact]], Receipt]


# ---------------------------------------------------------------------------------------------- finding by name


def find_model(name: str) -> ModelSpec:
    """The model called ``name``: registered, ``family:rest``, or ``package.module:function``. Raises `UnknownName`."""
    prefix, colon, rest = name.partition(":")
    if not colon:
        spec = _load(MODELS, "model", name)
    elif of_a_family(name):
        spec = _load(MODEL_FAMILIES, "model family", prefix)(rest)
    else:
        from .own_models import spec_of_function

        spec = spec_of_function(prefix, rest)
    if not isinstance(spec, ModelSpec):
        raise BadNetwork(f"{name} is a {type(spec).__name__}, not a ModelSpec", where=name)
    return spec


def of_a_family(name: str) -> bool:
    """Whether ``name`` is ``family:rest``, of a family of models that is registered."""
    prefix, colon, _ = name.partition(":")
    return bool(colon) and prefix in names(MODEL_FAMILIES)


def find_exporter(name: str) -> Exporter:
    """The exporter called ``name``. Raises `UnknownName`."""
    exporter = _load(EXPORTERS, "exporter", name)
    if not isinstance(exporter, Exporter):
        raise BadNetwork(f"exporter {name} lacks part of the port (check, export, open)", where=name)
    return exporter


def names(group: str) -> list[str]:
    """What is registered in an entry-point group, sorted."""
    return sorted({point.name for point in entry_points(group=group)})


def _load(group: str, kind: str, name: str) -> Any:
    found: EntryPoint | None = next((point for point in entry_points(group=group) if point.name == name), None)
    if found is None:
        more = " (or torchvision:NAME, timm:NAME, package.module:function)" if group == MODELS else ""
        raise UnknownName(kind, name, names(group), fix=f"lorita-deploy {kind.split()[0]}s list{more}")
    try:
        return found.load()
    except (ImportError, AttributeError) as error:
        what = f"the {kind} {name}, of the package {found.dist.name if found.dist else '?'}, cannot be imported: {error}"
        raise BadNetwork(what, where=found.value, fix="install that package again, or uninstall it") from error
