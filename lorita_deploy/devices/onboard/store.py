"""Files by their content, so that none is sent twice. Standard library only, valid Python 3.6.

    <folder>/store/<sha256>

Nothing is removed that this program did not put there: what has another kind of name is not ours.
"""

import errno
import hashlib
import os
import shutil
import stat
import sys
import time

from typing import Any, Dict, Iterator, List

KEPT_BYTES = 2**30
KEPT_SECONDS = 30 * 86400
"""What the store keeps beyond the runs that use it."""
ABANDONED_SECONDS = 3600
"""A file that arrives is written all the time: what nobody wrote to for so long belongs to a process that was killed."""
CHUNK = 1 << 20


class Refused(Exception):
    """Something that the client is told, and that is no fault of this program."""


def root(request: Dict[str, Any]) -> str:
    """The folder that the client asked for, or the cache folder of the account."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    asked = request.get("folder") or os.path.join(cache, "lorita-deploy")
    folder = os.path.expanduser(asked)
    if folder.startswith("~"):
        raise OSError(errno.ENOENT, "there is no account of that name", asked)
    return os.path.abspath(folder)


def plain(name: str) -> str:
    """``name``, if it is a relative path that stays where it is put."""
    if not set(name.split("/")).isdisjoint(("", ".", "..")) or "\0" in name:
        raise Refused("this name leads out of the folder: %r" % name)
    return name


def files(folder: str, ending: str = "") -> Iterator[str]:
    """Every whole file of the store; with the ending ``.part``, every one that has not arrived in full."""
    store = os.path.join(folder, "store")
    for name in os.listdir(store) if os.path.isdir(store) else []:
        digest = name.split(".")[0] if ending else name
        if len(digest) == 64 and not set(digest) - set("0123456789abcdef") and name.endswith(ending):
            yield os.path.join(store, name)


def put(request: Dict[str, Any]) -> Dict[str, Any]:
    """The files whose [sha256, size] are listed follow on stdin, one after the other; each is checked."""
    store = os.path.join(root(request), "store")
    os.makedirs(store, exist_ok=True)
    for digest, size in request["files"]:
        aside = os.path.join(store, "%s.%d.part" % (plain(digest), os.getpid()))
        found, left = hashlib.sha256(), size
        try:
            with open(aside, "wb") as file:
                while left:
                    chunk = sys.stdin.buffer.read(min(CHUNK, left))
                    if not chunk:
                        raise Refused("the connection broke while %s was sent" % digest)
                    found.update(chunk)
                    file.write(chunk)
                    left -= len(chunk)
                file.flush()
                os.fsync(file.fileno())
            if found.hexdigest() != digest:
                raise Refused("what arrived has sha256 %s, not %s" % (found.hexdigest(), digest))
            os.replace(aside, os.path.join(store, digest))
        finally:
            remove(aside)
    return {}


def lay_out(folder: str, named: Dict[str, str], work: str) -> List[str]:
    """Link files (path to sha256) to their places in ``work``; digests of those that are missing, or damaged in the store."""
    store = os.path.join(folder, "store")
    missing = []
    for digest in sorted(set(named.values())):
        kept = os.path.join(store, plain(digest))
        if os.path.isfile(kept) and _sha256(kept) != digest:
            os.unlink(kept)
        if not os.path.isfile(kept):
            missing.append(digest)
    for name, digest in () if missing else named.items():
        kept, place = os.path.join(store, digest), os.path.join(work, plain(name))
        os.utime(kept, None)
        if os.path.isfile(place) and os.path.samefile(place, kept):
            continue
        os.makedirs(os.path.dirname(place), exist_ok=True)
        remove(place)
        try:
            os.link(kept, place)
        except OSError:  # file systems without hard links
            shutil.copyfile(kept, place)
    return missing


def prune(folder: str) -> None:
    """Remove what no run uses, the longest unused first, as far as it is too much or too old."""
    kept, oldest, abandoned = 0, time.time() - KEPT_SECONDS, time.time() - ABANDONED_SECONDS
    for path in files(folder, ".part"):
        try:
            if os.lstat(path).st_mtime < abandoned:
                os.unlink(path)
        except FileNotFoundError:  # it has arrived just now
            pass
    for path in sorted(files(folder), key=lambda path: -os.lstat(path).st_mtime):
        found = os.lstat(path)
        kept += found.st_size
        if found.st_nlink == 1 and (kept > KEPT_BYTES or found.st_mtime < oldest):
            os.unlink(path)


def remove(path: str) -> None:
    """A file, a link (not what it leads to) or a folder, if there is one."""
    if os.path.lexists(path):
        if stat.S_ISDIR(os.lstat(path).st_mode):
            shutil.rmtree(path)
        else:
            os.unlink(path)


def free_bytes(path: str) -> int:
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize


def _sha256(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for chunk in iter(lambda: file.read(CHUNK), b""):
            digest.update(chunk)
    return digest.hexdigest()
