#!/usr/bin/env python3
"""THE way latency is measured: a script in a process of its own, on the board as in the library.

    python3 run.py                   in a bundle: check, build, verify, race dense against compressed, write receipt.json
    python3 run.py --deadline 8      and name the most accurate network whose p99 is at most 8 ms
    python3 run.py --verify-only     check, build and verify; no race (writes verification.json)
    python3 run.py --job job.json    what lorita-deploy asks for: {"schema": "lorita-deploy/job/1", "tasks": [...], ...}

Tasks: ``verify`` (golden outputs), ``race`` (gives a receipt) or ``profile`` (per-node times). Needs numpy and the runtime
that the job names; valid Python 3.6; imports nothing but its neighbours. Nothing runs before every hash is right; a run that
was stopped goes on where it was when started again.
Exit codes: 0 done, 1 no network meets the deadline, 2 bad input, 4 golden outputs not reproduced, 6 out of memory or disk, or
another run is at work here, 130/143 interrupted.
"""

import argparse
import contextlib
import fcntl
import gc
import json
import os
import signal
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

from job import DEFAULTS, Json, JobError, feeds, inside, read_job, write_json
from progress import Progress, digest

HERE = os.path.dirname(os.path.abspath(__file__))


def start_runtime(job: Json, settle: bool = False) -> Tuple[Any, List[str]]:
    """The runtime of the job's settings, and warnings. ``settle``: take ONNX Runtime where that one cannot be used here."""
    name = job["settings"]["runtime"]
    try:
        found = runtimes.find(name, job["folder"])
        if found is None:
            known = ", ".join(sorted(runtimes.RUNTIMES))
            raise JobError("there is no runtime called %r" % name, "settings", "known: %s" % known)
        runtime = found(job["settings"])
        runtime.versions()
        return runtime, []
    except runtimes.CannotRunError as error:
        if settle and name != "onnxruntime":
            job["settings"] = dict(job["settings"], runtime="onnxruntime")
            runtime, _ = start_runtime(job)
            return runtime, ["%s cannot be used here (%s): onnxruntime on the processor was used" % (name, error)]
        raise JobError(str(error), name, "python3 -m pip install %s, or choose with --runtime" % name)


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


def run(path: str, changes: Json, settle: bool) -> Tuple[str, Json]:
    """Do the job and write its result; where that is, and what is in it."""
    job = read_job(path, changes)
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
        if "profile" in job["tasks"]:
            body["artifacts"] = layer_profile.profile(job, _loader(job, runtime))
        elif "race" in job["tasks"]:
            body.update(environment=board.environment(first), fingerprint=fingerprint, model=job["model"])
            warnings += _race(job, runtime, progress, first, body)
        else:
            found = progress.probes
            body["artifacts"] = [_verified(each, found[each["name"]]) for each in job["artifacts"]]
            body["model"] = job["model"]
        gc.enable()
        body.update(load_after=machine.load_average(), warnings=warnings)
        if os.path.exists(result):  # a finished one is kept
            written = time.gmtime(os.path.getmtime(result))
            os.replace(result, _beside(result, time.strftime("%Y%m%dT%H%M%SZ", written)))
        write_json(result, body)
        progress.remove()
    return result, body


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
    command = [sys.executable, os.path.abspath(__file__), "--job", path, "--runtime", job["settings"]["runtime"]]
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
        calls_s = sum(each["call_ms"] for each in progress.probes.values()) / 1e3
        job["max_seconds"] = max(job["max_seconds"], 2.0 * job["samples"] * calls_s)
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
        chosen = body["deadline"]["chosen"]
        lines.append("within %g ms at p99: %s" % (body["deadline"]["deadline_ms"], chosen or "none of them"))
    if "series" not in body:
        lines += [
            "%s: golden outputs reproduced" % each["name"] for each in body["artifacts"] if each.get("max_rel") is not None
        ]
    return lines + ["note: %s" % each for each in body["warnings"]]


def main(arguments: Optional[List[str]] = None) -> int:
    parser = argparse.ArgumentParser(description="Check, build, verify and time what this bundle holds.")
    parser.add_argument("--job", help="job file (default: this bundle's manifest)")
    parser.add_argument("--runtime", help="%s (default: the job's)" % " or ".join(sorted(runtimes.RUNTIMES)))
    parser.add_argument("--deadline", type=float, metavar="MS", help="name the most accurate network whose p99 is at most this")
    parser.add_argument("--verify-only", action="store_true", help="check and verify, without a race")
    for hidden in ("--probe", "--build"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    for hidden in ("--workspace", "--parent"):
        parser.add_argument(hidden, type=int, help=argparse.SUPPRESS)
    parser.add_argument("--exact", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    path = asked.job or os.path.join(HERE, "manifest.json")
    try:
        return _main(asked, path)
    except JobError as problem:
        print(problem, file=sys.stderr)
        return int(problem.code)
    except runtimes.CannotRunError as error:  # while it ran
        print("%s\n  where: %s\n  do:    start it again; if it stays, restart the board" % (error, path), file=sys.stderr)
        return 2
    except MemoryError:
        print("out of memory\n  where: %s\n  do:    end other programs, or use a smaller artifact" % path, file=sys.stderr)
        return 6
    except KeyboardInterrupt:
        print("interrupted; what is finished is kept: start it again to go on", file=sys.stderr)
        return 130


def _main(asked: Any, path: str) -> int:
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))
    if asked.parent:
        machine.end_with(asked.parent)
    changes: Json = {}
    if asked.runtime:
        changes["settings"] = {"runtime": asked.runtime}
    if asked.deadline is not None:
        changes["deadline_ms"] = asked.deadline
    if asked.verify_only:
        changes["tasks"] = ["verify"]
    if asked.probe or asked.build:
        job = read_job(path, changes, check=False)  # the parent has just looked
        artifact = next(each for each in job["artifacts"] if each["name"] == (asked.probe or asked.build))
        artifact["exact"] = asked.exact
        runtime, _ = start_runtime(job)
        if asked.build:
            prepare.build(job, runtime, artifact, asked.workspace)
        else:
            print(json.dumps(prepare.probe(job, runtime, artifact)))
        return 0
    result, body = run(path, changes, settle=not asked.runtime and not asked.job)
    if not asked.job:
        print("\n".join(summary(body)))
    print(result)
    return 1 if body.get("deadline") and not body["deadline"]["chosen"] else 0


if __name__ == "__main__":
    sys.exit(main())
