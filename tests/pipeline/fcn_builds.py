"""Small builds of fcn on digits, in this process and as a command in one of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from lorita_deploy.pipeline import BuildOptions, Watch, make_options

SMALL = {"model": "fcn", "target": "cpu", "epochs": 4, "calibration_samples": 128}


class Seen(Watch):
    """Keeps what a build said."""

    def __init__(self):
        self.cached, self.run, self.notes = [], [], []

    def stage_finished(self, name, seconds, line, cached):
        (self.cached if cached else self.run).append(name)

    def note(self, text):
        self.notes.append(text)


def fcn(out: Path, **changes: object) -> BuildOptions:
    return make_options(**{**SMALL, "out": str(out), **changes})


def begin(out: Path, environment: dict[str, str] | None = None, **changes: object) -> subprocess.Popen[str]:
    """The same as a command, in a session of its own; what it says of its stages can be read from its stderr."""
    options = {**SMALL, "out": str(out), **changes}
    words = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    return subprocess.Popen(
        [sys.executable, "-m", "lorita_deploy", "build", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, **(environment or {})},
    )


def states(said: str) -> dict[str, str]:
    """Stage to ``cached`` or ``done``, from a command's stderr."""
    return dict(re.findall(r"^(\w+) +(cached|done)\b", said, flags=re.MULTILINE))
