"""What can be known before anything is computed: said at once, not after ten minutes of training."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from ..devices.look import require_runtime, require_target
from ..devices.ssh import SshDevice
from ..errors import BadRecord, BadTarget, ExporterUnavailable, LoritaDeployError
from ..ports import find_exporter
from ..records import CollapsedRecord, Plan, PriceTable, TrainRecord
from .carried import require_of_this_build

if TYPE_CHECKING:
    from .context import Build


WRITTEN = ("trained.safetensors", "collapsed.safetensors", "compressed.safetensors")
"""Weights that a build leaves in its folder."""


def preflight(build: Build) -> None:
    """Raises `LoritaDeployError` for files that are not there or are something else, and for what target,
    exporter or device cannot do."""
    options, limits = build.options, build.target.limits
    for spelled, path in options.inputs.items():
        if not os.path.exists(path):  # of a name that is too long as well
            fix = "check the path" + (" (--init-from is another name of --checkpoint)" if spelled == "--checkpoint" else "")
            raise LoritaDeployError(f"{spelled}: there is no such file or folder", where=path, fix=fix)
    if options.plan:
        Plan.load(Path(options.plan))
    if options.layer_times:
        PriceTable.load(Path(options.layer_times))
    if options.receipt is not None:
        require_of_this_build(build)
    _require_this_model(build)
    if build.trains:
        _ = build.recipe  # a misspelt one is told before anything is done
        _require_given_weights(build)
    asked = build.asked_precision
    if asked not in ("auto", *limits.precisions):
        raise BadTarget(
            f"{build.target.name} does not run {asked}",
            where="--precision",
            fix=f"choose one of: {', '.join(limits.precisions)}",
        )
    if asked not in ("auto", *build.exporter.precisions):
        raise ExporterUnavailable(
            f"the {build.exporter.name} exporter does not write {asked}",
            where="--precision",
            fix=f"choose one of: {', '.join(build.exporter.precisions)}",
        )
    if build.opset > limits.opset_max:
        raise BadTarget(
            f"{build.target.spelled} reads opsets up to {limits.opset_max}, not {build.opset}",
            where="--opset",
            fix=f"leave it out: {limits.opset} is written",
        )
    for name in build.target.exporters:
        find_exporter(name)  # a misspelt one is told before anything is done
    problems = build.exporter.check()
    if problems:
        raise ExporterUnavailable(f"the {build.exporter.name} exporter cannot run here: {'; '.join(problems)}")
    _ = build.budget, build.device  # two budgets are refused here, and a device that torch has not
    if isinstance(build.board, SshDevice):
        require_target(build.board.look, build.target, build.board.name)
        require_runtime(build.board.look, build.runtime, build.board.name)


def _require_given_weights(build: Build) -> None:
    """A training is known by what it started from and learnt from: that cannot be what the very same build writes over."""
    written = {(build.folder / name).resolve() for name in WRITTEN}
    for path in (build.options.checkpoint, build.options.teacher):
        if path and Path(path).resolve() in written:
            raise LoritaDeployError(
                "a training cannot start from, or learn from, weights that it writes over",
                where=path,
                fix="choose another folder with --out, or copy the weights elsewhere first",
            )


def _require_this_model(build: Build) -> None:
    """A build starts over in its folder where options changed, but hours of another network's training are not for that."""
    if build.options.fresh:
        return
    records: dict[str, type[TrainRecord | CollapsedRecord]] = {"trained.json": TrainRecord, "collapsed.json": CollapsedRecord}
    for name, kind in records.items():
        try:
            found = kind.load(build.folder / name).model
        except BadRecord:  # none, damaged, or of another version: made again
            continue
        if found != build.options.model:
            raise LoritaDeployError(
                f"this folder holds a build of {found}, not of {build.options.model}",
                where=build.folder.path,
                fix="choose another folder with --out, or say --fresh to give that build up",
            )
