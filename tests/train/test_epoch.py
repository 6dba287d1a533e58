"""One epoch: parts of a batch add up to the batch, files stream like tensors, errors come where they happen."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from torch import nn

from lorita_deploy.errors import BadData, OutOfResource
from lorita_deploy.records import Recipe
from lorita_deploy.train import datasets, images, splits
from lorita_deploy.train.composition import factorize
from lorita_deploy.train.datasets import load_dataset
from lorita_deploy.train.epoch import Epochs, Network, ahead
from lorita_deploy.train.images import ImageFiles
from lorita_deploy.train.loop import prepared
from lorita_deploy.train.objective import objective
from lorita_deploy.train.schedule import make_optimizer
from lorita_deploy.train.splits import Dataset

RECIPE = Recipe(epochs=1, batch_size=100, lr=0.05, weight_decay=1e-3, precision="fp32", augment=("crop",))


def epochs(dataset: Dataset, recipe: Recipe = RECIPE) -> Epochs:
    place = torch.device("cpu")
    return Epochs(Accelerator(device_placement=False), place, dataset, recipe, objective(recipe, dataset, None, None))


def trained(dataset: Dataset, recipe: Recipe = RECIPE) -> nn.Module:
    torch.manual_seed(0)
    module = factorize(nn.Sequential(nn.Flatten(), nn.Linear(dataset.split("train").images[:1].numel(), 16), nn.Linear(16, 10)))
    epochs(dataset, recipe).run(1, Network(module, make_optimizer(module, recipe), None))
    return module


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset("digits", shape=(1, 8, 8))


@pytest.mark.parametrize("parts", [2, 3, 100])
def test_the_gradients_of_parts_add_up_to_those_of_the_batch(digits: Dataset, parts: int) -> None:
    whole = trained(digits)
    cut = trained(digits, RECIPE.model_copy(update={"accumulate": parts}))
    for a, b in zip(whole.parameters(), cut.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("images", "parts"), [(2, 4), (5, 4), (4, 4), (7, 1)])
def test_the_last_part_of_a_batch_and_no_other_is_shared_with_other_processes(
    digits: Dataset, monkeypatch: pytest.MonkeyPatch, images: int, parts: int
) -> None:
    """Also where a process has fewer images than there should be parts."""
    alone = []
    every = epochs(digits, RECIPE.model_copy(update={"accumulate": parts}))
    monkeypatch.setattr(every.accelerator, "no_sync", lambda _: alone.append(1) or nullcontext())
    module = factorize(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))
    every._gradients(module, torch.randn(images, 1, 8, 8), torch.zeros(images, dtype=torch.long))
    assert len(alone) == min(images, parts) - 1


def test_what_is_compiled_is_what_is_trained(digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part of a batch, and no second time in the first step."""
    graphs, real = [], torch.compile

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., object]:
        graphs.append(next(len(each) for each in inputs if each.dim() == 4))
        return graph.forward

    monkeypatch.setattr(torch, "compile", lambda module: real(module, backend=backend))
    module = factorize(nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Linear(32, 10)))
    recipe = RECIPE.model_copy(update={"accumulate": 4})
    every = epochs(digits, recipe)
    network = prepared(module, make_optimizer(module, recipe), None, every, compile=True)
    assert graphs == [25]
    next(every.walk(1, network))
    assert graphs == [25]


# ---------------------------------------------------------------------------------------------- folders larger than memory


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    noise = torch.Generator().manual_seed(0)
    for place, count in (("train", 30), ("test", 4)):
        for k in range(2):
            for i in range(count):
                path = root / place / f"class {k}" / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                pixels = torch.randint(100 * k, 100 * k + 100, (12, 12), generator=noise, dtype=torch.uint8)
                Image.fromarray(pixels.numpy()).save(path)
    return root


def test_files_that_do_not_fit_into_memory_are_streamed_to_the_same_result(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = RECIPE.model_copy(update={"batch_size": 12})
    held = load_dataset(f"folder:{folder}", shape=(1, 12, 12))
    assert isinstance(held.split("train").images, torch.Tensor)
    monkeypatch.setattr(datasets, "MEMORY_SHARE", 0.0)
    streamed = load_dataset(f"folder:{folder}", shape=(1, 12, 12))
    assert isinstance(streamed.split("train").images, ImageFiles)
    for a, b in zip(trained(held, recipe).parameters(), trained(streamed, recipe).parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_a_large_folder_is_described_by_a_sample_of_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = load_dataset(f"folder:{folder}", shape=(1, 12, 12)).summary
    monkeypatch.setattr(splits, "LOOKED_AT", 20)
    read: list[int] = []
    monkeypatch.setattr(datasets, "MEMORY_SHARE", 0.0)
    decode = images.decode
    monkeypatch.setattr(images, "decode", lambda paths, shape: (read.append(len(paths)), decode(paths, shape))[1])
    sample = load_dataset(f"folder:{folder}", shape=(1, 12, 12)).summary
    assert sum(read) == 20 + 6 + 8  # of 54, 6 and 8
    assert sample.counts == whole.counts
    assert sample.content_sha256 != whole.content_sha256
    assert sample.mean == pytest.approx(whole.mean, rel=0.1)
    assert sample.std == pytest.approx(whole.std, rel=0.1)


def test_an_image_that_breaks_while_training_is_named(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "MEMORY_SHARE", 0.0)
    data = load_dataset(f"folder:{folder}", shape=(1, 12, 12))
    split = data.split("train")
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG no more")
    split.images.paths[7] = broken  # type: ignore[union-attr]
    with pytest.raises(BadData) as caught:
        trained(data, RECIPE.model_copy(update={"batch_size": 12}))
    assert caught.value.where == str(broken)


def test_items_are_fetched_ahead_in_order_by_one_thread_that_ends() -> None:
    before, fetched = threading.active_count(), []

    def items() -> Iterator[torch.Tensor]:
        for i in range(6):
            fetched.append(i)
            yield torch.tensor(i)

    found = ahead(items())
    assert int(next(found)) == 0
    assert [int(item) for item in found] == [1, 2, 3, 4, 5]
    assert fetched == list(range(6))
    assert threading.active_count() == before
    stopped = ahead(iter([torch.tensor(0)] * 100))
    next(stopped)
    stopped.close()
    assert threading.active_count() == before


# ---------------------------------------------------------------------------------------------- memory


class Greedy(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.empty(2**62, dtype=torch.uint8)


def test_a_full_memory_says_what_to_lower(digits: Dataset) -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), Greedy())
    recipe = RECIPE.model_copy(update={"accumulate": 2})
    with pytest.raises(OutOfResource, match="memory is full") as caught:
        epochs(digits, recipe).run(1, Network(module, make_optimizer(module, recipe), None))
    assert "batch size (100)" in str(caught.value)
    assert "--accumulate 4" in str(caught.value)
    assert caught.value.exit_code == 6


def test_a_part_with_one_value_in_each_channel_says_what_to_change(digits: Dataset) -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.BatchNorm1d(10))
    recipe = RECIPE.model_copy(update={"accumulate": 100})
    with pytest.raises(BadData, match=r"one value in each channel\n.*100, in 100 part\(s\)\n.*fewer parts \(--accumulate\)"):
        epochs(digits, recipe).run(1, Network(module, make_optimizer(module, recipe), None))


def test_a_mistake_in_a_network_keeps_its_traceback(digits: Dataset) -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(63, 10))
    with pytest.raises(RuntimeError, match="shapes"):
        epochs(digits).run(1, Network(module, make_optimizer(module, RECIPE), None))
