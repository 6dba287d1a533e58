"""What goes wrong while a build runs: kills, signals, full disks, changed files, clocks that jump, another version.

Prices and race receipts are inputs that are kept. With the same ones, a build that was stopped anywhere, however often, comes
out with the same bytes as one that was left alone, and does nothing twice that was finished.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from fcn_builds import Seen, begin, fcn, states
from torch import nn

import lorita_deploy as ld
from lorita_deploy.errors import LoritaDeployError, OutOfResource
from lorita_deploy.pipeline import STAGES, build, folder as build_folder, make_options, preview
from lorita_deploy.pipeline.folder import RACES, BuildFolder
from lorita_deploy.records import Receipt, StageRecord

SHIPPED = ("model.onnx", "compressed.onnx", "dense.onnx", "plan.json", "bundle.tar.gz")
"""What must come out the same."""


def keep_measured(done: Path, out: Path) -> dict[str, object]:
    """Give the build in ``out`` what the one in ``done`` measured; the options that go with it."""
    shutil.copytree(done / RACES, out / RACES, dirs_exist_ok=True)
    shutil.copy(done / "prices.json", out.parent / "prices.json")
    return {"layer_times": out.parent / "prices.json"}


@pytest.fixture
def copied(built: tuple[Path, object], tmp_path: Path) -> Path:
    """A copy of the finished build."""
    out = tmp_path / "out"
    shutil.copytree(built[0], out)
    return out


def unfinish_from(out: Path, stage: str) -> None:
    """As if the build in ``out`` had got as far as just before ``stage``."""
    BuildFolder(out).unfinish(STAGES[STAGES.index(stage) :])


def finished_in(out: Path) -> list[str]:
    return [name for name in STAGES if BuildFolder(out).record(name)]


def differing(done: Path, out: Path) -> list[str]:
    return [name for name in SHIPPED if (done / name).read_bytes() != (out / name).read_bytes()]


def wait_for(process: subprocess.Popen[str], happened: Callable[[], object]) -> None:
    """Until it has happened. Fails where the process ends before."""
    end = time.monotonic() + 120
    while not happened():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.002)


def company(session: int) -> list[str]:
    """The command lines of the processes that a command in a session of its own left, once they had time to end."""
    end, found = time.monotonic() + 10, ["?"]
    while found and time.monotonic() < end:
        found = []
        for place in Path("/proc").glob("[0-9]*"):
            try:
                state, _, _, its_session = (place / "stat").read_text().rpartition(")")[2].split()[:4]
                if int(its_session) == session and state != "Z":
                    found.append((place / "cmdline").read_text().replace("\0", " "))
            except OSError:  # it ended meanwhile
                continue
        time.sleep(0.05)
    return found


def the_runner_is_at_work(place: Path) -> bool:
    """It profiles, or has finished a first round of its race: its progress file is all that it has written so far."""
    return any(
        path.name.startswith("profile") or json.loads(path.read_text())["reloads"] for path in place.glob("*-progress.json")
    )


# ---------------------------------------------------------------------------------------------- killed


def heard_until(process: subprocess.Popen[str], stage: str) -> str:
    """What it says up to the line of ``stage``, when that is finished."""
    heard = ""
    while not heard.rpartition("\n")[0].rpartition("\n")[2].startswith(stage):
        line = process.stderr.readline()
        assert line, heard
        heard += line
    return heard


def killed(victim: subprocess.Popen[str], heard: str = "") -> dict[str, str]:
    """What it had said of its stages when it was killed; nothing that it started lives on."""
    victim.kill()
    said = heard + victim.communicate()[1]
    assert "Traceback" not in said
    assert company(victim.pid) == []
    return states(said)


def go_on(out: Path, done: list[str], **options: object) -> str:
    """Run the build to its end; what was finished before is not done again."""
    victim = begin(out, **options)
    said = victim.communicate()[1]
    assert victim.returncode == 0, said
    found = states(said)
    assert list(found) == list(STAGES)
    assert {name: found[name] for name in done} == dict.fromkeys(done, "cached")
    return said


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_at_every_boundary(built, tmp_path):
    out = tmp_path / "out"
    options = keep_measured(built[0], out)
    done: list[str] = []
    for name in STAGES[:-1]:
        if name in done:
            continue
        victim = begin(out, **options)
        wait_for(victim, lambda name=name: BuildFolder(out).record(name))
        said = killed(victim)
        assert all(said.get(each, "cached") == "cached" for each in done)
        done = finished_in(out)
    go_on(out, done, **options)
    assert differing(built[0], out) == []


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", [0, 1])
def test_killed_at_random_moments_inside_stages(built, tmp_path, seed):
    out, moments = tmp_path / "out", random.Random(seed)
    options = keep_measured(built[0], out)
    took = {name: min(2.0, StageRecord.load(built[0] / "stages" / f"{name}.json").seconds) for name in STAGES}
    done: list[str] = []
    for before, name in pairwise(STAGES):
        if name in done:
            continue
        victim = begin(out, **options)
        heard = heard_until(victim, before)
        time.sleep(moments.uniform(0, took[name]))
        said = killed(victim, heard)
        assert all(said.get(each, "cached") == "cached" for each in done)
        done = finished_in(out)
    go_on(out, done, **options)
    assert differing(built[0], out) == []


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("stage", "place"), [("price", "pricing"), ("plan", "draft"), ("bench", ".")])
def test_killed_while_times_are_measured(built, copied, stage, place):
    """The runner ends with the build that started it; the next build measures again, or takes what was measured elsewhere."""
    unfinish_from(copied, stage)
    shutil.rmtree(copied / RACES)
    victim = begin(copied)
    wait_for(victim, lambda: the_runner_is_at_work(copied / place))
    killed(victim)
    done = finished_in(copied)
    assert done == list(STAGES[: STAGES.index(stage)])
    again = begin(copied)
    assert again.wait(timeout=300) == 0, again.communicate()
    said = again.communicate()[1]
    assert states(said)[stage] == "done"
    if stage == "bench":
        assert any("from before an interruption" in each for each in Receipt.load(copied / "receipt.json").warnings)
    shutil.rmtree(copied / RACES)
    unfinish_from(copied, stage)
    go_on(copied, ["data", "train", "collapse", "calibrate", "precision"], **keep_measured(built[0], copied))
    assert differing(built[0], copied) == []


# ---------------------------------------------------------------------------------------------- signals


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")])
@pytest.mark.parametrize(("stage", "whole_group"), [("train", False), ("calibrate", False), ("price", False), ("price", True)])
def test_signals(copied, stage, whole_group, number, code, word):
    """To the process alone, as from ``kill``, or to its group, as from Ctrl-C on a terminal."""
    unfinish_from(copied, stage)
    changes: dict[str, object] = {"train": {"epochs": 500}, "calibrate": {"calibration_samples": 1000}}.get(stage, {})
    moments: dict[str, Callable[[], object]] = {
        "train": lambda: list(copied.glob("training/*/last.safetensors")),
        "calibrate": lambda: BuildFolder(copied).record("collapse"),
        "price": lambda: the_runner_is_at_work(copied / "pricing"),
    }
    if stage == "calibrate":
        unfinish_from(copied, "collapse")
    victim = begin(copied, **changes)
    wait_for(victim, moments[stage])
    (os.killpg if whole_group else os.kill)(victim.pid, number)
    out, said = victim.communicate(timeout=60)
    assert victim.returncode == code, said
    assert out == ""
    lines = said.splitlines()
    assert lines[-1] == f"{word}; nothing finished is lost: run the same command again to go on"
    assert all(line.split()[0] in (*STAGES, "note") for line in lines[:-1]), said
    assert stage not in states(said)
    assert company(victim.pid) == []
    assert not list(copied.rglob("*.part"))
    with BuildFolder(copied).held():
        assert finished_in(copied) == list(STAGES[: STAGES.index(stage)])


# ---------------------------------------------------------------------------------------------- no room


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_disk_is_full(built, no_room):
    """At several places on the way, one behind the other; with room again the build goes on."""
    used = sum(path.stat().st_size for path in built[0].rglob("*") if path.is_file())
    mounted = no_room("size=64k")
    out = mounted / "out"
    for share in (0.0, 0.2, 0.45, 0.7):
        subprocess.run(["mount", "-o", f"remount,size={max(64, int(share * used / 1024))}k", mounted], check=True)
        victim = begin(out)
        said = victim.communicate()[1]
        assert victim.returncode == 6, (share, said)
        *_, what, where, fix = said.splitlines()
        assert "space" in what or "disk" in what, said
        assert where.startswith("  where: ")
        assert fix.startswith("  do:    ")
        assert "Traceback" not in said
        assert not list(out.rglob("*.part"))
    subprocess.run(["mount", "-o", f"remount,size={4 * used}", mounted], check=True)
    done = finished_in(out)
    assert done
    options = keep_measured(built[0], out)
    go_on(out, [name for name in done if STAGES.index(name) < STAGES.index("price")], **options)
    assert differing(built[0], out) == []


def test_a_folder_that_cannot_be_written_to(built, no_room):
    mounted = no_room("size=1m")
    subprocess.run(["mount", "-o", "remount,ro", mounted], check=True)
    for out in (mounted, mounted / "out"):
        with pytest.raises(OutOfResource, match="cannot write"):
            build(fcn(out), until="data")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_belongs_to_somebody_else(copied):
    unfinish_from(copied, "data")
    (copied / "stages").chmod(0o500)
    with pytest.raises(OutOfResource, match="Permission denied"):
        build(fcn(copied), until="data")
    (copied / "stages").chmod(0o700)


def test_a_record_that_cannot_be_written(copied):
    """Who may write everywhere is kept out by a file where the folder should be."""
    shutil.rmtree(copied / "stages")
    (copied / "stages").write_text("")
    with pytest.raises(OutOfResource, match="cannot write"):
        build(fcn(copied), until="data")


def test_a_memory_that_is_full_says_what_to_lower(tmp_path):
    """On a CPU torch says so by a `RuntimeError`."""
    task = ld.Task(
        examples=(torch.zeros(1, 8),),
        calibration=[(torch.zeros(4, 8),)],
        evaluate=lambda network: torch.empty(2**62, dtype=torch.uint8),
    )
    with pytest.raises(OutOfResource, match="memory is full") as caught:
        build(make_options(model="own", target="jetson", out=str(tmp_path)), model=nn.Linear(8, 4).eval(), task=task)
    assert "--batch-size" in str(caught.value)


# ---------------------------------------------------------------------------------------------- changed files


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_file_that_changes_while_the_build_runs_is_refused(built, copied):
    """Later stages read what earlier ones wrote: nothing may be built on other bytes."""

    class Meddler(Seen):
        def stage_started(self, name):
            if name == "calibrate":
                flip(copied / "collapsed.safetensors")

    unfinish_from(copied, "calibrate")
    with pytest.raises(LoritaDeployError, match="changed while the build ran") as caught:
        build(fcn(copied), until="calibrate", watch=Meddler())
    assert caught.value.where == str(copied / "collapsed.safetensors")
    seen = Seen()
    build(fcn(copied), until="calibrate", watch=seen)
    assert (seen.cached, seen.run) == (["data", "train"], ["collapse", "calibrate"])
    for name in ("collapsed.safetensors", "calibration.safetensors"):
        assert (copied / name).read_bytes() == (built[0] / name).read_bytes()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_output_that_was_changed_between_two_runs_is_made_again(built, copied):
    options = keep_measured(built[0], copied)
    build(fcn(copied, **{name: str(value) for name, value in options.items()}))
    for stage in STAGES:
        for output in BuildFolder(copied).record(stage).outputs:
            flip(copied / output)
            seen = Seen()
            build(fcn(copied, **{name: str(value) for name, value in options.items()}), watch=seen)
            assert stage in seen.run, output
            assert any("changed by hand" in note for note in seen.notes), output
            assert differing(built[0], copied) == [], output


# ---------------------------------------------------------------------------------------------- clocks and versions


@pytest.mark.parametrize("year", [1971, 2100])
def test_the_times_of_files_decide_nothing(copied, year):
    """As after a jump of the clock, or on a board whose clock has no battery."""
    then = time.mktime((year, 1, 1, 0, 0, 0, 0, 0, 0))
    for path in copied.rglob("*"):
        os.utime(path, (then, then))
    assert all(stage.cached for stage in preview(fcn(copied)))


JUMPING = """
import itertools, time
then = time.time()
jumps = itertools.cycle([0.0, 4e9, -1.5e9, 86400.0, -86400.0, 3600.0])
real_gmtime = time.gmtime
time.time = lambda: then + next(jumps)
time.time_ns = lambda: int(1e9 * time.time())
time.gmtime = lambda *given: real_gmtime(*given) if given else real_gmtime(time.time())
time.localtime = time.gmtime
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_clock_that_jumps_while_the_build_runs(built, tmp_path):
    """Whoever asks the time of day, here or in the runner, is told another century or another day each time."""
    (tmp_path / "sitecustomize.py").write_text(JUMPING)
    out = tmp_path / "out"
    options = keep_measured(built[0], out)
    victim = begin(out, {"PYTHONPATH": str(tmp_path)}, **options)
    said = victim.communicate()[1]
    assert victim.returncode == 0, said
    assert states(said) == dict.fromkeys(STAGES, "done")
    assert differing(built[0], out) == []
    assert all(0 <= StageRecord.load(out / "stages" / f"{name}.json").seconds < 300 for name in STAGES)
    go_on(out, list(STAGES), **options)


