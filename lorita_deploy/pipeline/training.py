"""Stages data, train and collapse: from images and a recipe (or a checkpoint) to the plain dense network."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import BadCheckpoint
from ..measure.accuracy import accuracy
from ..networks import evaluating, load_weights, read_weights, save_weights, survey, weights_digest
from ..records import Accuracy, CollapsedRecord, DataSummary, Layer, TrainRecord
from .context import EVALUATION_BATCH, Build, Stage
from .folder import key_of, sha256_of

if TYPE_CHECKING:
    from torch import nn

# ---------------------------------------------------------------------------------------------- data


def _data_key(build: Build) -> dict[str, Any]:
    options = build.options
    if build.own_task is not None:
        return {"own": True, "shapes": [list(example.shape) for example in build.own_task.examples]}
    sources = [options.calibration, *([build.data_name.partition(":")[2]] if build.data_name else []), options.data_root]
    return {
        "data": build.data_name,
        "calibration": options.calibration,
        "samples": options.calibration_samples,
        "shape": build.shape,
        "seed": options.seed,
        "listing": [_listing(Path(source)) for source in sources if source],
    }


def _listing(folder: Path) -> str:
    """A digest of the names, sizes and times of all files, so that unchanged images need not be read again."""
    if not folder.is_dir():
        return "none"
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        facts = path.stat()
        total.update(f"{path.relative_to(folder)}|{facts.st_size}|{facts.st_mtime_ns}\n".encode())
    return total.hexdigest()


def _run_data(build: Build) -> str:
    summary = _summary(build)
    summary.save(build.folder / "data.json")
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


# ---------------------------------------------------------------------------------------------- train


def _train_key(build: Build) -> dict[str, Any]:
    if not build.trains:
        return {"trains": False}
    return {
        "model": build.spec.name,
        "data": build.data.content_sha256,
        "recipe": build.recipe.model_dump(),
        "input_size": build.input_size,
        "classes": build.classes,
        "checkpoint": build.options.checkpoint and sha256_of(Path(build.options.checkpoint)),
    }


def _run_train(build: Build) -> str:
    if not build.trains:
        return "skipped: the network is given"
    from ..train.loop import train

    dataset = build.dataset
    key = key_of(_train_key(build))
    scratch = build.folder / "training" / key[:16]
    module = build.blank()
    if build.options.checkpoint:
        load_plain_weights(module, Path(build.options.checkpoint), build.options.checkpoint_format)

    def evaluate(network: nn.Module) -> Accuracy:
        return accuracy(network, dataset.batches("validation", EVALUATION_BATCH), "validation")

    trained = train(
        module,
        dataset,
        build.recipe,
        scratch,
        evaluate=evaluate,
        model_name=build.spec.name,
        device=build.options.torch_device,
        on_progress=build.watch.progress,
    )
    save_weights(trained.module, build.folder / "trained.safetensors")
    trained.record.save(build.folder / "trained.json")
    shutil.rmtree(scratch, ignore_errors=True)
    best = trained.record.epochs[trained.record.best_epoch - 1].validation
    return f"{percent(best)}, best epoch {trained.record.best_epoch} of {len(trained.record.epochs)}"


def _train_outputs(build: Build) -> tuple[str, ...]:
    return ("trained.json", "trained.safetensors") if build.trains else ()


# ---------------------------------------------------------------------------------------------- collapse


def _collapse_key(build: Build) -> dict[str, Any]:
    options = build.options
    given = None
    if build.own_model is not None:
        given = weights_digest(build.own_model)
    elif not build.trains:
        given = options.checkpoint and sha256_of(Path(options.checkpoint))
    return {
        "model": options.model,
        "given": (given, options.checkpoint_format),
        "trained": build.trains and sha256_of(build.folder / "trained.safetensors"),
        "data": build.data.content_sha256,
        "shape": None if build.own_task else build.shape,
        "classes": None if build.own_task else build.classes,
        "seed": options.seed,
    }


def _run_collapse(build: Build) -> str:
    import torch

    from ..compress.spectrum import spectra
    from ..train.composition import collapse, factored_layers, factorize

    module = build.blank()
    if build.trains:
        factorize(module, TrainRecord.load(build.folder / "trained.json").recipe.depth)
        load_weights(module, build.folder / "trained.safetensors")
    elif build.options.checkpoint:
        load_plain_weights(module, Path(build.options.checkpoint), build.options.checkpoint_format)
    elif build.own_model is None:
        build.watch.note("no --checkpoint was given: the weights are random")
    module.eval()
    examples = build.task.examples
    with evaluating(module), torch.inference_mode():
        before = module(*examples)
        if factored_layers(module):
            collapse(module)
        after = module(*examples)
    found = survey(module, examples)
    spectrum = spectra(module, list(found.geometries))
    digest = save_weights(module, build.folder / "collapsed.safetensors")
    module.to(build.device)
    layers = tuple(
        Layer(name=name, geometry=geometry, group=name, spectrum=spectrum[name]) for name, geometry in found.geometries.items()
    )
    record = CollapsedRecord(
        model=build.options.model,
        classes=0 if build.own_task else build.classes,
        input_shapes=tuple(tuple(example.shape[1:]) for example in examples),
        layers=layers,
        left_alone=found.left_alone,
        params=sum(parameter.numel() for parameter in module.parameters()),
        macs=found.macs,
        collapse_error=_relative_difference(before, after),
        accuracy=(build.task.evaluate(module),),
        weights_sha256=digest,
    )
    record.save(build.folder / "collapsed.json")
    return f"{record.params:,} parameters, {record.macs / 1e6:,.1f} M MACs, {len(layers)} layers; {percent(record.accuracy[0])}"


def load_plain_weights(module: nn.Module, path: Path, form: str = "plain") -> None:
    """Load a checkpoint of the plain network, or one of a LoRITa training (factors), which is collapsed; ``form`` as in
    `BuildOptions.checkpoint_format`.

    Raises `BadCheckpoint`.
    """
    from ..train.composition import collapse, factored_layers, factorize
    from ..train.published import read_published

    if form == "lorita":
        load_weights(module, path, read_published(path))
        return

    depths = {
        int(name.rsplit("original", 1)[1]) + 1
        for name in read_weights(path)
        if ".parametrizations." in name and name.rsplit("original", 1)[-1].isdigit()
    }
    if depths:
        factorize(module, max(depths))
    load_weights(module, path)
    if factored_layers(module):
        collapse(module)


def _relative_difference(before: Any, after: Any) -> float:
    """Largest difference over the largest output; of the first output where there are several."""
    import torch

    if not isinstance(before, torch.Tensor):
        before, after = (
            next(iter(before.values() if isinstance(before, dict) else before)),
            next(iter(after.values() if isinstance(after, dict) else after)),
        )
    largest = float(before.abs().max())
    difference = float((before - after).abs().max())
    if not difference < float("inf") or not largest < float("inf"):
        raise BadCheckpoint(
            "the network's outputs are not finite on a real input", fix="use other weights or check --input-size"
        )
    return difference / largest if largest else difference


def percent(found: Accuracy) -> str:
    if found.metric == "score":
        return f"score {found.value:.4g}"
    what = "agreement" if found.metric == "agreement" else "right"
    return f"{100 * found.value:.2f} % {what} of {found.total:,} {found.split} images"


DATA = Stage("data", lambda build: ("data.json",), _data_key, _run_data)
TRAIN = Stage("train", _train_outputs, _train_key, _run_train)
COLLAPSE = Stage("collapse", lambda build: ("collapsed.json", "collapsed.safetensors"), _collapse_key, _run_collapse)
