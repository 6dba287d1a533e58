"""One pass over the training images. Every random number comes from (seed, epoch), whatever the device and the processes."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ..errors import BadData, BadNetwork, OutOfResource
from ..memory import memory_is_full
from ..records import Recipe
from .augment import augment
from .averaging import Average
from .images import ImageFiles, normalise
from .kept import composed_once
from .objective import Objective
from .schedule import learning_rate, set_rates
from .splits import Dataset

AHEAD = 2
"""Batches of image files that are decoded while others are computed with."""


@dataclass
class Network:
    """What a training changes: the network as it is run (wrapped, compiled), its optimiser, its average."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    average: Average | None


@dataclass(frozen=True)
class Pass:
    """What an epoch came to."""

    loss: float
    """Mean over the images."""
    images_per_s: float


@dataclass
class Epochs:
    """What stays the same from epoch to epoch."""

    accelerator: Accelerator
    device: torch.device
    dataset: Dataset
    recipe: Recipe
    objective: Objective
    on_progress: Callable[[float, float, str], None] | None = None

    @property
    def batch_size(self) -> int:
        """Every process takes as many: the mean over processes is then the mean over images."""
        processes: int = self.accelerator.num_processes
        return min(self.recipe.batch_size, len(self.dataset.split("train")) // processes * processes)

    @property
    def steps(self) -> int:
        """In an epoch; the images left over come in another one."""
        return len(self.dataset.split("train")) // self.batch_size

    def run(self, epoch: int, network: Network, losses: Sequence[float] = (), text: str = "") -> Pass:
        """One epoch; ``losses`` are those of the epochs before, ``text`` is shown beside the progress."""
        total = torch.zeros((), device=self.device)
        start = time.perf_counter_ns()
        for step, value in enumerate(self.walk(epoch, network, losses)):
            total += value
            if step % 16 == 15 and not math.isfinite(float(self.accelerator.reduce(total, "mean"))):
                break
            if self.on_progress:
                done, steps = (epoch - 1) * self.steps + step + 1, self.recipe.epochs * self.steps
                self.on_progress(done * self.batch_size, steps * self.batch_size, f"epoch {epoch}/{self.recipe.epochs}{text}")
        mean = float(self.accelerator.reduce(total, "mean")) / self.steps
        seconds = (time.perf_counter_ns() - start) / 1e9
        return Pass(mean, self.steps * self.batch_size / seconds)

    def walk(self, epoch: int, network: Network, losses: Sequence[float] = ()) -> Iterator[Tensor]:
        """Step after step: the mean loss, on the device."""
        share = 1_000_000_007 * self.accelerator.process_index  # of a batch, which is dropped out on its own
        torch.manual_seed(self.recipe.seed * 100_003 + epoch + share)
        network.model.train()
        for step, (images, labels) in enumerate(self.batches(epoch)):
            number = (epoch - 1) * self.steps + step
            rate = learning_rate(self.recipe, number, self.recipe.epochs * self.steps, losses)
            set_rates(network.optimizer, self.recipe, epoch, rate)
            try:
                value = self._gradients(network.model, images, labels)
                if self.recipe.clip_norm is not None:
                    self.accelerator.clip_grad_norm_(network.model.parameters(), self.recipe.clip_norm)
                network.optimizer.step()
            except ValueError as error:
                if "more than 1 value per channel" not in str(error):
                    raise
                raise BadData(
                    "batch normalisation cannot learn from a part of a batch that has one value in each channel",
                    where=f"batch size {self.recipe.batch_size}, in {self.recipe.accumulate} part(s)",
                    fix="take larger batches (--batch-size), fewer parts (--accumulate) or larger images (--input-size)",
                ) from error
            except (MemoryError, RuntimeError) as error:
                if not memory_is_full(error):
                    raise
                raise OutOfResource(
                    "the memory is full",
                    fix=f"lower the batch size ({self.recipe.batch_size}) or cut each batch into more parts "
                    f"(--accumulate {2 * self.recipe.accumulate})",
                ) from error
            network.optimizer.zero_grad()
            if network.average is not None:
                network.average.update(self.accelerator.unwrap_model(network.model, keep_torch_compile=False))
            yield value

    def batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """(inputs, labels) of this process, on the device: its part of each batch of ``epoch``."""
        split, summary = self.dataset.split("train"), self.dataset.summary
        generator = torch.Generator().manual_seed(self.recipe.seed * 100_003 + epoch)
        order = torch.randperm(len(split), generator=generator)[: self.steps * self.batch_size]
        part = slice(self.accelerator.process_index, None, self.accelerator.num_processes)
        indices = [index[part] for index in order.view(self.steps, self.batch_size)]
        loaded: Iterator[Tensor] = (split.images[index] for index in indices)
        if isinstance(split.images, ImageFiles):
            loaded = ahead(loaded)
        for index, images in zip(indices, loaded, strict=True):
            images = augment(images.to(self.device), self.recipe.augment, generator, of=self.batch_size, part=part)
            inputs = normalise(images, summary.mean, summary.std).contiguous(memory_format=torch.channels_last)
            yield inputs, split.labels[index].to(self.device)

    def loss(self, model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        """The mean loss of a batch."""
        bf16 = self.recipe.precision == "bf16" or (self.recipe.precision == "auto" and bf16_pays(self.device))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bf16):
            answers, outputs = self.objective.answers(inputs), model(inputs)
        if not isinstance(outputs, Tensor):
            raise BadNetwork(
                f"in training the network gives a {type(outputs).__name__}, not one tensor of logits",
                fix="give a network without auxiliary outputs, or train it in a loop of your own (see docs/training.md)",
            )
        return self.objective(outputs.float(), labels, answers)

    def _gradients(self, model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        """Gradients of one batch, part after part; the mean loss."""
        count = min(self.recipe.accumulate, len(inputs))
        parts = list(zip(inputs.tensor_split(count), labels.tensor_split(count), strict=True))
        total = torch.zeros((), device=self.device)
        with composed_once(model):
            for i, (x, y) in enumerate(parts):
                last = i == len(parts) - 1
                with torch.enable_grad() if last else self.accelerator.no_sync(model):
                    value = self.loss(model, x, y) * (len(x) / len(inputs))
                    self.accelerator.backward(value)
                total += value.detach()
        return total


def ahead(items: Iterator[Tensor], count: int = AHEAD) -> Iterator[Tensor]:
    """``items``, the next ``count`` of them fetched by a thread meanwhile. Errors arise where their item would have come."""
    with ThreadPoolExecutor(1) as thread:
        waiting = deque(thread.submit(next, items, None) for _ in range(count))
        while (item := waiting.popleft().result()) is not None:
            waiting.append(thread.submit(next, items, None))
            yield item


def bf16_pays(device: torch.device) -> bool:
    """Whether mixed precision is faster there: GPUs with bfloat16, and CPUs with instructions for it.

    AMX gives 2.2-2.5x; AVX512-BF16 gave 1.4x on VGG16, 1.3x on ResNet20, 1.4-1.6x on the ViT (two EPYC cores, channels-last).
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))
