"""An ONNX file against a target: versions, operators, shapes, weights outside, memory; its numbers in onnx_numbers.py."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from ..profiles import first_with, number, operators_of
from ..records import Finding
from ..targets import Target
from .onnx_numbers import check_quantization, check_types, some
from .onnx_reading import STANDARD, external_files, nodes_of, opset_of, outside_bytes, read_onnx

if TYPE_CHECKING:
    from onnx import ModelProto

BUILDER_COPIES = 4
"""Weights a TensorRT build holds at once; an estimate, so it only warns."""
ONE_OUTPUT = ("LayerNormalization", "MaxPool")
"""Operators of which TensorRT imports the first output only."""
OLDEST_OPSET = 13
"""The one that every target reads."""
ORT_DOMAINS = ("com.microsoft", "ai.onnx.ml")
"""Operators outside the standard that ONNX Runtime brings along."""


def check_onnx(path: Path, target: Target) -> Iterator[Finding]:
    """Finding by finding. Raises `BadArtifact`."""
    model, notes = read_onnx(path)
    for note in notes:
        yield Finding(subject="file", state="note", found=note)
    yield from _versions(model, target)
    yield from _operators(model, target)
    yield from check_types(model, target)
    yield from check_quantization(model, target)
    yield from _shapes(model, target)
    yield from _outside(model, path)
    yield from _memory(model, path, target)


def _versions(model: ModelProto, target: Target) -> Iterator[Finding]:
    opset, limits = opset_of(model), target.limits
    if opset > limits.opset_max:
        found = f"{opset}; {target.spelled} reads up to {limits.opset_max}"
        yield Finding(subject="opset", state="wrong", found=found, fix=f"export it with --target {target.spelled}")
    elif opset < 1:
        yield Finding(subject="opset", state="wrong", found="none is named", fix="export it again")
    else:
        yield Finding(subject="opset", state="ok", found=f"{opset} (up to {limits.opset_max})")
    newest = limits.ir_version_max or limits.ir_version
    if model.ir_version <= newest:
        yield Finding(subject="IR version", state="ok", found=f"{model.ir_version} (up to {newest})")
        return
    found = f"{model.ir_version}; the opsets of {target.spelled} go with up to {newest}"
    if target.runtime == "tensorrt":
        yield Finding(subject="IR version", state="note", found=f"{found}: TensorRT warns and goes on")
    else:
        fix = f"export it with --target {target.spelled}"
        yield Finding(subject="IR version", state="wrong", found=f"{found}: ONNX Runtime refuses the file", fix=fix)


def _operators(model: ModelProto, target: Target) -> Iterator[Finding]:
    own = {(function.domain, function.name) for function in model.functions}
    used = Counter((node.domain, node.op_type) for node in nodes_of(model) if (node.domain, node.op_type) not in own)
    foreign = sorted({domain for domain, _ in used if domain not in STANDARD})
    if target.profile is None:
        strange = [domain for domain in foreign if domain not in ORT_DOMAINS]
    else:
        strange = foreign
        yield from _against_the_importer(used, target, target.profile.tensorrt)
        if own and number(target.profile.tensorrt) < (9,):
            found = f"functions of its own ({some(name for _, name in own)}), which TensorRT imports from 9.0 on"
            yield Finding(
                subject="functions", state="wrong", found=found, fix="inline them: onnx.inliner.inline_local_functions"
            )
    if strange:
        names = some(name for domain, name in used if domain in strange)
        found = f"{names} (of {', '.join(strange)}) are not operators of the ONNX standard"
        yield Finding(
            subject="operators", state="wrong", found=found, fix="export without them, or bring a plug-in that has them"
        )


def _against_the_importer(used: Counter[tuple[str, str]], target: Target, tensorrt: str) -> Iterator[Finding]:
    """Every operator of the standard against the list of those that this TensorRT imports."""
    known, names = operators_of(tensorrt), {name for domain, name in used if domain in STANDARD}
    for name in sorted(names - known):
        found = f"{name} ({used['', name] + used['ai.onnx', name]}x) is not imported by TensorRT {tensorrt}"
        yield Finding(subject="operators", state="wrong", found=found, fix=_instead_of(name, tensorrt))
    if names <= known:
        yield Finding(subject="operators", state="ok", found=f"all {len(names)} kinds are imported by TensorRT {tensorrt}")


def _instead_of(operator: str, tensorrt: str) -> str:
    """An older opset writes a young operator as several old ones; a newer TensorRT may know it."""
    import onnx

    history = [schema.since_version for schema in onnx.defs.get_all_schemas_with_history() if schema.name == operator]
    ways = []
    if history and min(history) > OLDEST_OPSET:
        ways.append(f"export with --opset {OLDEST_OPSET}, where it is written in older operators")
    if later := first_with(operator):
        ways.append(f"take a profile with TensorRT {later} or later")
    return "; or ".join(ways) or "rewrite that part of the network with other operators"


def _shapes(model: ModelProto, target: Target) -> Iterator[Finding]:
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    open_ones = []
    for value in inputs:
        kind = value.type.tensor_type
        if not kind.HasField("shape") or any(not extent.dim_value for extent in kind.shape.dim):
            open_ones.append(value.name)
    if open_ones and target.profile is not None:
        found = f"open dimensions in {some(open_ones)}: the engine needs an optimization profile"
        fix = "export without --dynamic-batch, or give trtexec --minShapes, --optShapes and --maxShapes"
        yield Finding(subject="shapes", state="note", found=found, fix=fix)
    else:
        yield Finding(subject="shapes", state="ok", found="open dimensions, which is fine here" if open_ones else "fixed")
    if target.profile is not None:
        second = [node.op_type for node in nodes_of(model) if node.op_type in ONE_OUTPUT and any(node.output[1:])]
        if second:
            found = f"the second output of {some(second)} is used, which TensorRT does not import"
            yield Finding(subject="outputs", state="wrong", found=found, fix="rewrite the network without that output")


def _outside(model: ModelProto, path: Path) -> Iterator[Finding]:
    """Weights in other files: they must lie beside the model, and travel with it."""
    names = external_files(model)
    unsafe = [name for name in names if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or "\0" in name]
    missing = [name for name in names if name not in unsafe and not os.path.isfile(path.parent / name)]
    if unsafe:
        found = f"weights outside the model's folder: {some(unsafe)}"
        yield Finding(subject="external data", state="wrong", found=found, fix="save the model with its weights beside it")
    if missing:
        found = f"weights in files that are not there: {some(missing)}"
        yield Finding(subject="external data", state="wrong", found=found, fix=f"copy them to {path.parent}")
    if names and not unsafe and not missing:
        found = f"weights in {some(names)}"
        yield Finding(subject="external data", state="note", found=found, fix="copy these files together with the model")


def _memory(model: ModelProto, path: Path, target: Target) -> Iterator[Finding]:
    """The weights against the memory of the board."""
    there = target.limits.memory_bytes
    size = path.stat().st_size + outside_bytes(model)
    told = f"{size / 1e6:,.3g} MB" if size < 1e9 else f"{size / 1e9:,.3g} GB"
    if there is None:
        yield Finding(subject="memory", state="ok", found=f"{told}; how much the target has is not known")
    elif size > there:
        found = f"{told}; {target.name} has {there / 1e9:g} GB"
        yield Finding(subject="memory", state="wrong", found=found, fix="compress the network further, or take a larger board")
    elif target.profile is not None and size * BUILDER_COPIES > there:
        found = (
            f"{told}; a build that holds {BUILDER_COPIES} copies (an estimate) exceeds the {there / 1e9:g} GB of {target.name}"
        )
        yield Finding(subject="memory", state="note", found=found, fix="add swap, stop the desktop, and limit the workspace")
    else:
        yield Finding(subject="memory", state="ok", found=f"{told} of {there / 1e9:g} GB")
