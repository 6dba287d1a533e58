"""The stage that multiplies the factors out: the dense network, described layer by layer."""

from __future__ import annotations

from typing import Any

from ..errors import BadCheckpoint
from ..networks import evaluating, read_weights, save_weights, survey, weights_digest
from ..records import CollapsedRecord, Layer
from ..report import words
from .context import Build, Stage
from .folder import sha256_of
from .given import source_given
from .weights import load_as_trained, load_plain_weights


def _collapse_key(build: Build) -> dict[str, Any]:
    options = build.options
    given = None
    if build.own_model is not None:
        given = weights_digest(build.own_model)
    elif not build.trains:
        given = sha256_of(build.checkpoint) if build.checkpoint else None
    return {
        "model": options.model,
        "given": (given, options.checkpoint_format),
        "trained": build.trains and sha256_of(build.folder / "trained.safetensors"),
        "data": build.data.content_sha256,
        "shape": None if build.own_task else build.shape,
        "classes": None if build.own_task else build.classes,
        "seed": options.seed,
        **source_given(build),
    }


def _run_collapse(build: Build) -> str:
    import torch

    from ..compress.opening import open_attention
    from ..compress.replaceable import irreplaceable
    from ..compress.spectrum import spectra
    from ..train.composition import collapse

    module = build.blank()
    if build.trains:
        path = build.folder / "trained.safetensors"
        load_as_trained(module, path, read_weights(path))
    elif build.checkpoint:
        load_plain_weights(module, build.checkpoint, build.options.checkpoint_format)
    elif build.own_model is None:
        build.watch.note("no --checkpoint was given: the weights are random")
    module.eval()
    examples = build.task.examples
    with evaluating(module), torch.inference_mode():
        before = module(*examples)
        collapse(module)
        after = module(*examples)
    found = survey(module, examples)
    closed = open_attention(module, examples).left_alone  # what could be opened is open
    left_alone = (*closed, *found.left_alone, *irreplaceable(module, examples, found.geometries))
    names = [name for name in found.geometries if name not in {each.layer for each in left_alone}]
    spectrum = spectra(module, names)
    digest = save_weights(module, build.folder / "collapsed.safetensors")
    module.to(build.device)
    layers = tuple(Layer(name=name, geometry=found.geometries[name], group=name, spectrum=spectrum[name]) for name in names)
    record = CollapsedRecord(
        model=build.options.model,
        classes=0 if build.own_task else build.classes,
        input_shapes=tuple(tuple(example.shape[1:]) for example in examples),
        layers=layers,
        left_alone=left_alone,
        params=sum(parameter.numel() for parameter in module.parameters()),
        macs=found.macs,
        collapse_error=_relative_difference(before, after),
        accuracy=(build.task.evaluate(module),),
        weights_sha256=digest,
    )
    record.save(build.folder / "collapsed.json")
    size = f"{record.params:,} parameters, {words.amount(record.macs)} MACs, {len(layers)} layers"
    return f"{size}; {words.percent(record.accuracy[0])}"


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


COLLAPSE = Stage("collapse", lambda build: ("collapsed.json", "collapsed.safetensors"), _collapse_key, _run_collapse)
