"""Folders as .tar.gz files: packed to the same bytes every time, unpacked without trust in what the archive says."""

from __future__ import annotations

import errno
import gzip
import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import IO, Any

from ..errors import BadArtifact, OutOfResource

TOP = "bundle"
"""The one folder at the top of an archive."""
MAX_FILES = 1_000
MAX_BYTES = 8 * 2**30
"""More than dense and compressed networks of the largest size that ONNX can hold."""
CHUNK = 2**20
MAX_READ = 64 * CHUNK
"""An archive's own headers are never larger than this."""

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)


def is_plain(name: str) -> bool:
    """Whether ``name`` is a relative path with forward slashes that stays where it is put."""
    path = PurePosixPath(name)
    whole = str(path) == name and name not in ("", ".") and name.isprintable()
    return whole and not path.is_absolute() and ".." not in path.parts and "\\" not in name and ":" not in name


def pack_files(folder: Path, names: Iterable[str], path: Path, executable: Iterable[str] = ()) -> Path:
    """Write the files ``names`` of ``folder`` into ``path``, under `TOP`: sorted, owned by nobody, dated 1970.

    Raises `OutOfResource`.
    """
    executable = set(executable)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, aside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        # Weights hardly compress: the fastest level loses nothing.
        with (
            os.fdopen(handle, "wb") as file,
            gzip.GzipFile("", "wb", compresslevel=1, fileobj=file, mtime=0) as zipped,
            tarfile.open(fileobj=zipped, mode="w", format=tarfile.PAX_FORMAT) as archive,
        ):
            for name in sorted(names):
                member = tarfile.TarInfo(f"{TOP}/{name}")
                member.size = (folder / name).stat().st_size
                member.mode = 0o755 if name in executable else 0o644
                with (folder / name).open("rb") as content:
                    archive.addfile(member, content)
        with open(aside, "rb") as written:
            os.fsync(written.fileno())
        os.chmod(aside, 0o644)
        os.replace(aside, path)
    except OSError as error:
        raise OutOfResource(f"cannot write: {error.strerror}", where=path, fix="free some space, then run again") from error
    finally:
        Path(aside).unlink(missing_ok=True)
    return path


def unpack_files(archive: Path, into: Path, top: str = TOP) -> None:
    """Unpack ``archive`` into the new folder ``into``, without ``top``, the one folder that everything in it is in.

    Only plain files with plain names are taken: a link, a device, an absolute path, "..", a second file of the same name,
    or more than `MAX_BYTES` is a `BadArtifact`, and so is a damaged archive. Raises `OutOfResource` when the disk is full.
    What was written before an error stays for the caller to remove.
    """
    try:
        with gzip.open(archive, "rb") as stream:
            bounded: Any = _Bounded(stream)
            with tarfile.open(fileobj=bounded, mode="r:") as members:
                into.mkdir(parents=True)
                _take(members, into, top)
                bounded.drain()
    except BadArtifact as error:
        error.where = error.where or str(archive)
        raise
    except OutOfResource:
        raise
    except Exception as error:  # tarfile and zlib have many words for damage
        if isinstance(error, OSError) and error.errno in NO_ROOM:
            raise OutOfResource(
                f"cannot unpack: {error.strerror}", where=into, fix="free some space, then run again"
            ) from error
        raise BadArtifact(f"not a whole .tar.gz: {error}", where=archive, fix="copy the file again") from error


def _take(members: tarfile.TarFile, into: Path, only: str) -> None:
    budget = MAX_BYTES
    for count, member in enumerate(members):
        top, _, name = member.name.partition("/")
        if member.isdir() and top == only and (not name or is_plain(name)):
            continue
        if not member.isreg() or member.issparse() or top != only or not is_plain(name):
            raise BadArtifact(f"the archive holds something other than plain files under {only}/: {member.name!r}")
        budget -= member.size
        if budget < 0 or count >= MAX_FILES:
            raise BadArtifact(f"it is larger than any bundle ({MAX_BYTES} bytes, {MAX_FILES} files)", where=member.name)
        content: IO[bytes] | None = members.extractfile(member)
        assert content is not None
        target = into / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with content, target.open("xb") as file:
            shutil.copyfileobj(content, file, CHUNK)
        target.chmod(0o755 if member.mode & 0o100 else 0o644)


class _Bounded:
    """A stream that refuses to read or skip absurdly far: a small gzip file can stand for any number of bytes."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self.tell = stream.tell

    def read(self, size: int) -> bytes:
        if not 0 <= size <= MAX_READ:
            raise BadArtifact(f"the archive asks for {size} bytes at once")
        content: bytes = self.stream.read(size)
        return content

    def drain(self) -> None:
        """Read to the end, where gzip's own check sum stands."""
        for _ in range(MAX_BYTES // CHUNK):
            if not self.stream.read(CHUNK):
                return
        raise BadArtifact("the archive does not end")

    def seek(self, place: int, whence: int = os.SEEK_SET) -> int:
        if whence != os.SEEK_SET or not 0 <= place <= 2 * MAX_BYTES:
            raise BadArtifact(f"the archive skips to byte {place}")
        reached: int = self.stream.seek(place)
        return reached
