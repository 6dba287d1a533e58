"""What distillation from the dense network wins back: asked of plans that are searched, and done to the chosen one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from ..compress.recover import distill
from ..errors import TrainingDiverged
from ..records import Accuracy

if TYPE_CHECKING:
    from torch import Tensor, nn

    from .context import Build


def recovered(build: Build, module: nn.Module, truncated: Accuracy) -> Accuracy | None:
    """Distil ``module``, which is ``truncated`` accurate, in place; how accurate it is then. Where that costs right answers, or
    the loss is no number any more, it stays as it was: None. The same plan gives the same network each time (on GPUs, up to
    the order of their sums)."""
    import torch

    from ..train.epoch import bf16_pays

    before = {name: value.clone() for name, value in module.state_dict().items()}
    try:
        distill(
            module,
            build.dense,
            _all_inputs(build),
            epochs=build.options.recover_epochs,
            bf16=bf16_pays(torch.device(build.device)),
            seed=build.options.seed,
        )
        found = build.task.evaluate(module)
        if found.value >= truncated.value:
            return found
    except TrainingDiverged as error:  # of one plan among several: no reason to give up the others
        build.watch.note(error.what)
    module.load_state_dict(before)
    return None


def _all_inputs(build: Build) -> Iterable[tuple[Tensor, ...]]:
    """Inputs for distillation: the training images, mixed, where there are labels; the calibration images otherwise."""
    if build.own_task is None and build.data_name is not None:
        from .tasks import InputsOnly

        return InputsOnly(build.dataset.batches("train", 64, seed=build.options.seed))
    return build.task.calibration
