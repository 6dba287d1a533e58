"""The main job, timed from outside: `lorita-deploy build` for every sample model, as a user types it.

    python benchmarks/main_job.py                  writes benchmarks/main_job.md
    LORITA_DATA=DIR python benchmarks/main_job.py  also builds fcn on the whole of MNIST, from DIR/mnist-png.tar.gz

Each build runs in a fresh folder and a process of its own; wall time and peak memory are the operating system's. Run it alone:
with another job on the cores neither training times nor latencies mean anything.
"""

from __future__ import annotations

import json
import os
import sys
import tarfile
import tempfile
from pathlib import Path

from setting import HERE, heading, load, random_images, watched

BUILDS = {
    "vgg16, jetson": ["--model", "vgg16", "--target", "jetson"],
    "vgg16, cpu": ["--model", "vgg16", "--target", "cpu"],
    "fcn, cpu": ["--model", "fcn", "--target", "cpu"],
    "resnet20, cpu": ["--model", "resnet20", "--target", "cpu"],
    "vit, cpu": ["--model", "vit", "--target", "cpu"],
}

LARGE = ["--batch-size", "256", "--epochs", "6"]
"""For 55,000 images: fcn's recipe is made for digits."""


def run(name: str, arguments: list[str], folder: Path) -> dict[str, object]:
    """One build and, for the default, the same command again: seconds, gigabytes, and what the report says."""
    command = [sys.executable, "-m", "lorita_deploy", "build", *arguments, "--out", str(folder)]
    seconds, peak_gb = timed(command)
    again, _ = timed(command)
    report = json.loads((folder / "report.json").read_text())
    ratio = report["receipt"]["ratios"][0]
    dense, shipped = (report["accuracy"].get(role) for role in ("dense", report["shipped"]))
    print(f"{name}: {seconds:.0f} s, {peak_gb:.1f} GB, {report['headline']}", flush=True)
    return {
        "name": name,
        "seconds": seconds,
        "again": again,
        "peak_gb": peak_gb,
        "right": f"{dense['correct']:.0f} -> {shipped['correct']:.0f} of {dense['total']} ({shipped['split']})",
        "speedup": 1 / ratio["ratio"],
        "interval": f"{1 / ratio['ci95'][1]:.2f}-{1 / ratio['ci95'][0]:.2f}",
        "upper": ratio["ci95"][1],
        "shipped": report["shipped"],
        "estimated": report["estimated_ratio"],
    }


def timed(command: list[str]) -> tuple[float, float]:
    """Wall seconds and peak gigabytes; an error ends the benchmark."""
    status, seconds, peak_gb = watched(command)
    if status:
        sys.exit(f"exit status {status}: {' '.join(command)}")
    return seconds, peak_gb


def resnet18_of_somebody(folder: Path) -> list[str]:
    """A checkpoint with random weights and a folder of images: the case without training."""
    import torch
    import torchvision
    from safetensors.torch import save_file

    torch.manual_seed(0)
    save_file(torchvision.models.resnet18(weights=None).state_dict(), folder / "w.safetensors")
    random_images(folder / "images")
    checkpoint = ["--checkpoint", str(folder / "w.safetensors"), "--no-train"]
    return ["--model", "torchvision:resnet18", *checkpoint, "--calibration", str(folder / "images"), "--target", "cpu"]


def main() -> None:
    rows: list[dict[str, object]] = []
    before = load()

    def record(row: dict[str, object]) -> None:
        """Written after each build: a benchmark that is stopped keeps what it has."""
        rows.append(row)
        (HERE / "main_job.md").write_text(document(rows, before))

    with tempfile.TemporaryDirectory() as scratch:
        for name, arguments in BUILDS.items():
            record(run(name, arguments, Path(scratch) / name.replace(", ", "-")))
        somebodys = resnet18_of_somebody(Path(scratch))
        record(run("torchvision:resnet18, cpu, --no-train", somebodys, Path(scratch) / "resnet18"))
        archive = Path(os.environ.get("LORITA_DATA", "")) / "mnist-png.tar.gz"
        if "LORITA_DATA" in os.environ and archive.exists():
            with tarfile.open(archive) as file:
                file.extractall(Path(scratch) / "mnist", filter="data")
            data = ["--data", f"folder:{tree(Path(scratch) / 'mnist')}"]
            record(run("fcn, MNIST, cpu", ["--model", "fcn", "--target", "cpu", *data, *LARGE], Path(scratch) / "fcn-mnist"))


def tree(folder: Path) -> Path:
    """The folder that holds train/, which may lie one level down in the archive."""
    return next(path.parent for path in sorted(folder.rglob("train")) if path.is_dir())


def document(rows: list[dict[str, object]], before: float) -> str:
    lines = [
        *heading("The main job", "main_job.py", before),
        "Speed-up: dense over compressed, measured here (ONNX Runtime, one thread, batch 1), interleaved, with its 95 % "
        "interval. Right answers of the artifacts themselves; for the network without labels, agreement with the dense one.",
        "",
        "| build | seconds | again | peak GB | right, dense -> shipped | speed-up | 95 % interval | ships | never slower |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        never_slower = row["shipped"] == "dense" or float(str(row["upper"])) <= 1.02
        lines.append(
            f"| {row['name']} | {row['seconds']:.0f} | {row['again']:.1f} | {row['peak_gb']:.1f} | {row['right']} | "
            f"{row['speedup']:.2f} | {row['interval']} | {row['shipped']} | {'yes' if never_slower else 'NO'} |"
        )
    estimated = [row for row in rows if row["estimated"]]
    for row in estimated:
        lines += ["", f"{row['name']}: the *estimated* ratio on the target is {1 / float(str(row['estimated'])):.2f}."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
