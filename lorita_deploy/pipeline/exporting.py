"""Artifacts through the exporter: the dense network and the compressed one, in exactly the same way."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..inspection.loading import check_loading
from ..ports import ExportJob
from ..records import Artifact, Precision, Role
from .acceptance import acceptance
from .context import Build

if TYPE_CHECKING:
    from torch import nn


def export_dense(build: Build, folder: Path, precision: Precision | None = None) -> Artifact:
    """``dense.onnx`` in ``folder``: the baseline of every comparison."""
    return export(build, build.dense, "dense", folder, precision=precision)


def export(
    build: Build,
    module: nn.Module,
    role: Role,
    folder: Path,
    metadata: Mapping[str, str] | None = None,
    *,
    precision: Precision | None = None,
    filename: str | None = None,
    accepting: bool = True,
    rung: int = 0,
) -> Artifact:
    """``<role>.onnx`` in ``folder``, as the target wants it; with the facts of the plan, unless ``metadata`` are given.

    ``precision`` is the build's own unless given; a lower one is calibrated on the task's data and, where ``accepting``, kept
    within the budget by leaving layers in fp32; ``rung`` is the number of a network of the ladder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    options, task = build.options, build.task
    precision = precision or build.precision
    module = module.cpu().eval()
    lower: dict[str, Any] = {}
    if precision != "fp32":
        lower = {"calibration": task.calibration}
        if accepting:
            lower["accepts"] = acceptance(build, module, role, precision, rung)
    job = ExportJob(
        folder=folder,
        filename=filename or f"{role}{build.exporter.suffix}",
        role=role,
        network=module,
        examples=tuple(example.cpu() for example in task.examples),
        opset=build.opset,
        ir_version=build.ir_version,
        precision=precision,
        runtime=runtime_of(build),
        batch=options.batch,
        rung=rung,
        dynamic_batch=options.dynamic_batch,
        input_names=task.input_names,
        output_names=task.output_names,
        simplify=options.simplify,
        metadata=_metadata(build, role) if metadata is None else metadata,
        **lower,
    )
    artifact = build.exporter.export(job)
    module.to(build.device)
    return artifact


def fp32_name(role: Role) -> str:
    """The file of a network in fp32 beside its artifact of lower precision; the stem is what the race calls it."""
    return f"{role}-fp32.onnx"


def runtime_of(build: Build) -> str:
    """What an artifact is written for: the target's runtime, where it reads ONNX files itself."""
    return "tensorrt" if build.target.runtime == "tensorrt" else "onnxruntime"


def judged(build: Build, artifact: Artifact) -> Artifact:
    """With a note for each reason why it would not load on the target."""
    found = check_loading(build.folder / artifact.path, build.target)
    wrong = [each for each in found.findings if each.state == "wrong"]
    notes = tuple(f"would not load on {found.target}: {each.subject}: {each.found}; {each.fix}" for each in wrong)
    return artifact.model_copy(update={"notes": (*artifact.notes, *notes)})


def preprocessing(build: Build) -> dict[str, object]:
    """How pixels become the network's input; empty for tasks of one's own."""
    if build.own_task is not None:
        return {}
    data = build.data
    return {
        "layout": "NCHW",
        "shape": list(data.shape),
        "scale": "pixels/255",
        "mean": list(data.mean),
        "std": list(data.std),
        "resize": "bilinear",
    }


def sources(build: Build, role: Role) -> dict[str, str]:
    """The source chain: from the data to the plan, by digest."""
    chain = {"data": build.data.content_sha256, "collapsed": build.collapsed.weights_sha256}
    if role == "compressed":
        chain["plan"] = build.plan.digest()
    return chain


def _metadata(build: Build, role: Role) -> dict[str, str]:
    facts = {
        "producer": f"lorita-deploy {version('lorita-deploy')}",
        "model": build.options.model,
        "role": role,
        "sources": json.dumps(sources(build, role), sort_keys=True),
        "preprocessing": json.dumps(preprocessing(build), sort_keys=True),
        "classes": json.dumps(list(build.data.classes)),
    }
    if role == "compressed":
        facts["ranks"] = json.dumps({choice.layer: choice.rank for choice in build.plan.changed()}, sort_keys=True)
    return facts
