"""The bundle: one folder that a board needs, every file in it known by its sha256.

manifest.json     the `Manifest` record, and beside it manifest.json.sha256, its own digest as sha256sum writes it
<role>.onnx       the artifacts, under the names they have in the build folder
golden/           inputs.npz, outputs-<name>.npz: what the artifacts must reproduce
run.py, ...       the runner: checks, builds, verifies, races the artifacts, writes receipt.json
run.sh            for boards that have trtexec but no Python packages: checks, builds, times; a receipt is made of it elsewhere
infer.py          classifies one image file; chosen.py opens the network that it uses
README.txt
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import BadArtifact, OutOfResource
from ..records import Accuracy, Artifact, Manifest, ManifestFile, write_atomically
from . import RUNNER_FILES
from .archive import TOP, is_plain, pack_files, unpack_files
from .runtimes import file_of

if TYPE_CHECKING:
    import numpy as np

    Arrays = Mapping[str, np.ndarray[Any, Any]]

MANIFEST, SEAL = "manifest.json", "manifest.json.sha256"
PROGRAMS = (*RUNNER_FILES, "chosen.py", "infer.py")
TRTEXEC_RUNNER = "run.sh"
MADE_ON_THE_DEVICE = (
    "receipt*.json",
    "job-receipt*.json",
    "verification*.json",
    "engines/*",
    "trtexec/*",
    "trtexec-*.tar.gz",
    "*.part",
)
"""Files that the runner leaves in an unpacked bundle (patterns)."""

README = """\
{model} for {target}, made by {producer}

    python3 run.py                check every file, build engines where TensorRT is used, verify the outputs, time the networks
                                  against each other here, and say which is the faster one (writes receipt.json)
    python3 run.py --deadline 8   also name the most accurate network that is done within 8 ms in 99 of 100 calls
    python3 run.py --verify-only  check, build and verify; no times (writes verification.json)
    python3 infer.py IMAGE        classify an image file with the network to use here
    sh run.sh                     for a board with trtexec and without numpy: check, build, time (writes trtexec-DATE.tar.gz,
                                  of which lorita-deploy bench --receipt makes a receipt)

A run that was stopped goes on where it was when it is started again; engines/ and older receipts are kept.
Times are steadier on a Jetson after `sudo jetson_clocks`; the power mode and the clocks are in the receipt.

