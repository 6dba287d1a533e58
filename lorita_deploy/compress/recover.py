"""What brings accuracy back once the forms are fixed: batch-norm statistics, and a short distillation from the dense network.

Both work in place on the network they are given (a copy that `rewrite` made) and return it; the pipeline decides when.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Literal

from ..errors import BadNetwork, TrainingDiverged
from ..networks import evaluating

if TYPE_CHECKING:
    from torch import Tensor, nn


def reestimate_batchnorm(
    module: nn.Module, batches: Iterable[tuple[Tensor, ...]], *, behind: Collection[str] | None = None
) -> nn.Module:
    """New running statistics for the batch norms that run after the first of the layers ``behind`` (None: for all).

    The plain average over ``batches``, each batch normalised by its own statistics; everything else stays in evaluation mode.
    Batches of one example are passed over: they have no variance. Without any larger batch the old statistics stay.
    """
    import torch

    usable = [batch for batch in batches if len(batch[0]) > 1]
    if not usable:
        return module
    with evaluating(module), torch.no_grad():
        norms = _norms_behind(module, _on_device(usable[0], module), behind)
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # torch's way to say: cumulative average
            norm.train()
        for batch in usable:
            module(*_on_device(batch, module))
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
    return module


def _norms_behind(module: nn.Module, inputs: tuple[Tensor, ...], behind: Collection[str] | None) -> list[nn.BatchNorm2d]:
    """Batch norms with running statistics that run after any layer of ``behind``, by one forward pass."""
    from torch.nn.modules.batchnorm import _BatchNorm

    norms: list[nn.BatchNorm2d] = []
    started = behind is None

    def start(*_: object) -> None:
        nonlocal started
        started = True

    def note(norm: nn.Module, *_: object) -> None:
        if started and norm not in norms:
            norms.append(norm)  # type: ignore[arg-type]

    handles = [module.get_submodule(name).register_forward_hook(start) for name in behind or ()]
    for part in module.modules():
        if isinstance(part, _BatchNorm) and part.track_running_stats:
            handles.append(part.register_forward_hook(note))
    module(*inputs)
    for handle in handles:
        handle.remove()
    return norms


def distill(
    student: nn.Module,
    teacher: nn.Module,
    batches: Iterable[tuple[Tensor, ...]],
    *,
    epochs: int,
    lr: float = 1e-3,
    optimizer: Literal["adamw", "sgd"] = "adamw",
    temperature: float = 2.0,
    freeze_batchnorm: bool = True,
    seed: int = 0,
) -> nn.Module:
    """Fine-tune ``student`` at fixed structure towards the outputs of ``teacher`` on ``batches`` of inputs.

    The loss is temperature^2 * KL(teacher || student) of the softened class probabilities for logits (N, classes), the mean
    squared error for any other output. Dropout is off, there is no weight decay (the structure no longer needs it), the
    learning rate falls from ``lr`` to 0 as a half cosine, and gradients are clipped at norm 1. With ``freeze_batchnorm`` batch
    norms keep their running statistics. Same seed, same batches, same result on one machine. Modes are restored.

    Raises `BadNetwork` when no parameter may be trained, `TrainingDiverged` when the loss is no longer a number.
    """
    import torch
    from torch.nn.modules.batchnorm import _BatchNorm

    parameters = [parameter for parameter in student.parameters() if parameter.requires_grad]
    if not parameters:
        raise BadNetwork("no parameter may be trained: requires_grad is False everywhere", where=type(student).__name__)
    if optimizer == "adamw":
        stepper: torch.optim.Optimizer = torch.optim.AdamW(parameters, lr, weight_decay=0.0)
    else:
        stepper = torch.optim.SGD(parameters, lr, momentum=0.9, nesterov=True)
    steps = epochs * max(1, sum(1 for _ in batches))
    with torch.random.fork_rng(), evaluating(student), evaluating(teacher):
        torch.manual_seed(seed)
        for part in student.modules():
            if isinstance(part, _BatchNorm) and not freeze_batchnorm:
                part.train()
        step = 0
        for _ in range(epochs):
            for batch in batches:
                inputs = _on_device(batch, student)
                for group in stepper.param_groups:
                    group["lr"] = lr * 0.5 * (1 + math.cos(math.pi * step / steps))
                with torch.no_grad():
                    expected = teacher(*inputs)
                loss = output_distance(student(*inputs), expected, temperature)
                if not torch.isfinite(loss):
                    raise TrainingDiverged(
                        f"the distillation loss is {loss.item()} at step {step}", where="recover", fix=f"lower lr (now {lr:g})"
                    )
                stepper.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                torch.nn.utils.clip_grad_norm_(parameters, 1.0)
                stepper.step()
                step += 1
    for parameter in parameters:
        parameter.grad = None
    return student


def output_distance(found: Tensor, expected: Tensor, temperature: float = 1.0) -> Tensor:
    """temperature^2 * KL(expected || found) of softened probabilities for logits (N, classes), else the mean squared error."""
    from torch.nn import functional

    if found.ndim == 2 and found.shape[1] > 1:
        softened = functional.log_softmax(found.float() / temperature, 1)
        target = functional.log_softmax(expected.float() / temperature, 1)
        return temperature**2 * functional.kl_div(softened, target, log_target=True, reduction="batchmean")
    return functional.mse_loss(found.float(), expected.float())


def _on_device(batch: tuple[Tensor, ...], module: nn.Module) -> tuple[Tensor, ...]:
    device = next(module.parameters()).device
    return tuple(x.to(device) for x in batch)
