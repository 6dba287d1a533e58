"""Locks that living processes hold. Standard library only, valid Python 3.6.

They are flocks: the kernel ends them with the processes that hold them, in a kill or a reboot too, so none can be stale.
"""

import errno
import fcntl
import json
import os
import time

from typing import Any, Dict, Optional

PATH = os.path.join(os.environ.get("LORITA_LOCK_FOLDER", "/tmp"), "lorita-deploy.lock")
"""Held while anything is timed; in a place that is the same for everybody, whatever their ``TMPDIR``."""


def is_held(path: str) -> bool:
    """Whether a living process holds the lock on this file."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def hold(path: str, patience_s: float, mode: int) -> Optional[int]:
    """The file, open and locked; None where another process holds it.

    A little patience is needed always: `is_held` itself holds a lock for an instant.
    """
    try:
        handle = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    except FileNotFoundError:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, mode)
        os.chmod(path, mode)
    until = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return handle
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
        if time.monotonic() > until:
            os.close(handle)
            return None
        time.sleep(0.05)


def sign(handle: int, body: Dict[str, Any]) -> None:
    """Write into a lock who holds it."""
    os.ftruncate(handle, 0)
    os.pwrite(handle, json.dumps(body).encode("utf-8"), 0)


def busy() -> Optional[Dict[str, str]]:
    """Who times something here just now, and since when."""
    return holder(PATH) if is_held(PATH) else None


def holder(path: str) -> Dict[str, str]:
    """Who signed a lock (or a run's state). Others may write to the device's lock: nothing in it is believed blindly."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            found = json.loads(file.read(4096))
        return {key: "".join(filter(str.isprintable, str(found[key])))[:200] for key in ("who", "since")}
    except (OSError, ValueError, KeyError, TypeError):
        return {"who": "somebody", "since": "an unknown time"}


def boot_id() -> str:
    """Another one after every start of the machine."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()
