"""An engine on this machine's GPU: whether it may be loaded at all, and running it through polygraphy."""

from __future__ import annotations

import importlib
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorita_deploy.errors import BadArtifact, BadRecord
from lorita_deploy.ports import Session
from lorita_deploy.records import EngineRecord

if TYPE_CHECKING:
    import numpy as np

MADE_BY = {b"ftrt": "tensorrt", b"vtrt": "tensorrt_rtx"}
"""What a plan begins with (TensorRT since 8.6), and the package that reads it."""
REBUILD = "build it again here, from the ONNX file"


def require_loadable(path: Path, module: str, version: str, capability: str) -> None:
    """Raises `BadArtifact` for an engine of another TensorRT than ``version`` of ``module``, or of a GPU without
    ``capability``: said before it is loaded, since TensorRT's own words are of no help, and it may crash."""
    try:
        header = path.read_bytes()[:28]
    except OSError as error:
        raise BadArtifact(f"cannot read: {error.strerror}", where=path, fix=REBUILD) from error
    made_by = MADE_BY.get(header[:4], module)
    if made_by != module:
        raise BadArtifact(f"an engine of {made_by}, and this is {module}", where=path, fix=REBUILD)
    if header[:4] in MADE_BY and len(header) == 28 and struct.unpack_from("<I", header, 4)[0] == 0:
        built = ".".join(map(str, header[24:28]))
        if built.split(".")[:3] != version.split(".")[:3]:
            what = f"built by {module} {built}, and this is {version}: an engine loads in the version that built it"
            raise BadArtifact(what, where=path, fix=REBUILD)
    beside = path.with_name(f"{path.name}.json")
    try:
        gpus = EngineRecord.load(beside).gpus if beside.exists() else ()
    except BadRecord:  # nothing is known of it, then
        return
    if gpus and capability not in gpus:
        raise BadArtifact(f"built for {', '.join(gpus)}, and this GPU is {capability}", where=path, fix=REBUILD)


def open_engine(path: Path, module: str, capability: str) -> Session:
    """A function from inputs to outputs. Raises `BadArtifact`."""
    require_loadable(path, module, importlib.import_module(module).__version__, capability)
    if module == "tensorrt_rtx":
        os.environ["POLYGRAPHY_USE_TENSORRT_RTX"] = "1"
    from polygraphy.backend.common import BytesFromPath
    from polygraphy.backend.trt import EngineFromBytes, TrtRunner

    try:
        runner = TrtRunner(EngineFromBytes(BytesFromPath(str(path))))
        runner.activate()
    except Exception as error:
        raise BadArtifact(f"TensorRT does not load it: {' '.join(str(error).split())[:300]}", where=path) from error

    def run(inputs: Mapping[str, np.ndarray[Any, Any]]) -> list[np.ndarray[Any, Any]]:
        return [output.copy() for output in runner.infer(dict(inputs)).values()]

    return run
