"""Where a device is, as a person writes it: ``local``, or ``ssh://user@host:port?python=...&folder=...``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, unquote

from ..errors import LoritaDeployError, UnknownName

if TYPE_CHECKING:
    from ..ports import Device

FORM = "ssh://user@host:port?python=/path/to/python&folder=/path (all but the host may be left out)"


_ADDRESS = r"ssh://(?:(?P<user>[^/?]*)@)?(?P<host>\[[^\]]+\]|[^@:/?\[\]]+)(?::(?P<port>[0-9]{0,5}))?/?(?:\?(?P<query>.*))?"


@dataclass(frozen=True)
class Address:
    """A device that OpenSSH's client reaches. ``host`` may be an alias of ~/.ssh/config."""

    host: str
    user: str | None = None
    port: int | None = None
    python: str | None = None
    """Interpreter to use there; None: ``python3`` as the login shell finds it."""
    folder: str | None = None
    """Where files are put there; None: ``~/.cache/lorita-deploy``."""

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"ssh://{f'{self.user}@' if self.user else ''}{host}{f':{self.port}' if self.port else ''}"

    @property
    def command_line(self) -> str:
        """What a person would type to get there."""
        port = f"-p {self.port} " if self.port else ""
        return f"ssh {port}{f'{self.user}@' if self.user else ''}{self.host}"


def find_device(text: str) -> Device:
    """The device that ``text`` names; nothing is connected yet. Raises `LoritaDeployError`."""
    if text == "local":
        from .local import LocalDevice

        return LocalDevice()
    if text.startswith("ssh://"):
        from .ssh import SshDevice

        return SshDevice(parse(text))
    hint = "where torch computes is said with --torch-device" if text in ("auto", "cpu", "cuda") else f"write {FORM}"
    raise UnknownName("device", _masked(text), ("local", "ssh://user@host"), fix=hint)


def parse(text: str) -> Address:
    """Raises `LoritaDeployError` for anything that is not of the form `FORM`, passwords above all."""
    found = re.fullmatch(_ADDRESS, text)
    # A password may hold any character, also those that end the part of an address it stands in.
    if re.match(r"ssh://[^/?@\[]*:.*@", text) and (found is None or ":" in (found["user"] or "")):
        raise LoritaDeployError("an address holds no password", where=_masked(text), fix="use a key: ssh-copy-id user@host")
    if found is None:
        raise _malformed(text, "this is not the address of a device")
    user, host, port = found["user"], unquote(found["host"].strip("[]")), found["port"]
    # A leading dash would be an option to ssh, and a shell may see either.
    if not re.fullmatch(r"[\w.:%][\w.:%-]*", host) or not re.fullmatch(r"[\w.][\w.@\\-]*", user or "x"):
        raise _malformed(text, "the user or the host has characters that no name has")
    if port is not None and not 0 < int(port or 0) < 65536:
        raise _malformed(text, f"there is no port {port!r}")
    more = dict(parse_qsl((found["query"] or "").replace("+", "%2B"), keep_blank_values=True))
    strange = [key for key in more if key not in ("python", "folder")]
    if strange and "@" in text.partition("?")[2]:  # what follows may be the rest of a password
        raise _malformed(text, "there is a setting that no device has")
    if strange:
        raise UnknownName("setting of a device", strange[0], ("python", "folder"), fix=f"write {FORM}")
    if any(not value or not value.isprintable() for value in more.values()):
        raise _malformed(text, "a setting is empty")
    return Address(host, user, int(port) if port else None, more.get("python"), more.get("folder"))


def _malformed(text: str, what: str) -> LoritaDeployError:
    return LoritaDeployError(what, where=f"--device {_masked(text)}", fix=f"write {FORM}")


def _masked(text: str) -> str:
    """``text`` without what may be a password: from the first colon after the scheme to the last ``@``."""
    return re.sub(r":(?!//).*@", ":...@", text, flags=re.DOTALL)
