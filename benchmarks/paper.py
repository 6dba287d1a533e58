"""The paper's claims, redone: what LoRITa-trained networks lose, and gain in size, work and measured time.

    python benchmarks/paper.py MODEL --data folder:DIR --dataset NAME --folder RUNS [--trained RUN ...] [--recover-epochs E]

RUNS holds what samples.py trained; what ships need not be there. Each network (--trained; `usual_run` for N = 1, 2 and 3 where
not given) is built four times: at drops of 0.5 and 1 point of validation accuracy, fewest multiply-adds (comparable with the
literature) and least latency. Accuracy is the artifact's, on test images; multiply-adds are counted in the ONNX files; time is
dense over compressed, whatever ships, with all that was made of a network in one race. With --recover-epochs the cut networks
are distilled from the dense one, which the paper does not do. Rows in benchmarks/paper.json and, from it, paper.md. Run it
alone; --depths, --objectives and --drops run a part of it: what RUNS holds of earlier parts is raced again beside it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from samples import SHIPPED, WEIGHTS, run_name
from setting import HERE, here_and_now, keep, load, table

DROPS = (0.5, 1.0)
OBJECTIVES = ("macs", "latency")
RACE_SECONDS = 8.0
"""For each network in a race."""


def usual_run(rows: Mapping[str, dict[str, Any]], model: str, depth: int) -> str | None:
    """The run of the recipe that samples.py has for all. Where there is none (of twins, several weight decays were tried), that
    of seed 0 with most right validation images, of the longest."""
    if (usual := run_name(model, depth, None, 0)) in rows:
        return usual
    alike = {name: row for name, row in rows.items() if (row["model"], row["depth"], row["seed"]) == (model, depth, 0)}
    most = max((row["epochs"] for row in alike.values()), default=0)
    alike = {name: row for name, row in alike.items() if row["epochs"] == most}
    return max(alike, key=lambda name: float(alike[name]["validation"]), default=None)


def wanted(given: argparse.Namespace, drop: float, objective: str) -> str:
    """What a build and its row are called by, beside the network."""
    return f"{objective}-{drop:g}" + (f"-recovered{given.recover_epochs}" if given.recover_epochs else "")


def measure(given: argparse.Namespace, depth: int, name: str, drop: float, objective: str) -> dict[str, Any]:
    """The row of one build of the run ``name``, but for its time."""
    from lorita_deploy.inspection.onnx_file import look_at_onnx

    folder = Path(given.folder) / f"paper-{name}-{wanted(given, drop, objective)}"
    command = [sys.executable, "-m", "lorita_deploy", "build", "--model", given.model, "--data", given.data]
    command += ["--target", "cpu", "--out", str(folder), "--max-drop", str(drop), "--objective", objective]
    command += ["--recover-epochs", str(given.recover_epochs)]
    weights = Path(given.folder) / name / WEIGHTS
    network = ["--sample"] if depth == SHIPPED and not weights.exists() else ["--no-train", "--checkpoint", str(weights)]
    subprocess.run([*command, *network], check=True, stdout=subprocess.DEVNULL)
    report = json.loads((folder / "report.json").read_text())
    dense, small = (look_at_onnx(folder / f"{role}.onnx") for role in ("dense", "compressed"))
    return {
        "model": given.model,
        "trained": name,
        "dataset": given.dataset,
        "depth": depth,
        "objective": objective,
        "drop": drop,
        "recovered": given.recover_epochs,
        "params": (dense.params, small.params),
        "macs": (dense.macs, small.macs),
        "test": [report["accuracy"][role]["correct"] / report["accuracy"][role]["total"] for role in ("dense", "compressed")],
        "images": report["accuracy"]["dense"]["total"],
        "build": folder.name,
    }


def race_together(runs: Path, rows: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Those of the ``rows`` of one network whose builds are under ``runs``, with their times, from one race.

    Two races of one pair of files can differ by more than the plans that are compared here do.
    """
    from lorita_deploy.devices.address import find_device
    from lorita_deploy.measure.latency import race
    from lorita_deploy.records import ArtifactList, Receipt

    before, here = load(), {name: row for name, row in rows.items() if (runs / row.get("build", "?") / "receipt.json").exists()}
    folder = runs / f"paper-race-{next(iter(here.values()))['model']}"
    folder.mkdir(exist_ok=True)
    artifacts = {}
    for name, row in here.items():
        build = runs / row["build"]
        for artifact in ArtifactList.load(build / "artifacts.json").artifacts:
            label = "dense" if artifact.role == "dense" else name
            if artifact.rung == 0 and label not in artifacts:
                shutil.copy2(build / artifact.path, folder / f"{label}.onnx")
                artifacts[label] = artifact.model_copy(update={"path": f"{label}.onnx"})
    settings = Receipt.load(build / "receipt.json").settings
    receipt = race(find_device("local"), folder, artifacts, settings=settings, max_seconds=RACE_SECONDS * len(artifacts))
    shutil.rmtree(folder)
    return {
        each.candidate: here[each.candidate]
        | {
            "load": before,
            "where": here_and_now(),
            "raced": len(artifacts) - 1,
            "speedup": 1 / each.ratio,
            "interval": [1 / bound for bound in reversed(each.ci95)],
        }
        for each in receipt.ratios
    }


