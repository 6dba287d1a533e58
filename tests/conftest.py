"""What several rooms' tests share: receipts, the command line in a process, and one small build of the README's Python."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from openssh import MISSING, Sshd

from lorita_deploy.records import Host, LatencyRatio, LatencySeries, Receipt, Settings

HOST = Host(
    machine="Test processor",
    kind="cpu",
    cores=2,
    memory_bytes=8 * 2**30,
    system="Linux 6.1 x86_64",
    versions={"numpy": "2.0", "onnxruntime": "1.20", "python": "3.11.7", "torch": "2.11"},
)


def series(name, median_ms, half_width_ms=0.01):
    return LatencySeries(
        name=name,
        sha256=name[0] * 64,
        samples_ms=(median_ms,) * 12,
        calls_per_sample=1,
        n=12,
        reloads=12,
        median_ms=median_ms,
        median_ci95_ms=(median_ms - half_width_ms, median_ms + half_width_ms),
        p90_ms=None,
        p95_ms=None,
        p99_ms=None,
        spread=0.01,
        load_ms=3.0,
        first_ms=2.0,
        warmup_runs=20,
        warmup_stable=True,
        peak_memory_bytes=50_000_000,
        file_bytes=1_000_000,
        verified=True,
        max_rel=1e-6,
    )


@pytest.fixture(scope="session")
def make_receipt():
    """``make_receipt(dense=2.0, compressed=1.0)``: a receipt with these medians in milliseconds."""

    def make(host=HOST, threads=1, **medians_ms):
        medians_ms = medians_ms or {"dense": 2.0, "compressed": 1.0}
        found = {
            name: LatencyRatio(
                candidate=name,
                baseline="dense",
                n=12,
                reloads=12,
                ratio=ms / medians_ms["dense"],
                ci95=(0.99 * ms / medians_ms["dense"], 1.01 * ms / medians_ms["dense"]),
            )
            for name, ms in medians_ms.items()
            if name != "dense"
        }
        return Receipt(
            run_id="run",
            started="2026-11-23T12:00:00Z",
            host=host,
            settings=Settings(runtime="onnxruntime", threads=threads, graph_level="all", spinning=False, batch=1),
            load_before=0.1,
            load_after=0.2,
            series=tuple(series(name, ms) for name, ms in medians_ms.items()),
            ratios=tuple(found.values()),
            faster="compressed",
            warnings=(),
        )

    return make


@pytest.fixture(scope="session")
def run_cli():
    """``run_cli("targets", "list")``: the command line in a process of its own."""

    def run(*arguments, **options):
        command = [sys.executable, "-m", "lorita_deploy", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False, **options)

    return run


@pytest.fixture(scope="session")
def sshd(tmp_path_factory):
    """A device: this machine, through OpenSSH's own server."""
    if MISSING:
        pytest.skip(f"not installed here: {', '.join(MISSING)} (apt install openssh-server openssh-client)")
    server = Sshd(tmp_path_factory.mktemp("sshd"))
    yield server
    server.close()


@pytest.fixture
def client(sshd, monkeypatch):
    """The device, with its client's configuration in force."""
    for name, value in sshd.environment.items():
        monkeypatch.setenv(name, value)
    sshd.configure()
    sshd.know(sshd.folder / "host.pub")
    return sshd


@pytest.fixture
def no_room(tmp_path):
    """``no_room("size=1m")``: a file system of that kind."""
    mounted = []

    def mount(options):
        folder = tmp_path / "mounted"
        folder.mkdir()
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, check=False)
        if done.returncode:
            pytest.skip(f"cannot mount a file system here: {done.stderr.decode().strip()}")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", folder], check=True)


@pytest.fixture(scope="session")
def readme_build(tmp_path_factory):
    """The build folder that the README's Python leaves, and what it printed. Not to be written to: copy it."""
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^## Python$.*?^```python\n(.*?)^```$", readme, flags=re.MULTILINE | re.DOTALL)
    folder = tmp_path_factory.mktemp("readme")
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder / "build" / "mine", done.stdout
