"""One request in (a line of JSON on stdin, the content of files behind it), one reply out. Valid Python 3.6.

look    what this machine is, what is installed, who uses it
put     files into the store                                     start   a run, detached from this call
wait    for its end; its result, when it has ended               stop    it
finish  remove a run whose result has arrived
"""

import errno
import json
import os
import platform
import subprocess
import sys

from typing import Any, Dict

import locks
import machine
import runs
import store

MARK = "lorita-deploy:"
"""Starts the line of the reply; what a login script prints does not."""
PACKAGES = ("numpy", "onnxruntime", "tensorrt")


def main() -> None:
    """Read one request, answer it."""
    os.umask(0o077)
    try:
        request = json.loads(sys.stdin.buffer.readline().decode("utf-8"))
        reply = VERBS[request["verb"]](request)
    except OSError as error:
        where = error.filename if isinstance(error.filename, str) else ""
        reply = {"error": error.strerror or str(error), "errno": errno.errorcode.get(error.errno or 0, ""), "where": where}
    except store.Refused as error:
        reply = {"error": str(error), "errno": "", "where": ""}
    sys.stdout.write("\n%s%s\n" % (MARK, json.dumps(reply)))
    sys.stdout.flush()


def look(request: Dict[str, Any]) -> Dict[str, Any]:
    """Leaves nothing behind. Packages are imported in processes of their own: on some boards they crash."""
    versions, problems = {}, {}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}  # type: Dict[str, Any]
    code = "import %s; print(%s.__version__)"
    children = [(name, subprocess.Popen([sys.executable, "-c", code % (name, name)], **pipes)) for name in PACKAGES]
    for name, child in children:
        out, err = (text.decode("utf-8", "replace").split("\n") for text in child.communicate())
        if child.returncode:
            said = [line.strip() for line in err if line.strip()]
            problems[name] = said[-1][:300] if said else "ended by signal %d" % -child.returncode
        else:
            versions[name] = out[0].strip()
    folder = store.root(request)
    existing = folder
    while not os.path.lexists(existing):
        existing = os.path.dirname(existing)
    possible = os.path.isdir(existing)  # and no file in its way
    while not os.path.isdir(existing):
        existing = os.path.dirname(existing)
    return {
        "host": machine.host("", versions),
        "problems": problems,
        "executable": sys.executable,
        "architecture": platform.machine(),
        "board": _text("/proc/device-tree/model"),
        "cuda": any(os.path.exists(path) for path in ("/proc/driver/nvidia/version", "/dev/nvhost-gpu")),
        "release": _text("/etc/nv_tegra_release"),
        "toolkit": _text("/usr/local/cuda/version.json"),
        "folder": folder,
        "writable": possible and os.access(existing, os.W_OK | os.X_OK),
        "free_bytes": store.free_bytes(existing),
        "kept_bytes": sum(os.lstat(path).st_size for path in store.files(folder)),
        "available_bytes": _available_bytes(),
        "load": machine.load_average(),
        "busy": locks.busy(),
    }


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(10000).rstrip("\0\n")
    except OSError:
        return ""


def _available_bytes() -> int:
    with open("/proc/meminfo", encoding="ascii") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable:"))


VERBS = {
    "look": look,
    "put": store.put,
    "start": runs.start,
    "wait": runs.wait,
    "stop": runs.stop,
    "finish": runs.finish,
}
