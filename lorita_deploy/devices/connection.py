"""One device over the system's OpenSSH client: its keys, ~/.ssh/config and jump hosts; strict host keys, never a password.

A master connection is kept open, and every request is a session over it (if it breaks, ssh connects anew by itself). Its
far end reads our standard input, so that it ends when this process does, however it ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import subprocess
import tempfile
import threading
import weakref
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from .. import bundle
from ..errors import DeviceUnfit, DeviceUnreachable, LoritaDeployError, OutOfResource
from . import onboard
from .address import Address

CONNECT_S = 15
OPTIONS = {
    "BatchMode": "yes",
    "StrictHostKeyChecking": "yes",
    "ConnectTimeout": str(CONNECT_S),
    "ServerAliveInterval": "10",
    "ServerAliveCountMax": "3",
    "ForwardAgent": "no",
    "ForwardX11": "no",
    "ClearAllForwardings": "yes",
    "PermitLocalCommand": "no",
    "ControlPersist": "no",
    "RemoteCommand": "none",
    "LogLevel": "ERROR",
}
"""What must not be left to ~/.ssh/config."""
SINCE_8_7 = {"StdinNull": "no", "ForkAfterAuthentication": "no", "SessionType": "default"}
"""Likewise; a client that is older takes none of them, from nowhere."""
READY = "lorita-deploy-is-connected"
LAST_WORDS_S = 2
"""How long a connection that has closed its output may take to say why."""
LONGEST_SOCKET_FOLDER = 60
"""The system ends a socket's path at about 100 characters, and ssh adds some of its own."""
NO_ROOM = ("ENOSPC", "EDQUOT", "EROFS", "EACCES", "EPERM", "EFBIG", "ENOMEM")
NO_PLACE = ("ENOENT", "ENOTDIR", "ENAMETOOLONG", "ELOOP", "EEXIST", "EISDIR", "EINVAL")
"""What making a folder fails with where none can be."""


class Dropped(DeviceUnreachable):
    """The connection broke, or could not be made; it may be there again in a moment."""


