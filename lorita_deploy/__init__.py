"""Train networks to be low-rank (LoRITa), turn every layer into what is fastest on the target, prove it, ship it.

The public names, in the order in which a build uses them; each is loaded when it is first asked for, so that importing
the package loads no torch. Training a network by its recipe is ``lorita_deploy.train.loop.train``.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version as _version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .bundle.manifest import pack as pack, write_bundle as write_bundle
    from .compress.calibrate import calibrate as calibrate
    from .compress.candidates import candidates as candidates
    from .compress.plan import make_plan as make_plan, solve as solve
    from .compress.rewrite import rewrite as rewrite
    from .errors import LoritaDeployError as LoritaDeployError
    from .measure.accuracy import accuracy as accuracy
    from .measure.compare import compare as compare
    from .measure.fidelity import verify as verify
    from .measure.latency import race as race
    from .networks import survey as survey
    from .pipeline.build import build as build
    from .pipeline.context import Watch as Watch
    from .pipeline.options import BuildOptions as BuildOptions, make_options as make_options
    from .ports import (
        Exporter as Exporter,
        ModelSpec as ModelSpec,
        Task as Task,
        find_exporter as find_exporter,
        find_model as find_model,
    )
    from .records import Accuracy as Accuracy, BuildReport as BuildReport, Plan as Plan, Receipt as Receipt, Recipe as Recipe
    from .targets import load_target as load_target
    from .train.composition import collapse as collapse, factorize as factorize
    from .train.datasets import load_dataset as load_dataset

_PLACES = {
    # the whole of it
    "build": "pipeline.build",
    "BuildOptions": "pipeline.options",
    "make_options": "pipeline.options",
    "Watch": "pipeline.context",
    "BuildReport": "records",
    # what is handed in
    "ModelSpec": "ports",
    "Task": "ports",
    "Exporter": "ports",
    "Recipe": "records",
    "find_model": "ports",
    "find_exporter": "ports",
    "load_target": "targets",
    "load_dataset": "train.datasets",
    # the parts
    "factorize": "train.composition",
    "collapse": "train.composition",
    "survey": "networks",
    "calibrate": "compress.calibrate",
    "candidates": "compress.candidates",
    "solve": "compress.plan",
    "make_plan": "compress.plan",
    "Plan": "records",
    "rewrite": "compress.rewrite",
    "accuracy": "measure.accuracy",
    "Accuracy": "records",
    "verify": "measure.fidelity",
    "race": "measure.latency",
    "Receipt": "records",
    "compare": "measure.compare",
    "write_bundle": "bundle.manifest",
    "pack": "bundle.manifest",
    "LoritaDeployError": "errors",
}

__all__ = list(_PLACES)

__version__ = _version("lorita-deploy")


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_PLACES[name]}", __name__), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