def document(rows: Mapping[str, dict[str, Any]]) -> str:
    places = sorted({row["where"] for row in rows.values()})
    lines = ["# The paper's claims", "", "`benchmarks/paper.py` in several runs:", ""]
    for number, where in enumerate(places, 1):
        highest = max(row["load"] for row in rows.values() if row["where"] == where)
        lines.append(f"{number}. on {where}; load average before: {highest:.2f} at most.")
    lines += ["", "Fewer: share of the dense network's that is gone. Test: right answers of the artifacts in per cent.", ""]
    lines += [
        "In one race: compressed networks that ran in turns with the dense one; times of different races differ by more.",
        "",
    ]
    columns = (
        "trained network",
        "data",
        "N",
        "small",
        "points given",
        "epochs of recovery",
        "fewer parameters",
        "fewer MACs",
        "test",
        "faster",
        "95 % interval",
        "in one race",
        "run",
    )
    cells = [
        (
            *(row["trained"], row["dataset"], row["depth"], row["objective"], f"{row['drop']:g}", row.get("recovered", 0)),
            *(f"{100 * (1 - after / before):.1f} %" for before, after in (row["params"], row["macs"])),
            f"{100 * row['test'][0]:.2f} -> {100 * row['test'][1]:.2f}",
            f"{row['speedup']:.2f}",
            f"{row['interval'][0]:.2f}-{row['interval'][1]:.2f}",
            row.get("raced", 1),
            places.index(row["where"]) + 1,
        )
        for _, row in sorted(rows.items())
    ]
    return "\n".join(lines + table(columns, cells)) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data", required=True, help="folder:DIR, or a data set's name")
    parser.add_argument("--dataset", required=True, help="what the data are called in the table")
    parser.add_argument("--folder", required=True, help="where the runs are")
    parser.add_argument("--depths", type=int, nargs="+", default=[1, 2, 3], help="which N")
    parser.add_argument("--trained", nargs="+", metavar="RUN", help="which runs of samples.py, instead of one for each N")
    parser.add_argument("--objectives", nargs="+", default=OBJECTIVES, choices=OBJECTIVES)
    parser.add_argument("--drops", type=float, nargs="+", default=DROPS, help="points of validation accuracy")
    parser.add_argument("--recover-epochs", type=int, default=0, help="of distillation after the cut; 0 as in the paper")
    given = parser.parse_args()
    trained: dict[str, dict[str, Any]] = json.loads((HERE / "samples.json").read_text())
    file = HERE / "paper.json"
    usual = (usual_run(trained, given.model, depth) for depth in given.depths)
    for name in given.trained or filter(None, usual):
        known: dict[str, dict[str, Any]] = json.loads(file.read_text()) if file.exists() else {}
        rows = {key: row for key, row in known.items() if row["trained"] == name}
        for objective, drop in ((each, drop) for each in given.objectives for drop in given.drops):
            key = f"{name}-{wanted(given, drop, objective)}"
            rows[key] = measure(given, trained[name]["depth"], name, drop, objective)
            print(key, rows[key], flush=True)
        for key, row in race_together(Path(given.folder), rows).items():
            known = keep(file, key, row)
        (HERE / "paper.md").write_text(document(known))


if __name__ == "__main__":
    main()
