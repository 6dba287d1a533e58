"""The build folder: the hand-over format between stages, and what makes a build resumable.

A stage whose record is there, whose key (everything that decides its output) is the same, whose output files still have
their hashes and which this version of the program did is not run again. Files are written aside and renamed, so that a
killed build leaves no half-written file.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..errors import BadRecord, FolderBusy, LoritaDeployError, OutOfResource
from ..records import StageRecord

RACES = "races"
"""Where the receipts of races are kept."""
RECOVERED = "recovered"
"""Where the weights of recovered networks are."""
NO_FOLDER = (errno.EEXIST, errno.ENOTDIR, errno.ENAMETOOLONG)
"""What a path says that can be no folder, however much room there is."""


class BuildFolder:
    """A folder that one build at a time writes to."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the folder. Raises `FolderBusy` when another process does, `OutOfResource` when it cannot be written, and
        `LoritaDeployError` where no folder can be."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = (self.path / ".lock").open("a+")
        except OSError as error:
            where, fix = self.path, "choose another folder with --out"
            if error.errno in NO_FOLDER:
                raise LoritaDeployError(f"no folder can be made here: {error.strerror}", where=where, fix=fix) from error
            raise OutOfResource(f"cannot write to the build folder: {error.strerror}", where=where, fix=fix) from error
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                lock.seek(0)
                raise FolderBusy(
                    f"another build is at work here ({lock.read().strip() or 'unknown process'})",
                    where=self.path,
                    fix="wait for it, or choose another folder with --out",
                ) from error
            lock.seek(0)
            lock.truncate()
            lock.write(f"process {os.getpid()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}")
            lock.flush()
            try:
                self._sweep()
                yield
            finally:
                lock.seek(0)
                lock.truncate()

    def _sweep(self) -> None:
        """Remove what a killed build left half-written."""
        for path in self.path.rglob("*.part"):
            path.unlink(missing_ok=True)

    # ------------------------------------------------------------------------------------------ stages

    def record(self, name: str) -> StageRecord | None:
        """The record of a finished stage; None where there is none (or a damaged one)."""
        path = self._record_path(name)
        if not path.exists():
            return None
        try:
            return StageRecord.load(path)
        except BadRecord:
            return None

    def finished(self, name: str, key: str) -> StageRecord | None:
        """The stage's record, if this version finished it with this key and its outputs are untouched."""
        record = self.record(name)
        if record is None or record.key != key or record.version != program():
            return None
        return None if self.changed(name) else record

    def changed(self, name: str) -> list[str]:
        """The outputs of a finished stage that are no longer what it wrote."""
        record = self.record(name)
        outputs = record.outputs if record else {}
        return [output for output, digest in outputs.items() if sha256_of(self.path / output) != digest]

    def finish(
        self, name: str, key: str, outputs: Iterable[str], seconds: float, line: str, notes: Iterable[str] = ()
    ) -> StageRecord:
        """Put down that a stage is done."""
        digests = {}
        for output in outputs:
            digest = sha256_of(self.path / output)
            if digest is None:
                raise FileNotFoundError(f"stage {name} did not write {output}")
            digests[output] = digest
        record = StageRecord(
            name=name,
            key=key,
            outputs=digests,
            seconds=round(seconds, 3),
            line=line,
            version=program(),
            notes=tuple(notes),
        )
        record.save(self._record_path(name))
        return record

    def keep_edited(self, name: str, inputs: Iterable[Path] = ()) -> list[str]:
        """Set aside outputs of a stage that somebody changed since it wrote them, before it writes them again. Of those
        among ``inputs``, which it will read first, a copy."""
        kept, read = [], {path.resolve() for path in inputs}
        for output in self.changed(name):
            path = self.path / output
            if path.exists():
                aside = path.with_name(f"{path.stem}.edited{path.suffix}")
                if path.resolve() in read:
                    shutil.copyfile(path, aside)
                else:
                    os.replace(path, aside)
                kept.append(aside.name)
        return kept

    def forget(self, names: Iterable[str]) -> None:
        """Start over: the stages' records go, and with them half-done trainings, recovered networks and receipts of races."""
        self.unfinish(names)
        for folder in ("training", RACES, RECOVERED):
            shutil.rmtree(self.path / folder, ignore_errors=True)

    def unfinish(self, names: Iterable[str]) -> None:
        """Take stages for not done."""
        for name in names:
            self._record_path(name).unlink(missing_ok=True)

    def _record_path(self, name: str) -> Path:
        return self.path / "stages" / f"{name}.json"


def listing(folder: Path) -> str:
    """A digest of the names, sizes and times of all files, so that unchanged images need not be read again. Of a file, one
    of its own."""
    if not folder.exists():
        return "none"
    total = hashlib.sha256()
    found = [Path(place) / name for place, _, names in os.walk(folder, followlinks=True) for name in names]
    found = [folder] if folder.is_file() else found
    for path in sorted(found):
        facts = path.stat() if path.exists() else path.lstat()  # a link to nothing is told of when it is read
        total.update(f"{path.relative_to(folder)}|{facts.st_size}|{facts.st_mtime_ns}\n".encode())
    return total.hexdigest()


def program() -> str:
    """The version of this program: what another one computed is computed again."""
    return version("lorita-deploy")


def key_of(parts: Mapping[str, Any]) -> str:
    """sha256 over the canonical JSON of what decides a stage's output."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def sha256_of(path: Path) -> str | None:
    """The digest of a file; None where it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None