class Connection:
    """Requests to the program in `onboard`."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self.master: subprocess.Popen[str] | None = None
        self.sockets = tempfile.mkdtemp(prefix="lorita-", dir=_place_for_sockets())  # only we may enter it
        weakref.finalize(self, shutil.rmtree, self.sockets, True)

    def request(self, verb: str, *, timeout_s: float, contents: Iterable[Path] = (), **more: Any) -> dict[str, Any]:
        """The reply to one request; ``contents`` are files whose bytes follow it.

        Raises `Dropped`, `DeviceUnreachable`, `DeviceUnfit` (no Python there), `OutOfResource`, `LoritaDeployError` (an
        impossible folder).
        """
        self._connect()
        program, folder = _program(), {"folder": self.address.folder} if self.address.folder else {}
        python = _shell_word(self.address.python or "python3")
        start = f"{python} -c 'import sys;exec(sys.stdin.buffer.read({len(program)}))'"
        question = json.dumps({"verb": verb, **folder, **more}).encode() + b"\n"
        # Should the master be gone, a session that connects anew is not to become one.
        ssh = [*self._ssh("-S", f"{self.sockets}/s", "-o", "ControlMaster=no"), start]
        code, out, err = _talk(ssh, [program, question], contents, timeout_s)
        reply = next((line for line in reversed(out.splitlines()) if line.startswith("lorita-deploy:")), None)
        if reply is None:
            raise self._failure(code, err, timeout_s)
        body: dict[str, Any] = json.loads(reply.partition(":")[2])
        if "error" in body:
            raise self._refusal(body)
        return body

    def close(self) -> None:
        """End the master connection."""
        if self.master is not None:
            with contextlib.suppress(OSError):
                self.master.communicate(timeout=2)
            self.master.kill()
            self.master.wait()
            self.master = None

    # ------------------------------------------------------------------------------------------ connecting

    def _connect(self) -> None:
        """Have a living master connection. Raises `Dropped` or `DeviceUnreachable`."""
        if self.master is not None and self.master.poll() is None:
            return
        Path(self.sockets, "s").unlink(missing_ok=True)  # a master that was killed left it behind
        # The first echo ends a line that a login script has begun, such as a window's title.
        command = [*self._ssh("-M", "-S", f"{self.sockets}/s"), f"echo; echo {READY}; exec cat >/dev/null"]
        try:
            self.master = subprocess.Popen(command, text=True, errors="replace", **_alone())
        except FileNotFoundError as error:
            raise DeviceUnreachable("there is no ssh here", where="ssh", fix="install OpenSSH's client") from error
        # Jump hosts have a time limit each.
        watchdog = threading.Timer(4 * CONNECT_S, self.master.kill)
        watchdog.start()
        assert self.master.stdout is not None
        connected = any(line.strip() == READY for line in self.master.stdout)
        watchdog.cancel()
        if not connected:
            master, self.master = self.master, None
            try:
                _, err = master.communicate(timeout=LAST_WORDS_S)
            except subprocess.TimeoutExpired:
                master.kill()
                master.communicate()
                raise DeviceUnreachable(
                    "it lets us in, and runs no command",
                    where=self.address,
                    fix=f"a forced command in the way? this should say hello: {self.address.command_line} echo hello",
                ) from None
            raise self._failure(master.returncode, err, 4 * CONNECT_S)

    def _ssh(self, *more: str) -> list[str]:
        known = OPTIONS | (SINCE_8_7 if _version_of_ssh() >= (8, 7) else {})
        options = [word for key, value in known.items() for word in ("-o", f"{key}={value}")]
        port = ["-p", str(self.address.port)] if self.address.port else []
        user = ["-l", self.address.user] if self.address.user else []
        return ["ssh", "-T", *more, *options, *port, *user, "--", self.address.host]

    # ------------------------------------------------------------------------------------------ what went wrong

    def _failure(self, code: int, err: str, timeout_s: float) -> Exception:
        """What a call without a reply means."""
        said = [line.strip() for line in err.splitlines() if line.strip()]
        last = said[-1] if said else "it said nothing"
        if code < 0:
            return Dropped(f"no answer within {timeout_s:.0f} s", where=self.address, fix="is it switched on, and connected?")
        if code == 255:
            return self._unreachable(err, last)
        python = self.address.python or "python3"
        if code in (126, 127) or "not found" in last:
            return DeviceUnfit(
                f"there is no {python} to run: {last}",
                where=self.address,
                fix="sudo apt install python3 there, or name one: ssh://...?python=/path/to/python3",
            )
        if any(word in last for word in ("SyntaxError", "ImportError", "ModuleNotFoundError", "no attribute 'buffer'")):
            return DeviceUnfit(
                f"{python} there cannot run what is asked of it: {last}",
                where=self.address,
                fix="Python 3.6 or newer is needed; name one: ssh://...?python=/path/to/python3",
            )
        if "Traceback" in err:
            return RuntimeError(f"our program on {self.address} failed\n{err}")
        return Dropped(f"the connection ended with code {code}: {last}", where=self.address, fix="run the same command again")

    def _unreachable(self, err: str, last: str) -> DeviceUnreachable:
        by_hand, where = self.address.command_line, self.address
        if "IDENTIFICATION HAS CHANGED" in err:
            known = re.search(r"Host key for (\S+) has changed", err)
            remove = f"ssh-keygen -R {shlex.quote(known[1] if known else self.address.host)}"
            fix = f"if the board was set up anew: {remove}; then {by_hand} and compare the new fingerprint"
            return DeviceUnreachable("its host key has changed: this may be another machine", where=where, fix=fix)
        if "Host key verification failed" in err:
            fix = f"connect once by hand and compare the fingerprint: {by_hand}"
            return DeviceUnreachable("its host key is not known here", where=where, fix=fix)
        if "Permission denied" in err or "Too many authentication failures" in err:
            fix = f"bring your key there: {by_hand.replace('ssh ', 'ssh-copy-id ', 1)}"
            return DeviceUnreachable(f"it does not let us in: {last}", where=where, fix=fix)
        if "Could not resolve" in err or "Bad configuration" in err:
            return DeviceUnreachable(last, where=where, fix="check the address and ~/.ssh/config")
        return Dropped(last, where=where, fix=f"is it switched on, and connected? try: {by_hand}")

    def _refusal(self, body: Mapping[str, Any]) -> Exception:
        where = f"{self.address}:{body['where']}" if body["where"] else self.address
        if body["errno"] in NO_ROOM:
            return OutOfResource(
                f"cannot write on the device: {body['error']}",
                where=where,
                fix="free some space there, or choose another place: ssh://...?folder=/path",
            )
        if body["errno"] in NO_PLACE:
            return LoritaDeployError(
                f"no folder can be made there: {body['error']}", where=where, fix="choose another place: ssh://...?folder=/path"
            )
        if "connection broke" in body["error"]:
            return Dropped(body["error"], where=where, fix="run the same command again")
        return DeviceUnreachable(f"the device refuses: {body['error']}", where=where, fix="run the same command again")


def _talk(command: list[str], texts: list[bytes], contents: Iterable[Path], timeout_s: float) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of ``command`` fed with ``texts`` and files; killed past the time limit."""
    process = subprocess.Popen(command, **_alone())
    watchdog = threading.Timer(timeout_s, process.kill)
    watchdog.start()
    try:
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has its reasons, and will say them
            for text in texts:
                process.stdin.write(text)
            for path in contents:
                with path.open("rb") as file:
                    shutil.copyfileobj(file, process.stdin, 1 << 20)
            process.stdin.flush()
        out, err = process.communicate()
    finally:
        watchdog.cancel()
        if process.poll() is None:
            process.kill()
            process.wait()
    return process.returncode, out.decode(errors="replace"), err.decode(errors="replace")