@pytest.mark.slow
def test_races_while_the_clock_jumps(copied, tmp_path):
    """Measured anew: durations are the runner's own, and no receipt takes another's place."""
    (tmp_path / "sitecustomize.py").write_text(JUMPING)
    command = [sys.executable, "-m", "lorita_deploy", "bench", str(copied)]
    for _ in range(4):
        done = subprocess.run(
            command, env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    receipts = [Receipt.load(path) for path in copied.glob("receipt-*.json")]
    assert len(receipts) == 4
    assert all(0 < sample < 1e3 for receipt in receipts for series in receipt.series for sample in series.samples_ms)


def test_what_another_version_computed_is_computed_again(copied, monkeypatch):
    monkeypatch.setattr(build_folder, "version", lambda package: "9.9.9")
    assert not any(stage.cached for stage in preview(fcn(copied)))
    seen = Seen()
    build(fcn(copied), until="data", watch=seen)
    assert seen.run == ["data"]
    assert seen.notes == ["stage data was done by version 0.1.0, and is done again by 9.9.9"]
    seen = Seen()
    build(fcn(copied), until="data", watch=seen)
    assert (seen.cached, seen.notes) == (["data"], [])


def test_the_same_race_is_run_once(copied):
    """Killed between the race and its stage's record, or with the artifact deleted: what was measured is not thrown away."""
    unfinish_from(copied, "bench")
    for name in ("receipt.json", "model.onnx"):
        (copied / name).rename(copied / f"{name}.before")
    build(fcn(copied), until="bench")
    for name in ("receipt.json", "model.onnx"):
        assert (copied / name).read_bytes() == (copied / f"{name}.before").read_bytes()
