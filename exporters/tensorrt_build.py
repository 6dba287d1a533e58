"""Builds one TensorRT engine, in a process of its own: a builder that runs out of memory or crashes takes nothing along.

    python -m lorita_exporters.tensorrt_build request.json

The request names the ONNX file, where to write, and the limits; the answer is a JSON file. One program for every TensorRT:
11 (always strongly typed), 10 (strongly typed when asked), 8.2 to 8.6 (weakly typed: the types written in the ONNX file are
set on each layer and made binding) and TensorRT for RTX (strongly typed, for GPUs that need not be here). What an API lacks
is asked of the API itself, newest first; only typing goes by the version.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any

Json = dict[str, Any]

MOST_BATCH = 16
"""Largest batch of the optimisation profile, where the batch is dynamic."""
COMPUTING = ("ACTIVATION", "CONVOLUTION", "ELEMENTWISE", "FULLY_CONNECTED", "MATRIX_MULTIPLY", "POOLING", "REDUCE", "SCALE")
COMPUTING += ("SOFTMAX", "UNARY", "NORMALIZATION")
"""Kinds of layers that a type is set on where networks are weakly typed."""


class BuildError(Exception):
    """What TensorRT could not do, in its own words; ``kind`` says which step it was."""

    def __init__(self, kind: str, what: str) -> None:
        super().__init__(what)
        self.kind = kind


def build(request: Json) -> Json:
    """Write the engine and what goes with it. Raises `BuildError`."""
    trt: Any = importlib.import_module(request["module"])
    messages: list[str] = []
    logger = _logger(trt, messages)
    started = time.perf_counter()
    builder = trt.Builder(logger)
    strong = _strongly_typed(trt)
    network = builder.create_network(_creation_flags(trt, strong))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(Path(request["onnx"]).read_bytes()):
        raise BuildError("parse", "; ".join(_error(parser.get_error(place)) for place in range(parser.num_errors)))
    parsed = time.perf_counter()
    config = builder.create_builder_config()
    _limit_workspace(trt, config, request["workspace_bytes"])
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if not strong:
        _set_types(trt, network, config)
    _set_profile(builder, network, config, request["batch"])
    if request["capabilities"]:
        config.num_compute_capabilities = len(request["capabilities"])
        for place, name in enumerate(request["capabilities"]):
            if not hasattr(trt.ComputeCapability, name):
                known = ", ".join(each for each in trt.ComputeCapability.__members__ if each.startswith("SM"))
                raise BuildError("gpu", f"it builds for {known}, not for {name}")
            config.set_compute_capability(getattr(trt.ComputeCapability, name), place)
    cache = timing_cache(request["timings"], trt.__version__, messages)
    known = _load_timing_cache(config, cache)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise BuildError("build", "; ".join(messages[-3:]) or "it gave no engine and no reason")
    built = time.perf_counter()
    Path(request["engine"]).write_bytes(plan)
    if cache:
        _save_timing_cache(config, cache, messages)
    return {
        "version": trt.__version__,
        "strongly_typed": strong,
        "network_layers": network.num_layers,
        "timing_cache": None if not cache else "used" if known else "made",
        "parse_seconds": round(parsed - started, 3),
        "build_seconds": round(built - parsed, 3),
        "profiled": _write_layers(trt, logger, plan, Path(request["layers"])) if request["gpu"] else False,
        "messages": list(dict.fromkeys(messages))[:20],
    }


def _logger(trt: Any, messages: list[str]) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR, trt.ILogger.WARNING):
                messages.append(message.strip())

    return Logger()


def _strongly_typed(trt: Any) -> bool:
    """From 10 on (and in TensorRT for RTX, whose versions count anew) the types in the ONNX file are binding."""
    return trt.__name__ != "tensorrt" or int(trt.__version__.split(".")[0]) >= 10


def _creation_flags(trt: Any, strong: bool) -> int:
    flags = trt.NetworkDefinitionCreationFlag
    return 1 << int(flags.STRONGLY_TYPED if strong else flags.EXPLICIT_BATCH)


def _limit_workspace(trt: Any, config: Any, limit_bytes: int | None) -> None:
    if limit_bytes is None:
        return
    if hasattr(config, "set_memory_pool_limit"):  # from 8.4
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, limit_bytes)
    else:
        config.max_workspace_size = limit_bytes


def _set_types(trt: Any, network: Any, config: Any) -> None:
    """TensorRT 8: allow what the ONNX file uses, and hold every computing layer to the type that is written there."""
    layers = [network.get_layer(place) for place in range(network.num_layers)]
    kinds = {getattr(trt.LayerType, name) for name in COMPUTING if hasattr(trt.LayerType, name)}
    types = {layer.get_output(0).dtype for layer in layers if layer.num_outputs}
    quantized = any(layer.type == getattr(trt.LayerType, "QUANTIZE", None) for layer in layers)
    if trt.DataType.HALF in types:
        config.set_flag(trt.BuilderFlag.FP16)
    if quantized:
        config.set_flag(trt.BuilderFlag.INT8)  # explicit quantisation: the Q and DQ layers say where, types are not set
        return
    config.set_flag(trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS)
    for layer in layers:
        if layer.type in kinds and layer.get_output(0).dtype in (trt.DataType.FLOAT, trt.DataType.HALF):
            layer.precision = layer.get_output(0).dtype
            layer.set_output_type(0, layer.precision)


def _set_profile(builder: Any, network: Any, config: Any, batch: int) -> None:
    """Batches from 1 to `MOST_BATCH` (or ``batch``), where the ONNX file leaves the batch open."""
    inputs = [network.get_input(place) for place in range(network.num_inputs)]
    if not any(-1 in tuple(each.shape) for each in inputs):
        return
    profile = builder.create_optimization_profile()
    for each in inputs:
        rest = tuple(each.shape)[1:]
        profile.set_shape(each.name, (1, *rest), (batch, *rest), (max(batch, MOST_BATCH), *rest))
    config.add_optimization_profile(profile)


def timing_cache(timings: dict[str, str] | None, version: str, messages: list[str]) -> Path | None:
    """The file of timings for one device, CUDA and TensorRT; None where none is kept, or its folder cannot be made."""
    if timings is None:
        return None
    key = hashlib.sha256(f"{timings['about']} {version}".encode()).hexdigest()[:16]
    folder = Path(timings["folder"])
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        messages.append(f"timings are not kept: {folder}: {error.strerror}")
        return None
    return folder / f"{timings['exporter']}-{key}.cache"


def _load_timing_cache(config: Any, path: Path | None) -> bool:
    """Whether an earlier build's timings are used; ones that TensorRT refuses (damaged, of another device) are made anew."""
    if path is None:
        return False
    known = path.read_bytes() if path.exists() else b""
    for content in (known, b""):
        cache = config.create_timing_cache(content)
        if cache is not None and config.set_timing_cache(cache, ignore_mismatch=False):
            return bool(content)
    return False


