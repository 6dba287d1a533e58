"""Where a training stands, as one safetensors file: tensors in the body, everything else as JSON in its header.

One file, written aside and renamed, so that a kill at any moment leaves a whole one. No learning-rate schedule and no
state of a random generator is kept: both are functions of the recipe and the epoch (see loop.py).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from ..errors import BadCheckpoint
from ..networks import read_weights
from ..records import EpochRecord, write_atomically
from .averaging import Average

LAST, BEST = "last.safetensors", "best.safetensors"
FRESH = "train with resume=False (--fresh), or in another folder"

_EPOCHS = TypeAdapter(tuple[EpochRecord, ...])


@dataclass
class Progress:
    """The epochs so far, and the best that may be kept of them, by validation (1 is the first epoch, 0: none yet)."""

    epochs: tuple[EpochRecord, ...] = field(default=())
    best_epoch: int = 0

    def after(self, epoch: EpochRecord, keeps_from: int) -> Progress:
        """With one more epoch. Those before ``keeps_from`` (see `Recipe`) are kept only until it has come."""
        epochs = (*self.epochs, epoch)
        settled = epochs[keeps_from - 1 :] or epochs
        best = max(settled, key=lambda each: (each.validation.value, each.epoch))  # the later of equals: its rank is lower
        return Progress(epochs, best.epoch)


def shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Of the weights in the state file ``path``, by name; nothing where it cannot be read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError):
        return {}
    return {name.removeprefix("model/"): shape for name, shape in found.items() if name.startswith("model/")}


def weights_in(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights that a training's state is judged by, called as in the network: the average where there is one, else the
    weights as they are. Other tensors as they are."""
    kind = "average/" if any(name.startswith("average/") for name in tensors) else "model/"
    return {name.removeprefix(kind): each for name, each in tensors.items() if name.startswith(kind)} or tensors


def save(
    folder: Path,
    identity: dict[str, object],
    progress: Progress,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: Average | None = None,
) -> None:
    """Write the end of an epoch: first all that resuming needs, then, if this epoch is the best so far, the weights that it was
    judged by."""
    header = {
        "identity": identity,
        "best_epoch": progress.best_epoch,
        "epochs": _EPOCHS.dump_python(progress.epochs, mode="json"),
        "averaged_steps": average.steps if average else 0,
    }
    state = {
        f"optimizer/{name}/{key}": torch.as_tensor(value)
        for name, parameter in module.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
        if value is not None
    }
    weights = {f"model/{name}": tensor for name, tensor in module.state_dict().items()}
    averaged = {f"average/{name}": tensor for name, tensor in average.tensors.items()} if average else {}
    _write(folder / LAST, weights | state | averaged, header)
    if progress.best_epoch == len(progress.epochs):
        _write_best(folder, weights | averaged, progress.best_epoch)


def resume(
    folder: Path,
    identity: dict[str, object],
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: Average | None = None,
) -> Progress:
    """Put ``module``, ``optimizer`` and ``average`` back to the last epoch written in ``folder``; nothing is done where there
    is none. The module's structure must be that of the epoch.

    Raises `BadCheckpoint` for a damaged file and for a training of another model, recipe or data set.
    """
    path = folder / LAST
    if not path.exists():
        return Progress()
    try:
        tensors = read_weights(path)
    except BadCheckpoint as error:
        raise BadCheckpoint(error.what, where=path, fix=f"{FRESH}: the training starts over") from error
    header = _header(path)
    found = header.get("identity")
    if found != identity:
        raise BadCheckpoint(f"this training is another one: {_differences(found, identity)}", where=path, fix=FRESH)
    try:
        progress = Progress(_EPOCHS.validate_json(json.dumps(header["epochs"])), int(str(header["best_epoch"])))
        _load_module(module, tensors)
        _load_optimizer(module, optimizer, tensors)
        if average is not None:
            average.tensors = {name: tensors[f"average/{name}"].to(each.device) for name, each in average.tensors.items()}
            average.steps = int(str(header["averaged_steps"]))
    except (KeyError, ValueError, RuntimeError, ValidationError) as error:
        raise BadCheckpoint(f"the training state does not fit: {error}", where=path, fix=FRESH) from error
    if progress.best_epoch == len(progress.epochs) and _best_epoch_on_disk(folder) != progress.best_epoch:
        _write_best(folder, tensors, progress.best_epoch)  # killed between the two files
    return progress


def load_best(folder: Path, module: nn.Module) -> None:
    """Put the best weights into ``module``. Raises `BadCheckpoint`."""
    try:
        _load_module(module, read_weights(folder / BEST))
    except (KeyError, RuntimeError) as error:
        raise BadCheckpoint(f"the best weights do not fit: {error}", where=folder / BEST, fix=FRESH) from error


def _write_best(folder: Path, tensors: dict[str, Tensor], epoch: int) -> None:
    judged = {f"model/{name}": tensor for name, tensor in weights_in(tensors).items()}
    _write(folder / BEST, judged, {"epoch": epoch})


def _best_epoch_on_disk(folder: Path) -> object:
    try:
        return _header(folder / BEST).get("epoch")
    except BadCheckpoint:
        return None


def _load_module(module: nn.Module, tensors: dict[str, Tensor]) -> None:
    module.load_state_dict({name: tensors[f"model/{name}"] for name in module.state_dict()})


def _load_optimizer(module: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    parameters = dict(module.named_parameters())
    for label, tensor in tensors.items():
        kind, _, rest = label.partition("/")
        if kind != "optimizer":
            continue
        name, _, key = rest.rpartition("/")
        parameter = parameters[name]
        if tensor.shape == parameter.shape:  # fused optimizers walk parameter and state side by side: same strides
            tensor = torch.empty_like(parameter, requires_grad=False).copy_(tensor)
        optimizer.state[parameter][key] = tensor.to(parameter.device)  # counts of steps too: fused ones want them there


def _write(path: Path, tensors: dict[str, Tensor], header: dict[str, object]) -> None:
    from safetensors.torch import save

    content = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    write_atomically(path, save(content, metadata={"lorita-deploy": json.dumps(header)}))


def _header(path: Path) -> dict[str, object]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})["lorita-deploy"])
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise BadCheckpoint("this is no training state of lorita-deploy", where=path, fix=FRESH) from error
    return header if isinstance(header, dict) else {}


def _differences(found: object, identity: dict[str, object]) -> str:
    if not isinstance(found, dict):
        return "nothing is known about it"
    return "; ".join(
        f"{key} was {found.get(key)}, is {identity.get(key)}"
        for key in sorted(found.keys() | identity.keys())
        if found.get(key) != identity.get(key)
    )
