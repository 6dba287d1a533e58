"""The runner's job: reading it, checking every hash, and its golden data. Valid Python 3.6.

    {"schema": "lorita-deploy/job/1", "tasks": ["verify", "race"], ["verify"] or ["profile"], "settings": {...},
     "artifacts": [{"name", "path", "sha256", "precision", "accuracy", "tolerance", "rung"}, ...], "baseline": "dense",
     "golden": {"inputs": path, "outputs": {name: path}} or null, ...}

Left-out entries have the values of `DEFAULTS`. Paths are relative to the folder of the job file and never lead out of it.
A bundle's manifest stands for the job of racing what is in it.
"""

import hashlib
import json
import os
import re
import tempfile

from typing import Any, Dict, Iterator, List, Optional, Tuple

Json = Dict[str, Any]

JOB = "lorita-deploy/job/1"
MANIFEST = "lorita-deploy/manifest/1"
DEFAULTS = {
    "tasks": ["verify", "race"],
    "settings": {"runtime": "onnxruntime", "threads": 1, "graph_level": "all", "spinning": False, "batch": 1},
    "baseline": None,
    "golden": None,
    "tolerance": 1e-3,
    "samples": 300,
    "max_seconds": 60.0,
    "deadline_ms": 0.0,  # 0: none
    "energy_seconds": 10.0,  # of steady running for each artifact, where the board can measure power
    "kind": "cpu",
    "model": "",
    "result": "receipt.json",
}  # type: Json
ARTIFACT = {"precision": "fp32", "accuracy": None, "tolerance": None, "rung": 0}  # type: Json
"""No tolerance of its own: the job's."""


class JobError(Exception):
    """Something the reader can mend: what, where, what to do, and the exit code."""

    def __init__(self, what: str, where: str, fix: str, code: int = 2) -> None:
        Exception.__init__(self, "%s\n  where: %s\n  do:    %s" % (what, where, fix))
        self.code = code


def read_job(path: str, changes: Optional[Json] = None, check: bool = True) -> Json:
    """The job in a job file, or the one that a bundle's manifest stands for; ``folder`` is where its paths start.

    ``changes`` replace entries, those of the settings one by one; ``check``: every hash is looked at.
    """
    try:
        with open(path, encoding="utf-8") as file:
            body = json.load(file)
        schema = body.pop("schema", None)
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise JobError("cannot be read: %s" % error, path, "run inside an unpacked bundle, or give --job FILE")
    if schema == MANIFEST:
        _check_seal(path)
    if schema not in (JOB, MANIFEST):
        raise JobError("schema is %r, expected %s or %s" % (schema, JOB, MANIFEST), path, "use the runner of the same release")
    try:
        changes = dict(changes or {})
        runtime = changes.get("settings", {}).get("runtime")
        asked = _from_manifest(body, runtime) if schema == MANIFEST else body
        asked["settings"] = dict(asked.get("settings", {}), **changes.pop("settings", {}))
        job = _with_defaults(dict(asked, **changes), DEFAULTS, ("artifacts", "files"))
        job["settings"] = _with_defaults(job["settings"], DEFAULTS["settings"])
        job["artifacts"] = [_with_defaults(each, ARTIFACT, ("name", "path", "sha256")) for each in job["artifacts"]]
        names = [artifact["name"] for artifact in job["artifacts"]]
        files = [(each["path"], each["sha256"]) for each in job["artifacts"] + job.pop("files", [])]
        if not all(isinstance(text, str) for text in names + [text for pair in files for text in pair]):
            raise ValueError("names, paths and digests are text")
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise JobError("an entry is missing, unknown or of the wrong type: %s" % error, path, "write the file again")
    if not names or len(set(names)) < len(names) or not all(re.match(r"[\w.-]+\Z", name) for name in names):
        raise JobError("artifacts need distinct plain names, at least one: %s" % names, path, "write the file again")
    if job["baseline"] not in names:
        job["baseline"] = names[0]
    job["folder"] = os.path.dirname(os.path.abspath(path))
    if check:
        check_hashes(job["folder"], files)
    return job


