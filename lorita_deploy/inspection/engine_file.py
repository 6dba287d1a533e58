"""TensorRT engines (plans), read without TensorRT: who built them, for which GPU, and what was written before them.

Since 8.6 a plan begins with 28 bytes (NVIDIA's samples/common/sampleEngines.cpp, printPlanVersion): the letters ``ftrt``,
a serialization version of 0, and at bytes 24 to 27 the version of TensorRT as major, minor, patch, build. TensorRT for RTX
writes ``vtrt`` and the same fields; in its engines bytes 16 to 23 are the size of the plan, and bytes 28 to 35 ``vtrt`` again
with a bit for each compute capability (read off engines that TensorRT for RTX 1.7.1 built for each of them).

Some exporters write a block of their own before the plan, such as a 4-byte length and JSON. TensorRT, trtexec and DeepStream
do not skip it, so it is found and said, with the offset of the plan.
"""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Literal, NamedTuple

from ..errors import BadArtifact, BadRecord
from ..records import EngineRecord, EngineSummary
from .weights import sha256_of

HEADER_BYTES = 28
SEARCHED_BYTES = 2**20
"""A block before the plan is looked for in the first megabyte."""
CLASSIC, RTX = b"ftrt", b"vtrt"
OLDER = b"ptrt"
"""Begins the plans of TensorRT before 8.6, which state no version that could be read."""
RTX_GPUS = {0: "SM75", 1: "SM80", 2: "SM86", 3: "SM89", 4: "SM120", 5: "SM121"}
"""Bit to compute capability."""
REBUILD = "build the engine again, on the device, from the ONNX file"


class Prefix(NamedTuple):
    """What stands before a plan."""

    offset: int
    what: str | None


def look_at_engine(path: Path) -> EngineSummary:
    """Version, GPU and wholeness of an engine. Raises `BadArtifact` for what is none."""
    try:
        with path.open("rb") as file:
            head = file.read(SEARCHED_BYTES)
        size = path.stat().st_size
    except OSError as error:
        raise BadArtifact(f"cannot read: {error.strerror}", where=path, fix="check the path and its permissions") from error
    prefix = find_plan(head)
    if prefix is None:
        raise BadArtifact(f"not a TensorRT engine: {_what_else(head)}", where=path, fix=REBUILD)
    plan = head[prefix.offset : prefix.offset + HEADER_BYTES + 8]
    if plan[:4] != OLDER and len(plan) < HEADER_BYTES:
        raise BadArtifact("the engine ends within its header: it was cut short", where=path, fix="copy it again")
    rtx = plan[:4] == RTX
    stated = struct.unpack_from("<Q", plan, 16)[0] if rtx else None
    digest = sha256_of(path)
    gpus, origin = _gpus(path, digest, plan)
    return EngineSummary(
        path=str(path),
        size_bytes=size,
        sha256=digest,
        runtime="tensorrt-rtx" if rtx else "tensorrt",
        version=_version(plan),
        offset_bytes=prefix.offset,
        prefix=prefix.what,
        stated_bytes=stated,
        gpus=gpus,
        gpus_from=origin,
        notes=_notes(plan, stated, size - prefix.offset),
    )


def begins_like_an_engine(content: bytes) -> bool:
    return content[:4] in (CLASSIC, RTX)


def find_plan(head: bytes) -> Prefix | None:
    """Where the plan begins, given the first bytes of a file; None where there is no plan."""
    if head[:4] in (CLASSIC, RTX, OLDER):
        return Prefix(0, None)
    if len(head) >= 4:
        length = struct.unpack_from("<I", head)[0]
        if head[4 + length : 8 + length] in (CLASSIC, RTX, OLDER):
            return Prefix(4 + length, _named(head[4 : 4 + length]))
    places = [place for magic in (CLASSIC, RTX) if (place := head.find(magic + b"\0\0\0\0")) >= 0]
    return Prefix(min(places), f"{min(places):,} bytes of something else") if places else None


def _named(block: bytes) -> str:
    try:
        body = json.loads(block)
    except (ValueError, RecursionError):
        return f"a 4-byte length and {len(block):,} bytes of something else"
    keys = f" ({', '.join(str(key)[:40] for key in list(body)[:6])})" if isinstance(body, dict) and body else ""
    return f"a 4-byte length and {len(block):,} bytes of JSON{keys}"


def _version(plan: bytes) -> str | None:
    """Bytes 24 to 27, where the header has the form whose meaning is published."""
    if plan[:4] == OLDER or struct.unpack_from("<I", plan, 4)[0] != 0:
        return None
    return ".".join(map(str, plan[24:28]))


def _gpus(path: Path, digest: str, plan: bytes) -> tuple[tuple[str, ...], Literal["header", "record beside it"] | None]:
    if plan[:4] == RTX and plan[28:32] == RTX and len(plan) >= 36:
        bits = struct.unpack_from("<I", plan, 32)[0]
        return tuple(RTX_GPUS.get(bit, f"unknown ({bit})") for bit in range(32) if bits >> bit & 1), "header"
    beside = path.with_name(f"{path.name}.json")
    if os.path.isfile(beside):
        try:
            record = EngineRecord.load(beside)
        except BadRecord:
            return (), None
        if record.artifact.sha256 == digest:
            return record.gpus, "record beside it"
    return (), None


def _notes(plan: bytes, stated: int | None, found: int) -> tuple[str, ...]:
    notes = []
    if plan[:4] == OLDER:
        notes.append("a plan without the header that TensorRT writes since 8.6: older than that")
    elif struct.unpack_from("<I", plan, 4)[0] != 0:
        notes.append("a header of an unknown form, so its version cannot be read")
    if stated is not None and stated != found:
        notes.append(f"the plan states {stated:,} bytes, {found:,} are there")
    return tuple(notes)


def _what_else(head: bytes) -> str:
    if not head:
        return "the file is empty"
    if head[:2] == b"\x1f\x8b":
        return "it is a gzip archive: unpack it first"
    if head[:2] == b"PK":
        return "it is a zip archive: unpack it first"
    return "its first bytes are not those of a plan (an ONNX file is called .onnx)"
