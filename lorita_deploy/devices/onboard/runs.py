"""Runs that outlive the connection that started them. Standard library only, valid Python 3.6.

    <folder>/runs/<key>/   work/ (hard links into the store), state.json, alive, exit.json, out, err, tmp/

``alive`` is locked by the run's processes; the device's own lock is held by them as well.
"""

import errno
import json
import os
import signal
import subprocess
import sys
import time
import traceback

from typing import Any, Dict

import locks
import store

Json = Dict[str, Any]

FRESH_SECONDS = 86400
"""How long a result waits to be fetched; after that, the same run is measured anew."""


def start(request: Json) -> Json:
    """``files`` (path to sha256), ``command`` (after python), ``result`` (path in ``work``), ``who``, ``limit_s``.

    Runs of one ``key`` share a folder, and with it what the runner has built; it is the same run where the command is too.
    The state is ``running`` (this run, or the same one from before a broken connection), ``done`` (the same one, whose
    result was never fetched), ``missing`` (with the files to put) or ``busy`` (with the holder).
    """
    run, state = _folder(request), _state(request)
    same = _read(os.path.join(run, "state.json")).get("command") == request["command"]
    if state == "running":
        holder = locks.holder(os.path.join(run, "state.json"))
        own = same and holder["who"] == request["who"]
        return {"state": "running"} if own else {"state": "busy", "holder": holder}
    if state == "done" and same and time.time() - os.lstat(os.path.join(run, "state.json")).st_mtime < FRESH_SECONDS:
        return {"state": "done"}
    os.makedirs(os.path.join(run, "tmp"), exist_ok=True)
    os.utime(run, None)
    missing = store.lay_out(store.root(request), request["files"], os.path.join(run, "work"))
    if missing:
        return {"state": "missing", "files": missing, "free_bytes": store.free_bytes(run)}
    heard, said = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(heard)
        os.setsid()
        if os.fork() == 0:
            _supervise(request, run, said)
        os._exit(0)
    os.close(said)
    os.waitpid(child, 0)
    with os.fdopen(heard, encoding="utf-8") as file:
        answer = file.read()
    if not answer:
        raise store.Refused("the run could not be started: %s" % _tail(run))
    return json.loads(answer)  # type: ignore[no-any-return]


