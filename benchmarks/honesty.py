"""How honest a race is: equal networks told apart (never more often than promised), unequal ones found.

    python benchmarks/honesty.py [RACES]        writes benchmarks/honesty.md

* *Null test*: a network raced against itself. Every claimed difference is false; the 95 % interval allows 5 in 100. Once on a
  quiet machine, once with a program on every core that computes in bursts of random length.
* *Power test*: against a network that does the same work and 5 % more of it. The slowdown is real: one more of the equal layers
  of which the whole network consists. How many layers make it 5 % is measured before.

A race is the runner's own, with its rules and statistics, on ONNX Runtime; only the processes that it starts to verify
artifacts are left out, so that hundreds of races take minutes. The races of both tests on the quiet machine take turns. Run it
alone.
"""

from __future__ import annotations

import gc
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from setting import HERE, heading, load, table

from lorita_deploy import bundle

sys.path.insert(0, str(Path(bundle.__file__).parent))
import board  # the runner's modules know one another by their bare names
import machine
import runner
from job import digest_of, read_job
from progress import Progress

RACES = 100
SAMPLES = 600
"""Of each network in a race: half of what a build takes."""
PLANTED = 1.05
LAYERS = (17, 18, 19, 20, 21)
"""Of how many layers one more may be the planted slowdown."""
BUSY = """
import random, sys, time
lengths = random.Random(int(sys.argv[1]))
while True:
    end = time.perf_counter() + lengths.uniform(0.02, 0.5)
    while time.perf_counter() < end:
        pass
    time.sleep(lengths.uniform(0.0, 0.4))
"""
Ratio = dict[str, Any]


def write_network(path: Path, layers: int) -> Path:
    """So many equal 3x3 convolutions of 16 channels on 16x16, each with a ReLU."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    drawn, nodes, weights = np.random.default_rng(0), [], []
    for number in range(layers):
        values = drawn.normal(0, (2 / 144) ** 0.5, (16, 16, 3, 3)).astype(np.float32)
        weights.append(numpy_helper.from_array(values, f"{number}.weight"))
        before, after = f"x{number}", f"x{number + 1}"
        nodes.append(helper.make_node("Conv", [before, f"{number}.weight"], [f"c{number}"], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"c{number}"], [after]))
    ends = [helper.make_tensor_value_info(f"x{end}", TensorProto.FLOAT, [1, 16, 16, 16]) for end in (0, layers)]
    graph = helper.make_graph(nodes, "equal layers", ends[:1], ends[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def race(folder: Path, candidate: str, samples: int = SAMPLES) -> tuple[Ratio, list[str]]:
    """One race of ``candidate`` against ``base.onnx``: the ratio with its interval, and what the receipt would warn of."""
    named = {"candidate": candidate, "base": "base.onnx"}
    job_file = folder / "job.json"
    job_file.write_text(
        json.dumps(
            {
                "schema": "lorita-deploy/job/1",
                "artifacts": [
                    {"name": name, "path": path, "sha256": digest_of(str(folder / path))} for name, path in named.items()
                ],
                "baseline": "base",
                "samples": samples,
                "energy_seconds": 0.0,
            }
        )
    )
    job = read_job(str(job_file))
    runtime, _ = runner.start_runtime(job)
    progress = Progress(str(folder / "progress.json"), "none is taken up")
    untold = {"load_ms": 0.0, "first_ms": 0.0, "call_ms": 0.0, "peak_memory_bytes": None, "max_rel": None}
    progress.probes.update(dict.fromkeys(named, untold))
    body = {"host": machine.host("cpu", {})}
    gc.disable()
    warnings = runner._race(job, runtime, progress, board.conditions("start"), body)
    gc.enable()
    progress.remove()
    (ratio,) = body["ratios"]
    return ratio, warnings


@contextmanager
def company() -> Iterator[None]:
    """A program on every core, at work in bursts."""
    busy = [subprocess.Popen([sys.executable, "-c", BUSY, str(seed)]) for seed in range(os.cpu_count() or 1)]
    try:
        time.sleep(1.0)
        yield
    finally:
        for each in busy:
            each.kill()
            each.wait()


def plant(folder: Path) -> tuple[int, float]:
    """Write the network and its slower twin: of how many layers one more comes nearest to `PLANTED`, and how near."""
    found = {}
    for layers in LAYERS:
        write_network(folder / "base.onnx", layers)
        write_network(folder / "slower.onnx", layers + 1)
        found[layers] = race(folder, "slower.onnx", samples=2 * SAMPLES)[0]["ratio"]
    best = min(found, key=lambda layers: abs(found[layers] - PLANTED))
    write_network(folder / "base.onnx", best)
    write_network(folder / "slower.onnx", best + 1)
    return best, found[best]


def row(name: str, found: Sequence[tuple[Ratio, list[str]]], bar: str) -> list[object]:
    """Races, those in which a difference was claimed, the bar, and what the races were like."""
    ratios = [ratio for ratio, _ in found]
    slower = sum(ratio["ci95"][0] > 1 for ratio in ratios)
    faster = sum(ratio["ci95"][1] < 1 for ratio in ratios)
    width = statistics.median((ratio["ci95"][1] - ratio["ci95"][0]) / 2 for ratio in ratios)
    middle = statistics.median(ratio["ratio"] for ratio in ratios)
    told = sum(any(each.startswith("other programs used") for each in warnings) for _, warnings in found)
    return [name, len(found), slower, faster, bar, f"{middle:.4f}", f"{100 * width:.2f} %", told]


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else RACES
    before = load()
    with tempfile.TemporaryDirectory(prefix="honesty-") as place:
        folder = Path(place)
        layers, planted = plant(folder)
        print(f"{layers} layers; one more takes {planted:.4f} times as long", flush=True)
        quiet, slower = [], []
        order = random.Random(0)
        for number in range(count):
            for into, path in order.sample([(quiet, "base.onnx"), (slower, "slower.onnx")], 2):
                into.append(race(folder, path))
            print(number, quiet[-1][0]["ci95"], slower[-1][0]["ci95"], flush=True)
        with company():
            loaded = [race(folder, "base.onnx") for _ in range(count)]
    allowed = round(0.05 * count + 2.33 * (0.05 * 0.95 * count) ** 0.5)
    rows = [
        row("against itself, quiet", quiet, f"claimed at most {0.05 * count:g}, {allowed} with sampling error"),
        row("against itself, loaded", loaded, f"claimed at most {0.05 * count:g}, {allowed} with sampling error"),
        row("against 5 % more work, quiet", slower, f"called slower at least {0.95 * count:g}"),
    ]
    columns = ["network", "races", "called slower", "called faster", "bar", "median ratio", "median half interval", "load told"]
    lines = [
        *heading("Honest races", "honesty.py", before),
        f"A network of {layers} equal layers; the slower one has one layer more and took {planted:.3f} times as long in a",
        f"longer race before. {SAMPLES} samples of each network in each race, {count} races of each kind. *Load told*: races",
        "whose receipt warns of other programs at work. Sampling error: with an interval that is wrong in 5 of 100 races, 99 %",
        "of the counts stay below.",
        "",
        *table(columns, rows),
    ]
    (HERE / "honesty.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
