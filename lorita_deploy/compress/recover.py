"""What brings accuracy back once the forms are fixed: a short distillation from the dense network."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sized
from typing import TYPE_CHECKING, Any, Literal

from ..errors import BadNetwork, TrainingDiverged
from ..networks import evaluating
from .feeding import float_tensors, on_device_of

if TYPE_CHECKING:
    from torch import Tensor, nn


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
    bf16: bool = False,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda step, steps: None,
) -> nn.Module:
    """Fine-tune ``student`` at fixed structure towards the outputs of ``teacher`` on ``batches`` of inputs.

    The loss is temperature^2 * KL(teacher || student) of the softened class probabilities for logits (N, classes), the mean
    squared error for any other output. Dropout is off, there is no weight decay (the structure no longer needs it), the
    learning rate falls from ``lr`` to 0 as a half cosine, and gradients are clipped at norm 1. With ``freeze_batchnorm`` batch
    norms keep their running statistics. ``bf16``: both networks compute in mixed precision. Same seed, same batches, same
    result on one machine. Modes are restored.

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
    steps = epochs * max(1, len(batches) if isinstance(batches, Sized) else sum(1 for _ in batches))
    with torch.random.fork_rng(), evaluating(student), evaluating(teacher):
        torch.manual_seed(seed)
        for part in student.modules():
            if isinstance(part, _BatchNorm) and not freeze_batchnorm:
                part.train()
        step = 0
        for _ in range(epochs):
            for batch in batches:
                inputs = on_device_of(student, batch)
                mixed = torch.autocast(inputs[0].device.type, torch.bfloat16, enabled=bf16)
                for group in stepper.param_groups:
                    group["lr"] = lr * 0.5 * (1 + math.cos(math.pi * step / steps))
                with mixed, torch.no_grad():
                    expected = teacher(*inputs)
                with mixed:
                    outputs = student(*inputs)
                loss = output_distance(outputs, expected, temperature)
                if not torch.isfinite(loss):
                    raise TrainingDiverged(
                        f"the distillation loss is {loss.item()} at step {step}", where="recover", fix=f"lower lr (now {lr:g})"
                    )
                stepper.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                torch.nn.utils.clip_grad_norm_(parameters, 1.0)
                stepper.step()
                step += 1
                progress(step, steps)
    for parameter in parameters:
        parameter.grad = None
    return student


def output_distance(found: Any, expected: Any, temperature: float = 1.0) -> Tensor:
    """temperature^2 * KL(expected || found) of softened probabilities for logits (N, classes), else the mean squared error; of
    several outputs, however nested, the sum over the floating-point ones."""
    from torch.nn import functional

    pairs = list(zip(float_tensors(found), float_tensors(expected), strict=True))
    if len(pairs) == 1 and pairs[0][0].ndim == 2 and pairs[0][0].shape[1] > 1:
        softened, target = (functional.log_softmax(each.float() / temperature, 1) for each in pairs[0])
        return temperature**2 * functional.kl_div(softened, target, log_target=True, reduction="batchmean")
    distances = [functional.mse_loss(one.float(), other.float()) for one, other in pairs]
    return sum(distances[1:], start=distances[0])
