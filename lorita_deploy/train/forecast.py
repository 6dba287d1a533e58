"""What a training will take, from its first steps: a real network, real batches, nothing written."""

from __future__ import annotations

import resource
import statistics
import sys
import time
from itertools import islice, pairwise

import torch
from torch import nn

from ..records import Recipe, TrainingForecast
from .averaging import Average
from .epoch import Epochs
from .loop import find_device, prepared
from .objective import objective
from .processes import accelerator_for
from .schedule import fading, make_optimizer
from .splits import Dataset
from .structure import structure

STEPS = 3
"""Steps that are run; the first is not counted, it pays for what is set up once."""


def forecast(
    module: nn.Module,
    dataset: Dataset,
    recipe: Recipe,
    *,
    model_name: str,
    device: str = "auto",
    teacher: nn.Module | None = None,
    compile: bool = False,
) -> TrainingForecast:
    """Train ``module`` (plain, changed in place) for `STEPS` steps and say what the whole will take.

    The steps are those of the epoch in which N is largest, at full width: where other phases have fewer factors or trim, the
    whole takes less. The time of judging the validation images after each epoch is taken as a third of a training pass over as
    many: a forward pass without a backward one.
    """
    accelerator = accelerator_for(device)
    place = find_device(device, accelerator)
    recipe = recipe.model_copy(update={"augment": tuple(each for each in recipe.augment if each in dataset.augment)})
    params = sum(parameter.numel() for parameter in module.parameters())
    dearest = max(range(1, recipe.epochs + 1), key=recipe.depth_at)  # the first of these
    structure(module, recipe.model_copy(update={"depth": recipe.most_factors}), 1).to(place, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if teacher is not None:
        teacher.to(place, memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = Average(module, recipe.ema) if recipe.ema else None
    epochs = Epochs(accelerator, place, dataset, recipe, objective(recipe, dataset, None, teacher))
    network = prepared(module, make_optimizer(module, recipe), average, epochs, compile)
    clock = [time.perf_counter_ns()]
    with torch.random.fork_rng([place] if place.type == "cuda" else []):
        for value in islice(epochs.walk(dearest, network), STEPS):
            value.item()  # waits for the device
            clock.append(time.perf_counter_ns())
    times = [(after - before) / 1e9 for before, after in pairwise(clock)]
    step = statistics.median(times[1:] or times)
    judging = len(dataset.split("validation")) / epochs.batch_size * step / 3
    return TrainingForecast(
        model=model_name,
        device=torch.cuda.get_device_name(place) if place.type == "cuda" else place.type,
        params=params,
        trained_params=sum(parameter.numel() for parameter in module.parameters()),
        peak_memory_bytes=_peak_memory(place),
        steps_per_epoch=epochs.steps,
        images_per_s=epochs.batch_size / step,
        epoch_s=epochs.steps * step + judging,
        epochs=recipe.epochs,
        fading=fading(recipe, epochs.steps),
    )


def _peak_memory(place: torch.device) -> int:
    """Of the device, or of this whole process."""
    if place.type == "cuda":
        return int(torch.cuda.max_memory_allocated(place))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
