"""The runner's work, in order: alone in the folder, the runtime, engines, golden outputs, the race, the result file.

Started by `run`, which has seen to it that every file is whole. Valid Python 3.6.
"""

import contextlib
import fcntl
import gc
import json
import os
import sys
import time
import uuid

from typing import Any, Iterator, List, Optional, Tuple

import board
import clock
import layer_profile
import machine
import power
import prepare
import race
import runtimes

from job import DEFAULTS, Json, JobError, feeds, inside, write_json
from progress import Progress, digest

PROGRAM = os.path.join(os.path.dirname(os.path.abspath(__file__)), "run.py")
ON_A_JETSON = "sudo apt install python3-libnvinfer, and start it with the system's own /usr/bin/python3 (not in a venv)"
"""What brings TensorRT: pip's does not know the GPU of many Jetsons."""


def start_runtime(job: Json, settle: bool = False) -> Tuple[Any, List[str]]:
    """The runtime of the job's settings, and warnings. ``settle``: take ONNX Runtime where that one cannot be used here.

    Raises `JobError` (exit code 2: no such runtime; 3: not usable with this Python on this machine).
    """
    name = job["settings"]["runtime"]
    try:
        return _started(job), []
    except runtimes.CannotRunError as error:
        problem = str(error)
    if settle and name != "onnxruntime":
        job["settings"] = dict(job["settings"], runtime="onnxruntime")
        try:
            return _started(job), ["%s cannot be used here (%s): onnxruntime on the processor was used" % (name, problem)]
        except runtimes.CannotRunError as error:
            fix = "on a Jetson: %s; elsewhere: %s -m pip install onnxruntime" % (ON_A_JETSON, sys.executable)
            raise JobError("neither can be used here: %s; %s" % (problem, error), sys.executable, fix, 3)
    fix = ON_A_JETSON if name == "tensorrt" else "%s -m pip install %s" % (sys.executable, name)
    raise JobError(problem, sys.executable, "%s; run.py --runtime NAME takes another one" % fix, 3)


def _started(job: Json) -> Any:
    name = job["settings"]["runtime"]
    found = runtimes.find(name, job["folder"])
    if found is None:
        raise JobError("there is no runtime called %r" % name, "--runtime", "known: %s" % ", ".join(sorted(runtimes.RUNTIMES)))
    runtime = found(job["settings"])
    runtime.versions()
    return runtime


