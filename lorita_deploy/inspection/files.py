"""Any file or folder: which reader it needs."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import BadRecord, LoritaDeployError
from ..records import Document, schema_name
from ..records.schemas import documents
from .engine_file import look_at_engine
from .onnx_file import look_at_onnx
from .weights import look_at_weights

WEIGHTS = (".safetensors", ".pt", ".pth")
ENGINES = (".engine", ".plan", ".trt")
IN_A_FOLDER = ("report", "manifest", "receipt", "artifacts", "compressed", "plan", "collapsed", "trained", "data")
"""Records by which a build folder or a bundle is known, the most telling first."""


def look_at(path: Path) -> Document:
    """What a file is: a record, a weight file, an ONNX file, an engine, or the report of a build folder.

    Raises `BadRecord`, `BadCheckpoint`, `BadArtifact`, `LoritaDeployError`.
    """
    if os.path.isdir(path):  # which, unlike Path.is_dir, takes a name that is too long for an answer
        return _of_folder(path)
    if not os.path.isfile(path):
        raise LoritaDeployError("there is no such file or folder", where=path, fix="check the path")
    if path.suffix == ".onnx":
        return look_at_onnx(path)
    if path.suffix in ENGINES:
        return look_at_engine(path)
    if path.suffix in WEIGHTS:
        return look_at_weights(path)
    if path.suffix == ".json":
        return read_record(path)
    raise LoritaDeployError(
        f"cannot tell what a {path.suffix or 'file without ending'} file is",
        where=path,
        fix="give a .json record, .safetensors or .pt weights, an .onnx file, an .engine or .plan, or a build folder",
    )


def read_record(path: Path) -> Document:
    """Any record, by its schema line. Raises `BadRecord`."""
    name = schema_name(path)
    kinds = documents()
    if name not in kinds:
        raise BadRecord(f"no record of this version is called {name!r}", where=path, fix="pip install --upgrade lorita-deploy")
    return kinds[name].load(path)


def _of_folder(folder: Path) -> Document:
    """What a build folder came to: its report, or the last record it got to; of a bundle, the manifest."""
    for name in IN_A_FOLDER:
        if (folder / f"{name}.json").exists():
            return read_record(folder / f"{name}.json")
    raise LoritaDeployError(
        "neither a build folder nor a bundle: there are no records in it",
        where=folder,
        fix="name a folder that lorita-deploy build wrote, or an unpacked bundle",
    )
