"""The race: every artifact loaded anew again and again, timed in turns, and what follows from the samples.

How times are taken and why so: `clock`. Valid Python 3.6.
"""

import math
import os
import random
import time

from typing import Any, Callable, Dict, List, Optional, Tuple

import board
import clock

from job import Json, feeds, inside
from progress import Progress

Load = Callable[[Json], Any]
"""Artifact to opened session."""
FOR_P99 = 1200
"""Samples that a deadline is judged by: p99 needs 1,000."""


def race(job: Json, load: Load, progress: Progress) -> None:
    """Take the reloads that ``progress`` still lacks, as far as the time allowed goes."""
    start = time.monotonic() - progress.body["spent_s"]
    while len(progress.reloads) < clock.RELOADS:
        done, spent, allowed = len(progress.reloads), time.monotonic() - start, job["max_seconds"]
        if done >= clock.FEWEST and spent * (done + 1) / done > allowed:
            break
        if (
            done >= 2
            and spent > 3 * allowed
            and sum(len(each[job["baseline"]]["pairs"]) for each in progress.reloads) >= clock.FEWEST
        ):
            break
        reload = _reload(job, load, progress.calls, done, start + allowed * (done + 1) / clock.RELOADS)
        progress.add_reload(reload, board.conditions("reload %d" % (done + 1)), time.monotonic() - start)


def _reload(job: Json, load: Load, calls: Json, number: int, deadline: float) -> Json:
    """Samples and pairs of one reload, in nanoseconds by artifact name; every order is that of the reload before, mirrored."""
    artifacts, order = job["artifacts"], random.Random(number // 2)
    turn = -1 if number % 2 else 1
    names = [each["name"] for each in artifacts]
    sessions: Dict[str, Any] = {}
    timed: Dict[str, Callable[[], object]] = {}
    found: Dict[str, Json] = {name: {"samples": [], "pairs": [], "gpu": [], "per_s": None} for name in names}
    for artifact in order.sample(artifacts, len(artifacts))[::turn]:
        session = sessions[artifact["name"]] = load(artifact)
        timed[artifact["name"]] = bind(session.run, feeds(job, session))
    for name in order.sample(names, len(names))[::turn]:
        seconds = job["max_seconds"] / clock.RELOADS / 2 / len(names)
        times, stable = clock.warm_up(timed[name], max_seconds=seconds)
        found[name]["warm"] = [len(times), stable]
        # The tail that a deadline is about is that of single calls, not of means.
        calls.setdefault(name, 1 if job["deadline_ms"] else clock.calls_per_sample(clock.median(times[-7:])))
    rounds = -(-job["samples"] // (clock.RELOADS * 2 * clock.SAMPLES_PER_VISIT))
    for _ in range(rounds):
        once = order.sample(names, len(names))[::turn]
        taken: Dict[str, List[float]] = {name: [] for name in names}
        for name in once + once[::-1]:
            timed[name]()
            taken[name] += [clock.sample_ns(timed[name], calls[name]) for _ in range(clock.SAMPLES_PER_VISIT)]
            if hasattr(sessions[name], "gpu_ns"):
                found[name]["gpu"] += [sessions[name].gpu_ns() for _ in range(clock.SAMPLES_PER_VISIT)]
        for name in names:
            found[name]["samples"] += taken[name]
            found[name]["pairs"].append([clock.median(taken[name]), clock.median(taken[job["baseline"]])])
        if time.monotonic() > deadline:
            break
    for name in names:
        if hasattr(sessions[name], "calls_per_s"):
            found[name]["per_s"] = sessions[name].calls_per_s()
        sessions[name].close()
    return found


def bind(run: Callable[[Json], object], inputs: Json) -> Callable[[], object]:
    return lambda: run(inputs)


# ---------------------------------------------------------------------------------------------- results


def results(job: Json, progress: Progress) -> Tuple[List[Json], List[Json], Optional[str], List[str]]:
    """Series, ratios, the name to use here, and warnings."""
    warnings: List[str] = []
    series = []
    for artifact in job["artifacts"]:
        name = artifact["name"]
        reloads = [each[name] for each in progress.reloads]
        series.append(_series(job, artifact, reloads, progress.calls[name], progress.probes[name]))
        samples = [ns for each in reloads for ns in each["samples"]]
        warnings += clock.warnings_of(name, samples, all(each["warm"][1] for each in reloads), len(reloads))
    ratios = []
    for artifact in job["artifacts"]:
        if artifact["name"] != job["baseline"]:
            ratios.append(_ratio(artifact["name"], job["baseline"], progress.reloads))
    if progress.resumed:
        warnings.append("resumed: %d of %d reloads are from before an interruption" % (progress.resumed, len(progress.reloads)))
    warnings += board.changes(progress.conditions)
    plain = [each["name"] for each in job["artifacts"] if not each["rung"]]
    # Rungs of the ladder, which trade accuracy for time, are not asked: they are for deadlines.
    faster = clock.faster_of(job["baseline"], [each for each in ratios if each["candidate"] in plain])
    return series, ratios, faster, warnings


def _series(job: Json, artifact: Json, reloads: List[Json], calls: int, probed: Json) -> Json:
    ms = [[ns / 1e6 for ns in each["samples"]] for each in reloads]
    every = [value for each in ms for value in each]
    gpu = [[ns / 1e6 for ns in each["gpu"]] for each in reloads]
    per_s = [each["per_s"] for each in reloads if each["per_s"]]
    batch = job["settings"]["batch"]
    return dict(
        clock.distribution(ms),
        name=artifact["name"],
        sha256=artifact["sha256"],
        calls_per_sample=calls,
        reloads=len(reloads),
        spread=clock.spread(every),
        warmup_runs=sum(each["warm"][0] for each in reloads),
        warmup_stable=all(each["warm"][1] for each in reloads),
        load_ms=probed["load_ms"],
        first_ms=probed["first_ms"],
        peak_memory_bytes=probed["peak_memory_bytes"],
        file_bytes=os.path.getsize(inside(job["folder"], artifact["path"])),
        verified=None if probed["max_rel"] is None else True,
        max_rel=probed["max_rel"],
        throughput_per_s=batch * (clock.median(per_s) if per_s else 1e3 * len(every) / sum(every)),
        gpu=clock.distribution(gpu) if any(gpu) else None,
        engine=probed.get("engine"),
        accuracy=artifact["accuracy"],
    )


def _ratio(name: str, baseline: str, reloads: List[Json]) -> Json:
    ratio: Json = clock.ratio_of(name, baseline, [[(mine, base) for mine, base in each[name]["pairs"]] for each in reloads])
    return ratio


def deadline(limit_ms: float, series: List[Json]) -> Json:
    """The ``Deadline`` of the records. Where no accuracy is stated, the larger file counts as the more accurate artifact."""
    at_most = {each["name"]: each["p99_ci95_ms"][1] if each["p99_ci95_ms"] else None for each in series}
    meeting = [each for each in series if (at_most[each["name"]] or math.inf) <= limit_ms]
    meeting.sort(key=lambda each: (each["accuracy"] or 0.0, each["file_bytes"]))
    chosen = meeting[-1]["name"] if meeting else None
    return {"deadline_ms": limit_ms, "chosen": chosen, "p99_at_most_ms": at_most}
