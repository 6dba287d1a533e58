"""Data sets: what is in them, how they are split, and what is said when they cannot be used."""

from __future__ import annotations

import gzip
import struct
import tarfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lorita_deploy.errors import BadData, UnknownName
from lorita_deploy.train import datasets
from lorita_deploy.train.datasets import load_dataset, load_images
from lorita_deploy.train.images import ImageFiles

SPLITS = ("train", "validation", "test")


def paint(path: Path, value: int | tuple[int, int, int], size: tuple[int, int] = (8, 8)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB" if isinstance(value, tuple) else "L", size, value).save(path)


def make_tree(root: Path, places: Iterable[str] = ("train", "test"), per_class: int = 10) -> Path:
    for place in places:
        for k, name in enumerate(("cat", "dog")):
            for i in range(per_class):
                paint(root / place / name / f"{i}.png", (100 * k + i, 50, 20 * i))
    return root


# ---------------------------------------------------------------------------------------------- digits


def test_digits_are_split_once_and_for_all_stratified() -> None:
    data = load_dataset("digits", shape=(1, 8, 8))
    assert data.summary.counts == {"train": 1169, "validation": 269, "test": 359}
    assert data.summary.classes == tuple("0123456789")
    assert sum(data.summary.counts.values()) == 1797
    for name in SPLITS:
        shares = torch.bincount(data.split(name).labels, minlength=10) / len(data.split(name))
        assert float((shares - 0.1).abs().max()) < 0.01
    assert data.summary.content_sha256 == load_dataset("digits", shape=(1, 8, 8)).summary.content_sha256
    assert data.summary.content_sha256 != load_dataset("digits", shape=(1, 8, 8), seed=1).summary.content_sha256


def test_no_image_of_digits_is_in_two_splits() -> None:
    from sklearn.datasets import load_digits

    data = load_dataset("digits", shape=(1, 8, 8))
    found = torch.cat([data.split(name).images.flatten(1) for name in SPLITS])
    original = np.round(load_digits().data * 255 / 16).astype(np.uint8)
    assert sorted(map(bytes, found.numpy())) == sorted(map(bytes, original))


def test_digits_are_resized_and_grey_is_repeated() -> None:
    data = load_dataset("digits", shape=(3, 32, 24))
    images = data.split("train").images
    assert images.shape == (1169, 3, 32, 24)
    assert images.dtype == torch.uint8
    assert torch.equal(images[:, 0], images[:, 2])
    small = load_dataset("digits", shape=(1, 8, 8)).split("train").images
    assert float(images.float().mean()) == pytest.approx(float(small.float().mean()), rel=0.02)  # same labels, same picture


def test_batches_are_normalised_in_a_fixed_order_and_can_be_read_again() -> None:
    data = load_dataset("digits", shape=(1, 8, 8))
    batches = data.batches("train", 100)
    assert len(batches) == 12
    first, again = list(batches), list(batches)
    assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(first, again, strict=True))
    inputs = torch.cat([x for x, _ in first])
    assert inputs.dtype == torch.float32
    assert float(inputs.mean()) == pytest.approx(0, abs=1e-4)
    assert float(inputs.std(correction=0)) == pytest.approx(1, abs=1e-4)
    assert torch.equal(torch.cat([y for _, y in first]), data.split("train").labels)