def _save_timing_cache(config: Any, path: Path, messages: list[str]) -> None:
    """The engine is worth more than its timings: where these cannot be kept, that is only said."""
    aside = path.with_suffix(".part")
    try:
        aside.write_bytes(memoryview(config.get_timing_cache().serialize()))
        aside.replace(path)
    except OSError as error:
        messages.append(f"timings are not kept: {path}: {error.strerror}")


def _write_layers(trt: Any, logger: Any, plan: Any, path: Path) -> bool:
    """The engine inspector's JSON: every layer after fusion, with its formats and tactic (TensorRT 8.2 and later)."""
    engine = trt.Runtime(logger).deserialize_cuda_engine(plan)
    if engine is None or not hasattr(engine, "create_engine_inspector"):
        return False
    text = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    path.write_text(json.dumps(json.loads(text), indent=1) + "\n", encoding="utf-8")
    return True


def _error(error: Any) -> str:
    name = error.node_name() if hasattr(error, "node_name") else f"number {error.node()}"
    return f"node {name}: {' '.join(error.desc().split())}"


def main(path: str) -> int:
    request = json.loads(Path(path).read_text(encoding="utf-8"))
    warnings.simplefilter("ignore", DeprecationWarning)  # an older API is called on purpose where there is no newer one
    try:
        answer = build(request)
    except BuildError as problem:
        answer = {"failed": problem.kind, "what": str(problem)}
    except MemoryError:
        answer = {"failed": "memory", "what": "out of memory"}
    Path(request["answer"]).write_text(json.dumps(answer), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
