"""Networks that nobody trained for this: torchvision's, with random weights, at 224 pixels, planned to run 1.3x faster.

    python benchmarks/zoo.py [NAME ...]        writes benchmarks/zoo.json and, from it, zoo.md, a row after each network

Asked of each: is what ships never slower than dense; is the gain reached; and was the plan's first prediction, for a network
that no price was measured on, right within 5 %? Accuracy is agreement with the dense network on 32 images and means little
with random weights. Run it alone.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from setting import HERE, heading, keep, load, random_images, table, watched

NETWORKS = ("resnet18", "resnet50", "vgg16_bn", "mobilenet_v2", "densenet121", "efficientnet_b0", "convnext_tiny", "vit_b_16")
ASKED = 1.3


def run(name: str, images: Path, folder: Path) -> dict[str, Any]:
    """One build, and what its report says; a build that fails is a row too."""
    arguments = ["--model", f"torchvision:{name}", "--no-train", "--input-size", "224", "--target", "cpu"]
    arguments += ["--calibration", str(images), "--calibration-samples", "32", "--speedup", str(ASKED), "--out", str(folder)]
    before = load()
    status, _, peak_gb = watched([sys.executable, "-m", "lorita_deploy", "build", *arguments])
    if not (folder / "report.json").exists():
        return {"name": name, "failed": status}
    report = json.loads((folder / "report.json").read_text())
    ratio = report["receipt"]["ratios"][0]
    first = report["plan"]["predictions"][0]
    forms = [choice["form"] for choice in report["plan"]["choices"]]
    return {
        "name": name,
        "load": before,
        "seconds": sum(stage["seconds"] for stage in report["stages"]),
        "stages": {stage["name"]: round(stage["seconds"], 1) for stage in report["stages"]},
        "peak_gb": peak_gb,
        "layers": len(forms),
        "pairs": sum(form == "pair" for form in forms),
        "narrow": sum(form.startswith("narrow") for form in forms),
        "left": len(report["left_alone"]),
        "first": first["predicted_us"] / first["measured_us"] - 1,
        "rounds": len(report["plan"]["predictions"]),
        "speedup": 1 / ratio["ratio"],
        "interval": f"{1 / ratio['ci95'][1]:.2f}-{1 / ratio['ci95'][0]:.2f}",
        "upper": ratio["ci95"][1],
        "shipped": report["shipped"],
    }


def document(rows: list[dict[str, Any]]) -> str:
    done = [row for row in rows if "failed" not in row]
    lines = heading("Networks not trained for this", "zoo.py", max((row["load"] for row in done), default=0.0))
    columns = ("network", "seconds", "peak GB", "layers", "pairs", "narrow", "left alone", "first prediction off", "rounds")
    cells = [
        (
            *(row["name"], f"{row['seconds']:.0f}", f"{row['peak_gb']:.1f}"),
            *(row["layers"], row["pairs"], row["narrow"], row["left"]),
            *(f"{100 * row['first']:+.1f} %", row["rounds"], f"{row['speedup']:.2f}", row["interval"], row["shipped"]),
        )
        for row in done
    ]
    lines += table((*columns, "speed-up", "95 % interval", "ships"), cells)
    slower = [row["name"] for row in done if row["shipped"] != "dense" and row["upper"] > 1.02]
    reached = sum(row["speedup"] >= ASKED for row in done)
    close = sum(abs(row["first"]) <= 0.05 for row in done)
    lines += ["", f"Slower than dense: {', '.join(slower) or 'none'}. {ASKED}x reached by {reached} of {len(done)}."]
    lines += [f"First predictions within 5 %: {close} of {len(done)}."]
    lines += [f"{row['name']} failed with exit code {row['failed']}." for row in rows if "failed" in row]
    return "\n".join(lines) + "\n"


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        images = random_images(Path(scratch) / "images")
        for name in sys.argv[1:] or NETWORKS:
            row = run(name, images, Path(scratch) / name)
            print(row, flush=True)
            rows = keep(HERE / "zoo.json", name, row)
            (HERE / "zoo.md").write_text(document([rows[each] for each in NETWORKS if each in rows]))


if __name__ == "__main__":
    main()