def _supervise(request: Json, run: str, said: int) -> None:
    """In a process of its own: hold the locks, run the runner, put down how it ended."""
    child = None  # type: Any
    try:
        os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(os.path.join(run, name), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
        alive = locks.hold(os.path.join(run, "alive"), 5.0, 0o600)
        device = locks.hold(locks.PATH, 0.5, 0o666)
        if alive is None or device is None:
            os.write(said, json.dumps({"state": "busy", "holder": locks.holder(locks.PATH)}).encode("utf-8"))
            return
        since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
        state = {"who": request["who"], "since": since, "boot_id": locks.boot_id()}
        locks.sign(device, state)
        store.remove(os.path.join(run, "exit.json"))
        store.remove(os.path.join(run, "work", store.plain(request["result"])))
        child = subprocess.Popen(
            [sys.executable, "-B"] + request["command"],
            cwd=os.path.join(run, "work"),
            env=dict(os.environ, TMPDIR=os.path.join(run, "tmp")),
            pass_fds=(alive, device),
            start_new_session=True,
        )
        _write(os.path.join(run, "state.json"), dict(state, group=child.pid, command=request["command"]))
        os.write(said, json.dumps({"state": "running"}).encode("utf-8"))
        os.close(said)
        try:
            code = child.wait(timeout=request["limit_s"])  # type: Any
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            code = None
        _write(os.path.join(run, "exit.json"), {"code": code})
        os.ftruncate(device, 0)
    except OSError as error:
        if child is not None:
            os.killpg(child.pid, signal.SIGKILL)
        reply = {"error": error.strerror, "errno": errno.errorcode.get(error.errno or 0, ""), "where": run}
        os.write(said, json.dumps(reply).encode("utf-8"))
    except Exception:
        traceback.print_exc()
    finally:
        os._exit(0)


def wait(request: Json) -> Json:
    """Until the run has ended, for ``visit_s`` seconds at most; without a sign of life, so that nothing disturbs what is timed.

    The state is ``running``, ``done`` (with the runner's exit ``code``, None past its time limit, and its ``result``),
    ``gone`` (killed together with its supervisor, or ``rebooted``) or ``absent``.
    """
    run = _folder(request)
    _await_end(os.path.join(run, "alive"), request["visit_s"])
    state, result = _state(request), os.path.join(run, "work", store.plain(request["result"]))
    reply = {"state": state, "err": _tail(run)}  # type: Json
    if state == "done":
        ended = _read(os.path.join(run, "exit.json"))
        reply["code"] = ended.get("code") if ended else 0
        if os.path.exists(result):
            with open(result, encoding="utf-8") as file:
                reply["result"] = file.read()
    if state == "gone":
        reply["rebooted"] = _read(os.path.join(run, "state.json")).get("boot_id") != locks.boot_id()
    return reply


def stop(request: Json) -> Json:
    """End the run's processes, if it is running."""
    group = _read(os.path.join(_folder(request), "state.json")).get("group")
    if group and _state(request) == "running":
        try:
            os.killpg(group, signal.SIGKILL)
        except ProcessLookupError:
            pass
    return {}


def finish(request: Json) -> Json:
    """Remove a run that has ended. With ``keep`` its work folder stays, for what the runner has built in it."""
    folder, run = store.root(request), _folder(request)
    for name in os.listdir(run) if os.path.isdir(run) else []:
        if not (request["keep"] and name == "work"):
            store.remove(os.path.join(run, name))
    if not request["keep"]:
        store.remove(run)
    runs, oldest = os.path.join(folder, "runs"), time.time() - store.KEPT_SECONDS
    for name in os.listdir(runs) if os.path.isdir(runs) else []:
        path = os.path.join(runs, name)
        if os.lstat(path).st_mtime < oldest and not locks.is_held(os.path.join(path, "alive")):
            store.remove(path)
    store.prune(folder)
    return {}


def _folder(request: Json) -> str:
    return os.path.join(store.root(request), "runs", store.plain(request["key"]))


def _state(request: Json) -> str:
    run = _folder(request)
    if locks.is_held(os.path.join(run, "alive")):
        return "running"
    if os.path.exists(os.path.join(run, "exit.json")):
        return "done"
    if os.path.exists(os.path.join(run, "state.json")):
        # A result is written whole or not at all: where there is one, only the supervisor was killed.
        return "done" if os.path.exists(os.path.join(run, "work", request["result"])) else "gone"
    return "absent"


class _Elapsed(Exception):
    pass


def _await_end(path: str, seconds: int) -> None:
    import fcntl

    def elapsed(number: int, frame: Any) -> None:
        raise _Elapsed

    if not os.path.exists(path):
        return
    signal.signal(signal.SIGALRM, elapsed)
    with open(path, encoding="utf-8") as file:
        try:
            signal.alarm(seconds)
            fcntl.flock(file, fcntl.LOCK_SH)
        except _Elapsed:
            pass
        finally:
            signal.alarm(0)


def _write(path: str, body: Json) -> None:
    with open(path + ".part", "w", encoding="utf-8") as file:
        json.dump(body, file)
    os.replace(path + ".part", path)


def _read(path: str) -> Json:
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)  # type: ignore[no-any-return]
    except (OSError, ValueError):
        return {}


def _tail(run: str) -> str:
    """The last of what the runner complained of."""
    try:
        with open(os.path.join(run, "err"), encoding="utf-8", errors="replace") as file:
            return file.read()[-4000:]
    except OSError:
        return ""
