"""Lower precisions in the ONNX graph itself: what stays fp32 is found on real data, and by asking whether the result is right.

Whether a graph is right often enough is asked of ``job.accepts`` (accuracy, in a build). Where the graph as a whole is not,
the layers are ordered by the error that each one causes alone, and the smallest number of the worst that must stay fp32 is
bisected.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from onnx import ModelProto

from lorita_deploy.errors import BadData, BadTarget
from lorita_deploy.ports import ExportJob, Session

from .onnx_file import open_bytes
from .onnx_fp16 import retype, to_fp16
from .onnx_int8 import assumed_ranges, measure_ranges, quantizable, quantize

Arrays = Mapping[str, "np.ndarray[Any, Any]"]
Make = Callable[[Sequence[str]], ModelProto]
"""The graph in which the layers of these names stay fp32."""

LEAST_OPSET = 13
"""QuantizeLinear per channel."""
JUDGED_ON = 32
"""Examples that a layer's own error is measured on."""


def lower(model: ModelProto, job: ExportJob) -> tuple[ModelProto, tuple[str, ...]]:
    """The graph in ``job.precision`` and the names of the nodes that stayed fp32; ``model`` itself where all had to.

    Raises `BadData` (nothing to calibrate on), `BadTarget` (an opset without int8).
    """
    if job.precision == "int8" and job.opset < LEAST_OPSET:
        raise BadTarget(f"int8 needs opset {LEAST_OPSET}, not {job.opset}", where=job.filename, fix="leave out --opset")
    feeds = _calibration(job)
    if not feeds:
        raise BadData(
            f"there is nothing to calibrate {job.precision} on",
            where=job.filename,
            fix="give --data, or --calibration with a folder of some dozens of images like those it will see",
        )
    name_nodes(model)
    layers = quantizable(model)
    make: Make
    if job.precision == "int8":
        ranges = measure_ranges(model, feeds)

        def make(keep: Sequence[str]) -> ModelProto:
            return quantize(model, ranges, job.runtime, keep)

        lowered, kept = make(()), ()
    else:
        lowered, kept = to_fp16(model, feeds, open_bytes)

        def make(keep: Sequence[str]) -> ModelProto:
            return retype(model, {*kept, *keep})

    if job.accepts is None or job.accepts(_session(lowered)):
        return lowered, kept
    lowered, back = _bisect(model, make, job.accepts, _by_harm(model, make, layers, feeds[:JUDGED_ON]))
    return lowered, tuple(node.name for node in model.graph.node if node.name in {*kept, *back})


def for_timing(model: ModelProto, precision: str, runtime: str) -> ModelProto:
    """The graph in another precision with made-up ranges: as fast as the real one, and of no other use."""
    if precision == "fp32":
        return model
    name_nodes(model)
    return quantize(model, assumed_ranges(model), runtime) if precision == "int8" else retype(model)


def name_nodes(model: ModelProto) -> None:
    """Give every node a name of its own; those that have one keep it."""
    taken = {node.name for node in model.graph.node}
    seen: set[str] = set()
    for place, node in enumerate(model.graph.node):
        if not node.name or node.name in seen:
            stem = f"{node.name or node.op_type}#{place}"
            node.name = stem if stem not in taken else f"{stem}/{place}"
        seen.add(node.name)


def _bisect(
    model: ModelProto, make: Make, accepts: Callable[[Session], bool], by_harm: Sequence[str]
) -> tuple[ModelProto, tuple[str, ...]]:
    """The fewest of the most harmful layers in fp32 with which the graph is accepted: none is known to be too few."""
    too_few, enough, best = 0, len(by_harm), model
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        candidate = make(by_harm[:middle])
        if accepts(_session(candidate)):
            enough, best = middle, candidate
        else:
            too_few = middle
    return best, tuple(by_harm[:enough])


def _by_harm(model: ModelProto, make: Make, layers: Sequence[str], feeds: Sequence[Arrays]) -> list[str]:
    """``layers``, the one first whose lower precision alone changes the outputs most (mean square)."""
    expected = _outputs(model, feeds)
    harm = {}
    for layer in layers:
        found = _outputs(make([other for other in layers if other != layer]), feeds)
        harm[layer] = sum(float(np.mean((a - b) ** 2)) for a, b in zip(expected, found, strict=True))
    return sorted(layers, key=lambda layer: -harm[layer])


def _outputs(model: ModelProto, feeds: Sequence[Arrays]) -> list[np.ndarray[Any, Any]]:
    session = _session(model)
    return [output.astype(np.float64) for feed in feeds for output in session(feed)]


def _session(model: ModelProto) -> Session:
    return open_bytes(model.SerializeToString())


def _calibration(job: ExportJob) -> list[Arrays]:
    """The calibration examples in batches of the size that the graph takes; the last one is filled up from the front."""
    batches = [[tensor.detach().cpu().numpy() for tensor in batch] for batch in job.calibration]
    if not batches:
        return []
    if job.dynamic_batch:
        return [dict(zip(job.input_names, arrays, strict=True)) for arrays in batches]
    whole = [np.concatenate(of_one_input) for of_one_input in zip(*batches, strict=True)]
    count = len(whole[0])
    starts = range(0, count, job.batch)
    rows = [np.arange(start, start + job.batch) % count for start in starts]
    return [{name: array[each] for name, array in zip(job.input_names, whole, strict=True)} for each in rows]
