"""Stages train and collapse: from images and a recipe (or a checkpoint) to the plain dense network."""

from __future__ import annotations

import itertools
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import LoritaDeployError, TrainingWarning
from ..measure.accuracy import accuracy
from ..networks import TrainedNetwork, evaluating, first_pass, save_weights
from ..records import Accuracy, TrainingForecast
from ..report import words
from .context import EVALUATION_BATCH, Build, Stage
from .folder import key_of, program, sha256_of
from .given import source_given
from .options import BuildOptions
from .preflight import preflight
from .watch import Watch
from .weights import load_plain_weights

if TYPE_CHECKING:
    from torch import nn

# ---------------------------------------------------------------------------------------------- train

TRAINED = ("trained.json", "trained.safetensors")
METRICS = "metrics.jsonl"
"""One line of JSON for each epoch of the training."""


def _train_key(build: Build) -> dict[str, Any]:
    if not build.trains:
        return {"trains": False}
    return {
        "model": build.spec.name,
        "data": build.data.content_sha256,
        "recipe": build.recipe.model_dump(),
        "input_size": build.input_size,
        "classes": build.classes,
        "checkpoint": _digest(build.checkpoint),
        **({"teacher": _digest(build.options.teacher)} if build.options.teacher else {}),
        **source_given(build),
    }


def _digest(given: str | Path | None) -> str | None:
    return sha256_of(Path(given)) if given else None


def _run_train(build: Build) -> str:
    if not build.trains:
        return "skipped: the network is given"
    trained = fit(build)
    _set_aside(build)
    save_weights(trained.module, build.folder / "trained.safetensors")
    given = {"started_from": _digest(build.checkpoint), "teacher": _digest(build.options.teacher)}
    trained.record.model_copy(update=given).save(build.folder / "trained.json")
    epochs = f"best epoch {trained.record.best_epoch} of {len(trained.record.epochs)}"
    return f"{words.percent(trained.record.best.validation)}, {epochs}"


def _forget_state(build: Build) -> None:
    """Not before the stage is on record: killed in between, a build would train from the first epoch again."""
    shutil.rmtree(_scratch(build), ignore_errors=True)


def _set_aside(build: Build) -> None:
    """What was trained here by other options may have taken days: it is not written over."""
    if build.options.fresh or not (build.folder / TRAINED[1]).exists():
        return
    present = [path for name in TRAINED if (path := build.folder / name).exists()]
    for word in itertools.chain(["before"], (f"before-{number}" for number in itertools.count(2))):
        aside = [path.with_name(f"{path.stem}.{word}{path.suffix}") for path in present]
        if not any(path.exists() for path in aside):
            break
    for path, other in zip(present, aside, strict=True):
        path.replace(other)
    build.watch.event(f"what was trained here before, by other options, is kept as {aside[-1].name}")


def _scratch(build: Build) -> Path:
    """Where the training keeps its state."""
    key = key_of({**_train_key(build), "version": program()})
    return build.folder / "training" / key[:16]


def fit(build: Build) -> TrainedNetwork:
    """The training itself, which several processes do together; nothing is written but its state."""
    from ..train.loop import train

    dataset = build.dataset
    module, teacher = untrained(build), teacher_of(build)

    def evaluate(network: nn.Module) -> Accuracy:
        return accuracy(network, dataset.batches("validation", EVALUATION_BATCH), "validation")

    with _warnings_as_notes(build):
        return train(
            module,
            dataset,
            build.recipe,
            _scratch(build),
            evaluate=evaluate,
            model_name=build.options.model,
            device=build.options.torch_device,
            teacher=teacher,
            compile=build.options.compile,
            metrics=build.folder / METRICS,
            on_progress=build.watch.progress,
        )


def forecast(options: BuildOptions, watch: Watch | None = None) -> TrainingForecast:
    """What the training of these options will take, from a few of its steps; writes nothing."""
    from ..train.forecast import forecast

    build = Build(options, watch=watch)
    if not build.trains:
        option = "--sample" if options.sample else "--no-train"
        raise LoritaDeployError("there is nothing to train", where=option, fix=f"leave out {option}")
    preflight(build)
    build.data = build.dataset.summary  # no data stage ran that would have left it in the folder
    with _warnings_as_notes(build):
        return forecast(
            untrained(build),
            build.dataset,
            build.recipe,
            model_name=build.options.model,
            device=options.torch_device,
            teacher=teacher_of(build),
            compile=options.compile,
        )


def untrained(build: Build) -> nn.Module:
    """The plain network that the training starts from: fresh from the seed, or the checkpoint's weights.

    Raises `BadCheckpoint`, and `BadNetwork` where it does not bear images of this size.
    """
    import torch

    module, examples = build.blank(), [torch.zeros(1, *build.shape)]
    if build.checkpoint:
        load_plain_weights(module, build.checkpoint, build.options.checkpoint_format)
    with evaluating(module), torch.inference_mode(), first_pass(module, examples):
        module(*examples)
    return module


def teacher_of(build: Build) -> nn.Module | None:
    """The network whose answers are learnt beside the labels, if one is given. Raises `BadCheckpoint`."""
    if not build.options.teacher:
        return None
    teacher = build.blank()
    load_plain_weights(teacher, Path(build.options.teacher), build.options.checkpoint_format)
    return teacher


@contextmanager
def _warnings_as_notes(build: Build) -> Iterator[None]:
    """What the trainer warns of is told to whoever watches the build."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", TrainingWarning)
        show = warnings.showwarning

        def note(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
            if issubclass(category, TrainingWarning):
                build.watch.note(str(message))
            else:
                show(message, category, *where, **more)

        warnings.showwarning = note
        yield


def _train_outputs(build: Build) -> tuple[str, ...]:
    return TRAINED if build.trains else ()


TRAIN = Stage("train", _train_outputs, _train_key, _run_train, _forget_state)
