"""A whole report on terminals of several widths, in a process of its own on a pseudo-terminal."""

import os
import pty
import re
import subprocess
import sys

import pytest

ESCAPES = re.compile(r"\x1b\[[0-9;]*m")


def on_a_terminal(*arguments, **environment):
    ours, theirs = pty.openpty()
    kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
    process = subprocess.Popen(
        [sys.executable, "-m", "lorita_deploy", *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
        env=kept | {"TERM": "xterm-256color"} | environment,
    )
    os.close(theirs)
    shown = b""
    try:
        while chunk := os.read(ours, 4096):
            shown += chunk
    except OSError:  # the other end is closed
        pass
    os.close(ours)
    assert process.wait(30) == 0
    return shown.decode()


@pytest.mark.parametrize("columns", [44, 80, 200])
def test_it_fits_its_terminal(report, tmp_path, columns):
    report.save(tmp_path / "report.json")
    text = on_a_terminal("inspect", tmp_path / "report.json", COLUMNS=str(columns))
    lines = [ESCAPES.sub("", line.rstrip("\r")) for line in text.split("\n")]
    assert max(map(len, lines)) <= columns
    words = " ".join(" ".join(lines).split())
    for said in ("352 of 360", "0.211 ms", "tiny for cpu", "conv", "passed"):
        assert said in words or columns < 80, said
    assert re.search(r"\x1b\[[0-9;]*32m", text), "good news is green on a terminal"
    assert "\x1b[32m" not in on_a_terminal("inspect", tmp_path / "report.json", COLUMNS=str(columns), NO_COLOR="1")