def _with_defaults(asked: Json, defaults: Json, more: Tuple[str, ...] = ()) -> Json:
    """``defaults`` overlaid with what was asked for. Raises ``ValueError`` for unknown entries and other types."""
    for key, value in asked.items():
        if key not in defaults and key not in more:
            raise ValueError("unknown entry %s" % key)
        default = defaults.get(key)
        kinds = (int, float) if isinstance(default, float) else type(default)
        if default is not None and not isinstance(value, kinds):
            raise ValueError("%s is %r" % (key, value))
    return dict(defaults, **asked)


def _from_manifest(manifest: Json, runtime: Optional[str]) -> Json:
    """The job of racing what the bundle holds for ``runtime``: artifacts of its own, or the common ones."""
    listed = set(each["path"] for each in manifest["files"])
    judged = {name: each["correct"] / max(each["total"], 1) for name, each in manifest.get("accuracy", {}).items()}
    artifacts = []
    further = manifest.get("further", {})
    for each in further.get(runtime, manifest["artifacts"]):
        name = each["role"] if each["rung"] == 0 else "%s-rung%d" % (each["role"], each["rung"])
        found = {"name": name, "accuracy": judged.get(name), "tolerance": manifest.get("tolerances", {}).get(name)}
        artifacts.append(dict(found, **{key: each[key] for key in ("path", "sha256", "precision", "rung")}))
    outputs = {each["name"]: "golden/outputs-%s.npz" % each["name"] for each in artifacts}
    outputs = {name: path for name, path in outputs.items() if path in listed}
    golden = {"inputs": "golden/inputs.npz", "outputs": outputs} if "golden/inputs.npz" in listed else None
    batch = min([each["batch"] for each in manifest["artifacts"]] or [1])
    return {
        "settings": {
            "batch": batch,
            "runtime": manifest.get("runtime", "onnxruntime"),
            "threads": manifest.get("threads", 1),
        },
        "artifacts": artifacts,
        "files": manifest["files"],
        "baseline": "dense",
        "golden": golden,
        "tolerance": manifest["tolerance"],
        "kind": manifest["target"],
        "model": manifest["model"],
    }


def inside(folder: str, path: str) -> str:
    """``path`` under ``folder``, links followed. Raises `JobError` where it leads out of it."""
    root = os.path.realpath(folder)
    try:
        found = os.path.realpath(os.path.join(root, path))
    except ValueError as error:  # a zero byte, half a letter
        raise JobError("this is no path: %s" % error, repr(path), "paths must be relative and stay inside %s" % root)
    if os.path.isabs(path) or not found.startswith(root + os.sep):
        raise JobError("this path leads out of the folder", path, "paths must be relative and stay inside %s" % root)
    return found


def digest_of(path: str) -> str:
    """sha256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for chunk in iter(lambda: file.read(1 << 20), b""):
            digest.update(chunk)
    return digest.hexdigest()


def _check_seal(path: str) -> None:
    """A bundle's manifest has its own digest beside it, as sha256sum writes it. Raises `JobError`."""
    try:
        with open(path + ".sha256", "rb") as file:
            expected = file.read(64).decode("ascii", "replace")
    except OSError as error:
        raise JobError("cannot be read: %s" % error.strerror, path + ".sha256", "copy the folder again, complete")
    found = digest_of(path)
    if found != expected:
        raise JobError("sha256 is %s, expected %s; nothing was run" % (found, expected), path, "copy the folder again")


def check_hashes(folder: str, files: List[Tuple[str, str]]) -> None:
    """Look at every file, then name each one that is missing or was changed. Raises `JobError`."""
    wrong = []
    for path, expected in sorted(set(files), key=files.index):
        try:
            found = digest_of(inside(folder, path))
        except OSError as error:
            wrong.append((path, "cannot be read: %s" % error.strerror, "copy the folder again, complete"))
            continue
        if found != expected:
            wrong.append((path, "sha256 is %s, expected %s" % (found, expected), "copy the file again"))
    if wrong:
        path, what, fix = wrong[0]
        others = "; also wrong: %s" % ", ".join(each[0] for each in wrong[1:]) if wrong[1:] else ""
        raise JobError("%s%s; nothing was run" % (what, others), path, fix)


