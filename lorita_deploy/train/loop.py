"""The trainer: a plain module in, a factored network with its record out.

A readable loop on accelerate. Every random number of an epoch comes from (seed, epoch) and the learning rate from the step,
so that a resumed training walks the same path as an undisturbed one.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ..errors import BadData, OutOfResource, TrainingDiverged, UnknownName
from ..networks import TrainedNetwork, evaluating, weights_digest
from ..records import Accuracy, EpochRecord, Recipe, TrainRecord
from . import checkpoint
from .augment import augment
from .composition import factored_layers, factorize, left_alone, rank_fraction
from .images import normalise
from .splits import Dataset

Loss = Callable[[Tensor, Tensor], Tensor]

WARM_UP = 0.2
"""Share of the steps in which one-cycle's rate rises."""


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
    on_epoch: Callable[[EpochRecord], None] | None = None,
    on_progress: Callable[[float, float, str], None] | None = None,
) -> TrainedNetwork:
    """Factorise ``module`` (plain, in place) with ``recipe.depth``, train it, and return it with its best weights, on the CPU.

    ``evaluate`` judges on the validation split after each epoch; the test split is not looked at (the record's ``test`` is
    None). The state after each epoch lies in ``folder``, and is taken up from there when ``resume``. ``loss(outputs, labels)``
    is the mean over the batch; cross entropy when not given. ``on_progress(images, all images, text)``.

    Raises `TrainingDiverged` (the last good epoch is kept), `BadCheckpoint` (the folder holds another training), `BadData`
    and `OutOfResource`.
    """
    if recipe.depth > 1 and recipe.weight_decay == 0:
        warnings.warn("weight decay 0: LoRITa induces low rank by weight decay only, without it it does nothing", stacklevel=2)
    changes = tuple(change for change in recipe.augment if change in dataset.augment)
    recipe = recipe.model_copy(update={"augment": changes})
    identity: dict[str, object] = {
        "model": model_name,
        "data": dataset.summary.content_sha256,
        "classes": len(dataset.summary.classes),
        **recipe.model_dump(mode="json"),
    }
    factorize(module, recipe.depth)
    accelerator = Accelerator(device_placement=False)
    place = _device(device, accelerator)
    run = _Run(accelerator, place, dataset, recipe, loss or _classification(recipe, dataset), on_progress)
    module.to(place, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = make_optimizer(module, recipe)
    progress = checkpoint.resume(folder, identity, module, optimizer) if resume else checkpoint.Progress()
    with torch.random.fork_rng([place] if place.type == "cuda" else []):  # the caller's random numbers stay as they were
        model, prepared = accelerator.prepare(module, optimizer)
        for epoch in range(len(progress.epochs) + 1, recipe.epochs + 1):
            train_loss, images_per_s = run.epoch(epoch, model, prepared)
            _check_finite(module, train_loss, epoch, folder)
            with evaluating(module):
                validation = evaluate(module)
            record = EpochRecord(
                epoch=epoch,
                train_loss=train_loss,
                validation=validation,
                images_per_s=images_per_s,
                rank_fraction=rank_fraction(module),
            )
            epochs = (*progress.epochs, record)
            best = max(epochs, key=lambda each: (each.validation.value, each.epoch))  # the later of equals: its rank is lower
            progress = checkpoint.Progress(epochs, best.epoch)
            if accelerator.is_main_process:
                checkpoint.save(folder, identity, progress, module, optimizer)
            accelerator.wait_for_everyone()
            if on_epoch:
                on_epoch(record)
    checkpoint.load_best(folder, module)
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
            test=None,
            weights_sha256=weights_digest(module),
        ),
    )


def make_optimizer(module: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Weight decay on every weight matrix, factored or not; none on biases, normalisation and embeddings of position."""
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        leaf = name.rpartition(".")[2]
        is_matrix = parameter.dim() >= 2 and (leaf.endswith("weight") or leaf.startswith("original"))
        (decayed if is_matrix else plain).append(parameter)
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum, fused=True)
    return torch.optim.AdamW(groups, lr=recipe.lr, fused=True)


def learning_rate(recipe: Recipe, step: int, steps: int) -> float:
    """At ``step`` of ``steps`` (0 is the first). one-cycle: up in a line, then down in half a cosine; cosine: down only."""
    rise = round(WARM_UP * steps) if recipe.schedule == "one-cycle" else 0
    if step < rise:
        return recipe.lr * (step + 1) / rise
    return recipe.lr * 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def bf16_pays(device: torch.device) -> bool:
    """Whether mixed precision is faster there: GPUs with bfloat16, and CPUs with instructions for it.

    AMX gives 2.2-2.5x; AVX512-BF16 gave 1.4x on VGG16, 1.3x on ResNet20, 1.4-1.6x on the ViT (two EPYC cores, channels-last).
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))


