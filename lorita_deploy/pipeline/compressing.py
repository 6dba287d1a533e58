"""Stages calibrate, price, plan and compress: from the dense network to the forms that are fastest on the target."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..compress.calibrate import calibrate
from ..compress.candidates import candidates
from ..compress.recover import distill
from ..networks import save_weights, survey
from ..ports import Pricer
from ..records import CandidateTable, CompressedRecord
from .carried import bettered
from .context import Build, Stage
from .exporting import export_dense
from .folder import sha256_of
from .planning import given_plan, rewritten, searched_plan
from .training import percent

if TYPE_CHECKING:
    from torch import Tensor, nn


# ---------------------------------------------------------------------------------------------- calibrate


def _calibrate_key(build: Build) -> dict[str, Any]:
    options = build.options
    return {
        "network": build.collapsed.weights_sha256,
        "data": build.data.content_sha256,
        "samples": options.calibration_samples,
        "criterion": options.criterion,
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
    found.save(build.folder.path)
    return f"{found.record.samples} examples, {len(found.record.layers)} layers, {found.record.criterion}"


# ---------------------------------------------------------------------------------------------- price


def _price_key(build: Build) -> dict[str, Any]:
    options = build.options
    measured = {"host": build.host_key, "settings": build.settings.model_dump()} if build.on_target else {}
    return {
        "calibration": sha256_of(build.folder / "calibration.json"),
        "target": build.target.model_dump(),
        "precision": build.precision,
        "opset": build.opset,
        "batch": options.batch,
        "layer_times": options.layer_times and sha256_of(Path(options.layer_times)),
        "receipt": options.receipt and sha256_of(Path(options.receipt)),
        "trust": options.trust_times,
        **measured,
    }


def _run_price(build: Build) -> str:
    multiple = build.target.limits.rank_multiple.get(build.precision, 8)
    offered = candidates(build.collapsed.layers, build.calibration.record, multiple=multiple, precision=build.precision)
    CandidateTable(candidates=offered).save(build.folder / "candidates.json")
    table = _pricer(build).price(offered)
    if build.options.receipt:
        table = bettered(build, table, offered)
    table.save(build.folder / "prices.json")
    whole = f", dense {table.network_us / 1e3:.3g} ms" if table.provenance == "measured" else ""
    return f"{len(offered)} candidates, {table.provenance}{whole}"


def _pricer(build: Build) -> Pricer:
    common: dict[str, Any] = {
        "layers": build.geometries,
        "network_sha256": build.collapsed.weights_sha256,
        "target": build.target,
        "precision": build.precision,
    }
    if build.options.layer_times:
        from ..measure.layer_times import TablePricer

        host = build.board.host() if build.on_target else None
        return TablePricer(
            Path(build.options.layer_times), host=host, settings=build.settings, trust=build.options.trust_times, **common
        )
    workdir = build.folder / "pricing"
    dense = workdir / export_dense(build, workdir).path
    if not build.on_target:
        from ..measure.roofline import RooflinePricer

        return RooflinePricer(dense, batch=build.options.batch, **common)
    from ..measure.layer_times import MeasuredPricer

    return MeasuredPricer(dense, device=build.board, settings=build.settings, progress=build.watch.progress, **common)


# ---------------------------------------------------------------------------------------------- plan


def _plan_key(build: Build) -> dict[str, Any]:
    options = build.options
    return {
        "prices": sha256_of(build.folder / "prices.json"),
        "candidates": sha256_of(build.folder / "candidates.json"),
        "calibration": sha256_of(build.folder / "calibration.safetensors"),
        "budget": build.budget.model_dump(),
        "plan": options.plan and sha256_of(Path(options.plan)),
        "accuracy": [found.model_dump() for found in build.collapsed.accuracy],
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
        "calibration": sha256_of(build.folder / "calibration.safetensors"),
        "recover": build.options.recover_epochs,
        "seed": build.options.seed,
    }


def _run_compress(build: Build) -> str:
    plan = build.plan
    module = rewritten(build, plan.changed())
    truncated = None
    if build.options.recover_epochs and plan.changed():
        truncated = build.task.evaluate(module)
        distill(module, build.dense, _all_inputs(build), epochs=build.options.recover_epochs, seed=build.options.seed)
    module.eval()
    params, macs = _size(build, module)
    found = build.task.evaluate(module)
    digest = save_weights(module, build.folder / "compressed.safetensors")
    record = CompressedRecord(
        plan_sha256=plan.digest(), params=params, macs=macs, accuracy=(found,), weights_sha256=digest, truncated=truncated
    )
    record.save(build.folder / "compressed.json")
    dense = build.collapsed
    return f"{dense.params / params:.2f}x fewer parameters, {dense.macs / macs:.2f}x fewer MACs; {percent(found)}"


def _size(build: Build, module: nn.Module) -> tuple[int, int]:
    params = sum(parameter.numel() for parameter in module.parameters())
    device = next(module.parameters()).device
    macs = survey(module, tuple(example.to(device) for example in build.task.examples)).macs
    return params, macs


def _all_inputs(build: Build) -> Iterable[tuple[Tensor, ...]]:
    """Inputs for distillation: the training images where there are labels, the calibration images otherwise."""
    if build.own_task is None and build.data_name is not None:
        from .tasks import InputsOnly

        return InputsOnly(build.dataset.batches("train", 64))
    return build.task.calibration


CALIBRATE = Stage("calibrate", lambda build: ("calibration.json", "calibration.safetensors"), _calibrate_key, _run_calibrate)
PRICE = Stage("price", lambda build: ("candidates.json", "prices.json"), _price_key, _run_price)
PLAN = Stage("plan", lambda build: ("plan.json",), _plan_key, _run_plan)
COMPRESS = Stage("compress", lambda build: ("compressed.json", "compressed.safetensors"), _compress_key, _run_compress)
