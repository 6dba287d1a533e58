"""The corridor: the stages in order, each run only when its output is not there yet."""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import LoritaDeployError, OutOfResource, UnknownName
from ..memory import memory_is_full
from ..ports import find_model
from ..records import BuildReport
from ..train import processes
from .collapsing import COLLAPSE
from .compressing import CALIBRATE, COMPRESS, PLAN
from .context import Build, Stage, Watch
from .data import DATA
from .folder import key_of, program
from .options import BuildOptions
from .precision import PRECISION
from .preflight import preflight
from .pricing import PRICE
from .shipping import BENCH, BUNDLE, EXPORT, VERIFY
from .training import TRAIN, fit

if TYPE_CHECKING:
    from torch import nn

    from ..ports import Task

CORRIDOR: tuple[Stage, ...] = (
    *(DATA, TRAIN, COLLAPSE, CALIBRATE, PRECISION, PRICE, PLAN, COMPRESS),
    *(EXPORT, VERIFY, BENCH, BUNDLE),
)
STAGES: tuple[str, ...] = tuple(stage.name for stage in CORRIDOR)


@dataclass(frozen=True)
class StagePreview:
    """What a stage would do."""

    name: str
    cached: bool
    outputs: tuple[str, ...]


def build(
    options: BuildOptions,
    *,
    until: str = "bundle",
    watch: Watch | None = None,
    model: nn.Module | None = None,
    task: Task | None = None,
) -> BuildReport | None:
    """Run the stages up to ``until``; the report when that is the last. Of several processes (``torchrun``) all but the first
    only take part in the training; they get None.

    ``model`` and ``task`` hand in a network of one's own, with how it is judged; otherwise ``options.model`` names a plug-in.
    Raises the errors of errors.py; what earlier stages finished is kept.
    """
    context = Build(options, watch=watch, model=model, task=task)
    if processes.follows():
        _join(context, until)
        return None
    with run_stages(context, until):
        return BuildReport.load(context.folder / "report.json") if until == STAGES[-1] else None


@contextmanager
def run_stages(context: Build, until: str) -> Iterator[None]:
    """The stages up to ``until`` are done inside, and the build folder is still held. Raises what `build` raises."""
    stages, options = _up_to(until), context.options
    preflight(context)
    if context.own_model is None:
        find_model(options.model)  # a misspelt name leaves no folder behind
    with context.folder.held(), _out_of_resource(options):
        if options.fresh:
            context.folder.forget(STAGES)
        ran = [_pass(stage, context) for stage in stages]
        if any(ran):
            _require_untouched(stages, context)
        yield


def _join(context: Build, until: str) -> None:
    """What another process than the first does: it takes part in the training, if there is one."""
    preflight(context)
    if TRAIN in _up_to(until) and processes.agreed(False, context.options.torch_device):
        with _out_of_resource(context.options):
            fit(context)
    processes.leave()


def preview(options: BuildOptions, until: str = "bundle") -> list[StagePreview]:
    """What `build` would do now, without doing it."""
    context = Build(options)
    preflight(context)
    cached = not options.fresh
    found = []
    for stage in _up_to(until):
        cached = cached and context.folder.finished(stage.name, key_of(stage.key(context))) is not None
        found.append(StagePreview(stage.name, cached, stage.outputs(context)))
    return found


def _pass(stage: Stage, context: Build) -> bool:
    """Run one stage, or find it done; whether it was run."""
    started = time.perf_counter()
    context.watch.stage_started(stage.name)
    key = key_of(stage.key(context))
    record = context.folder.finished(stage.name, key)
    if stage is TRAIN:
        processes.agreed(record is None and context.trains, context.options.torch_device)
    if record is not None:
        for note in record.notes:
            context.watch.note(note)
        context.watch.stage_finished(stage.name, time.perf_counter() - started, record.line, True)
        return False
    before = context.folder.record(stage.name)
    if before is not None and before.version != program():
        context.watch.event(f"stage {stage.name} was done by version {before.version}, and is done again by {program()}")
    for name in context.folder.keep_edited(stage.name, context.options.inputs.values()):
        context.watch.event(f"a file of stage {stage.name} was changed by hand; it is kept as {name}")
    line = stage.run(context)
    seconds = time.perf_counter() - started
    context.folder.finish(stage.name, key, stage.outputs(context), seconds, line, context.watch.notes)
    stage.finished(context)
    context.watch.stage_finished(stage.name, seconds, line, False)
    return True


def _require_untouched(stages: tuple[Stage, ...], context: Build) -> None:
    """Stages hand over through files. Where one was changed behind the back of a running build, nothing is built on it: its
    stage and those after it are forgotten, and `LoritaDeployError` is raised."""
    for place, stage in enumerate(stages):
        changed = context.folder.changed(stage.name)
        if changed:
            context.folder.unfinish(later.name for later in stages[place:])
            raise LoritaDeployError(
                f"this file of stage {stage.name} was changed while the build ran",
                where=context.folder / changed[0],
                fix="run the same command again: that stage and those after it are done again",
            )


def _up_to(until: str) -> tuple[Stage, ...]:
    if until not in STAGES:
        raise UnknownName("stage", until, STAGES)
    return CORRIDOR[: STAGES.index(until) + 1]


@contextmanager
def _out_of_resource(options: BuildOptions) -> Iterator[None]:
    """A full disk or exhausted memory, wherever it strikes, as our error."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise
        raise OutOfResource(
            f"cannot write: {error.strerror}",
            where=options.folder,
            fix="free some space, then run the command again",
        ) from error
    except (MemoryError, RuntimeError) as error:
        if not memory_is_full(error):
            raise
        raise OutOfResource("the memory is full", fix="lower --batch-size or --calibration-samples") from error
