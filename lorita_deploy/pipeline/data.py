"""Stage data: the images found, counted and described."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from ..records import DataSummary
from .context import Build, Stage
from .folder import key_of, listing
from .given import sample_given


def _data_key(build: Build) -> dict[str, Any]:
    options = build.options
    if build.own_task is not None:
        return {"own": True, "shapes": [list(example.shape) for example in build.own_task.examples]}
    sample = sample_given(build)
    sources = [*([Path(options.calibration)] if options.calibration else []), *_places(build)]
    return {
        "data": build.data_name,
        "calibration": options.calibration,
        "samples": options.calibration_samples,
        "shape": build.shape,
        "sample": sample and sample.digest(),
        "listing": [listing(source) for source in sources],
    }


def _places(build: Build) -> tuple[Path, ...]:
    from ..train.datasets import places_of

    return places_of(build.data_name, build.options.data_root) if build.data_name else ()


def _run_data(build: Build) -> str:
    summary = _summary(build)
    summary.save(build.folder / "data.json")
    sample = sample_given(build)
    if sample and build.data_name == sample.dataset and summary.content_sha256 != sample.data.content_sha256:
        trained_on = f"the images that the shipped network was trained on ({sample.trained_on})"
        build.watch.note(f"these are not {trained_on}: some of those may be what it is judged by")
    counts = ", ".join(f"{count:,} {split}" for split, count in summary.counts.items())
    kind = f"{len(summary.classes)} classes" if summary.classes else "unlabelled"
    return f"{summary.name}: {counts} ({kind}, {'x'.join(map(str, summary.shape))})"


def _summary(build: Build) -> DataSummary:
    if build.own_task is not None:
        shape = tuple(build.own_task.examples[0].shape[1:])
        digest = key_of({"shapes": [list(example.shape) for example in build.own_task.examples]})
        return DataSummary(
            name="own", source="handed in", classes=(), shape=shape, mean=(), std=(), counts={}, content_sha256=digest
        )
    if build.data_name is not None:
        return build.dataset.summary
    assert build.options.calibration is not None
    from ..train.datasets import IMAGENET_MEAN, IMAGENET_STD, load_images

    channels = build.shape[0]
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if channels == 3 else ((0.5,) * channels, (0.5,) * channels)
    sample = sample_given(build)
    if sample:
        mean, std = sample.data.mean, sample.data.std
    total, count = hashlib.sha256(), 0
    limit = 2 * build.options.calibration_samples
    for batch in load_images(Path(build.options.calibration), shape=build.shape, mean=mean, std=std, limit=limit):
        images = batch[0] if isinstance(batch, tuple) else batch
        total.update(images.numpy().tobytes())
        count += len(images)
    return DataSummary(
        name=Path(build.options.calibration).name,
        source="a folder of unlabelled images",
        classes=(),
        shape=build.shape,
        mean=mean,
        std=std,
        counts={"calibration": count},
        content_sha256=total.hexdigest(),
    )


DATA = Stage("data", lambda build: ("data.json",), _data_key, _run_data)
