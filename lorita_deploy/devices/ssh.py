"""A device over SSH: files are sent once, the runner goes on when the connection breaks, and its result is fetched after.

One thing at a time is timed on a device, whoever asks; what a run needs no longer is removed there.
"""

from __future__ import annotations

import contextlib
import getpass
import hashlib
import json
import logging
import socket
import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import pydantic

from .. import bundle
from ..bundle.manifest import MANIFEST, SEAL, check_bundle
from ..errors import BadRecord, DeviceBusy, DeviceUnreachable, OutOfResource
from ..records import Host, write_atomically
from .address import Address
from .connection import Connection, Dropped
from .local import runner_error
from .look import Look, require_runtime

PATIENCE_S = 180.0
"""How long a broken connection is tried again: a board is up again after a restart in less."""
CALL_S = 60.0
VISIT_S = 240
"""How long one call waits for the end of a run; nothing happens on the device meanwhile."""
SLOWEST_BYTES_S = 100_000
RUNNER = Path(bundle.__file__).parent

_log = logging.getLogger(__name__)


class SshDevice:
    """A machine that is reached as ``address`` says."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self.name = str(address)
        self.connection = Connection(address)

    @cached_property
    def look(self) -> Look:
        """What is there. Raises `DeviceUnreachable`, `DeviceUnfit`."""
        reply = self.connection.request("look", timeout_s=2 * CALL_S)
        try:
            return Look.model_validate(reply)
        except pydantic.ValidationError as error:
            raise BadRecord(f"the device's description of itself makes no sense: {error}", where=self.name) from error

    def host(self, kind: str = "cpu") -> Host:
        """The machine there; ``kind`` is the target it stands for."""
        return self.look.host.model_copy(update={"kind": kind})

    def run(self, folder: Path, job: Mapping[str, Any], *, timeout_s: float) -> Path:
        """As `Device.run`: everything the job names is sent, and the result is written into ``folder``.

        Raises `DeviceUnreachable`, `DeviceUnfit`, `DeviceBusy`, and what the runner finds: `BadArtifact`,
        `VerificationFailed`, `OutOfResource`.
        """
        golden = job.get("golden") or {"outputs": {}}
        paths = [each["path"] for each in job["artifacts"]] + [*golden["outputs"].values()]
        paths += [golden["inputs"]] if "inputs" in golden else []
        files = {path: folder / path for path in paths} | {name: RUNNER / name for name in bundle.RUNNER_FILES}
        body = {"schema": "lorita-deploy/job/1", **job, "result": "result.json"}
        aside = folder / f"job-{job.get('result', 'receipt.json')}"
        write_atomically(aside, (json.dumps(body, indent=1) + "\n").encode())
        files["job.json"] = aside
        require_runtime(self.look, body.get("settings", {}).get("runtime", "onnxruntime"), self.name)
        into = folder / str(job.get("result", "receipt.json"))
        return self._run(files, ["run.py", "--job", "job.json"], "result.json", into, keep=False, limit_s=timeout_s)

    def run_bundle(self, folder: Path, result: Path, *, arguments: Sequence[str] = (), timeout_s: float) -> Path:
        """Run the bundle in ``folder`` as a person would there, with its own runner (``run.py`` and ``arguments``); its
        receipt is written to ``result``.

        What the runner builds beside the bundle's files (engines) stays there for the next time. Raises what `run` raises,
        and `BadArtifact` for a bundle that is not as it was made, before anything is sent.
        """
        manifest = check_bundle(folder)
        names = [MANIFEST, SEAL, *(file.path for file in manifest.files)]
        files = {name: folder / name for name in names}
        require_runtime(self.look, None, self.name)
        return self._run(files, ["run.py", *arguments], "receipt.json", result, keep=True, limit_s=timeout_s)

    # ------------------------------------------------------------------------------------------ one run

    def _run(
        self, files: Mapping[str, Path], command: list[str], result: str, into: Path, *, keep: bool, limit_s: float
    ) -> Path:
        """Bring the result of a run that is over there, was, or is started now, and write it ``into`` a file."""
        local = {name: _sha256(path) for name, path in files.items()}
        run: dict[str, Any] = {"files": local, "command": command, "result": result}
        # The same bundle asked something else finds the engines that it has built: the folder goes by the files.
        run["key"] = hashlib.sha256(json.dumps([local, result], sort_keys=True).encode()).hexdigest()[:32]
        run |= {"who": f"{getpass.getuser()}@{socket.gethostname()}", "limit_s": limit_s}
        try:
            self._start(run, {digest: files[name] for name, digest in local.items()})
            reply = self._await_end(run, time.monotonic() + limit_s + PATIENCE_S)
        except BaseException as error:
            if not isinstance(error, Exception):  # the person does not want it any more
                self._stop(run)
            raise
        where = f"{self.name}, {' '.join(command)}"
        failure = _failure(reply, limit_s, where)
        if failure is None:
            write_atomically(into, reply["result"].encode())
        with contextlib.suppress(DeviceUnreachable):
            self.connection.request("finish", timeout_s=CALL_S, key=run["key"], keep=keep)
        if failure is not None:
            raise failure
        return into

    def _start(self, run: Mapping[str, Any], contents: Mapping[str, Path]) -> None:
        """Have the run at work, sending what is not there yet (and, should the connection break, only that again)."""
        total = sum(path.stat().st_size for path in contents.values())
        until = time.monotonic() + PATIENCE_S + 2 * total / SLOWEST_BYTES_S
        while True:
            reply = self._ask("start", seconds=CALL_S + total / 10e6, **run)
            if reply["state"] in ("running", "done"):
                return
            if reply["state"] == "busy":
                holder = reply["holder"]
                raise DeviceBusy(
                    f"the device is in use by {holder['who']}, since {holder['since']}",
                    where=self.name,
                    fix="wait until they are done, then run the same command again",
                )
            sizes = {digest: contents[digest].stat().st_size for digest in reply["files"]}
            if sum(sizes.values()) > reply["free_bytes"]:
                raise OutOfResource(
                    f"{sum(sizes.values()) / 1e6:.1f} MB are to be sent, and {reply['free_bytes'] / 1e6:.1f} MB are free there",
                    where=f"{self.name}:{self.look.folder}",
                    fix="free some space there, or choose another place: ssh://...?folder=/path",
                )
            seconds = CALL_S + sum(sizes.values()) / SLOWEST_BYTES_S
            try:
                listed = [contents[digest] for digest in sizes]
                self.connection.request("put", timeout_s=seconds, contents=listed, files=list(sizes.items()))
            except Dropped:
                if time.monotonic() > until:
                    raise

    def _await_end(self, run: Mapping[str, Any], until: float) -> dict[str, Any]:
        while True:
            reply = self._ask("wait", seconds=VISIT_S + CALL_S, key=run["key"], result=run["result"], visit_s=VISIT_S)
            if reply["state"] != "running" or time.monotonic() > until:
                return reply

    def _stop(self, run: Mapping[str, Any]) -> None:
        """Leave the device as it was, as far as it can be reached."""
        with contextlib.suppress(DeviceUnreachable):
            self.connection.request("stop", timeout_s=CALL_S, key=run["key"], result=run["result"])
            self.connection.request("wait", timeout_s=CALL_S, key=run["key"], result=run["result"], visit_s=10)
            self.connection.request("finish", timeout_s=CALL_S, key=run["key"], keep=True)

    def _ask(self, verb: str, *, seconds: float = CALL_S, **more: Any) -> dict[str, Any]:
        """A request that is made again while the connection is broken."""
        since, pause = time.monotonic(), 0.5
        while True:
            try:
                return self.connection.request(verb, timeout_s=seconds, **more)
            except Dropped as error:
                if time.monotonic() - since > PATIENCE_S:
                    raise DeviceUnreachable(
                        f"the connection broke, and did not come back within {PATIENCE_S:.0f} s: {error.what}",
                        where=self.name,
                        fix="run the same command again: what runs there goes on, and its result is fetched then",
                    ) from error
                _log.info("%s; trying again", error.what)
                time.sleep(pause)
                pause = min(2 * pause, 10.0)


def _failure(reply: Mapping[str, Any], limit_s: float, where: str) -> Exception | None:
    """What a run that has ended without a result is to its user."""
    again = "run the same command again"
    if reply["state"] == "gone" and reply["rebooted"]:
        return DeviceUnreachable("the device was restarted during the run", where=where, fix=again)
    if reply["state"] == "gone":
        fix = "most likely memory ran out: end other programs there"
        return OutOfResource("the run was killed on the device", where=where, fix=fix)
    if reply["state"] != "done":
        return DeviceUnreachable(f"the run is {reply['state']} when it should be done", where=where, fix=again)
    if reply["code"] is None:
        fix = "try again when the device is quiet"
        return DeviceUnreachable(f"the runner did not finish within {limit_s:.0f} s", where=where, fix=fix)
    # With a result, exit code 1 says that a deadline is missed: a result like any other.
    if reply["code"] > 1 or reply["code"] < 0 or "result" not in reply:
        return runner_error(reply["code"] or 1, reply["err"], where=where)
    return None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