# ---------------------------------------------------------------------------------------------- one epoch


@dataclass
class _Run:
    """What stays the same from epoch to epoch."""

    accelerator: Accelerator
    device: torch.device
    dataset: Dataset
    recipe: Recipe
    loss: Loss
    on_progress: Callable[[float, float, str], None] | None

    def epoch(self, epoch: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[float, float]:
        """One pass over the training split: (mean loss, images per second)."""
        recipe, split, summary = self.recipe, self.dataset.split("train"), self.dataset.summary
        generator = torch.Generator().manual_seed(recipe.seed * 100_003 + epoch)
        torch.manual_seed(recipe.seed * 100_003 + epoch)  # dropout and the like
        order = torch.randperm(len(split), generator=generator)
        batch_size = min(recipe.batch_size, len(split))
        steps = len(split) // batch_size  # the images left over come in another epoch
        bf16 = recipe.precision == "bf16" or (recipe.precision == "auto" and bf16_pays(self.device))
        rank, processes = self.accelerator.process_index, self.accelerator.num_processes
        total = torch.zeros((), device=self.device)
        model.train()
        start = time.perf_counter_ns()
        for step, index in enumerate(order[: steps * batch_size].view(steps, batch_size)):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(recipe, (epoch - 1) * steps + step, recipe.epochs * steps)
            images = augment(split.images[index].to(self.device), recipe.augment, generator)
            inputs = normalise(images, summary.mean, summary.std).contiguous(memory_format=torch.channels_last)
            labels = split.labels[index].to(self.device)
            try:
                with torch.autocast(self.device.type, torch.bfloat16, enabled=bf16):
                    outputs = model(inputs[rank::processes])
                value = self.loss(outputs.float(), labels[rank::processes])
                self.accelerator.backward(value)
            except torch.OutOfMemoryError as error:
                raise OutOfResource("the device's memory is full", fix=f"lower the batch size ({recipe.batch_size})") from error
            if recipe.clip_norm is not None:
                self.accelerator.clip_grad_norm_(model.parameters(), recipe.clip_norm)
            optimizer.step()
            optimizer.zero_grad()
            total += value.detach()
            if step % 16 == 15 and not math.isfinite(float(self.accelerator.reduce(total, "mean"))):
                break
            if self.on_progress:
                done = (epoch - 1) * steps + step + 1
                self.on_progress(done * batch_size, recipe.epochs * steps * batch_size, f"epoch {epoch}/{recipe.epochs}")
        mean = float(self.accelerator.reduce(total, "mean")) / steps
        seconds = (time.perf_counter_ns() - start) / 1e9
        return mean, steps * batch_size / seconds


def _classification(recipe: Recipe, dataset: Dataset) -> Loss:
    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        if logits.shape[-1] < len(dataset.summary.classes):
            raise BadData(
                f"the network tells {logits.shape[-1]} classes apart, the data has {len(dataset.summary.classes)}",
                where=dataset.summary.name,
                fix="build the network for as many classes as the data has",
            )
        return cross_entropy(logits, labels, label_smoothing=recipe.label_smoothing)

    return loss


def _check_finite(module: nn.Module, train_loss: float, epoch: int, folder: Path) -> None:
    if math.isfinite(train_loss) and all(bool(torch.isfinite(tensor).all()) for tensor in module.parameters()):
        return
    kept = f"epoch {epoch - 1} is kept" if epoch > 1 else "no epoch was finished"
    raise TrainingDiverged(
        f"in epoch {epoch} the loss or the weights are no longer numbers; {kept}",
        where=folder,
        fix="lower the learning rate (--lr) to a third; or lower N, or train in fp32",
    )


def _device(name: str, accelerator: Accelerator) -> torch.device:
    if name == "auto":
        found: torch.device = accelerator.device
        return found
    if name not in ("cpu", "cuda"):
        raise UnknownName("device", name, ("auto", "cpu", "cuda"))
    if name == "cuda" and not torch.cuda.is_available():
        raise UnknownName("device", name, ("auto", "cpu"), fix="torch sees no CUDA device on this machine")
    return torch.device("cpu") if name == "cpu" else accelerator.device