def test_a_limit_takes_images_from_the_whole_split() -> None:
    data = load_dataset("digits", shape=(1, 8, 8))
    labels = torch.cat([y for _, y in data.batches("train", 16, limit=40)])
    assert len(labels) == 40
    assert torch.equal(labels, data.split("train").labels[torch.arange(40) * 1169 // 40])
    assert len(torch.cat([y for _, y in data.batches("test", 16, limit=10_000)])) == 359


def test_a_seed_mixes_the_images_the_same_way_each_time() -> None:
    digits = load_dataset("digits", shape=(1, 8, 8))
    plain, mixed, again = (
        torch.cat([labels for _, labels in digits.batches("train", 100, seed=seed)]) for seed in (None, 3, 3)
    )
    assert torch.equal(mixed, again)
    assert not torch.equal(mixed, plain)
    assert torch.equal(mixed.sort().values, plain.sort().values)


def test_digits_are_never_mirrored() -> None:
    assert load_dataset("digits", shape=(1, 8, 8)).augment == ("crop",)


# ---------------------------------------------------------------------------------------------- folders


def test_a_folder_with_train_and_test(tmp_path: Path) -> None:
    data = load_dataset(f"folder:{make_tree(tmp_path / 'pets')}", shape=(3, 8, 8))
    assert data.summary.counts == {"train": 18, "validation": 2, "test": 20}
    assert data.summary.classes == ("cat", "dog")
    assert data.summary.name == "folder:pets"
    assert "validation taken from train/" in data.summary.source
    assert str(tmp_path) not in data.summary.to_json()
    assert torch.bincount(data.split("validation").labels).tolist() == [1, 1]
    test = data.split("test")
    for image, label in zip(test.images, test.labels, strict=True):
        assert image[1].unique().tolist() == [50]
        assert int(image[0, 0, 0]) - 100 * int(label) == int(image[2, 0, 0]) // 20


@pytest.mark.parametrize(
    ("places", "counts", "source"),
    [
        (("train", "val", "test"), {"train": 20, "validation": 20, "test": 20}, "image folder"),
        (
            ("train", "val"),
            {"train": 18, "validation": 2, "test": 20},
            "image folder; test is val/; validation taken from train/",
        ),
    ],
)
def test_what_val_is_used_for(tmp_path: Path, places: tuple[str, ...], counts: dict[str, int], source: str) -> None:
    data = load_dataset(f"folder:{make_tree(tmp_path, places)}", shape=(1, 8, 8))
    assert data.summary.counts == counts
    assert data.summary.source == source


def test_a_folder_larger_than_memory_is_decoded_when_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"folder:{make_tree(tmp_path)}"
    in_memory = load_dataset(name, shape=(3, 8, 8))
    monkeypatch.setattr(datasets, "MEMORY_SHARE", 0)
    on_disk = load_dataset(name, shape=(3, 8, 8))
    assert isinstance(on_disk.split("train").images, ImageFiles)
    assert isinstance(in_memory.split("train").images, torch.Tensor)
    assert on_disk.summary == in_memory.summary
    for (a, x), (b, y) in zip(in_memory.batches("train", 4), on_disk.batches("train", 4), strict=True):
        assert torch.equal(a, b)
        assert torch.equal(x, y)
    index = torch.tensor([5, 0, 17])
    assert torch.equal(on_disk.split("train").images[index], in_memory.split("train").images[index])


def test_the_digest_sees_pixels_labels_and_split(tmp_path: Path) -> None:
    digests = set()
    for change in ("none", "pixel", "label", "split"):
        root = make_tree(tmp_path / change, ("train", "val", "test"))
        if change == "pixel":
            paint(root / "test/cat/3.png", (4, 50, 60))
        elif change == "label":
            (root / "test/cat/9.png").rename(root / "test/dog/99.png")
        elif change == "split":
            (root / "train").rename(root / "x")
            (root / "test").rename(root / "train")
            (root / "x").rename(root / "test")
            paint(root / "test/cat/3.png", (5, 50, 60))
        digests.add(load_dataset(f"folder:{root}", shape=(3, 8, 8)).summary.content_sha256)
    assert len(digests) == 4


def test_images_are_cut_to_the_centre_not_squeezed(tmp_path: Path) -> None:
    image = np.zeros((20, 60), dtype=np.uint8)
    image[:, 15:45] = 200  # the middle of a wide image: squeezing would keep some black
    Image.fromarray(image).save(tmp_path / "wide.png")
    (batch,) = load_images(tmp_path, shape=(1, 10, 10), mean=(0.0,), std=(1.0,))
    assert float(batch[0].min()) == pytest.approx(200 / 255, abs=1e-3)


def test_images_of_16_bits_keep_their_tones(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    for channels in (1, 3):
        (batch,) = load_images(tmp_path, shape=(channels, 8, 8), mean=(0.0,) * channels, std=(1.0,) * channels)
        expected = torch.linspace(0, 1, 64).reshape(1, 1, 8, 8).expand(1, channels, 8, 8)
        torch.testing.assert_close(batch[0], expected, rtol=0, atol=0.004)
    (tmp_path / "deep.png").unlink()
    Image.fromarray(ramp.astype(np.float32)).save(tmp_path / "float.tiff")
    with pytest.raises(BadData, match="pixels of type F do not say what is white"):
        load_images(tmp_path, shape=(1, 8, 8))


def broken(root: Path, how: str) -> str:
    make_tree(root, ("train", "test"), 3)
    if how == "unreadable":
        (root / "train/dog/bad.png").write_bytes(b"not an image")
    elif how == "cut short":
        whole = root / "train/dog/photo.jpg"
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(whole)
        whole.write_bytes(whole.read_bytes()[:400])
    elif how == "one class":
        for place in ("train", "test"):
            (root / place / "dog").rename(root / f"{place}-dog")
    elif how == "no train":
        (root / "train").rename(root / "training")
    elif how == "no test":
        (root / "test").rename(root / "testing")
    elif how == "foreign class":
        paint(root / "test/bird/0.png", 3)
    elif how == "empty class":
        (root / "train/emu").mkdir()
    elif how == "empty":
        for file in (root / "test").rglob("*.png"):
            file.unlink()
    elif how == "missing":
        return f"folder:{root / 'nowhere'}"
    return f"folder:{root}"


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("unreadable", "bad.png"),
        ("cut short", "photo.jpg"),
        ("one class", "1 class"),
        ("no train", "needs train/"),
        ("no test", "test/"),
        ("foreign class", "bird"),
        ("empty class", "emu"),
        ("empty", "no images"),
        ("missing", "no such folder"),
    ],
)
def test_bad_folders_are_named_with_a_remedy(tmp_path: Path, how: str, said: str) -> None:
    with pytest.raises(BadData, match=said) as caught:
        load_dataset(broken(tmp_path, how), shape=(1, 8, 8))
    assert caught.value.fix


# ---------------------------------------------------------------------------------------------- torchvision, names


def write_mnist(root: Path, train: int, test: int) -> None:
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, count in (("train", train), ("t10k", test)):
        images = np.arange(count * 28 * 28, dtype=np.uint32).astype(np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        for kind, magic, content in (("images-idx3", (2051, count, 28, 28), images), ("labels-idx1", (2049, count), labels)):
            packed = struct.pack(f">{len(magic)}i", *magic) + content.tobytes()
            (raw / f"{name}-{kind}-ubyte").write_bytes(packed)
            (raw / f"{name}-{kind}-ubyte.gz").write_bytes(gzip.compress(packed))


def test_torchvision_data_is_read_from_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_mnist(tmp_path, 100, 30)
    monkeypatch.setenv("LORITA_DATA", str(tmp_path))
    data = load_dataset("mnist", shape=(3, 32, 32))
    assert data.summary.counts == {"train": 90, "validation": 10, "test": 30}
    assert len(data.summary.classes) == 10
    assert data.split("test").images.shape == (30, 3, 32, 32)


def test_a_known_data_set_may_lie_there_as_an_image_folder(tmp_path: Path) -> None:
    make_tree(tmp_path / "mnist")
    data = load_dataset("mnist", shape=(1, 8, 8), root=tmp_path)
    assert data.summary.name == "mnist"
    assert data.summary.counts == {"train": 18, "validation": 2, "test": 20}
    assert data.augment == ("crop",)


def archived(folder: Path, name: str) -> Path:
    with tarfile.open(folder / name, "w:gz") as archive:
        archive.add(make_tree(folder / "tree"), arcname=".")
    return folder / name


def test_an_archive_of_images_is_unpacked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "CACHE", tmp_path / "cache")
    archived(tmp_path, "cifar10-jpeg.tar.gz")
    archived(tmp_path, "fashion-mnist-png.tar.gz")
    data = load_dataset("cifar10", shape=(3, 8, 8), root=tmp_path)
    assert (data.summary.name, data.summary.classes) == ("cifar10", ("cat", "dog"))
    (unpacked,) = (tmp_path / "cache").iterdir()
    assert unpacked.name.startswith("cifar10-jpeg-")
    (unpacked / "train" / "cat" / "0.png").unlink()
    again = load_dataset("cifar10", shape=(3, 8, 8), root=tmp_path)
    assert sum(again.summary.counts.values()) == sum(data.summary.counts.values()) - 1


def test_a_damaged_archive_is_named_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "CACHE", tmp_path / "cache")
    archive = archived(tmp_path, "mnist-png.tar.gz")
    archive.write_bytes(archive.read_bytes()[:-200])
    with pytest.raises(BadData, match="cannot be unpacked") as caught:
        load_dataset("mnist", shape=(1, 8, 8), root=tmp_path)
    assert caught.value.where == str(archive)
    assert not list((tmp_path / "cache").iterdir())


