"""This machine as a device: the runner in a fresh process, its exit codes and messages as our errors."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import bundle
from ..errors import BadArtifact, DeviceUnfit, DeviceUnreachable, LoritaDeployError, OutOfResource, VerificationFailed
from ..records import Host, write_atomically
from ..targets import this_host

RUNNER = Path(bundle.__file__).with_name("run.py")
_ERRORS: dict[int, type[LoritaDeployError]] = {
    2: BadArtifact,
    3: DeviceUnfit,
    4: VerificationFailed,
    5: DeviceUnreachable,
    6: OutOfResource,
}


class LocalDevice:
    """The machine that this program runs on."""

    name = "local"

    def host(self, kind: str = "cpu") -> Host:
        """This machine; ``kind`` is the target it stands for."""
        return this_host(kind)

    def run(self, folder: Path, job: Mapping[str, Any], *, timeout_s: float) -> Path:
        """Run the runner over ``job``, which is kept in ``folder`` beside the result; returns the result file.

        Raises `BadArtifact` (a file or the job is wrong), `VerificationFailed`, `OutOfResource` and, past ``timeout_s``,
        `DeviceUnreachable`.
        """
        result = folder / str(job.get("result", "receipt.json"))
        job_file = result.with_name(f"job-{result.name}")
        write_atomically(job_file, (json.dumps({"schema": "lorita-deploy/job/1", **job}, indent=1) + "\n").encode())
        result.unlink(missing_ok=True)
        # A build that is killed takes its runner along: it would hold the folder, and disturb what is timed next.
        command = [sys.executable, str(RUNNER), "--job", str(job_file), "--parent", str(os.getpid())]
        try:
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=timeout_s, check=False)
        except subprocess.TimeoutExpired as error:
            raise DeviceUnreachable(
                f"the runner did not finish within {timeout_s:.0f} s", where=job_file, fix="try again when the machine is quiet"
            ) from error
        if done.returncode == 130:
            raise KeyboardInterrupt
        if done.returncode:
            raise runner_error(done.returncode, done.stderr, where=job_file)
        return result


def runner_error(code: int, stderr: str, *, where: object) -> Exception:
    """The error that an exit code and a three-part message of the runner stand for."""
    found = re.search(r"(?P<what>[^\n]*)\n  where: (?P<where>[^\n]*)\n  do:    (?P<fix>[^\n]*)", stderr)
    if code < 0:
        return OutOfResource(
            f"the runner was ended by signal {-code}",
            where=where,
            fix="most likely memory ran out: end other programs, or lower --batch",
        )
    if code in _ERRORS and found:
        return _ERRORS[code](found["what"], where=found["where"], fix=found["fix"])
    return RuntimeError(f"the runner failed with exit code {code}\n{stderr}")
