"""What comes before the race, each step in a process of its own: engines built, golden outputs reproduced.

A process of its own, because a build that memory does not suffice for may take its process with it, and because cold start
and peak memory can only be told from a fresh one. Valid Python 3.6.
"""

import json
import os
import subprocess
import sys

from typing import Any, List, Optional, Tuple

import clock
import engines
import machine
import runtimes

from job import Json, JobError, feeds, golden_error, inside


def load(job: Json, runtime: Any, artifact: Json, profile: bool = False) -> Any:
    """The opened artifact, or the engine that was built of it. Raises `JobError`."""
    path: str = inside(job["folder"], artifact["path"])
    if runtime.builds:
        found = artifact.get("engine") or engines.find(job["folder"], artifact["name"], _key(job, runtime, artifact))
        if found is None:
            raise JobError("no engine has been built of it here", artifact["path"], "python3 run.py builds it")
        path = engines.path_of(job["folder"], artifact["name"], _key(job, runtime, artifact))
    try:
        return runtime.open(path, profile)
    except runtimes.CannotRunError as error:
        raise JobError(str(error), artifact["path"], "is it whole, and made for this runtime?")


def _key(job: Json, runtime: Any, artifact: Json) -> str:
    key: str = engines.key_of(artifact, runtime.about(), artifact.get("exact", False), job["settings"]["batch"])
    return key


def prepare(job: Json, command: List[str], runtime: Any, artifact: Json) -> Json:
    """Build what has to be built, and see that the golden outputs come out; what was found on the way.

    Where TF32 is what keeps a float32 network from its golden outputs, it is built again without. ``command`` starts this
    program again. Raises `JobError` (exit code 4: not reproduced; 6: out of memory or disk).
    """
    ways = (False, True) if runtime.builds and artifact["precision"] == "fp32" else (False,)
    found: Json = {}
    limit = artifact["tolerance"] or job["tolerance"]
    for exact in ways:
        artifact["exact"] = exact
        if runtime.builds:
            artifact["engine"] = _engine(job, command, runtime, artifact)
        out = _succeed(command + ["--probe", artifact["name"]] + ["--exact"] * exact, artifact["name"])
        found = json.loads(out.splitlines()[-1])
        if found["max_rel"] is None or found["max_rel"] <= limit:
            return dict(found, exact=exact, engine=artifact.get("engine"))
    what = "golden outputs not reproduced: largest relative difference %.3g, tolerance %.3g"
    fix = "do not use this artifact on this machine"
    raise JobError(what % (found["max_rel"], limit), artifact["name"], fix, 4)


def take_up(job: Json, runtime: Any, artifact: Json, found: Json) -> bool:
    """Whether what `prepare` found earlier still holds, engine and all."""
    artifact["exact"] = found["exact"]
    if runtime.builds:
        artifact["engine"] = _facts(job, runtime, artifact)
    return not runtime.builds or artifact["engine"] is not None


def _engine(job: Json, command: List[str], runtime: Any, artifact: Json) -> Json:
    """The finished engine's sidecar; built now where there is none."""
    found = _facts(job, runtime, artifact)
    if found is None:
        asked = ["--build", artifact["name"]] + ["--exact"] * artifact["exact"]

        def build(workspace: int) -> None:
            code, _, err = _child(command + asked + ["--workspace", str(workspace)])
            if code == engines.LESS_WORKSPACE or code < 0:
                raise engines.OutOfMemoryError(err.strip().partition("\n")[0] or "ended by signal %d" % -code)
            if code:
                sys.stderr.write(err)
                sys.exit(code)

        engines.build_down(artifact["name"], runtime.workspaces(), build)
        found = _facts(job, runtime, artifact)
    if found is None:
        raise JobError("the engine that was just built is not there", artifact["name"], "run it again", 6)
    return found


def _facts(job: Json, runtime: Any, artifact: Json) -> Optional[Json]:
    found = engines.find(job["folder"], artifact["name"], _key(job, runtime, artifact))
    return found and {key: value for key, value in found.items() if key != "path"}


# ---------------------------------------------------------------------------------------------- in the child process


def build(job: Json, runtime: Any, artifact: Json, workspace: int) -> None:
    """Build and keep one engine. Raises `JobError` (exit code `engines.LESS_WORKSPACE`: memory; 6: disk)."""
    cache = os.path.join(job["folder"], engines.FOLDER, "timings-%s.cache" % engines.cache_key(runtime.about()))
    start = clock.now_ns()
    engines.make_folder(job["folder"])
    try:
        path = inside(job["folder"], artifact["path"])
        plan = runtime.build(path, artifact["precision"], workspace, artifact["exact"], cache)
    except (engines.OutOfMemoryError, MemoryError) as error:
        raise JobError("out of memory: %s" % error, artifact["name"], "end other programs", engines.LESS_WORKSPACE)
    except runtimes.CannotRunError as error:
        raise JobError(str(error), artifact["path"], "lorita-deploy targets check tells what this TensorRT accepts")
    facts = {
        "workspace_bytes": workspace,
        "exact": artifact["exact"],
        "build_s": (clock.now_ns() - start) / 1e9,
        "about": runtime.about(),
    }
    engines.keep(job["folder"], artifact["name"], _key(job, runtime, artifact), plan, facts)


def probe(job: Json, runtime: Any, artifact: Json) -> Json:
    """What only a fresh process can tell of one artifact: cold load and first inference, peak memory; and its outputs."""
    start = clock.now_ns()
    session = load(job, runtime, artifact)
    loaded = clock.now_ns()
    inputs = feeds(job, session)
    ready = clock.now_ns()
    session.run(inputs)
    first = clock.now_ns()
    again = [clock.sample_ns(lambda: session.run(inputs), 1) for _ in range(3)]
    peak = machine.peak_memory_bytes()  # before golden data are read
    return {
        "load_ms": (loaded - start) / 1e6,
        "first_ms": (first - ready) / 1e6,
        "call_ms": min(again) / 1e6,
        "peak_memory_bytes": peak,
        "max_rel": golden_error(job, artifact, session),
    }


# ---------------------------------------------------------------------------------------------- processes


def _succeed(command: List[str], name: str) -> str:
    """What a child process printed; its message and exit code become ours where it failed."""
    code, out, err = _child(command)
    if code < 0:
        raise JobError("ended by signal %d while it was first run" % -code, name, "is there enough memory?", 6)
    if code:
        sys.stderr.write(err)
        sys.exit(code)
    return out


def _child(command: List[str]) -> Tuple[int, str, str]:
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True)
    try:
        out, err = child.communicate()
    finally:
        if child.poll() is None:
            child.kill()
    return child.returncode, out, err
