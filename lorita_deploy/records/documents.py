"""What every record is: frozen, strict, versioned JSON, written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import pydantic
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from ..errors import BadRecord, OutOfResource

Provenance = Literal["measured", "tabled", "estimated"]
"""How a time was come by: measured on the target itself, tabled from an earlier measurement on that kind of device, or
estimated by a formula."""

Precision = Literal["fp32", "fp16", "int8"]

Role = Literal["compressed", "dense"]


def _in_order(interval: tuple[float, float]) -> tuple[float, float]:
    if interval[0] > interval[1]:
        raise ValueError(f"an interval from {interval[0]:g} down to {interval[1]:g}")
    return interval


Positive = Annotated[float, Field(gt=0)]
"""Of times and of their ratios, whose logarithms are taken."""

Interval = Annotated[tuple[Positive, Positive], AfterValidator(_in_order)]


class Part(BaseModel):
    """A piece of a document."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    def digest(self) -> str:
        """sha256 of the canonical JSON text."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()


class Document(Part):
    """A piece of knowledge that is a file of its own: ``{"schema": "lorita-deploy/<name>/<version>", ...}``."""

    SCHEMA: ClassVar[str]
    VERSION: ClassVar[int] = 1

    @classmethod
    def schema_id(cls) -> str:
        return f"lorita-deploy/{cls.SCHEMA}/{cls.VERSION}"

    def to_json(self) -> str:
        """The text of the file: indented, keys in the order of the class."""
        body = {"schema": self.schema_id(), **self.model_dump(mode="json")}
        return json.dumps(body, indent=1, allow_nan=False) + "\n"

    def save(self, path: Path | str) -> Path:
        """Write aside, fsync, rename: a half-written file is never taken for a whole one."""
        write_atomically(Path(path), self.to_json().encode())
        return Path(path)

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Read a document. Raises `BadRecord` (damaged, foreign keys, other schema, newer version)."""
        return cls.parse(_read(path), where=path)

    @classmethod
    def parse(cls, text: str | bytes, *, where: object) -> Self:
        """Read a document from its text; ``where`` is named in errors."""
        body = _json_object(text, where)
        found = body.pop("schema", None)
        _check_schema(found, cls, where)
        try:
            return cls.model_validate_json(json.dumps(body, allow_nan=False))
        except pydantic.ValidationError as error:
            key, why = first_wrong(error)
            raise BadRecord(
                f"{error.error_count()} entries of this {cls.SCHEMA} record are wrong; first: {key or '(top)'}: {why}",
                where=where,
                fix="let lorita-deploy write the file again, or mend that entry by hand",
            ) from error
        except ValueError as error:
            raise BadRecord(f"a number in this {cls.SCHEMA} record is not finite", where=where) from error


def first_wrong(error: pydantic.ValidationError) -> tuple[str, str]:
    """The first entry that is wrong, dotted ("" for the whole), and why, in the words of whoever found it."""
    first = error.errors()[0]
    return ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")


def schema_name(path: Path | str) -> str:
    """The name in a record's schema, such as ``plan``. Raises `BadRecord`."""
    found = _json_object(_read(path), path).get("schema")
    parts = found.split("/") if isinstance(found, str) else []
    if len(parts) != 3 or parts[0] != "lorita-deploy":
        raise BadRecord("this JSON file is not a lorita-deploy record (no schema line)", where=path)
    return parts[1]


def write_atomically(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path`` so that the file is whole or not there. Raises `OutOfResource` (disk full, read-only)."""
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except OSError as error:
        raise OutOfResource(
            f"cannot write: {error.strerror}",
            where=path,
            fix="make room there, or see that it may be written to; or choose another folder",
        ) from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def _read(path: Path | str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise BadRecord(f"cannot read: {error.strerror}", where=path, fix="check the path and its permissions") from error


def _json_object(text: str | bytes, where: object) -> dict[str, Any]:
    try:
        body = json.loads(text, parse_int=_integer)
    except (ValueError, RecursionError) as error:
        raise BadRecord(
            f"not valid JSON: {error}", where=where, fix="the file is damaged or cut short: delete it and run it again"
        ) from error
    if not isinstance(body, dict):
        raise BadRecord("not a JSON object", where=where)
    return body


def _integer(text: str) -> int:
    """Of 64 bits: nothing that is counted or measured is larger. Raises ``ValueError``."""
    value = int(text)
    if not -(2**63) <= value < 2**63:
        raise ValueError(f"the number {text[:20]}... is too large")
    return value


def _check_schema(found: object, cls: type[Document], where: object) -> None:
    expected = cls.schema_id()
    if found == expected:
        return
    if isinstance(found, str) and found.startswith(f"lorita-deploy/{cls.SCHEMA}/"):
        version = found.rsplit("/", 1)[1]
        if version.isdigit() and int(version) > cls.VERSION:
            raise BadRecord(
                f"written by a newer lorita-deploy: schema {found}, this one reads up to {expected}",
                where=where,
                fix="pip install --upgrade lorita-deploy",
            )
    raise BadRecord(f"schema is {found!r}, expected {expected!r}", where=where)
