"""Data sets by name: split, described, kept in memory as uint8 (where it fits) so that loading is never the bottleneck.

    digits                                       scikit-learn's 1,797 handwritten digits; needs no file and no network
    mnist, fashion-mnist, cifar10, cifar100      from ``root`` or $LORITA_DATA: torchvision's files, or else a folder NAME or an
                                                 archive NAME-*.tar.gz of images; or else downloaded
    folder:PATH                                  train/<class>/*, with test/ and/or val/ beside train/

Where a data set comes without a validation split, a tenth of each class (at most 5,000 images in all) is taken from
train/. Where a folder has val/ but no test/, val/ is kept for the test, looked at once (as is usual with ImageNet).
"""

from __future__ import annotations

import os
import socket
import tarfile
import tempfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import BadData, UnknownName
from ..memory import free_memory
from ..records import Augmentation
from .images import SUFFIXES, ImageFiles, Shape, decode, evenly_spaced, find_images, fit
from .splits import VALIDATION_SHARE, Dataset, ImageBatches, Split, carve, describe

TORCHVISION = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST", "cifar10": "CIFAR10", "cifar100": "CIFAR100"}
TORCHVISION_FOLDERS = {**TORCHVISION, "cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}
"""Where torchvision keeps them."""
ON_DIGITS: tuple[Augmentation, ...] = ("crop",)
ON_PHOTOS: tuple[Augmentation, ...] = ("flip", "crop", "zoom", "erase")
"""What may be changed in training without making another thing of what is to be seen."""
KNOWN = ("digits", *TORCHVISION, "folder:PATH")

CACHE = Path("~", ".cache", "lorita-deploy", "data")

MEMORY_SHARE = 0.4
"""Of the free memory, that images kept as uint8 may take."""


IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""What torchvision's and most of timm's classifiers were trained with (torchvision, "Models and pre-trained weights")."""


def load_dataset(name: str, *, shape: Shape, seed: int = 0, root: Path | str | None = None) -> Dataset:
    """The data set called ``name``, resized to ``shape`` (C, H, W), split by ``seed``.

    ``root`` holds torchvision's data sets (default: $LORITA_DATA, then ~/.cache/lorita-deploy/data). Raises `UnknownName` and
    `BadData`.
    """
    if name == "digits":
        return _digits(shape, seed)
    if name in TORCHVISION:
        return _torchvision(name, shape, seed, root)
    if name.startswith("folder:"):
        return _folder(places_of(name)[0], shape, seed)
    raise UnknownName("data set", name, KNOWN, fix="an image folder with train/ and test/ is given as folder:PATH")


def places_of(name: str, root: Path | str | None = None) -> tuple[Path, ...]:
    """The folders and archives in which `load_dataset` looks for ``name``, there or not; none for what needs no file."""
    if name.startswith("folder:"):
        return (Path(name.removeprefix("folder:")).expanduser(),)
    if name not in TORCHVISION:
        return ()
    place = _root(root)
    return (place / TORCHVISION_FOLDERS[name], place / name, *_archives(name, place))


def load_images(
    path: Path | str,
    *,
    shape: Shape,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    limit: int = 256,
    batch_size: int = 32,
) -> ImageBatches:
    """Batches of inputs from a folder of images, flat or nested; labels, if any, are not looked at.

    Up to ``limit`` images, evenly spaced over the sorted names (so that class folders are mixed). ``mean`` and ``std`` are
    per channel, of pixels in 0..1; ImageNet's when not given. Raises `BadData`.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise BadData("there is no such folder", where=folder, fix="give a folder of images")
    paths = find_images(folder)
    if not paths:
        raise BadData("the folder holds no images", where=folder, fix=f"put images there ({', '.join(sorted(SUFFIXES))})")
    chosen = [paths[i] for i in evenly_spaced(len(paths), limit).tolist()]
    return ImageBatches(
        decode(chosen, shape),
        _per_channel(mean, IMAGENET_MEAN, shape[0]),
        _per_channel(std, IMAGENET_STD, shape[0]),
        batch_size,
    )


def _per_channel(given: Sequence[float] | None, imagenet: Sequence[float], channels: int) -> tuple[float, ...]:
    if given is not None:
        return tuple(given)
    return tuple(imagenet) if channels == 3 else (sum(imagenet) / 3,) * channels


# ---------------------------------------------------------------------------------------------- sources


def _digits(shape: Shape, seed: int) -> Dataset:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels = torch.from_numpy(bunch.images).mul(255 / 16).round().to(torch.uint8)[:, None]  # 8 x 8, values 0..16
    everything = Split(fit(pixels, shape), torch.from_numpy(bunch.target).long())
    rest, test = carve(everything, 0.2, seed)
    train, validation = carve(rest, 0.15 / 0.8, seed)
    splits = {"train": train, "validation": validation, "test": test}
    return describe("digits", "scikit-learn load_digits", tuple("0123456789"), shape, splits, ON_DIGITS)


def _torchvision(name: str, shape: Shape, seed: int, root: Path | str | None) -> Dataset:
    import torchvision.datasets

    place = _root(root)
    loader = getattr(torchvision.datasets, TORCHVISION[name])
    augment: tuple[Augmentation, ...] = ON_DIGITS if name == "mnist" else ON_PHOTOS
    try:
        parts = [loader(place, train=train, download=False) for train in (True, False)]
    except (RuntimeError, OSError):
        tree = _image_tree(name, place)
        if tree:
            return _folder(tree, shape, seed, name=name, augment=augment)
        parts = [_download(loader, name, place, train) for train in (True, False)]
    classes = tuple(str(each) for each in parts[0].classes)
    whole, test = (Split(fit(_pixels(part.data), shape), torch.as_tensor(part.targets).long()) for part in parts)
    train, validation = carve(whole, VALIDATION_SHARE, seed)
    splits = {"train": train, "validation": validation, "test": test}
    return describe(name, f"torchvision {TORCHVISION[name]}", classes, shape, splits, augment)


def _root(given: Path | str | None) -> Path:
    return Path(given or os.environ.get("LORITA_DATA") or CACHE).expanduser()


def _archives(name: str, place: Path) -> list[Path]:
    return sorted(place.glob(f"{name}-*.tar.gz"))


def _image_tree(name: str, place: Path) -> Path | None:
    """The data set as an image folder beside torchvision's files; an archive of one is unpacked once, into the cache."""
    if (place / name / "train").is_dir():
        return place / name
    for archive in _archives(name, place):
        facts = archive.stat()
        target = CACHE.expanduser() / f"{archive.name.removesuffix('.tar.gz')}-{facts.st_size}-{facts.st_mtime_ns}"
        if not target.is_dir():
            _unpack(archive, target)
        return target
    return None


def _unpack(archive: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, ignore_cleanup_errors=True) as scratch:
        try:
            with tarfile.open(archive) as opened:
                opened.extractall(scratch, filter="data")
        except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
            raise BadData(f"cannot be unpacked: {error}", where=archive, fix="copy the archive anew") from error
        try:
            Path(scratch).rename(target)
        except OSError:
            if not target.is_dir():  # another process was as fast
                raise


def _download(loader: Any, name: str, place: Path, train: bool) -> Any:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(20)
    try:
        return loader(place, train=train, download=True)
    except (RuntimeError, OSError) as error:
        raise BadData(
            f"{name} is not there and cannot be downloaded: {str(error).splitlines()[0]}",
            where=place,
            fix=f"put torchvision's files for {loader.__name__} there (or set LORITA_DATA to where they are), "
            "or use an image folder with train/ and test/: --data folder:PATH",
        ) from error
    finally:
        socket.setdefaulttimeout(before)


def _pixels(data: Any) -> Tensor:
    """torchvision keeps (N, H, W) tensors or (N, H, W, C) arrays."""
    images = torch.as_tensor(data)
    return images[:, None] if images.dim() == 3 else images.permute(0, 3, 1, 2)


def _folder(
    path: Path, shape: Shape, seed: int, *, name: str | None = None, augment: tuple[Augmentation, ...] = ON_PHOTOS
) -> Dataset:
    if not path.is_dir():
        raise BadData("there is no such folder", where=path, fix="check the path behind folder:")
    places = {word: path / word for word in ("train", "val", "test") if (path / word).is_dir()}
    if "train" not in places or len(places) < 2:
        raise BadData(
            "an image folder needs train/ and test/ (or val/) with one folder per class in each",
            where=path,
            fix="make PATH/train/<class>/ and PATH/test/<class>/ and move the images there",
        )
    classes = tuple(sorted(each.name for each in places["train"].iterdir() if each.is_dir() and not each.name.startswith(".")))
    if len(classes) < 2:
        raise BadData(
            f"train/ has {len(classes)} class folder(s), a classifier needs two",
            where=places["train"],
            fix="make one folder per class under train/",
        )
    splits = {word: _class_folders(place, classes, shape) for word, place in places.items()}
    empty = [each for k, each in enumerate(classes) if not (splits["train"].labels == k).any()]
    if empty:
        raise BadData(
            f"no images of class {', '.join(empty)} in train/", where=path, fix="add images or remove the class folder"
        )
    notes = []
    if "test" not in splits:
        splits["test"] = splits.pop("val")
        notes.append("test is val/")
    if "val" in splits:
        splits["validation"] = splits.pop("val")
    else:
        splits["train"], splits["validation"] = carve(splits["train"], VALIDATION_SHARE, seed)
        notes.append("validation taken from train/")
    splits = _in_memory(splits, shape)
    return describe(name or f"folder:{path.name}", "; ".join(["image folder", *notes]), classes, shape, splits, augment)


def _class_folders(place: Path, classes: tuple[str, ...], shape: Shape) -> Split:
    foreign = sorted(each.name for each in place.iterdir() if each.is_dir() and each.name not in classes and find_images(each))
    if foreign:
        raise BadData(
            f"{place.name}/ has classes that train/ lacks: {', '.join(foreign[:5])}",
            where=place,
            fix="name the class folders alike, or add training images of these classes",
        )
    paths: list[Path] = []
    labels: list[int] = []
    for k, each in enumerate(classes):
        found = find_images(place / each)
        paths += found
        labels += [k] * len(found)
    if not paths:
        raise BadData(
            "the folder holds no images", where=place, fix="put the images of each class into a folder of its own there"
        )
    return Split(ImageFiles(paths, shape), torch.tensor(labels))


def _in_memory(splits: dict[str, Split], shape: Shape) -> dict[str, Split]:
    """Decoded once and kept, if there is room: for each of the processes that train here together."""
    needed = sum(len(split) for split in splits.values()) * shape[0] * shape[1] * shape[2]
    free, processes = free_memory(), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if free is not None and needed * processes > MEMORY_SHARE * free:
        return splits
    return {name: Split(split.images[:], split.labels) for name, split in splits.items()}
