"""The trainer: a plain module in, a factored network with its record out.

A readable loop on accelerate. Every random number of an epoch comes from (seed, epoch) and the learning rate from the step,
so that a resumed training walks the same path as an undisturbed one.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..attention import attentions
from ..errors import BadData, TrainingDiverged, TrainingWarning, UnknownName
from ..networks import TrainedNetwork, evaluating, weights_digest
from ..records import Accuracy, EpochRecord, Recipe, TrainRecord, write_atomically
from . import checkpoint
from .averaging import Average
from .compiling import try_compile
from .composition import collapse, factored_layers, left_alone, rank_fraction
from .epoch import Epochs, Network, Pass
from .kept import composed_once
from .objective import Loss, objective
from .processes import accelerator_for
from .schedule import learning_rate, make_optimizer
from .splits import Dataset
from .structure import structure, structure_like

VANISHED = 1e-6
"""Where no entry of any factored weight is larger, outputs no longer depend on inputs, nor do the factors get gradients."""


def train(
    module: nn.Module,
    dataset: Dataset,
    recipe: Recipe,
    folder: Path,
    *,
    evaluate: Callable[[nn.Module], Accuracy],
    model_name: str,
    device: str = "auto",
    resume: bool = True,
    loss: Loss | None = None,
    teacher: nn.Module | None = None,
    compile: bool = False,
    metrics: Path | None = None,
    on_epoch: Callable[[EpochRecord], None] | None = None,
    on_progress: Callable[[float, float, str], None] | None = None,
) -> TrainedNetwork:
    """Factorise ``module`` (plain, in place) by ``recipe``, train it, and return it with its best weights, on the CPU.

    ``evaluate`` judges on the validation split after each epoch, and of the last epochs the best is kept
    (`Recipe.keeps_from`); the test split is not looked at. The state after each epoch lies in ``folder``, and is taken up from
    there when ``resume``. ``loss(outputs, labels)`` is the mean over the batch; cross entropy when not given. ``teacher`` is a
    plain network of the same classes, whose answers are learnt beside the labels; it is left in evaluation mode, where the
    training ran. ``compile`` runs the network through ``torch.compile``. ``metrics`` gets one line of JSON an epoch.
    ``on_progress(images, all images, text)``. Under ``torchrun`` every process calls this with the same arguments; each takes
    its part of every batch, and the first one writes.

    Warns of what makes a training pointless. Raises `TrainingDiverged` (the last good epoch is kept), `BadCheckpoint` (the
    folder holds another training: model, data, recipe and teacher are compared, not what ``module`` starts from nor ``loss``),
    `BadData`, `BadNetwork` and `OutOfResource`.
    """
    recipe = recipe.model_copy(update={"augment": tuple(each for each in recipe.augment if each in dataset.augment)})
    _warn(module, recipe, dataset)
    identity: dict[str, object] = {
        "model": model_name,
        "data": dataset.summary.content_sha256,
        "classes": len(dataset.summary.classes),
        "teacher": teacher and weights_digest(teacher),
        **recipe.model_dump(mode="json"),
    }
    accelerator = accelerator_for(device)
    _divisible(recipe, accelerator.num_processes)
    place = find_device(device, accelerator)
    if teacher is not None:
        teacher.to(place, memory_format=torch.channels_last)  # type: ignore[call-overload]
    epochs = Epochs(accelerator, place, dataset, recipe, objective(recipe, dataset, loss, teacher), on_progress)
    shapes = checkpoint.shapes(folder / checkpoint.LAST) if resume else {}
    structure_like(module, shapes) if shapes else structure(module, recipe, 1)
    module.to(place, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = make_optimizer(module, recipe)
    average = Average(module, recipe.ema) if recipe.ema else None
    progress = checkpoint.resume(folder, identity, module, optimizer, average) if resume else checkpoint.Progress()
    with torch.random.fork_rng([place] if place.type == "cuda" else []):  # the caller's random numbers stay as they were
        network = None
        for epoch in range(len(progress.epochs) + 1, recipe.epochs + 1):
            if epoch in recipe.restructured:
                structure(module, recipe, epoch).to(place, memory_format=torch.channels_last)  # type: ignore[call-overload]
                optimizer = make_optimizer(module, recipe)
                average = Average(module, recipe.ema) if recipe.ema else None
                network = None
            if network is None:
                network = prepared(module, optimizer, average, epochs, compile)
            found = epochs.run(epoch, network, [each.train_loss for each in progress.epochs], _text(progress))
            _check(module, found, epoch, recipe, folder)
            with average.swapped_in(module) if average else nullcontext():
                record = _judged(module, evaluate, epoch, found)
            progress = progress.after(record, recipe.keeps_from)
            if accelerator.is_main_process:
                checkpoint.save(folder, identity, progress, module, optimizer, average)
                if metrics is not None:
                    write_atomically(metrics, _metrics(progress, recipe, epochs.steps).encode())
            accelerator.wait_for_everyone()
            if on_epoch:
                on_epoch(record)
    accelerator.free_memory()
    structure_like(collapse(module), checkpoint.shapes(folder / checkpoint.BEST))
    checkpoint.load_best(folder, module)
    accelerator.wait_for_everyone()  # the caller may remove the folder
    module.to("cpu", memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]
    return TrainedNetwork(
        module,
        TrainRecord(
            model=model_name,
            data_sha256=dataset.summary.content_sha256,
            recipe=recipe,
            device=torch.cuda.get_device_name(place) if place.type == "cuda" else place.type,
            factored=tuple(factored_layers(module)),
            left_alone=left_alone(module),
            epochs=progress.epochs,
            best_epoch=progress.best_epoch,
            weights_sha256=weights_digest(module),
        ),
    )


def find_device(name: str, accelerator: Accelerator) -> torch.device:
    """``auto``, ``cpu`` or ``cuda`` as this process's device. Raises `UnknownName`."""
    found: torch.device = accelerator.device
    if name == "auto":
        return found
    return found if require_device(name) == "cuda" else torch.device("cpu")


