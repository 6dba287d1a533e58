"""Mutated bundles: unpacked as they were packed, or refused; nothing is written outside, nothing hangs, nothing grows."""

from __future__ import annotations

import gzip
import io
import json
import shutil
import tarfile
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import job as runner
import numpy as np
from hypothesis import strategies as st
from mutations import PLACE, clear, edits, mutated, rewrites, rewritten, tiers, written
from small_onnx import write_small_onnx

from lorita_deploy.bundle.manifest import check_bundle, npz, pack, seal, unpack, write_bundle
from lorita_deploy.errors import BadArtifact, LoritaDeployError
from lorita_deploy.pipeline.again import read_golden
from lorita_deploy.pipeline.folder import sha256_of
from lorita_deploy.records import Artifact, Manifest, TensorSpec

ARRAYS = {"input": np.arange(12, dtype=np.float32).reshape(1, 12), "more": np.arange(4, dtype=np.int64)}


@cache
def packed() -> tuple[bytes, Manifest]:
    """A small bundle: the bytes of its archive, and its manifest."""
    with tempfile.TemporaryDirectory() as root:
        return _packed(Path(root))


def _packed(root: Path) -> tuple[bytes, Manifest]:
    path = write_small_onnx(root / "dense.onnx", width=2)
    spec = (TensorSpec(name="input", dtype="float32", shape=(1, 3, 16, 16)),)
    kinds: dict[str, Any] = {"exporter": "onnx", "opset": 17, "ir_version": 8, "precision": "fp32", "batch": 1, "rung": 0}
    kinds |= {"dynamic_batch": False, "simplified": False, "inputs": spec, "outputs": spec}
    artifact = Artifact(role="dense", path=path.name, sha256=sha256_of(path), size_bytes=path.stat().st_size, **kinds)
    manifest = write_bundle(
        root / "bundle",
        artifacts=[artifact],
        artifact_root=root,
        golden_inputs=ARRAYS,
        golden_outputs={"dense": ARRAYS},
        model="small",
        target="cpu",
        producer="test",
        sources={"network": "0" * 64},
        preprocessing={},
        classes=("a", "b"),
        tolerance=1e-3,
    )
    content = pack(root / "bundle", root / "packed.tar.gz").read_bytes()
    return content, manifest


@cache
def members() -> tuple[tuple[tarfile.TarInfo, bytes], ...]:
    with tarfile.open(fileobj=io.BytesIO(packed()[0])) as archive:
        return tuple((each, archive.extractfile(each).read()) for each in archive)  # type: ignore[union-attr]


names = st.sampled_from(
    [
        *("/tmp/lorita-mutated", "../up", "bundle/../../up", "bundle/a/../../../up", "bundle\\..\\up", "bundle/C:up", "//x"),
        *("bundle/manifest.json", "bundle", "bundle/", "a", "", "bundle/é", "bundle/a\nb"),
        *("bundle/" + "a/" * 200 + "b", "bundle/" + "n" * 300),
    ]
)
kinds = st.sampled_from([tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE])
surgeries = st.lists(
    st.tuples(
        st.sampled_from(["name", "type", "link", "size", "mode", "drop", "again", "new"]),
        st.integers(0, 40),
        names,
        kinds,
        st.sampled_from([0, 1, 511, 513, 2**20, 2**31, 2**33 - 1, 2**40]),
    ),
    max_size=4,
)


def operated(changes: Any, byte_changes: Any) -> bytes:
    """The archive with other members: what tarfile itself would not write is written here."""
    found = [(tarfile.TarInfo.frombuf(info.tobuf(), "utf-8", "strict"), content) for info, content in members()]
    for kind, place, name, type_, number in changes:
        if not found:
            break
        info, content = found[place % len(found)]
        if kind == "name":
            info.name = name
        elif kind == "type":
            info.type = type_
        elif kind == "link":
            info.type, info.linkname = tarfile.SYMTYPE, name
        elif kind == "size":
            info.size = number
        elif kind == "mode":
            info.mode = number % 0o10000
        elif kind == "drop":
            found.pop(place % len(found))
        elif kind == "again":
            found.append((info, content))
        else:
            new = tarfile.TarInfo(name)
            new.type, new.size, new.linkname = type_, 1, "../.."
            found.insert(place % (len(found) + 1), (new, b"x"))
    plain = b"".join(info.tobuf(tarfile.PAX_FORMAT) + content + bytes(-len(content) % 512) for info, content in found)
    return gzip.compress(mutated(plain + bytes(1024), byte_changes), 1)


def told(error: runner.JobError) -> None:
    assert error.code == 2
    assert "do:" in str(error)


def everything(place: Path) -> set[str]:
    return {str(path) for path in (*place.rglob("*"), *Path("/tmp").glob("lorita-mutated*"))}


def unpacked_or_refused(path: Path) -> None:
    before, board = everything(PLACE[0]), PLACE[0] / "board"
    try:
        there = unpack(path, board)
    except LoritaDeployError as error:
        clear(error)
        assert everything(PLACE[0]) - before <= {str(board)}, "nothing is left, nothing lies elsewhere"
        return
    assert check_bundle(there) == packed()[1]
    assert all(str(each).startswith(str(there)) for each in everything(PLACE[0]) - before - {str(board)})
    shutil.rmtree(there)


@tiers(edits)
def test_bytes_of_archives(changes: Any) -> None:
    unpacked_or_refused(written("mutated.tar.gz", mutated(packed()[0], changes)))


@tiers(surgeries, edits.map(lambda each: each[:1]))
def test_members_of_archives(changes: Any, byte_changes: Any) -> None:
    unpacked_or_refused(written("mutated.tar.gz", operated(changes, byte_changes if len(changes) % 2 else [])))


@tiers(rewrites, edits)
def test_manifests(changes: Any, byte_changes: Any) -> None:
    """By the library, and by the runner, which has a reader of its own; neither leaves the folder."""
    folder = PLACE[0] / "bundle"
    if not folder.exists():
        unpack(written("whole.tar.gz", packed()[0]), PLACE[0])
    path = folder / "manifest.json"
    whole = path.read_bytes()
    try:
        body = json.dumps(rewritten(json.loads(whole), changes)).encode()
        path.write_bytes(mutated(body, byte_changes) if len(changes) % 2 else body)
        seal(folder)
        try:
            check_bundle(folder)
        except LoritaDeployError as error:
            clear(error, folder)
        try:
            found = runner.read_job(str(path))
        except runner.JobError as error:
            told(error)
        else:
            for each in found["artifacts"]:
                assert Path(runner.inside(str(folder), each["path"])).is_relative_to(folder.resolve())
    finally:
        path.write_bytes(whole)
        seal(folder)


@tiers(edits)
def test_golden_data(changes: Any) -> None:
    """Arrays, or one clear refusal, from both readers; nothing is unpickled."""
    path = written("inputs.npz", mutated(npz(ARRAYS), changes))
    try:
        read_golden(path)
    except BadArtifact as error:
        clear(error, path)
    try:
        runner.read_arrays({"folder": str(PLACE[0])}, path.name)
    except runner.JobError as error:
        told(error)
