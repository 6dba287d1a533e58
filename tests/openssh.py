"""OpenSSH's own server on this machine, for one test session: a free port, throw-away keys, its own known_hosts.

The client is the system's ssh as well; a small script of that name, first in the path, hands it the session's own
configuration in place of ~/.ssh/config.
"""

import getpass
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
MISSING = [name for name, path in (("sshd", SSHD), ("ssh", shutil.which("ssh"))) if path is None]


class Sshd:
    """A running server; ``folder`` is its own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, _free_port()
        (folder / "bin").mkdir()
        (folder / "locks").mkdir()
        for name in ("host", "host2", "user"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
        shutil.copy(folder / "user.pub", folder / "authorized_keys")
        self.know(folder / "host.pub")
        (folder / "sshd_config").write_text(
            f"Port {self.port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nPidFile {folder}/pid\n"
            f"AuthorizedKeysFile {folder}/authorized_keys\nStrictModes no\nUsePAM no\nPasswordAuthentication no\n"
            f"KbdInteractiveAuthentication no\nPermitRootLogin yes\nMaxStartups 100\n"
            f"SetEnv LORITA_LOCK_FOLDER={folder}/locks XDG_CACHE_HOME={folder}/cache\n"
        )
        self.configure()
        real = shlex.quote(str(shutil.which("ssh")))
        (folder / "bin" / "ssh").write_text(f'#!/bin/sh\nexec {real} -F {shlex.quote(str(folder))}/ssh_config "$@"\n')
        (folder / "bin" / "ssh").chmod(0o755)
        if os.getuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)
        command = [str(SSHD), "-D", "-f", str(folder / "sshd_config"), "-E", str(folder / "log")]
        self.process = subprocess.Popen(command)
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.05)
        raise RuntimeError((folder / "log").read_text())

    def configure(self, more: str = "") -> None:
        """The client's configuration."""
        (self.folder / "ssh_config").write_text(
            f"{more}\nHost *\n  IdentityFile {self.folder}/user\n  IdentitiesOnly yes\n"
            f"  UserKnownHostsFile {self.folder}/known_hosts\n  GlobalKnownHostsFile /dev/null\n"
        )

    def know(self, public_key: Path | None) -> None:
        """What the client takes for the server's key."""
        key = f"[127.0.0.1]:{self.port} {public_key.read_text()}" if public_key else ""
        (self.folder / "known_hosts").write_text(key)

    @contextmanager
    def letting_in_by(self, options: str) -> Iterator[None]:
        """For a while, the user's key is let in with these options of authorized_keys."""
        keys = self.folder / "authorized_keys"
        plain = keys.read_text()
        keys.write_text(options + plain)
        try:
            yield
        finally:
            keys.write_text(plain)

    @property
    def environment(self) -> dict[str, str]:
        """With the session's client first in the path."""
        return {"PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}"}

    def address(self, folder: Path, host: str = "127.0.0.1", python: str = sys.executable) -> str:
        """This machine as a device, with the Python that runs the tests."""
        return f"ssh://{getpass.getuser()}@{host}:{self.port}?python={python}&folder={folder}"

    def cut(self) -> int:
        """End every connection at the server's side, as a pulled cable does; how many processes that was."""
        direct = [pid for pid in children(self.process.pid) if name_of(pid).startswith("sshd")]
        sessions = direct + [pid for child in direct for pid in children(child) if name_of(pid).startswith("sshd")]
        for pid in sessions:
            os.kill(pid, signal.SIGKILL)
        return len(sessions)

    def close(self) -> None:
        self.cut()
        self.process.terminate()
        self.process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def children(parent: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                after_name = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(after_name[1]) == parent:
                found.append(int(entry.name))
    return found


def name_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""
