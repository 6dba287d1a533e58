#!/usr/bin/env python3
"""THE way latency is measured: a script in a process of its own, on the board as in the library.

    python3 run.py                   in a bundle: check, verify, race dense against compressed, write receipt.json
    python3 run.py --job job.json    what lorita-deploy asks for: {"schema": "lorita-deploy/job/1", "tasks": [...], ...}

Tasks: ``verify`` (golden outputs), ``race`` (gives a receipt) or ``profile`` (per-node times). Needs numpy and the runtime
that the job names; valid Python 3.6; imports nothing but its neighbours. Nothing runs before every hash is right.
Exit codes: 0 done, 2 bad input, 4 golden outputs not reproduced, 6 out of memory or disk, 130 interrupted.
"""

import argparse
import gc
import json
import os
import random
import subprocess
import sys
import time
import uuid

from typing import Any, Callable, Dict, List, Optional, Tuple

import clock
import machine
import runtimes

from job import Json, JobError, feeds, golden_error, inside, read_job, write_json

PROFILE_ROUNDS = 5


def open_runtime(job: Json) -> Any:
    name = job["settings"]["runtime"]
    if name not in runtimes.RUNTIMES:
        raise JobError("there is no runtime called %r" % name, "settings", "known: %s" % ", ".join(runtimes.RUNTIMES))
    try:
        return runtimes.RUNTIMES[name](job["settings"])
    except runtimes.CannotRunError as error:
        raise JobError(str(error), name, "python3 -m pip install %s" % name)


def load(job: Json, runtime: Any, artifact: Json, profile: bool = False) -> Any:
    try:
        return runtime.open(inside(job["folder"], artifact["path"]), profile)
    except runtimes.CannotRunError as error:
        raise JobError(str(error), artifact["path"], "is it whole, and made for this runtime?")


def probe(job: Json, name: str) -> Json:
    """What only a fresh process can tell of one artifact: cold load and first inference, peak memory; and its outputs."""
    artifact = next(each for each in job["artifacts"] if each["name"] == name)
    runtime = open_runtime(job)
    start = clock.now_ns()
    session = load(job, runtime, artifact)
    loaded = clock.now_ns()
    inputs = feeds(job, session)
    ready = clock.now_ns()
    session.run(inputs)
    first = clock.now_ns()
    for _ in range(3):
        session.run(inputs)
    peak = machine.peak_memory_bytes()  # before golden data are read
    return {
        "load_ms": (loaded - start) / 1e6,
        "first_ms": (first - ready) / 1e6,
        "peak_memory_bytes": peak,
        "max_rel": golden_error(job, artifact, session),
    }


def probe_in_child(path: str, job: Json, name: str) -> Json:
    command = [sys.executable, os.path.abspath(__file__), "--job", path, "--probe", name]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True)
    try:
        out, err = child.communicate()
    finally:
        if child.poll() is None:
            child.kill()
    if child.returncode < 0:
        raise JobError("ended by signal %d while it was first run" % -child.returncode, name, "is there enough memory?", 6)
    if child.returncode:
        sys.stderr.write(err)
        sys.exit(child.returncode)
    found = json.loads(out.splitlines()[-1])  # type: Json
    if found["max_rel"] is not None and not found["max_rel"] <= job["tolerance"]:
        what = "golden outputs not reproduced: largest relative difference %.3g, tolerance %.3g"
        raise JobError(what % (found["max_rel"], job["tolerance"]), name, "do not use this artifact on this machine", 4)
    return found