def test_an_archive_cannot_write_outside_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "CACHE", tmp_path / "cache")
    with tarfile.open(tmp_path / "mnist-png.tar.gz", "w:gz") as archive:
        member = tarfile.TarInfo("../../outside.png")
        archive.addfile(member)
    with pytest.raises(BadData, match="cannot be unpacked"):
        load_dataset("mnist", shape=(1, 8, 8), root=tmp_path)
    assert not (tmp_path / "outside.png").exists()


@pytest.mark.parametrize("name", ["mnist", "cifar100"])
def test_where_the_network_is_closed_the_error_says_how_to_supply_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")  # nobody listens on the discard port
    monkeypatch.delenv("no_proxy", raising=False)
    with pytest.raises(BadData, match="LORITA_DATA") as caught:
        load_dataset(name, shape=(1, 28, 28), root=tmp_path)
    assert "folder:PATH" in str(caught.value)


def test_unknown_names_get_near_misses() -> None:
    with pytest.raises(UnknownName, match="did you mean cifar10"):
        load_dataset("cifar-10", shape=(3, 32, 32))


# ---------------------------------------------------------------------------------------------- unlabelled images


def test_a_flat_folder_of_images_calibrates(tmp_path: Path) -> None:
    for i in range(10):
        paint(tmp_path / f"{i}.png", (10 * i, 0, 255))
    (tmp_path / "notes.txt").write_text("not an image")
    batches = load_images(tmp_path, shape=(3, 4, 4), limit=5, batch_size=2)
    assert [tuple(x.shape) for (x,) in batches] == [(2, 3, 4, 4), (2, 3, 4, 4), (1, 3, 4, 4)]
    assert len(batches) == 3
    red = torch.cat([x for (x,) in batches])[:, 0, 0, 0] * 0.229 + 0.485  # ImageNet's, as none was given
    torch.testing.assert_close(red * 255, torch.tensor([0.0, 20, 40, 60, 80]), rtol=0, atol=1e-3)


def test_a_tree_of_classes_calibrates_from_all_of_them(tmp_path: Path) -> None:
    (batch,) = load_images(make_tree(tmp_path), shape=(3, 8, 8), limit=8)
    assert len(batch[0]) == 8
    red = batch[0][:, 0, 0, 0] * 0.229 + 0.485
    assert sorted((red * 255).round().int().tolist()) == [0, 0, 5, 5, 100, 100, 105, 105]  # two of each class in both splits


def test_calibration_needs_images(tmp_path: Path) -> None:
    with pytest.raises(BadData, match="no images"):
        load_images(tmp_path, shape=(3, 4, 4))
    with pytest.raises(BadData, match="no such folder"):
        load_images(tmp_path / "x", shape=(3, 4, 4))
