"""Stdout holds results and nothing else, whatever libraries write to file descriptor 1."""

import json
import os
import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, functools, os, subprocess, sys
import scipy.optimize
from lorita_deploy.cli import cli, main
from lorita_deploy.cli.screen import with_screen
import click

@cli.command("noisy")
@with_screen
def noisy(screen):
    libc = ctypes.CDLL(None)
    print("python, buffered")
    libc.puts(b"C, buffered")
    os.write(1, b"a bare write\\n")
    subprocess.run([sys.executable, "-c", "print('a child')"])
    screen.show({"answer": 42})
    libc.puts(b"C, buffered until the end")
    print("python, buffered until the end")
    if "--verbose" in sys.argv:
        raise click.exceptions.Exit(1)

@cli.command("solve")
@with_screen
def solve(screen):
    # The solver of the plans with its log on, which it prints from C++.
    scipy.optimize.milp = functools.partial(milp, scipy.optimize.milp)
    from lorita_deploy.compress.plan import solve
    from lorita_deploy.records import Candidate, LayerTime, PriceTable
    offers = [(layer, rank) for layer in range(6) for rank in (None, 8, 16)]
    candidates = [
        Candidate(layer=str(layer), group=str(layer), form="pair" if rank else "dense", k_in=32, k_out=32, rank=rank,
                  precision="fp32", params=9, macs=9, predicted_loss=(1 + layer) / rank if rank else 0.0)
        for layer, rank in offers
    ]
    us = {each.key: each.rank or 40.0 + int(each.layer) for each in candidates}
    times = [LayerTime(candidate=key, us=float(value), provenance="measured") for key, value in us.items()]
    prices = PriceTable(
        network_sha256="0", target="cpu", runtime="onnxruntime", precision="fp32", threads=1, batch=1, host=None,
        provenance="measured", method="made up", network_us=300.0, rest_us=1.0, times=tuple(times))
    found = solve(candidates, prices, budget_us=150.0)
    screen.show({"solver": found.solver, "ranks": [choice.rank for choice in found.choices]})

def milp(real, *arguments, options, **more):
    return real(*arguments, options={**options, "disp": True}, **more)

sys.argv = ["lorita-deploy", *sys.argv[1:]]
main()
"""


def run(*arguments):
    command = [sys.executable, "-c", PROGRAM, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.parametrize("more", [(), ("--verbose",)], ids=["done", "with an exit code of its own"])
def test_libraries_do_not_reach_stdout(more):
    done = run("noisy", "--json", *more)
    assert done.returncode == len(more)
    assert json.loads(done.stdout) == {"answer": 42}
    for line in ("python, buffered", "C, buffered", "a bare write", "a child", "C, buffered until the end"):
        assert line in done.stderr.splitlines(), line
    assert "python, buffered until the end" in done.stderr


def test_the_solver_that_prints_from_c_does_not_either():
    done = run("solve", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["solver"].startswith("highs")
    assert "HiGHS" in done.stderr, "it did print: this test can fail"


def test_a_closed_stdout_or_stderr_is_no_accident():
    """As with ``>&-`` in a shell."""
    for closed in (1, 2):
        done = subprocess.run(
            [sys.executable, "-m", "lorita_deploy", "targets", "list", "--json"],
            capture_output=True,
            check=False,
            preexec_fn=lambda closed=closed: os.close(closed),
        )
        assert done.returncode == 0, done.stderr
        assert b"Traceback" not in done.stderr
        if closed == 2:
            assert json.loads(done.stdout)


def test_the_stream_is_given_back():
    code = (
        "import sys\nfrom lorita_deploy.cli import cli\n"
        "cli(['targets', 'list', '--json'], standalone_mode=False, prog_name='lorita-deploy')\nprint('mine again')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    text, _, rest = done.stdout.rpartition("]\n")
    assert json.loads(text + "]")
    assert rest == "mine again\n"
