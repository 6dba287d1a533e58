"""What a build starts from: the weights and the data that the options name, or that a shipped network brings along."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import LoritaDeployError
from ..ports import of_a_family
from ..records import SampleRecord
from .folder import sha256_of
from .options import DEFAULT_DATA

if TYPE_CHECKING:
    from ..train.splits import Dataset
    from .context import Build


def weights_given(build: Build) -> Path | None:
    """Raises `LoritaDeployError` where the model's own trained network is asked for and there is none."""
    given = build.options.checkpoint
    if not build.options.sample:
        return Path(given) if given else None
    if given:
        raise LoritaDeployError("--sample and --init-from (--checkpoint) both name weights", fix="keep one of them")
    if build.spec.sample is None or not build.spec.sample.exists():
        what = f"no trained network of {build.spec.name} ships with it"
        raise LoritaDeployError(what, fix="leave out --sample to train one, or give --checkpoint")
    return build.spec.sample


def source_given(build: Build) -> dict[str, str | None]:
    """For keys: the digest of the file that a ``package.module:function`` stands in. Nothing for networks that are handed in,
    which bring their weights, and for registered ones, which change with a version."""
    module, colon, _ = build.options.model.partition(":")
    if build.own_model is not None or not colon or of_a_family(build.options.model):
        return {}
    _ = build.spec  # says what is wrong where it cannot be imported
    place = importlib.import_module(module).__file__
    return {"source": sha256_of(Path(place)) if place else None}


def data_given(build: Build) -> str | None:
    """The labelled data set; None where only unlabelled images were given."""
    options = build.options
    if options.data or options.calibration:
        return options.data
    sample = sample_given(build)
    return sample.dataset if sample else DEFAULT_DATA


def dataset_given(build: Build) -> Dataset:
    """What `data_given` names, normalised as the shipped network wants it where that is asked for.

    It is divided alike whatever the seed: weights to start from and a teacher have not learnt what their pupil is judged by.
    """
    from ..train.datasets import load_dataset

    assert build.data_name is not None
    root = Path(build.options.data_root) if build.options.data_root else None
    sample = sample_given(build)
    found = load_dataset(build.data_name, shape=build.shape, root=root)
    return found.normalised(sample.data.mean, sample.data.std) if sample else found


def sample_given(build: Build) -> SampleRecord | None:
    """What is recorded of the model's own trained network, where that is asked for."""
    if not build.options.sample or build.checkpoint is None:
        return None
    return SampleRecord.load(build.checkpoint.with_suffix(".json"))