def _alone() -> dict[str, Any]:
    """How ssh is started: without a terminal to ask for passwords on (a jump host's ssh does not hear our options), and out
    of reach of Ctrl-C, so that the device can still be told."""
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return {**pipes, "start_new_session": True, "env": {**os.environ, "SSH_ASKPASS_REQUIRE": "never"}}


@cache
def _version_of_ssh() -> tuple[int, int]:
    """Of the client here; (0, 0) where it cannot be told."""
    try:
        said = subprocess.run(["ssh", "-V"], capture_output=True, text=True, errors="replace", timeout=CONNECT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return 0, 0
    found = re.search(r"OpenSSH_\D*(\d+)\.(\d+)", said.stderr)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _place_for_sockets() -> str | None:
    """Where temporary files go, unless ssh cannot have a socket there: its name would be too long, or not be taken as it is."""
    usual = tempfile.gettempdir()
    return "/tmp" if len(os.fsencode(usual)) > LONGEST_SOCKET_FOLDER or set(usual) & set("%$") else None


@cache
def _program() -> bytes:
    """`onboard` and the runner's modules as one Python program that finds them by their bare names."""
    folders = (Path(bundle.__file__).parent, Path(onboard.__file__).parent)
    names = (*bundle.RUNNER_FILES, *(path.name for path in sorted(folders[1].glob("*.py")) if path.stem != "__init__"))
    paths = [next(folder / name for folder in folders if (folder / name).exists()) for name in names]
    return _BOOT.replace("SOURCES", repr({path.stem: path.read_text(encoding="utf-8") for path in paths})).encode()


_BOOT = """
import importlib.abc, importlib.util, sys

class Sent(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    sources = SOURCES

    def find_spec(self, name, path=None, target=None):
        return importlib.util.spec_from_loader(name, self) if name in self.sources else None

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        exec(compile(self.sources[module.__name__], module.__name__ + ".py", "exec"), module.__dict__)

sys.meta_path.insert(0, Sent())
import agent
agent.main()
"""


def _shell_word(path: str) -> str:
    """``path`` for the shell over there, which is to expand a leading ``~/``."""
    found = re.match(r"~[\w.-]*/", path)
    home = found[0] if found else ""
    return home + shlex.quote(path[len(home) :])