def race(job: Json, runtime: Any, probes: Dict[str, Json]) -> Tuple[List[Json], List[Json], Optional[str], List[str]]:
    """Series, ratios, the name to use here, and warnings. How and why so: `clock`."""
    artifacts, start = job["artifacts"], time.time()
    names = [each["name"] for each in artifacts]
    order = random.Random(0)
    samples = {name: [] for name in names}  # type: Dict[str, List[List[float]]]
    pairs = {name: [] for name in names}  # type: Dict[str, List[List[Tuple[float, float]]]]
    warm = {name: (0, True) for name in names}  # type: Dict[str, Tuple[int, bool]]
    calls = {}  # type: Dict[str, int]
    per_reload = -(-job["samples"] // clock.RELOADS)
    rounds = -(-per_reload // (2 * clock.SAMPLES_PER_VISIT))
    while len(samples[names[0]]) < clock.RELOADS:
        done = len(samples[names[0]])
        spent = time.time() - start
        if (
            done >= clock.FEWEST
            and spent * (done + 1) / done > job["max_seconds"]
            or done >= 2
            and spent > 3 * job["max_seconds"]
        ):
            break
        deadline = start + job["max_seconds"] * (done + 1) / clock.RELOADS
        timed = {}  # type: Dict[str, Callable[[], object]]
        for artifact in order.sample(artifacts, len(artifacts)):
            session = load(job, runtime, artifact)
            timed[artifact["name"]] = _bind(session.run, feeds(job, session))
        for name in order.sample(names, len(names)):
            times, stable = clock.warm_up(timed[name], max_seconds=job["max_seconds"] / clock.RELOADS / 2 / len(names))
            warm[name] = (warm[name][0] + len(times), warm[name][1] and stable)
            calls.setdefault(name, clock.calls_per_sample(clock.median(times[-7:])))
        for name in names:
            samples[name].append([])
            pairs[name].append([])
        for _ in range(rounds):
            once = order.sample(names, len(names))
            taken = {name: [] for name in names}  # type: Dict[str, List[float]]
            for name in once + once[::-1]:
                timed[name]()
                taken[name] += [clock.sample_ns(timed[name], calls[name]) for _ in range(clock.SAMPLES_PER_VISIT)]
            for name in names:
                samples[name][-1] += taken[name]
                pairs[name][-1].append((clock.median(taken[name]), clock.median(taken[job["baseline"]])))
            if time.time() > deadline:
                break
    found = []  # type: List[str]
    series = []
    for artifact in artifacts:
        name = artifact["name"]
        series.append(_series(job, artifact, samples[name], calls[name], warm[name], probes[name]))
        found += clock.warnings_of(name, [ns for each in samples[name] for ns in each], warm[name][1], len(samples[name]))
    ratios = [_ratio(name, job["baseline"], pairs[name]) for name in names if name != job["baseline"]]
    return series, ratios, _faster(job["baseline"], ratios), found


def _bind(run: Callable[[Json], object], inputs: Json) -> Callable[[], object]:
    return lambda: run(inputs)


def _series(job: Json, artifact: Json, reloads: List[List[float]], calls: int, warm: Tuple[int, bool], probed: Json) -> Json:
    ms = [ns / 1e6 for each in reloads for ns in each]
    middle = clock.median(ms)
    low, high = clock.median_interval([clock.median(each) / 1e6 for each in reloads])
    error = probed.pop("max_rel")
    return dict(
        probed,
        name=artifact["name"],
        sha256=artifact["sha256"],
        samples_ms=ms,
        calls_per_sample=calls,
        n=len(ms),
        reloads=len(reloads),
        median_ms=middle,
        median_ci95_ms=[min(low, middle), max(high, middle)],
        p90_ms=clock.percentile(ms, 0.90),
        p95_ms=clock.percentile(ms, 0.95),
        p99_ms=clock.percentile(ms, 0.99),
        spread=clock.spread(ms),
        warmup_runs=warm[0],
        warmup_stable=warm[1],
        file_bytes=os.path.getsize(inside(job["folder"], artifact["path"])),
        verified=None if error is None else True,
        max_rel=error,
    )


def _ratio(name: str, baseline: str, reloads: List[List[Tuple[float, float]]]) -> Json:
    ratio, interval = clock.paired_ratio(reloads)
    n = sum(len(each) for each in reloads)
    return {"candidate": name, "baseline": baseline, "n": n, "reloads": len(reloads), "ratio": ratio, "ci95": interval}


def _faster(baseline: str, ratios: List[Json]) -> Optional[str]:
    """The fastest of those whose interval lies below 1, else the baseline."""
    if not ratios:
        return None
    winners = [each for each in ratios if each["ci95"][1] < 1.0]
    return min(winners, key=lambda each: each["ratio"])["candidate"] if winners else baseline  # type: ignore[no-any-return]


def profile(job: Json, runtime: Any) -> List[Json]:
    """Node times and un-profiled whole runs of every artifact, in rounds of shuffled order, loaded anew each time."""
    order = random.Random(0)
    start, runs = time.time(), max(4, -(-job["samples"] // PROFILE_ROUNDS))
    visit_ns = 1e9 * job["max_seconds"] / PROFILE_ROUNDS / len(job["artifacts"])
    nodes = {each["name"]: [] for each in job["artifacts"]}  # type: Dict[str, List[Any]]
    whole = {each["name"]: [] for each in job["artifacts"]}  # type: Dict[str, List[float]]
    for done in range(PROFILE_ROUNDS):
        if done and (time.time() - start) * (done + 1) / done > job["max_seconds"]:
            break
        for artifact in order.sample(job["artifacts"], len(job["artifacts"])):
            session = load(job, runtime, artifact, profile=True)
            call = _bind(session.run, feeds(job, session))
            call()
            own = max(4, min(runs, int(visit_ns / 2 / clock.sample_ns(call, 1))))
            for _ in range(own + 1):
                call()
            nodes[artifact["name"]] += session.stop_profile()[3:]
            calls = clock.calls_per_sample(clock.sample_ns(call, 3))
            whole[artifact["name"]] += [clock.sample_ns(call, calls) / 1e3 for _ in range(own)]
    return [_profiled(artifact, nodes[artifact["name"]], whole[artifact["name"]]) for artifact in job["artifacts"]]


def _profiled(artifact: Json, runs: List[runtimes.NodeRun], whole_us: List[float]) -> Json:
    places = zip(*runs)  # the same node in every run
    nodes = [{"name": at[0][0], "op": at[0][1], "us": clock.midmean([us for _, _, us in at])} for at in places]
    own = {"name": artifact["name"], "sha256": artifact["sha256"]}
    return dict(own, runs=len(runs), nodes=nodes, whole_us=clock.median(whole_us))


# ---------------------------------------------------------------------------------------------- the whole


def run(path: str) -> str:
    """Do the job and write its result, whose path is returned."""
    job = read_job(path)
    result = inside(job["folder"], job["result"])
    runtime = open_runtime(job)
    load_before = machine.load_average()
    body = {
        "schema": "lorita-deploy/receipt/1",
        "run_id": uuid.uuid4().hex,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "host": machine.host(job["kind"], runtime.versions()),
        "settings": job["settings"],
        "load_before": load_before,
    }  # type: Json
    warnings = clock.load_warning(load_before, body["host"]["cores"])
    gc.disable()
    if "profile" in job["tasks"]:
        body.update(schema="lorita-deploy/profile/1", artifacts=profile(job, runtime))
    else:
        probes = {each["name"]: probe_in_child(path, job, each["name"]) for each in job["artifacts"]}
        series, ratios, faster, found = race(job, runtime, probes)
        body.update(series=series, ratios=ratios, faster=faster)
        warnings += found
    gc.enable()
    body.update(load_after=machine.load_average(), warnings=warnings)
    write_json(result, body)
    return str(result)


def main(arguments: Optional[List[str]] = None) -> int:
    parser = argparse.ArgumentParser(description="Check, verify and time what this bundle holds.")
    here = os.path.dirname(os.path.abspath(__file__))
    parser.add_argument("--job", default=os.path.join(here, "manifest.json"), help="job file (default: this bundle's manifest)")
    parser.add_argument("--probe", help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    try:
        if asked.probe:
            print(json.dumps(probe(read_job(asked.job), asked.probe)))
        else:
            print(run(asked.job))
    except JobError as problem:
        print(problem, file=sys.stderr)
        return int(problem.code)
    except MemoryError:
        print("out of memory\n  where: %s\n  do:    end other programs, or use a smaller artifact" % asked.job, file=sys.stderr)
        return 6
    except KeyboardInterrupt:
        print("interrupted; nothing was written", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