# ---------------------------------------------------------------------------------------------- inputs and outputs


def read_arrays(job: Json, path: str) -> Json:
    import numpy

    try:
        with numpy.load(inside(job["folder"], path), allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except Exception as error:  # zipfile, zlib and numpy have many words for damage
        raise JobError("golden data cannot be read: %s" % error, path, "copy the folder again, complete")


def batches(session: Any, inputs: Json, batch: int) -> Iterator[Json]:
    """The golden inputs cut into batches of the artifact's own size, the last one filled up by repetition."""
    import numpy

    for name, _, shape in session.inputs:
        given = inputs[name].shape if name in inputs else ()
        if len(given) != len(shape) or any(isinstance(n, int) and n != m for n, m in zip(shape[1:], given[1:])):
            raise JobError("no golden input fits %s %s" % (name, shape), "golden inputs", "write them again")
    first = session.inputs[0]
    size = first[2][0] if first[2] and isinstance(first[2][0], int) else batch
    count = len(inputs[first[0]])
    for start in range(0, count, size):
        index = numpy.arange(start, start + size) % count
        yield {name: numpy.ascontiguousarray(inputs[name][index].astype(dtype)) for name, dtype, _ in session.inputs}


def feeds(job: Json, session: Any) -> Json:
    """One batch to time with: golden examples where there are some, else random numbers from a fixed seed."""
    import numpy

    if job["golden"]:
        return next(batches(session, read_arrays(job, job["golden"]["inputs"]), job["settings"]["batch"]))
    random_state, found = numpy.random.RandomState(0), {}
    for name, dtype, shape in session.inputs:
        known = [job["settings"]["batch"] if place == 0 and not isinstance(n, int) else n for place, n in enumerate(shape)]
        if not all(isinstance(n, int) for n in known):
            raise JobError("input %s has open dimensions %s" % (name, shape), "the artifact", "give golden inputs")
        found[name] = random_state.standard_normal(known).astype(dtype)
    return found


def golden_error(job: Json, artifact: Json, session: Any) -> Optional[float]:
    """Largest absolute difference from the golden outputs over the largest golden value; None without golden outputs."""
    import numpy

    golden = job["golden"] or {"outputs": {}}
    if "verify" not in job["tasks"] or artifact["name"] not in golden["outputs"]:
        return None
    expected = read_arrays(job, golden["outputs"][artifact["name"]])
    got = [session.run(each) for each in batches(session, read_arrays(job, golden["inputs"]), job["settings"]["batch"])]
    worst = 0.0
    for place, name in enumerate(session.outputs):
        if name not in expected:
            raise JobError("no golden output called %s" % name, golden["outputs"][artifact["name"]], "write them again")
        reference = expected[name].astype("float64")
        found = numpy.concatenate([outputs[place] for outputs in got])[: len(reference)].astype("float64")
        if found.shape != reference.shape:
            return float("inf")
        error = numpy.abs(found - reference).max() / max(numpy.abs(reference).max(), 1e-30)
        worst = max(worst, float(error) if numpy.isfinite(error) else float("inf"))
    return worst


def write_json(path: str, body: Json) -> None:
    """An object as JSON, written as `write_bytes` does."""
    write_bytes(path, (json.dumps(body, indent=1, allow_nan=False) + "\n").encode("utf-8"))


def write_bytes(path: str, content: bytes) -> None:
    """Write aside, then rename: a half-written file is never taken for a whole one. Raises `JobError` (exit code 6)."""
    aside = ""
    try:
        handle, aside = tempfile.mkstemp(dir=os.path.dirname(path), suffix=".part")
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(aside, 0o644)
        os.replace(aside, path)
    except OSError as error:
        if aside and os.path.exists(aside):
            os.unlink(aside)
        raise JobError("cannot be written: %s" % error.strerror, path, "make room, or make the folder writable", 6)
