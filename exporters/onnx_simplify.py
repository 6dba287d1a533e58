"""onnxsim at arm's length: in a process of its own (it has crashed on some graphs), and kept only where nothing is lost."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from .onnx_file import first_line
from .onnx_graph import layer_tensors, name_layers, remove_dead

Arrays = Mapping[str, "np.ndarray[Any, Any]"]
Run = Callable[[Arrays], "list[np.ndarray[Any, Any]]"]

TIMEOUT_S = 300
AGREEMENT = 1e-5
"""Largest difference of outputs, over the largest output, at which both graphs count as equal."""

NAME_LOSERS = ("eliminate_duplicate_initializer", "fuse_qkv")
"""Passes that would make one tensor of several layers' weights or biases."""

_PROGRAM = """
import sys
import onnx
sys.modules["torch"] = None  # onnxsim loads torch for features not used here, which takes seconds
try:
    import onnxsim
except ImportError:
    del sys.modules["torch"]
    import onnxsim
model, _ = onnxsim.simplify(onnx.load(sys.argv[1]), check_n=0, skip_fuse_bn=True, skipped_optimizers=sys.argv[3:])
onnx.save(model, sys.argv[2])
"""


def simplify(
    model: onnx.ModelProto, feeds: Sequence[Arrays], open_bytes: Callable[[bytes], Run], timeout_s: float = TIMEOUT_S
) -> tuple[onnx.ModelProto, str | None, float | None]:
    """The simplified model, None and by how much its outputs differ (as in `AGREEMENT`); or ``model`` itself, why the
    simplification was dropped, and None.

    Kept only if it is valid, smaller in nodes, has the same inputs, outputs and layers (weights and biases by name), and
    agrees with the original on every one of ``feeds``.
    """
    trouble: str | None
    try:
        simplified, trouble = _run_isolated(model, timeout_s)
    except Exception as error:  # no room for temporary files, or a model that cannot be read back
        simplified, trouble = None, first_line(error)
    if simplified is None:
        return model, f"onnxsim not applied: {trouble}", None
    remove_dead(simplified.graph)
    name_layers(simplified)
    simplified.ir_version = model.ir_version
    if len(simplified.graph.node) >= len(model.graph.node):
        return model, "onnxsim not applied: nothing to simplify", None
    if trouble := _what_is_lost(model, simplified):
        return model, f"onnxsim dropped: {trouble}", None
    try:
        error = _difference(model, simplified, feeds, open_bytes)
    except Exception as failure:
        return model, f"onnxsim dropped: it does not run: {first_line(failure)}", None
    if not error <= AGREEMENT:
        return model, f"onnxsim dropped: outputs differ by {error:.1e} of the largest", None
    return simplified, None, error


def _run_isolated(model: onnx.ModelProto, timeout_s: float) -> tuple[onnx.ModelProto | None, str]:
    with tempfile.TemporaryDirectory(prefix="onnxsim-") as name:
        before, after = Path(name, "before.onnx"), Path(name, "after.onnx")
        onnx.save(model, before)
        try:
            done = subprocess.run(
                [sys.executable, "-c", _PROGRAM, str(before), str(after), *NAME_LOSERS],
                capture_output=True,
                text=True,
                timeout=timeout_s,
                check=False,
                cwd=name,
            )
        except subprocess.TimeoutExpired:
            return None, f"no answer within {timeout_s:g} s"
        if done.returncode:
            said = done.stderr.strip().splitlines()
            reason = f"killed by signal {-done.returncode}" if done.returncode < 0 else (said[-1] if said else "no message")
            return None, reason.replace(name, "").replace(str(Path.home()), "~")[:200]
        return onnx.load(after), ""


def _what_is_lost(model: onnx.ModelProto, simplified: onnx.ModelProto) -> str | None:
    def signature(each: onnx.ModelProto) -> list[bytes]:
        return [value.SerializeToString(deterministic=True) for value in (*each.graph.input, *each.graph.output)]

    if signature(model) != signature(simplified):
        return "its inputs or outputs differ"
    if {(each.domain, each.version) for each in model.opset_import} != {
        (each.domain, each.version) for each in simplified.opset_import
    }:
        return "its opset differs"
    lost = layer_tensors(model) - layer_tensors(simplified)
    return f"it renames or removes {len(lost)} weights or biases of layers, such as {min(lost)}" if lost else None


def _difference(
    model: onnx.ModelProto, simplified: onnx.ModelProto, feeds: Sequence[Arrays], open_bytes: Callable[[bytes], Run]
) -> float:
    """Largest difference of an output over the largest value of that output; infinite where one is not a number."""
    original, candidate = open_bytes(model.SerializeToString()), open_bytes(simplified.SerializeToString())
    worst = 0.0
    for feed in feeds:
        for before, after in zip(original(feed), candidate(feed), strict=True):
            scale = float(np.abs(before).max(initial=0.0)) or 1.0
            found = float(np.abs(before - after).max(initial=0.0)) / scale
            worst = max(worst, found if np.isfinite(found) else np.inf)
    return worst
