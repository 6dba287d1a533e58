"""Stages calibrate, plan and compress: from the dense network to the forms that are fastest on the target."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..compress.calibrate import calibrate
from ..compress.feeding import on_device_of
from ..networks import save_weights, survey
from ..records import CompressedRecord
from ..report import words
from .calibrated import CALIBRATION, calibrated_on, calibration_key
from .context import Build, Stage
from .fed_back import given_plan
from .folder import sha256_of
from .planning import searched_plan
from .recovery import let_go_of_others, recover

if TYPE_CHECKING:
    from torch import nn


# ---------------------------------------------------------------------------------------------- calibrate


def _calibrate_key(build: Build) -> dict[str, Any]:
    options = build.options
    return {
        "network": build.collapsed.weights_sha256,
        "images": calibrated_on(build),
        "criterion": options.criterion,
        "narrow": options.narrow,
        "seed": options.seed,
    }


def _run_calibrate(build: Build) -> str:
    options = build.options
    found = calibrate(
        build.dense,
        build.geometries,
        build.task,
        samples=options.calibration_samples,
        seed=options.seed,
        criterion=options.criterion,
        network_sha256=build.collapsed.weights_sha256,
    )
    # The paper's rule is in no unit of loss: what channels cost could not be added to it.
    groups = build.narrowable.calibrate(found.moments) if options.narrow and options.criterion != "paper" else ()
    found = replace(found, record=found.record.model_copy(update={"groups": groups}))
    found.save(build.folder.path)
    line = f"{found.record.samples} examples, {len(found.record.layers)} layers, {found.record.criterion}"
    return line + (f", {len(groups)} channel groups" if groups else "")


# ---------------------------------------------------------------------------------------------- plan


def _plan_key(build: Build) -> dict[str, Any]:
    options = build.options
    return {
        "prices": sha256_of(build.folder / "prices.json"),
        "candidates": sha256_of(build.folder / "candidates.json"),
        "calibration": calibration_key(build),
        "written": (options.dynamic_batch, options.simplify),
        "budget": build.budget.model_dump(),
        "local_search": options.local_search,
        "recover": None if options.plan else (options.recover_epochs, options.seed),
        "plan": options.plan and sha256_of(Path(options.plan)),
        "accuracy": [found.model_dump() for found in build.collapsed.accuracy],
        "data": build.data.content_sha256,
    }


def _run_plan(build: Build) -> str:
    shutil.rmtree(build.folder / "pricing", ignore_errors=True)
    plan = given_plan(build, Path(build.options.plan)) if build.options.plan else searched_plan(build)
    plan.save(build.folder / "plan.json")
    changed = plan.changed()
    if not changed:
        return f"every layer stays dense: {'; '.join(plan.notes) or 'no other form is faster within the budget'}"
    gain = plan.dense_us / plan.predicted_us
    return f"{len(changed)} of {len(plan.choices)} layers change form, {gain:.2f}x predicted ({plan.provenance})"


# ---------------------------------------------------------------------------------------------- compress


def _compress_key(build: Build) -> dict[str, Any]:
    return {
        "plan": sha256_of(build.folder / "plan.json"),
        "data": build.data.content_sha256,
        "calibration": calibration_key(build),
        "recover": build.options.recover_epochs,
        "seed": build.options.seed,
    }


def _run_compress(build: Build) -> str:
    plan = build.plan
    module = build.compressor.network(plan.changed(), plan.groups)
    found, truncated = build.task.evaluate(module), None
    if build.options.recover_epochs and plan.changed():
        truncated = found
        recover(build, module, plan.changed())
        let_go_of_others(build, plan.changed())
        found = build.task.evaluate(module)
        if found.value <= truncated.value:
            build.watch.note("recovery won no right answers back")
    module.eval()
    params, macs = _size(build, module)
    digest = save_weights(module, build.folder / "compressed.safetensors")
    record = CompressedRecord(
        plan_sha256=plan.digest(), params=params, macs=macs, accuracy=(found,), weights_sha256=digest, truncated=truncated
    )
    record.save(build.folder / "compressed.json")
    dense = build.collapsed
    fewer = f", {dense.macs / macs:.2f}x fewer MACs" if macs else ""  # none are counted where no layer can be replaced
    return f"{dense.params / params:.2f}x fewer parameters{fewer}; {words.percent(found)}"


def _size(build: Build, module: nn.Module) -> tuple[int, int]:
    params = sum(parameter.numel() for parameter in module.parameters())
    macs = survey(module, on_device_of(module, build.task.examples)).macs
    return params, macs


CALIBRATE = Stage("calibrate", lambda build: CALIBRATION, _calibrate_key, _run_calibrate)
PLAN = Stage("plan", lambda build: ("plan.json",), _plan_key, _run_plan)
COMPRESS = Stage("compress", lambda build: ("compressed.json", "compressed.safetensors"), _compress_key, _run_compress)
