"""Recipes judged by what they are for: accuracy after compression on validation images, and measured speed.

    python benchmarks/recipes.py MODEL [RECIPE ...] --folder BUILDS [--data D] [--seeds 3]

Each recipe (a name of the model's, or a TOML file; all of the model's where none is named) is one build per seed in a folder of
its own under BUILDS: stopped, it goes on where it was. Rows in benchmarks/recipes.json and, from it, recipes.md. The drop that
a build may spend is the same for all (--max-drop), so a recipe wins by what is right afterwards, or by time.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from statistics import mean
from typing import Any

from setting import HERE, heading, keep, load, table


def run(given: argparse.Namespace, recipe: str, seed: int) -> None:
    """One build, and its row."""
    from lorita_deploy.pipeline import build
    from lorita_deploy.pipeline.options import make_options
    from lorita_deploy.records import TrainRecord

    called = Path(recipe).stem
    data = f"{given.dataset or given.data}, {given.max_drop:g}"
    name, before = f"{given.model} {data} {called} {seed}", load()
    options = {"model": given.model, "recipe": recipe, "data": given.data, "epochs": given.epochs, "max_drop": given.max_drop}
    folder = Path(given.folder) / name.replace(", ", "-").replace(" ", "-").replace(":", "-").replace("/", "-")
    report = build(make_options(**options, seed=seed, input_size=given.input_size, out=str(folder)))
    assert report is not None
    trained = TrainRecord.load(folder / "trained.json")
    ratio = report.receipt.ratios[0] if report.receipt else None
    row = {
        "load": before,
        "model": given.model,
        "data": given.dataset or given.data,
        "max_drop": given.max_drop,
        "recipe": called,
        "seed": seed,
        "epochs": len(trained.epochs),
        "depth": trained.recipe.depth,
        "train_s": next(stage.seconds for stage in report.stages if stage.name == "train"),
        "rank": trained.best.rank_fraction,
        "images": report.validation["dense"].total,
        "dense": report.validation["dense"].value,
        "compressed": report.validation[report.shipped].value,
        "params": report.params,
        "macs": report.macs,
        "speedup": 1 / ratio.ratio if ratio else None,
        "ci95": [1 / bound for bound in reversed(ratio.ci95)] if ratio else None,
        "shipped": report.shipped,
    }
    print(name, row, flush=True)
    (HERE / "recipes.md").write_text(document(keep(HERE / "recipes.json", name, row)))


def document(rows: Mapping[str, dict[str, Any]]) -> str:
    """Seeds of one recipe make one line: means, and the range of the speed-ups."""
    lines = heading("Recipes, judged after compression", "recipes.py", max(row["load"] for row in rows.values()))
    lines += [
        "Right answers on validation images in per cent, before and after compressing to the same allowed drop (points); rank: "
        "share of the singular values above 1/1000 of the largest at the end of training; size: shipped over dense; speed-up: "
        "dense over shipped, measured (ONNX Runtime, one thread, batch 1, interleaved). Means over the seeds, with the least "
        "and the greatest where there are several.",
        "",
    ]
    columns = ("network", "data", "drop", "recipe", "epochs", "train s", "seeds", "images", "dense", "compressed", "rank")
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows.values():
        groups.setdefault((row["model"], row["data"], f"{row['max_drop']:g}", row["recipe"]), []).append(row)
    cells = []
    for key, group in sorted(groups.items()):
        percents = (_spread([100 * row[what] for row in group], ".2f") for what in ("dense", "compressed"))
        sizes = (f"{mean(row[what][1] / row[what][0] for row in group):.2f}" for what in ("params", "macs"))
        speeds = [row["speedup"] or 1.0 for row in group]
        seconds, rank = mean(row["train_s"] for row in group), mean(row["rank"] for row in group)
        first = group[0]
        counts = (first["epochs"], f"{seconds:.0f}", len(group), first["images"])
        cells.append((*key, *counts, *percents, f"{rank:.2f}", *sizes, _spread(speeds, ".2f")))
    return "\n".join(lines + table((*columns, "parameters", "MACs", "speed-up"), cells)) + "\n"


def _spread(values: list[float], form: str) -> str:
    middle = format(mean(values), form)
    return middle if len(values) == 1 else f"{middle} ({min(values):{form}}-{max(values):{form}})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("recipes", nargs="*", metavar="RECIPE")
    parser.add_argument("--folder", required=True, help="where builds are kept")
    parser.add_argument("--data", default="digits", help="a data set's name, or folder:DIR")
    parser.add_argument("--dataset", help="what the data are called in the record")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--epochs", type=int, help="instead of each recipe's; phases move with it")
    parser.add_argument("--input-size", type=int)
    parser.add_argument("--max-drop", type=float, default=0.5)
    given = parser.parse_args()

    from lorita_deploy.ports import find_model

    for recipe in given.recipes or find_model(given.model).recipes:
        for seed in range(given.seeds):
            run(given, recipe, seed)


if __name__ == "__main__":
    main()