@contextlib.contextmanager
def alone(folder: str) -> Iterator[None]:
    """Hold the folder: two runs in it would disturb one another's times. Raises `JobError` (exit code 6)."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise JobError("another run is at work in this folder", folder, "wait for it to end", 6)
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        os.close(handle)


def run(job: Json, path: str, settle: bool) -> Tuple[str, Json]:
    """Do the job, which was read from ``path``, and write its result; where that is, and what is in it. Raises `JobError`."""
    if job["tasks"] == ["verify"] and job["result"] == DEFAULTS["result"]:
        job["result"] = "verification.json"
    result = inside(job["folder"], job["result"])
    with alone(job["folder"]):
        runtime, warnings = start_runtime(job, settle)
        first = board.conditions("start")
        body = _head(job, runtime)
        warnings += clock.load_warning(body["load_before"], body["host"]["cores"])
        fingerprint = board.fingerprint(body["host"], job["settings"], first)
        asked = {key: value for key, value in job.items() if key != "folder"}
        progress = Progress(_beside(result, "progress"), digest([asked, fingerprint]))
        _prepare(path, job, runtime, progress)
        gc.disable()
        try:
            warnings += _tasks(job, runtime, progress, first, fingerprint, body)
        except runtimes.CannotRunError as error:  # while it ran
            raise JobError(str(error), path, "start it again; if it stays, restart the board")
        gc.enable()
        body.update(load_after=machine.load_average(), warnings=warnings)
        _write(result, body)
        progress.remove()
    return result, body


def _tasks(job: Json, runtime: Any, progress: Progress, first: Json, fingerprint: str, body: Json) -> List[str]:
    """Put what was found into ``body``; the warnings."""
    if "profile" in job["tasks"]:
        body["artifacts"] = layer_profile.profile(job, _loader(job, runtime))
        return []
    body["model"] = job["model"]
    if "race" in job["tasks"]:
        body.update(environment=board.environment(first), fingerprint=fingerprint)
        return _race(job, runtime, progress, first, body)
    body["artifacts"] = [_verified(each, progress.probes[each["name"]]) for each in job["artifacts"]]
    return []


def _write(result: str, body: Json) -> None:
    """A finished result of before is kept under its time; it stays where it is if the new one cannot be written."""
    kept = ""
    if os.path.exists(result):
        kept = _beside(result, time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(os.path.getmtime(result))))
        os.replace(result, kept)
    try:
        write_json(result, body)
    except BaseException:
        if kept:
            os.replace(kept, result)
        raise


def prepare_one(job: Json, name: str, exact: bool, workspace: Optional[int]) -> None:
    """In a child process: build the engine of one artifact with that ``workspace``, or run it for the first time.

    Raises `JobError`, which is what the parent hears of.
    """
    artifact = next(each for each in job["artifacts"] if each["name"] == name)
    artifact["exact"] = exact
    runtime, _ = start_runtime(job)
    try:
        if workspace is None:
            print(json.dumps(prepare.probe(job, runtime, artifact)))
        else:
            prepare.build(job, runtime, artifact, workspace)
    except runtimes.CannotRunError as error:
        raise JobError(str(error), artifact["path"], "start it again; if it stays, restart the board")


def _head(job: Json, runtime: Any) -> Json:
    kind = "profile" if "profile" in job["tasks"] else "receipt" if "race" in job["tasks"] else "verification"
    return {
        "schema": "lorita-deploy/%s/1" % kind,
        "run_id": uuid.uuid4().hex,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "host": machine.host(job["kind"], runtime.versions()),
        "settings": job["settings"],
        "load_before": machine.load_average(),
    }


def _prepare(path: str, job: Json, runtime: Any, progress: Progress) -> None:
    if "profile" in job["tasks"] and not runtime.builds:
        return
    command = [sys.executable, PROGRAM, "--job", path, "--runtime", job["settings"]["runtime"]]
    command += ["--parent", str(os.getpid())]
    for artifact in job["artifacts"]:
        known = progress.probes.get(artifact["name"])
        if not known or not prepare.take_up(job, runtime, artifact, known):
            progress.probes[artifact["name"]] = prepare.prepare(job, command, runtime, artifact)
            progress.save()


def _loader(job: Json, runtime: Any) -> Any:
    return lambda artifact, profile=False: prepare.load(job, runtime, artifact, profile)


def _race(job: Json, runtime: Any, progress: Progress, first: Json, body: Json) -> List[str]:
    """Put series, ratios and what follows from them into ``body``; the warnings."""
    if not progress.conditions:
        progress.conditions.append(first)
    if job["deadline_ms"]:
        job["samples"] = max(job["samples"], race.FOR_P99)
        # A sample costs one call and half of another, on a GPU one more on its own clock; then there are warm-up and loading.
        calls_s, loads_s = (sum(each[key] for each in progress.probes.values()) / 1e3 for key in ("call_ms", "load_ms"))
        job["max_seconds"] = max(job["max_seconds"], 4.0 * job["samples"] * calls_s + 2.0 * clock.RELOADS * loads_s)
    load = _loader(job, runtime)
    before = machine.work_seconds()
    race.race(job, load, progress)
    company: List[str] = clock.company_warning(before, machine.work_seconds(), body["host"]["cores"])
    progress.conditions.append(board.conditions("end"))
    warnings: List[str]
    series, ratios, faster, warnings = race.results(job, progress)
    meter = power.find_meter() if job["energy_seconds"] else None
    if meter:
        idle = power.idle_mw(meter)
        for artifact, each in zip(job["artifacts"], series):
            session = load(artifact)
            call = race.bind(session.run, feeds(job, session))
            each["energy"] = power.energy(meter, call, job["energy_seconds"], idle)
            session.close()
    body.update(series=series, ratios=ratios, faster=faster, conditions=progress.conditions)
    if job["deadline_ms"]:
        body["deadline"] = race.deadline(job["deadline_ms"], series)
    return company + warnings


def _verified(artifact: Json, found: Json) -> Json:
    named = {"name": artifact["name"], "sha256": artifact["sha256"]}
    return dict(named, **{key: value for key, value in found.items() if key != "exact"})


def _beside(result: str, word: str) -> str:
    stem, suffix = os.path.splitext(result)
    return "%s-%s%s" % (stem, word, suffix)


# ---------------------------------------------------------------------------------------------- what a person reads


def summary(body: Json) -> List[str]:
    """A few lines on what was found."""
    lines = []
    for each in body.get("series", ()):
        tail = "" if each["p99_ms"] is None else ", p99 %.3g ms" % each["p99_ms"]
        alone = "" if not each["gpu"] else ", on the GPU alone %.3g ms" % each["gpu"]["median_ms"]
        energy = "" if not each.get("energy") else ", %.3g mJ" % each["energy"]["per_call_mj"]
        lines.append("%s: median %.3g ms%s%s%s" % (each["name"], each["median_ms"], tail, alone, energy))
    for each in body.get("ratios", ()):
        words = "%s takes %.3f times as long as %s (95 %% interval %.3f to %.3f)"
        lines.append(words % (each["candidate"], each["ratio"], each["baseline"], each["ci95"][0], each["ci95"][1]))
    if body.get("faster"):
        lines.append("use here: %s" % body["faster"])
    if body.get("deadline"):
        chosen, seen = body["deadline"]["chosen"], any(body["deadline"]["p99_at_most_ms"].values())
        nobody = "none of them" if seen else "too few calls fitted into the time to tell"
        lines.append("within %g ms at p99: %s" % (body["deadline"]["deadline_ms"], chosen or nobody))
    if "series" not in body:
        lines += [
            "%s: golden outputs reproduced" % each["name"] for each in body["artifacts"] if each.get("max_rel") is not None
        ]
    return lines + ["note: %s" % each for each in body["warnings"]]
