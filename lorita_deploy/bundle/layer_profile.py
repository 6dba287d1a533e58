"""The time of every node or layer of every artifact, by the runtime's own profiler. Valid Python 3.6."""

import random
import time

from typing import Any, Callable, Dict, List

import clock

from job import Json, feeds
from race import bind
from runtimes import NodeRun

ROUNDS = 5


def profile(job: Json, load: Callable[..., Any]) -> List[Json]:
    """Node times and un-profiled whole runs of every artifact, in rounds of shuffled order, loaded anew each time."""
    order = random.Random(0)
    start, runs = time.monotonic(), max(4, -(-job["samples"] // ROUNDS))
    visit_ns = 1e9 * job["max_seconds"] / ROUNDS / len(job["artifacts"])
    nodes: Dict[str, List[Any]] = {each["name"]: [] for each in job["artifacts"]}
    whole: Dict[str, List[float]] = {each["name"]: [] for each in job["artifacts"]}
    for done in range(ROUNDS):
        if done and (time.monotonic() - start) * (done + 1) / done > job["max_seconds"]:
            break
        for artifact in order.sample(job["artifacts"], len(job["artifacts"])):
            session = load(artifact, profile=True)
            call = bind(session.run, feeds(job, session))
            call()
            own = max(4, min(runs, int(visit_ns / 2 / clock.sample_ns(call, 1))))
            for _ in range(own + 1):
                call()
            nodes[artifact["name"]] += session.stop_profile()[3:]
            if hasattr(session, "gpu_ns"):  # its profiler stays on
                session.close()
                session = load(artifact)
            whole[artifact["name"]] += _whole_us(session, call, own)
            session.close()
    return [_profiled(artifact, nodes[artifact["name"]], whole[artifact["name"]]) for artifact in job["artifacts"]]


def _whole_us(session: Any, call: Callable[[], object], count: int) -> List[float]:
    """Whole runs with the profiler off; on a GPU without transfers, which no layer's time holds either."""
    if hasattr(session, "gpu_ns"):
        for _ in range(4):
            session.gpu_ns()
        return [session.gpu_ns() / 1e3 for _ in range(count)]
    calls = clock.calls_per_sample(clock.sample_ns(call, 3))
    return [clock.sample_ns(call, calls) / 1e3 for _ in range(count)]


def _profiled(artifact: Json, runs: List[NodeRun], whole_us: List[float]) -> Json:
    places = zip(*runs)  # the same node in every run
    nodes = [{"name": at[0][0], "op": at[0][1], "us": clock.midmean([us for _, _, us in at])} for at in places]
    own = {"name": artifact["name"], "sha256": artifact["sha256"]}
    return dict(own, runs=len(runs), nodes=nodes, whole_us=clock.median(whole_us))