Needs Python 3.6 or newer with numpy, and either TensorRT 8.2 or newer (a Jetson's own python3 has it) or onnxruntime;
infer.py also needs pillow. Nothing is downloaded or sent.
"""


def write_bundle(
    folder: Path,
    *,
    artifacts: Sequence[Artifact],
    artifact_root: Path,
    golden_inputs: Arrays,
    golden_outputs: Mapping[Any, Arrays],
    model: str,
    target: str,
    producer: str,
    sources: Mapping[str, str],
    preprocessing: Mapping[str, Any],
    classes: Sequence[str],
    tolerance: float,
    runtime: str = "onnxruntime",
    threads: int = 1,
    accuracy: Mapping[Any, Accuracy] | None = None,
    tolerances: Mapping[Any, float] | None = None,
    further: Mapping[str, Sequence[Artifact]] | None = None,
    runners: Mapping[str, Path] | None = None,
) -> Manifest:
    """Fill the new or empty ``folder``; its manifest and the seal on it are written last: a bundle with these is whole.

    ``artifact_root`` is where the artifacts' paths start; ``golden_outputs`` are by artifact name (the role, or
    ``<role>-rung<number>`` on the ladder), and so are ``accuracy``, which a deadline is weighed against, and ``tolerances``
    where they are not the common ``tolerance``. ``runtime`` is the one that the runner takes where it can, with so many
    ``threads`` on a processor. ``further`` are artifacts of other runtimes, by the name of the runtime, whose files are
    ``runners``. Raises `BadArtifact` when an artifact is no longer what it was exported as, or the folder is in use, and
    `OutOfResource`.
    """
    if folder.exists() and any(folder.iterdir()):
        raise BadArtifact("the folder for the bundle is not empty", where=folder, fix="remove it, or choose another")
    contents: dict[str, bytes] = {}
    others = {name: tuple(each) for name, each in (further or {}).items()}
    for artifact in (*artifacts, *(each for group in others.values() for each in group)):
        contents[artifact.path] = _read_artifact(artifact, artifact_root)
    for name, runner in (runners or {}).items():
        contents[file_of(name)] = runner.read_bytes()
    contents["golden/inputs.npz"] = npz(golden_inputs)
    for name, arrays in golden_outputs.items():
        contents[f"golden/outputs-{name}.npz"] = npz(arrays)
    for name in (*PROGRAMS, TRTEXEC_RUNNER):
        contents[name] = (resources.files(__package__) / name).read_bytes()
    contents["README.txt"] = README.format(model=model, target=target, producer=producer).encode()
    for name, content in contents.items():
        write_atomically(folder / name, content)
    for name in ("run.py", "infer.py", TRTEXEC_RUNNER):
        (folder / name).chmod(0o755)
    manifest = Manifest(
        model=model,
        target=target,
        producer=producer,
        files=tuple(
            ManifestFile(path=name, sha256=hashlib.sha256(content).hexdigest(), size_bytes=len(content))
            for name, content in sorted(contents.items())
        ),
        artifacts=tuple(artifacts),
        sources=dict(sources),
        preprocessing=dict(preprocessing),
        classes=tuple(classes),
        tolerance=tolerance,
        runtime=runtime,
        threads=threads,
        accuracy=dict(accuracy or {}),
        tolerances=dict(tolerances or {}),
        further=others,
    )
    manifest.save(folder / MANIFEST)
    seal(folder)
    return manifest


def seal(folder: Path) -> None:
    """Write down the digest of the manifest, so that damage to it (labels, means, tolerances) is noticed too."""
    digest = hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()
    write_atomically(folder / SEAL, f"{digest}  {MANIFEST}\n".encode())


def read_manifest(folder: Path) -> Manifest:
    """The manifest of the bundle in ``folder``, the other files unread. Raises `BadArtifact`, `BadRecord`."""
    for name in (MANIFEST, SEAL):
        if not (folder / name).is_file():
            raise BadArtifact(f"not a bundle, or not a whole one: it has no {name}", where=folder, fix="unpack it again")
    digest = hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()
    if (folder / SEAL).read_bytes()[:64] != digest.encode():
        raise BadArtifact(f"changed: {MANIFEST} (or {SEAL}); nothing was run", where=folder, fix="unpack it again")
    manifest = Manifest.load(folder / MANIFEST)
    names = [file.path for file in manifest.files]
    held = [artifact.path for artifact in all_artifacts(manifest)]
    strange = [name for name in (*names, *held) if not is_plain(name)]
    unlisted = [path for path in held if path not in names]
    if strange or unlisted or len(set(names)) < len(names):
        named = strange or unlisted or ["a file that is listed twice"]
        raise BadArtifact(f"its manifest names impossible files: {', '.join(named[:3])}", where=folder / MANIFEST)
    return manifest


def all_artifacts(manifest: Manifest) -> tuple[Artifact, ...]:
    """Those of every runtime."""
    return (*manifest.artifacts, *(each for group in manifest.further.values() for each in group))


def check_bundle(folder: Path) -> Manifest:
    """Check that every file is there, whole and expected; nothing is run. Raises `BadArtifact` naming what is not right."""
    manifest = read_manifest(folder)
    present = _files_in(folder)
    expected = {file.path: file for file in manifest.files}
    findings = [f"missing: {name}" for name in sorted(expected.keys() - present)]
    findings += [f"not part of it: {name}" for name in sorted(present - expected.keys())]
    findings += [
        f"changed: {name}" for name in sorted(expected.keys() & present) if not _is_same(folder / name, expected[name])
    ]
    for artifact in all_artifacts(manifest):
        if artifact.sha256 != expected[artifact.path].sha256:
            findings.append(f"listed with two digests: {artifact.path}")
    if findings:
        shown = "; ".join(findings[:5]) + (f"; and {len(findings) - 5} more" if len(findings) > 5 else "")
        raise BadArtifact(f"this bundle is not as it was made ({shown}); nothing was run", where=folder, fix="unpack it again")
    return manifest


def pack(folder: Path, path: Path) -> Path:
    """The bundle in ``folder`` as the .tar.gz file ``path``, the same bytes for the same bundle.

    What the runner left there is not packed. Raises `BadArtifact` for a bundle that does not pass `check_bundle`.
    """
    manifest = check_bundle(folder)
    return pack_files(
        folder, [MANIFEST, SEAL, *(file.path for file in manifest.files)], path, executable=("run.py", "infer.py")
    )


def unpack(archive: Path, into: Path) -> Path:
    """Unpack a packed bundle as the new folder ``into/bundle``, checked before it appears there; returns that folder.

    Raises `BadArtifact` (damaged, tampered with, unsafe, or the folder is there already), `BadRecord`, `OutOfResource`.
    """
    target = into / TOP
    if not archive.is_file():
        raise BadArtifact("there is no such file", where=archive)
    if target.exists():
        raise BadArtifact("there is a folder of that name already", where=target, fix="remove it, or choose another place")
    try:
        into.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(dir=into, prefix=".unpack-", suffix=".part"))
    except OSError as error:
        raise OutOfResource(f"cannot unpack: {error.strerror}", where=into, fix="choose another place") from error
    try:
        unpack_files(archive, aside / TOP)
        check_bundle(aside / TOP)
        os.replace(aside / TOP, target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return target


def npz(arrays: Arrays) -> bytes:
    """An .npz file whose bytes depend on the arrays alone (numpy's own writer puts the time of day into it)."""
    import numpy as np

    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            part = io.BytesIO()
            np.save(part, np.ascontiguousarray(array), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), part.getvalue())
    return content.getvalue()


def _read_artifact(artifact: Artifact, root: Path) -> bytes:
    path = root / artifact.path
    if not is_plain(artifact.path):
        raise BadArtifact("this path cannot be part of a bundle", where=artifact.path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BadArtifact(f"cannot read: {error.strerror}", where=path, fix="export it again") from error
    if hashlib.sha256(content).hexdigest() != artifact.sha256:
        raise BadArtifact("this artifact has changed since it was exported", where=path, fix="export it again")
    return content


def _files_in(folder: Path) -> set[str]:
    """Every file that ought to be in the manifest. Raises `BadArtifact` for links, which may lead anywhere."""
    found = set()
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            raise BadArtifact("a bundle holds no links", where=path)
        if (
            path.is_dir()
            or "__pycache__" in path.parts
            or any(fnmatch(name, kind) for kind in (MANIFEST, SEAL, *MADE_ON_THE_DEVICE))
        ):
            continue
        found.add(name)
    return found


def _is_same(path: Path, expected: ManifestFile) -> bool:
    if path.stat().st_size != expected.size_bytes:
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == expected.sha256