def require_device(name: str) -> str:
    """``cpu`` or ``cuda``, for ``auto`` the latter where there is one. Raises `UnknownName`."""
    if name not in ("auto", "cpu", "cuda"):
        raise UnknownName("device", name, ("auto", "cpu", "cuda"), fix="give auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise UnknownName("device", name, ("auto", "cpu"), fix="torch sees no CUDA device on this machine")
    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name


def _warn(module: nn.Module, recipe: Recipe, dataset: Dataset) -> None:
    for said in _pointless(module, recipe, dataset):
        warnings.warn(said, TrainingWarning, stacklevel=3)


def _pointless(module: nn.Module, recipe: Recipe, dataset: Dataset) -> Iterator[str]:
    """What the recipe asks for in vain."""
    course = range(1, recipe.epochs + 1)
    decays = {epoch: recipe.weight_decay_at(epoch) for epoch in course}
    factored = [epoch for epoch in course if recipe.depth_at(epoch) > 1]
    if factored and not any(decays[epoch] for epoch in factored):
        yield "weight decay 0: LoRITa induces low rank by weight decay only, without it it does nothing"
    if late := [phase.start for phase in recipe.phases if phase.start > recipe.epochs]:
        yield f"the training ends with epoch {recipe.epochs}: its phase of epoch {late[0]} never begins"
    if recipe.narrow_gates:
        if not any(isinstance(part, _BatchNorm) and part.affine for part in module.modules()):
            yield "narrow_gates: the network has no batch normalisation whose channels could fade out"
        elif not (any(decays.values()) if recipe.gate_decay is None else recipe.gate_decay):
            yield "narrow_gates: there is no weight decay on the gates, without which no channel fades out"
    if recipe.per_head and not attentions(module):
        yield "per_head: the network has no attention of plain projections, whose heads could have products of their own"
    images = len(dataset.split("train"))
    if recipe.batch_size > images:
        yield f"a batch of {recipe.batch_size} is more than the {images} training images: all are taken"


def _divisible(recipe: Recipe, processes: int) -> None:
    if recipe.batch_size % processes:
        raise BadData(
            f"a batch of {recipe.batch_size} images cannot be divided evenly among {processes} processes",
            where="--batch-size",
            fix=f"choose a multiple of {processes}, such as {-(-recipe.batch_size // processes) * processes}",
        )


def prepared(
    module: nn.Module, optimizer: torch.optim.Optimizer, average: Average | None, epochs: Epochs, compile: bool
) -> Network:
    """The network as it is run: wrapped by accelerate, and compiled if that is asked for and works."""
    epochs.accelerator.free_memory()
    model, optimizer = epochs.accelerator.prepare(module, optimizer)
    if compile:
        model.train()
        inputs, labels = (each.tensor_split(epochs.recipe.accumulate)[0] for each in next(epochs.batches(1)))
        model = try_compile(model, partial(epochs.loss, inputs=inputs, labels=labels))
    return Network(model, optimizer, average)


def _judged(module: nn.Module, evaluate: Callable[[nn.Module], Accuracy], epoch: int, found: Pass) -> EpochRecord:
    with evaluating(module), composed_once(module):
        validation = evaluate(module)
    return EpochRecord(
        epoch=epoch,
        train_loss=found.loss,
        validation=validation,
        images_per_s=found.images_per_s,
        rank_fraction=rank_fraction(module),
    )


def _check(module: nn.Module, found: Pass, epoch: int, recipe: Recipe, folder: Path) -> None:
    kept = f"epoch {epoch - 1} is kept" if epoch > 1 else "no epoch was finished"
    onward = f"; --init-from {checkpoint.BEST} from there goes on with the best epoch" if epoch > 1 else ""
    if not math.isfinite(found.loss) or not all(bool(torch.isfinite(tensor).all()) for tensor in module.parameters()):
        raise TrainingDiverged(
            f"in epoch {epoch} the loss or the weights are no longer numbers; {kept}",
            where=folder,
            fix=f"lower the learning rate (--lr) to a third; or lower N, or train in fp32{onward}",
        )
    factored = factored_layers(module)
    with torch.no_grad():
        largest = max((float(layer.weight.abs().max()) for layer in factored.values()), default=1.0)  # type: ignore[operator]
    if largest < VANISHED:
        raise TrainingDiverged(
            f"in epoch {epoch} the weights, products of {recipe.depth_at(epoch)} factors, have faded to nothing "
            f"(the largest is {largest:.0e}), and their gradients vanish with them; {kept}",
            where=folder,
            fix=f"lower N (--depth) or the weight decay (--weight-decay){onward}",
        )


def _text(progress: checkpoint.Progress) -> str:
    """How the training stood after the last epoch, for the progress bar."""
    if not progress.epochs:
        return ""
    last = progress.epochs[-1]
    return (
        f", loss {last.train_loss:.3g}, {last.validation.metric} {last.validation.value:.4g}, "
        f"{last.images_per_s:,.0f} images/s, rank {100 * last.rank_fraction:.0f} %"
    )


def _metrics(progress: checkpoint.Progress, recipe: Recipe, steps: int) -> str:
    """One line of JSON an epoch: the record, and what the recipe was at its last step."""
    losses = [each.train_loss for each in progress.epochs]
    lines = []
    for each in progress.epochs:
        facts = each.model_dump(mode="json")
        facts["validation"] = {**facts["validation"], "value": each.validation.value}
        facts["lr"] = learning_rate(recipe, each.epoch * steps - 1, recipe.epochs * steps, losses[: each.epoch - 1])
        facts["weight_decay"] = recipe.weight_decay_at(each.epoch)
        facts["depth"] = recipe.depth_at(each.epoch)
        lines.append(json.dumps(facts))
    return "\n".join(lines) + "\n"
