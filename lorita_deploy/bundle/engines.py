"""Engines made on the board: built with less and less workspace until memory suffices, kept, and found again.

``engines/<artifact>-<key>.engine`` with the sidecar ``.json`` that says what it was made from and with; the sidecar is
written last, so an engine that has one is whole. The key holds everything an engine depends on: the ONNX file's digest,
precision, TensorRT, CUDA and the GPU; so none made elsewhere is ever loaded, and a finished one is never deleted.
Imports nothing but the standard library and `job`; valid Python 3.6.
"""

import hashlib
import json
import os
import struct

from typing import Callable, Dict, List, Optional

from job import Json, JobError, digest_of, write_bytes, write_json

FOLDER = "engines"
MIB = 1 << 20
PLAN_TAG = 0x74727466  # "ftrt"
LARGEST_WORKSPACE, SMALLEST_WORKSPACE = 4096 * MIB, 16 * MIB


LESS_WORKSPACE = 12
"""Exit code of a child process that needed more memory: another one than that of a full disk, which no workspace mends."""


class OutOfMemoryError(Exception):
    """The build needed more memory than there is; less workspace may help."""


def ladder(total_bytes: int) -> List[int]:
    """Workspaces to try: the largest power of two within a quarter of the memory, then halved down to 16 MiB."""
    size = LARGEST_WORKSPACE
    while size > max(total_bytes // 4, SMALLEST_WORKSPACE):
        size //= 2
    sizes = []
    while size >= SMALLEST_WORKSPACE:
        sizes.append(size)
        size //= 2
    return sizes


def build_down(name: str, sizes: List[int], build: Callable[[int], None]) -> int:
    """Call ``build(workspace)`` with the first of ``sizes`` that memory suffices for, which is returned.

    Raises `JobError` (exit code 6) when it suffices for none.
    """
    for size in sizes:
        try:
            build(size)
            return size
        except OutOfMemoryError as error:
            reason = error
    tried = ", ".join("%d" % (size // MIB) for size in sizes)
    fix = "end other programs (a desktop takes 1 GB), add swap, or take a smaller network"
    raise JobError("no engine could be built with %s MiB of workspace: %s" % (tried, reason), name, fix, 6)


# ---------------------------------------------------------------------------------------------- keeping and finding


def key_of(artifact: Json, about: Dict[str, str], exact: bool, batch: int) -> str:
    """What an engine depends on, as 16 hexadecimal digits: of a file with an open batch, the one it is built for too."""
    parts = {"onnx": artifact["sha256"], "precision": artifact["precision"], "exact": exact, "about": about, "batch": batch}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def cache_key(about: Dict[str, str]) -> str:
    """What tactic timings depend on."""
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]


def path_of(folder: str, name: str, key: str) -> str:
    return os.path.join(folder, FOLDER, "%s-%s.engine" % (name, key))


def find(folder: str, name: str, key: str) -> Optional[Json]:
    """The sidecar of a finished engine with its ``path``; None where there is none, or the file is not the one written."""
    path = path_of(folder, name, key)
    try:
        with open(path + ".json", encoding="utf-8") as file:
            facts = json.load(file)
        if facts["sha256"] == digest_of(path):
            return dict(facts, path=path)
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None


def keep(folder: str, name: str, key: str, plan: bytes, facts: Json) -> None:
    """Write an engine and its sidecar. Raises `JobError` (exit code 6) when the disk is full or read-only."""
    make_folder(folder)
    path = path_of(folder, name, key)
    write_bytes(path, plan)
    write_json(path + ".json", dict(facts, sha256=hashlib.sha256(plan).hexdigest(), size_bytes=len(plan)))


def make_folder(folder: str) -> None:
    try:
        os.makedirs(os.path.join(folder, FOLDER), exist_ok=True)
    except OSError as error:
        raise JobError("cannot be made: %s" % error.strerror, FOLDER, "make room, or make the folder writable", 6)


# ---------------------------------------------------------------------------------------------- engines from elsewhere

OTHER_STARTS = {
    b"vtrt": "TensorRT for RTX, which is another runtime",
    b"ptrt": "a TensorRT before 8.6, which states no version",
}
SAME = (("gpu", "GPU"), ("sm", "compute capability"), ("multiprocessors", "number of multiprocessors"), ("board", "board"))


def plan_version(path: str) -> Optional[str]:
    """The TensorRT that built an engine, from its header; None where that does not say (before TensorRT 8.6).

    28 bytes: the tag, a serialization version of 0, and in the last four major, minor, patch and build.
    """
    with open(path, "rb") as file:
        header = file.read(28)
    if len(header) < 28 or struct.unpack("<II", header[:8]) != (PLAN_TAG, 0):
        return None
    return "%d.%d.%d.%d" % struct.unpack("4B", header[24:28])


def refusal(path: str, about: Dict[str, str]) -> Optional[str]:
    """Why an engine must not be loaded by the TensorRT and on the GPU that are here (``about``); None where nothing speaks
    against it. Said before it is loaded, which may end in a crash."""
    made_by, version = plan_version(path), about["tensorrt"]
    if made_by and made_by.split(".")[:3] != version.split(".")[:3]:
        words = "built by TensorRT %s, and this is TensorRT %s: engines load only in the version that built them"
        return words % (made_by, version)
    with open(path, "rb") as file:
        start = file.read(4)
    if start == b"vtrt" or start == b"ptrt" and int(version.split(".")[0]) >= 10:
        return "built by %s; this is TensorRT %s" % (OTHER_STARTS[start], version)
    try:
        with open(path + ".json", encoding="utf-8") as file:
            there = json.load(file)["about"]
        pairs = [(words, there[key], about[key]) for key, words in SAME if key in there and key in about]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    other = ["%s %s, and here it is %s" % (words, was, now) for words, was, now in pairs if was != now]
    return "built on another device: %s" % "; ".join(other) if other else None
