#!/usr/bin/env python3
"""THE way latency is measured: a script in a process of its own, on the board as in the library.

    python3 run.py                   in a bundle: check, build, verify, race dense against compressed, write receipt.json
    python3 run.py --deadline 8      and name the most accurate network whose p99 is at most 8 ms
    python3 run.py --verify-only     check, build and verify; no race (writes verification.json)
    python3 run.py --job job.json    what lorita-deploy asks for: {"schema": "lorita-deploy/job/1", "tasks": [...], ...}

Tasks: ``verify`` (golden outputs), ``race`` (gives a receipt) or ``profile`` (per-node times). Needs numpy and the runtime
that the job names; valid Python 3.6; imports nothing but its neighbours, and those only after every hash is right. A run that
was stopped goes on where it was when started again.
Exit codes: 0 done, 1 no network meets the deadline, 2 bad input, 3 numpy or the runtime is missing here, 4 golden outputs not
reproduced, 6 out of memory or disk, or another run is at work here, 130/143 interrupted.
"""

import argparse
import hashlib
import json
import math
import os
import signal
import sys

from typing import Any, Callable, Dict, List, Optional

HERE = os.path.dirname(os.path.abspath(__file__))
MANIFEST = os.path.join(HERE, "manifest.json")
# All files of a bundle are of one date: compiled ones that an older bundle left here would pass for those of the new files.
sys.dont_write_bytecode = True
if sys.version_info >= (3, 8):
    sys.pycache_prefix = os.path.join(HERE, "nothing-compiled")
MESSAGE = "%s\n  where: %s\n  do:    %s"


def tell(work: Callable[[], int]) -> int:
    """The exit code of ``work``, which may import the neighbours; what goes wrong is said in three parts on stderr."""
    wrong = _reader_is_wrong()
    if wrong:
        return _say(wrong, os.path.join(HERE, "job.py"), "copy the folder again, complete", 2)
    from job import JobError

    try:
        return work()
    except JobError as problem:
        print(problem, file=sys.stderr)
        return int(problem.code)
    except ImportError as error:
        package = {"PIL": "pillow"}.get(error.name or "", error.name)
        fix = "%s -m pip install %s; on a Jetson: sudo apt install python3-%s" % (sys.executable, package, package)
        return _say("this Python cannot import %s: %s" % (package, error), sys.executable, fix, 3)
    except MemoryError:
        return _say("out of memory", HERE, "end other programs, or use a smaller artifact", 6)
    except KeyboardInterrupt:
        print("interrupted; what is finished is kept: start it again to go on", file=sys.stderr)
        return 130


def _say(what: str, where: str, fix: str, code: int) -> int:
    print(MESSAGE % (what, where, fix), file=sys.stderr)
    return code


def _reader_is_wrong() -> Optional[str]:
    """What is wrong with ``job.py``, which looks at every other file; None where it is what a bundle's manifest says."""
    try:
        with open(os.path.join(HERE, "job.py"), "rb") as file:
            found = hashlib.sha256(file.read()).hexdigest()
    except OSError as error:
        return "cannot be read: %s; nothing was run" % error.strerror
    try:
        with open(MANIFEST, encoding="utf-8") as text:
            listed = {each["path"]: each["sha256"] for each in json.load(text)["files"]}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None  # no bundle, or a manifest that job.py will complain of
    expected = listed.get("job.py", found)
    return None if found == expected else "sha256 is %s, expected %s; nothing was run" % (found, expected)


def read_bundle() -> Any:
    """The job of the bundle that this program lies in, every file of it checked: what `tell` is given begins with this."""
    from job import read_job

    return read_job(MANIFEST)


def main(arguments: Optional[List[str]] = None) -> int:
    parser = argparse.ArgumentParser(description="Check, build, verify and time what this bundle holds.")
    parser.add_argument("--job", help="job file (default: this bundle's manifest)")
    parser.add_argument("--runtime", help="onnxruntime, tensorrt, or one that travels with the bundle (default: the job's)")
    words = "name the most accurate network whose p99 is at most this"
    parser.add_argument("--deadline", type=_milliseconds, metavar="MS", help=words)
    parser.add_argument("--verify-only", action="store_true", help="check and verify, without a race")
    for hidden in ("--probe", "--build"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    for hidden in ("--workspace", "--parent"):
        parser.add_argument(hidden, type=int, help=argparse.SUPPRESS)
    parser.add_argument("--exact", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))
    return tell(lambda: _work(asked))


def _milliseconds(text: str) -> float:
    found = float(text)
    if not (found > 0 and math.isfinite(found)):
        raise argparse.ArgumentTypeError("%s is no number of milliseconds above 0" % text)
    return found


def _work(asked: Any) -> int:
    from job import read_job

    path = asked.job or MANIFEST
    changes: Dict[str, Any] = {}
    if asked.runtime:
        changes["settings"] = {"runtime": asked.runtime}
    if asked.deadline is not None:
        changes["deadline_ms"] = asked.deadline
    if asked.verify_only:
        changes["tasks"] = ["verify"]
    child = asked.probe or asked.build
    job = read_job(path, changes, check=not child)  # a child's parent has just looked
    import runner  # which, and all it imports, is whole now

    if asked.parent:
        runner.machine.end_with(asked.parent)
    if child:
        runner.prepare_one(job, child, asked.exact, asked.workspace if asked.build else None)
        return 0
    result, body = runner.run(job, path, settle=not asked.runtime and not asked.job)
    if not asked.job:
        print("\n".join(runner.summary(body)))
    print(result)
    return 1 if body.get("deadline") and not body["deadline"]["chosen"] else 0


if __name__ == "__main__":
    sys.exit(main())
