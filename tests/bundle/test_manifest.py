"""Bundles: written, checked, packed, unpacked, run; and every way of tampering with one."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from published_schemas import obeys
from small_onnx import write_small_onnx

from lorita_deploy.bundle import archive as archives
from lorita_deploy.bundle.archive import is_plain
from lorita_deploy.bundle.manifest import check_bundle, npz, pack, read_manifest, seal, unpack, write_bundle
from lorita_deploy.errors import BadArtifact, BadRecord, LoritaDeployError
from lorita_deploy.measure.latency import artifact_name
from lorita_deploy.records import Accuracy, Artifact, Manifest, Receipt, Role, Verification

WIDTHS: dict[Role, int] = {"compressed": 8, "dense": 32}
PREPROCESSING = {
    "layout": "NCHW",
    "shape": [3, 16, 16],
    "scale": "pixels/255",
    "mean": [0.4, 0.5, 0.6],
    "std": [0.2, 0.25, 0.3],
    "resize": "bilinear",
}


def artifact(path: Path, role: Role) -> Artifact:
    content = path.read_bytes()
    return Artifact(
        role=role,
        path=path.name,
        exporter="onnx",
        sha256=hashlib.sha256(content).hexdigest(),
        size_bytes=len(content),
        opset=17,
        ir_version=8,
        precision="fp32",
        batch=1,
        dynamic_batch=False,
        rung=0,
        simplified=False,
        inputs=(),
        outputs=(),
    )


def write(root: Path, folder: Path, **more: Any) -> Manifest:
    """A bundle of two small networks and their real outputs."""
    root.mkdir(exist_ok=True)
    inputs = np.random.default_rng(0).standard_normal((3, 3, 16, 16)).astype(np.float32)
    artifacts, outputs = [], {}
    for role, width in WIDTHS.items():
        path = root / f"{role}.onnx"
        write_small_onnx(path, width)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        outputs[role] = {"output": np.concatenate([session.run(None, {"input": each[None]})[0] for each in inputs])}
        artifacts.append(artifact(path, role))
    return write_bundle(
        folder,
        artifacts=artifacts,
        artifact_root=root,
        golden_inputs={"input": inputs},
        golden_outputs=outputs,
        model="small",
        target="cpu",
        producer="lorita-deploy 0",
        sources={"data": "0" * 64},
        preprocessing=PREPROCESSING,
        classes=[f"class number {place}" for place in range(outputs["dense"]["output"].shape[1])],
        tolerance=1e-3,
        **more,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "build", tmp_path / "bundle")
    return tmp_path / "bundle"


def test_every_file_is_in_the_manifest(folder: Path) -> None:
    manifest = check_bundle(folder)
    assert manifest == read_manifest(folder)
    on_disk = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert on_disk == {file.path for file in manifest.files} | {"manifest.json", "manifest.json.sha256"}
    needed = "compressed.onnx dense.onnx run.py clock.py infer.py README.txt golden/inputs.npz"
    assert {*needed.split(), "golden/outputs-compressed.npz", "golden/outputs-dense.npz"} <= on_disk


def test_it_is_raced_with_as_many_threads_as_it_was_built_for(tmp_path: Path) -> None:
    assert write(tmp_path / "build", tmp_path / "bundle", threads=3).threads == 3
    code = "import run; print(run.read_bundle()['settings']['threads'])"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path / "bundle", capture_output=True, text=True, check=True)
    assert done.stdout == "3\n"


def test_no_path_of_this_machine_is_shipped(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            assert str(folder.parent).encode() not in path.read_bytes(), path


def test_a_bare_run_verifies_and_races_and_leaves_a_whole_bundle(folder: Path) -> None:
    """Without any argument it takes what the manifest says; the time limits are the runner's defaults."""
    done = subprocess.run([sys.executable, "run.py"], cwd=folder, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    receipt = Receipt.load(folder / "receipt.json")
    assert [series.verified for series in receipt.series] == [True, True]
    assert {series.name for series in receipt.series} == {"compressed", "dense"}
    check_bundle(folder)


def test_a_runtime_that_is_only_preferred_is_replaced_and_that_is_said(tmp_path: Path) -> None:
    """A bundle for a Jetson on a machine without TensorRT, as in an emulator."""
    if importlib.util.find_spec("tensorrt"):
        pytest.skip("TensorRT is installed")
    write(tmp_path / "build", tmp_path / "bundle", runtime="tensorrt")
    command = [sys.executable, "run.py", "--verify-only"]
    done = subprocess.run(command, cwd=tmp_path / "bundle", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = Verification.load(tmp_path / "bundle/verification.json")
    assert obeys(tmp_path / "bundle/verification.json") == "verification"
    assert found.settings.runtime == "onnxruntime"
    assert any("tensorrt cannot be used here" in warning for warning in found.warnings)
    assert "dense: golden outputs reproduced" in done.stdout
    check_bundle(tmp_path / "bundle")


def test_a_ladder_of_rungs_is_weighed_by_the_manifests_accuracies(tmp_path: Path) -> None:
    root, folder = tmp_path / "build", tmp_path / "bundle"
    write(root, tmp_path / "plain")
    inputs = np.load(tmp_path / "plain/golden/inputs.npz")["input"]
    rungs = [artifact(root / f"{role}.onnx", role) for role in WIDTHS]
    write_small_onnx(root / "compressed-rung1.onnx", 16)
    rungs.append(artifact(root / "compressed-rung1.onnx", "compressed").model_copy(update={"rung": 1}))
    outputs, accuracy = {}, {}
    for correct, rung in zip((80, 95, 97), rungs, strict=True):
        session = onnxruntime.InferenceSession(root / rung.path, providers=["CPUExecutionProvider"])
        name = Path(rung.path).stem
        outputs[name] = {"output": np.concatenate([session.run(None, {"input": each[None]})[0] for each in inputs])}
        accuracy[name] = Accuracy(metric="accuracy", split="test", correct=float(correct), total=100)
    write_bundle(
        folder, artifacts=rungs, artifact_root=root, golden_inputs={"input": inputs}, golden_outputs=outputs, model="small",
        target="cpu", producer="lorita-deploy 0", sources={}, preprocessing={}, classes=(), tolerance=1e-3, accuracy=accuracy,
    )  # fmt: skip
    command = [sys.executable, "run.py", "--deadline", "1000"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    receipt = Receipt.load(folder / "receipt.json")
    assert {each.name: each.accuracy for each in receipt.series} == {"compressed": 0.8, "dense": 0.95, "compressed-rung1": 0.97}
    assert receipt.deadline
    assert receipt.deadline.chosen == "compressed-rung1"
    assert "within 1000 ms at p99: compressed-rung1" in done.stdout


def test_infer_classifies_as_the_network_was_trained_to_see(folder: Path, tmp_path: Path) -> None:
    from PIL import Image

    from lorita_deploy.train.images import decode, normalise

    picture = tmp_path / "picture.png"
    pixels = np.random.default_rng(3).integers(0, 255, (40, 28, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(picture)
    expected = normalise(decode([picture], (3, 16, 16)), PREPROCESSING["mean"], PREPROCESSING["std"])  # type: ignore[arg-type]
    session = onnxruntime.InferenceSession(folder / "compressed.onnx", providers=["CPUExecutionProvider"])
    logits = session.run(None, {"input": expected.numpy()})[0][0].astype(np.float64)
    shares = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()

    command = [sys.executable, str(folder / "infer.py")]
    done = subprocess.run([*command, str(picture)], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert lines[0] == f"{100 * shares.max():6.2f} %  class number {shares.argmax()}"
    assert len(lines) == min(5, len(shares))

    deep = tmp_path / "deep.png"
    Image.fromarray(pixels[:, :, 0].astype(np.uint16) * 257).save(deep)
    Image.fromarray(pixels[:, :, 0]).save(picture)
    told = [
        subprocess.run([*command, str(each)], capture_output=True, text=True, check=True).stdout for each in (deep, picture)
    ]
    assert told[0] == told[1] != done.stdout

    picture.write_bytes(b"not an image")
    done = subprocess.run([*command, str(picture)], capture_output=True, text=True, check=False)
    assert_refused(done, 2, "this image cannot be read")
    done = subprocess.run([*command, str(tmp_path / "none.png")], capture_output=True, text=True, check=False)
    assert_refused(done, 2, "No such file")


def test_infer_takes_the_network_to_use_here(folder: Path, tmp_path: Path) -> None:
    """The most accurate within the deadline where there was one, else the faster one; without a receipt of these very files
    the first."""
    from PIL import Image

    picture = tmp_path / "picture.png"
    Image.fromarray(np.random.default_rng(3).integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(picture)
    hashes = {artifact_name(each): each.sha256 for each in read_manifest(folder).artifacts}
    series = [{"name": name, "sha256": sha256} for name, sha256 in hashes.items()]
    stale = [{"name": name, "sha256": "0" * 64} for name in hashes]
    said = []
    for receipt in (
        None,
        {"faster": "compressed", "series": series},
        {"faster": "dense", "series": series},
        {"faster": "compressed", "deadline": {"chosen": "dense"}, "series": series},
        {"faster": "dense", "series": stale},
    ):
        if receipt:
            (folder / "receipt.json").write_text(json.dumps(receipt))
        command = [sys.executable, str(folder / "infer.py"), str(picture)]
        said.append(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    first, faster, dense, in_time, unknown = said
    assert first == faster == unknown != dense == in_time


def test_infer_refuses_a_network_that_was_tampered_with(folder: Path, tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (16, 16)).save(tmp_path / "picture.png")
    flip(folder / "compressed.onnx")
    command = [sys.executable, str(folder / "infer.py"), str(tmp_path / "picture.png")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert_refused(done, 2, "nothing was run")
    (folder / "manifest.json").unlink()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert_refused(done, 2, "manifest.json")


@pytest.mark.parametrize("program", ["run.py", "infer.py"])
@pytest.mark.parametrize("name", ["job.py", "race.py", "trt.py", "golden/inputs.npz"])
@pytest.mark.parametrize("how", ["changed", "missing"])
def test_nothing_of_a_bundle_runs_before_every_file_is_right(
    folder: Path, tmp_path: Path, program: str, name: str, how: str
) -> None:
    """Not even the programs' own neighbours: what stands in one that was changed is not executed."""
    trace = tmp_path / "executed"
    if how == "missing":
        (folder / name).unlink()
    else:
        (folder / name).write_text(f"open({str(trace)!r}, 'w').close()\n")
    command = [sys.executable, "-B", program, *(["picture.png"] if program == "infer.py" else [])]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert_refused(done, 2, name)
    assert "nothing was run" in done.stderr
    assert not trace.exists()
    assert not (folder / "receipt-progress.json").exists()


def test_compiled_files_of_an_older_bundle_are_not_taken_for_the_new_ones(folder: Path, tmp_path: Path) -> None:
    import py_compile

    trace, old = tmp_path / "executed", tmp_path / "clock.py"
    old.write_text(f"open({str(trace)!r}, 'w').close()\n")
    for name in ("clock", "job", "race"):
        place = folder / "__pycache__" / f"{name}.{sys.implementation.cache_tag}.pyc"
        py_compile.compile(str(old), str(place), invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
    done = subprocess.run([sys.executable, "run.py", "--verify-only"], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not trace.exists()


def test_infer_is_an_example_that_a_person_reads() -> None:
    assert len((Path(archives.__file__).with_name("infer.py")).read_text().splitlines()) <= 50


def assert_refused(done: subprocess.CompletedProcess[str], code: int, word: str) -> None:
    """The exit code, and a message in three parts without a traceback."""
    assert done.returncode == code, done.stderr
    assert word in done.stderr
    assert "\n  where: " in done.stderr
    assert "\n  do:    " in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(shutil.which("trtexec") is not None, reason="trtexec is on this machine")
def test_the_shell_runner_checks_every_file_first(folder: Path) -> None:
    for shell in ("sh", "bash"):
        done = subprocess.run([shell, "run.sh"], cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 3
        assert done.stderr.startswith("trtexec was not found\n  where: "), done.stderr
    flip(folder / "golden/inputs.npz")
    done = subprocess.run(["sh", "run.sh"], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("sha256 is ")
    assert "where: golden/inputs.npz" in done.stderr
    (folder / "dense.onnx").unlink()
    (folder / "golden/inputs.npz").unlink()
    done = subprocess.run(["sh", "run.sh"], cwd=folder, capture_output=True, text=True, check=False)
    assert "sha256 is unknown" in done.stderr
    assert "dense.onnx" in done.stderr, "files are looked at in the order of their names"


def test_the_shell_runner_passes_shellcheck(folder: Path) -> None:
    if not shutil.which("shellcheck"):
        pytest.skip("shellcheck is not installed")
    done = subprocess.run(["shellcheck", "run.sh"], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


# ---------------------------------------------------------------------------------------------- tampering


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def retell(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    body = json.loads((folder / "manifest.json").read_text())
    change(body)
    (folder / "manifest.json").write_text(json.dumps(body))
    seal(folder)


TAMPERING: dict[str, tuple[Callable[[Path], object], str]] = {
    "one bit": (lambda folder: flip(folder / "dense.onnx"), "changed: dense.onnx"),
    "longer": (lambda folder: (folder / "run.py").write_text("print('hello')"), "changed: run.py"),
    "missing": (lambda folder: (folder / "golden/inputs.npz").unlink(), "missing: golden/inputs.npz"),
    "extra": (lambda folder: (folder / "numpy.py").write_text(""), "not part of it: numpy.py"),
    "no manifest": (lambda folder: (folder / "manifest.json").unlink(), "no manifest.json"),
    "manifest": (lambda folder: flip(folder / "manifest.json"), "changed: manifest.json"),
    "no seal": (lambda folder: (folder / "manifest.json.sha256").unlink(), "no manifest.json.sha256"),
    "link": (lambda folder: (folder / "more").symlink_to("/etc"), "no links"),
    "leads out": (lambda f: retell(f, lambda body: body["files"][0].update(path="../secret")), "impossible files"),
    "absolute": (lambda f: retell(f, lambda body: body["artifacts"][0].update(path="/etc/passwd")), "impossible files"),
    "twice": (lambda f: retell(f, lambda body: body["files"].append(body["files"][0])), "impossible files"),
    "unlisted": (lambda f: retell(f, lambda body: body["artifacts"][0].update(path="other.onnx")), "impossible files"),
    "digest": (lambda f: retell(f, lambda body: body["artifacts"][0].update(sha256="0" * 64)), "two digests"),
}


@pytest.mark.parametrize("how", TAMPERING)
def test_tampering_is_named(folder: Path, how: str) -> None:
    tamper, words = TAMPERING[how]
    tamper(folder)
    for look in (check_bundle, lambda place: pack(place, place.parent / "packed.tar.gz")):
        with pytest.raises(BadArtifact, match=words):
            look(folder)
    assert not (folder.parent / "packed.tar.gz").exists()


def test_a_manifest_from_a_newer_version(folder: Path) -> None:
    retell(folder, lambda body: body.update(schema="lorita-deploy/manifest/99"))
    with pytest.raises(BadRecord, match="newer"):
        check_bundle(folder)


def test_an_artifact_that_changed_since_export_is_not_bundled(folder: Path, tmp_path: Path) -> None:
    manifest = read_manifest(folder)
    flip(tmp_path / "build/dense.onnx")
    options: dict[str, Any] = {
        "golden_inputs": {},
        "golden_outputs": {},
        "model": "small",
        "target": "cpu",
        "producer": "",
        "sources": {},
        "preprocessing": {},
        "classes": (),
        "tolerance": 1e-3,
    }
    with pytest.raises(BadArtifact, match="has changed since it was exported"):
        write_bundle(tmp_path / "second", artifacts=manifest.artifacts, artifact_root=tmp_path / "build", **options)
    with pytest.raises(BadArtifact, match="not empty"):
        write_bundle(folder, artifacts=(), artifact_root=tmp_path, **options)


# ---------------------------------------------------------------------------------------------- packing


def test_packing_gives_the_same_bytes_elsewhere_and_later(tmp_path: Path) -> None:
    digests = set()
    for name in ("one", "two"):
        write(tmp_path / f"build-{name}", tmp_path / name)
        packed = pack(tmp_path / name, tmp_path / f"{name}.tar.gz")
        digests.add(hashlib.sha256(packed.read_bytes()).hexdigest())
        (tmp_path / name / "receipt.json").write_text("{}")  # what a run leaves there is not packed
        digests.add(hashlib.sha256(pack(tmp_path / name, packed).read_bytes()).hexdigest())
        time.sleep(2.1)  # zip files count time in steps of two seconds
    assert len(digests) == 1
    with tarfile.open(tmp_path / "one.tar.gz") as archive:
        members = archive.getmembers()
    assert {(member.uid, member.gid, member.uname, member.mtime) for member in members} == {(0, 0, "", 0)}


def test_unpacking_gives_the_bundle_back(folder: Path, tmp_path: Path) -> None:
    packed = pack(folder, tmp_path / "packed.tar.gz")
    there = unpack(packed, tmp_path / "board")
    assert there == tmp_path / "board/bundle"
    assert check_bundle(there) == check_bundle(folder)
    assert os.access(there / "run.py", os.X_OK)
    with pytest.raises(BadArtifact, match="already"):
        unpack(packed, tmp_path / "board")


def member(name: str, content: bytes = b"x", **changes: Any) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in changes.items():
        setattr(info, key, value)
    return info, content


UNSAFE = {
    "absolute": [member("/tmp/lorita-evil")],
    "dots": [member("bundle/../../evil")],
    "outside": [member("evil")],
    "backslash": [member("bundle\\..\\evil")],
    "drive": [member("bundle/C:evil")],
    "link": [member("bundle/link", b"", type=tarfile.SYMTYPE, linkname="/etc")],
    "through a link": [member("bundle/link", b"", type=tarfile.SYMTYPE, linkname=".."), member("bundle/link/evil")],
    "hard link": [member("bundle/link", b"", type=tarfile.LNKTYPE, linkname="/etc/passwd")],
    "device": [member("bundle/device", b"", type=tarfile.CHRTYPE)],
    "fifo": [member("bundle/fifo", b"", type=tarfile.FIFOTYPE)],
    "twice": [member("bundle/a"), member("bundle/a", b"y")],
    "file as folder": [member("bundle/a"), member("bundle/a/b")],
    "many": [member(f"bundle/{place}") for place in range(archives.MAX_FILES + 1)],
    "empty": [],
    "no manifest": [member("bundle/a")],
}


def tar_gz(path: Path, members: list[tuple[tarfile.TarInfo, bytes]]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for info, content in members:
            archive.addfile(info, io.BytesIO(content))
    return path


def everything_under(place: Path) -> set[str]:
    return {path.relative_to(place).as_posix() for path in place.rglob("*")}


@pytest.mark.parametrize("kind", UNSAFE)
def test_unsafe_archives_leave_nothing_behind(tmp_path: Path, kind: str) -> None:
    packed = tar_gz(tmp_path / "packed.tar.gz", UNSAFE[kind])
    with pytest.raises(BadArtifact):
        unpack(packed, tmp_path / "board")
    assert everything_under(tmp_path) == {"packed.tar.gz", "board"}


def test_a_small_file_that_claims_to_be_huge(tmp_path: Path) -> None:
    """4 GiB of zeros in a header's own data, and a member beyond the limit: refused before they are read."""
    for info in (member("bundle/a", b"")[0], member("bundle/h", b"", type=tarfile.XHDTYPE)[0]):
        info.size = archives.MAX_BYTES + 1
        with gzip.open(tmp_path / "packed.tar.gz", "wb") as file:
            file.write(info.tobuf(tarfile.GNU_FORMAT))
            file.write(bytes(100_000))
        with pytest.raises(BadArtifact):
            unpack(tmp_path / "packed.tar.gz", tmp_path / "board")


def test_damaged_archives(folder: Path, tmp_path: Path) -> None:
    content = pack(folder, tmp_path / "packed.tar.gz").read_bytes()
    for damaged in (b"", b"hello", content[: len(content) // 2], content[:-4], content[:200] + b"\0" * 50 + content[250:]):
        (tmp_path / "damaged.tar.gz").write_bytes(damaged)
        with pytest.raises(BadArtifact):
            unpack(tmp_path / "damaged.tar.gz", tmp_path / "board")
        assert not everything_under(tmp_path / "board")
    with pytest.raises(BadArtifact, match="no such file"):
        unpack(tmp_path / "absent.tar.gz", tmp_path / "board")


@pytest.mark.slow
def test_two_thousand_random_damages(folder: Path, tmp_path: Path) -> None:
    """Any bytes give the bundle back or one clear error, and nothing is written outside."""
    content = pack(folder, tmp_path / "packed.tar.gz").read_bytes()
    plain = gzip.decompress(content)
    random = np.random.default_rng(0)
    before = everything_under(tmp_path)
    for attempt in range(2000):
        damaged = bytearray(plain if attempt % 2 else content)
        for place in random.integers(0, len(damaged), random.integers(1, 8)):
            damaged[place] = random.integers(256)
        (tmp_path / "damaged.tar.gz").write_bytes(gzip.compress(damaged, 1) if attempt % 2 else damaged)
        try:
            there = unpack(tmp_path / "damaged.tar.gz", tmp_path / "board")
        except LoritaDeployError:
            continue
        assert check_bundle(there) == check_bundle(folder)
        for path in sorted(there.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        there.rmdir()
    assert everything_under(tmp_path) - before == {"damaged.tar.gz", "board"}


def test_plain_names() -> None:
    for name in ("model.onnx", "golden/inputs.npz", "a-b_c.1"):
        assert is_plain(name)
    for name in ("", ".", "..", "../a", "a/../b", "/a", "a//b", "a/", "./a", "a\\b", "C:a", "a\nb", "a\0b"):
        assert not is_plain(name), name


def test_npz_bytes_depend_on_the_arrays_alone() -> None:
    arrays = {"b": np.arange(6.0).reshape(2, 3).T, "a": np.array([1, 2], np.int64)}
    assert npz(arrays) == npz({name: array.copy() for name, array in arrays.items()})
    with np.load(io.BytesIO(npz(arrays)), allow_pickle=False) as read:
        assert all((read[name] == array).all() and read[name].dtype == array.dtype for name, array in arrays.items())


PYTHON36 = next((str(path) for path in Path.home().glob(".pyenv/versions/3.6.*/bin/python")), None)


@pytest.mark.skipif(PYTHON36 is None, reason="no Python 3.6 here")
def test_infer_is_valid_python_3_6(folder: Path) -> None:
    assert PYTHON36 is not None
    subprocess.run([PYTHON36, "-m", "py_compile", str(folder / "infer.py")], check=True)
