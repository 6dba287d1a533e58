"""What distillation from the dense network wins back of a plan's network, while plans are searched and of the chosen one.

The weights are kept from the first time: a search that was stopped does not train anything twice, and the network that ships is
the very one that was judged.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..compress.plan import shape_of
from ..compress.recover import distill
from ..errors import TrainingDiverged
from ..networks import load_weights, save_weights
from ..records import Choice, GroupChoice
from .calibrated import calibration_key
from .folder import RECOVERED, key_of, program

if TYPE_CHECKING:
    from torch import Tensor, nn

    from .context import Build


def planned_network(build: Build, changed: Sequence[Choice], groups: Sequence[GroupChoice] = ()) -> nn.Module:
    """The network of these choices, recovered where that was asked for. Raises `BadCheckpoint` as `recover` does."""
    module = build.compressor.network(changed, groups)
    if build.options.recover_epochs and changed:
        recover(build, module, changed)
    return module


def recover(build: Build, module: nn.Module, changed: Sequence[Choice]) -> None:
    """Distil ``module``, which is cut as ``changed`` says, in place; where that costs right answers, or comes to nothing, it
    stays as it was.

    Raises `BadCheckpoint` for kept weights that are damaged.
    """
    kept = _kept(build, changed)
    if kept.exists():
        load_weights(module, kept)
        return
    before, truncated = {name: value.clone() for name, value in module.state_dict().items()}, build.task.evaluate(module)
    try:
        distill(
            module,
            build.dense,
            _all_inputs(build),
            epochs=build.options.recover_epochs,
            bf16=_mixed(build),
            seed=build.options.seed,
            progress=lambda step, steps: build.watch.progress(step, steps, "recovering"),
        )
        better = build.task.evaluate(module).value >= truncated.value
    except TrainingDiverged as error:  # of one plan, perhaps: no reason to give up the build
        build.watch.note(f"a cut network could not be recovered: {error.what}")
        better = False
    if not better:
        module.load_state_dict(before)
    kept.parent.mkdir(exist_ok=True)
    save_weights(module, kept)


def let_go_of_others(build: Build, changed: Sequence[Choice]) -> None:
    """Once it is decided, what other plans came to is not needed any more."""
    own = _kept(build, changed)
    for path in own.parent.glob("*.safetensors"):
        if path != own:
            path.unlink()


def _kept(build: Build, changed: Sequence[Choice]) -> Path:
    """Where the recovered weights are, by all that decides them."""
    what = {
        "shape": shape_of(changed),
        "network": build.collapsed.weights_sha256,
        "calibration": calibration_key(build),
        "data": build.data.content_sha256,
        "how": (build.options.recover_epochs, build.options.seed, _mixed(build), build.device, program()),
    }
    return build.folder / RECOVERED / f"{key_of(what)[:16]}.safetensors"


def _mixed(build: Build) -> bool:
    """In bf16 where that is faster; of networks of one's own nobody knows whether they bear it."""
    import torch

    from ..train.epoch import bf16_pays

    return build.own_task is None and bf16_pays(torch.device(build.device))


def _all_inputs(build: Build) -> Iterable[tuple[Tensor, ...]]:
    """Inputs for distillation: the training images, mixed, where there are labels; the calibration images otherwise."""
    if build.own_task is None and build.data_name is not None:
        from .tasks import InputsOnly

        return InputsOnly(build.dataset.batches("train", 64, seed=build.options.seed))
    return build.task.calibration
