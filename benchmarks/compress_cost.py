"""What compressing costs: seconds and peak memory of each stage from the dense network to the compressed one.

    python benchmarks/compress_cost.py [NAME ...]        writes benchmarks/compress_cost.json and, from it, .md, row by row

fcn, resnet20 and vgg16 are trained on digits first, which is not counted; ResNet50 at 224 pixels has random weights and 64
calibration images. The peak is the process's so far, training included. Run it alone. What zoo.py recorded of its networks,
with 32 calibration images, stands in a second table.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from setting import HERE, heading, keep, load, random_images, table

UNTRAINED = {"train": False, "input_size": 224, "calibration_samples": 64, "speedup": 1.3}
NETWORKS: dict[str, dict[str, Any]] = {
    "fcn": {"model": "fcn"},
    "resnet20": {"model": "resnet20"},
    "vgg16-32": {"model": "vgg16"},
    "resnet50-224": {"model": "torchvision:resnet50", **UNTRAINED},
}
STAGES = ("collapse", "calibrate", "price", "plan", "compress")


def measure(options: dict[str, Any]) -> None:
    """In a process of its own: build up to the compressed network, and print the stages' seconds and gigabytes."""
    from lorita_deploy.pipeline import Watch, build
    from lorita_deploy.pipeline.options import make_options

    found: dict[str, tuple[float, float]] = {}

    class Note(Watch):
        def stage_finished(self, name: str, seconds: float, line: str, cached: bool) -> None:
            found[name] = (seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9)

    build(make_options(**options), until="compress", watch=Note())
    print(json.dumps(found))


def run(options: dict[str, Any], folder: Path, images: Path) -> dict[str, tuple[float, float]]:
    given = {"target": "cpu", "out": str(folder), **options}
    if not options.get("train", True):
        given["calibration"] = str(images)
    command = [sys.executable, __file__, "--measure", json.dumps(given)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, tuple[float, float]] = json.loads(done.stdout.splitlines()[-1])
    return found


def document(rows: dict[str, dict[str, Any]]) -> str:
    lines = heading("What compressing costs", "compress_cost.py", max(row["load"] for row in rows.values()))
    lines += ["Seconds (peak GB so far) of each stage.", ""]
    cells = []
    for name in (each for each in NETWORKS if each in rows):
        stages = rows[name]["stages"]
        whole = sum(stages[stage][0] for stage in STAGES)
        each = [f"{stages[stage][0]:.1f} ({stages[stage][1]:.1f})" for stage in STAGES]
        cells.append((name, *each, f"{stages['plan'][0] + stages['compress'][0]:.1f}", f"{whole:.0f}"))
    lines += [*table(("network", *STAGES, "plan + compress", "all"), cells), ""]
    zoo = json.loads((HERE / "zoo.json").read_text())
    lines += ["The networks of [zoo.md](zoo.md), at 224 pixels; the peak is that of the whole build, with its race.", ""]
    cells = [
        (
            name,
            *(f"{row['stages'][stage]:.1f}" for stage in STAGES),
            f"{sum(row['stages'][stage] for stage in STAGES):.0f}",
            f"{row['peak_gb']:.1f}",
        )
        for name, row in zoo.items()
        if "failed" not in row
    ]
    return "\n".join(lines + table(("network", *STAGES, "all", "peak GB"), cells)) + "\n"


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        images = random_images(Path(scratch) / "images", 128)
        for name in sys.argv[1:] or NETWORKS:
            before = load()
            row = {"load": before, "stages": run(NETWORKS[name], Path(scratch) / name, images)}
            print(name, row, flush=True)
            (HERE / "compress_cost.md").write_text(document(keep(HERE / "compress_cost.json", name, row)))


if __name__ == "__main__":
    measure(json.loads(sys.argv[2])) if sys.argv[1:2] == ["--measure"] else main()
