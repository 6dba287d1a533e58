"""Narrowing by training: what gates that fade channels out add to a network trained to be low-rank.

    python benchmarks/narrowing.py MODEL --folder BUILDS [--data D] [--gates 3] [--epochs E] [--max-drop 1]

MODEL is trained twice by its recipe: as it is (N = 3), and with gates on its channels, whose decay is such that a channel
which the loss does not hold fades to 1/1000 by the end (--fade). Each network is compressed twice within the same allowed drop
of validation accuracy: into pairs alone, and into whatever is fastest, narrower layers among it. The two dense networks and the
four compressed ones are raced in one run, interleaved. Builds are kept under BUILDS: stopped, the benchmark goes on where it
was. Rows in benchmarks/narrowing.json and, from it, narrowing.md. Run it alone.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from setting import HERE, heading, keep, load, table

if TYPE_CHECKING:
    from lorita_deploy.pipeline.context import Build
    from lorita_deploy.records import Recipe

POINTS = [f"{training}, {what}" for training in ("plain", "gated") for what in ("dense", "pairs alone", "all forms")]
RACE_SECONDS = 4.0
"""For each artifact."""


def gated(recipe: Recipe, gates: int, fade: float, steps: int) -> Recipe:
    """``recipe`` with so many gates per channel, and the decay on them under which idle channels end at the share ``fade``."""
    from lorita_deploy.train.schedule import fading

    alone = recipe.model_copy(update={"depth": 1, "weight_decay": 1e-3, "phases": ()})
    decay = 1e-3 * math.log(fade) / (gates * math.log(fading(alone, steps)))
    return recipe.model_copy(update={"narrow_gates": gates, "gate_decay": float(f"{decay:.2g}")})


def written(recipe: Recipe, path: Path) -> Path:
    """``recipe`` as a TOML file."""
    fields = recipe.model_dump(exclude_defaults=True, exclude={"phases"})
    lines = [f"{name} = {json.dumps(False if value is None else value)}" for name, value in fields.items()]
    for phase in recipe.phases:
        lines += ["[[phases]]", *(f"{name} = {value}" for name, value in phase.model_dump(exclude_none=True).items())]
    path.write_text("\n".join(lines) + "\n")
    return path


def builds(given: argparse.Namespace) -> dict[str, Build]:
    """Four builds up to their artifacts, by name."""
    from lorita_deploy.pipeline import build
    from lorita_deploy.pipeline.context import Build
    from lorita_deploy.pipeline.options import make_options
    from lorita_deploy.ports import find_model

    folder = Path(given.folder) / f"narrowing-{given.model}"
    folder.mkdir(parents=True, exist_ok=True)
    common = {"model": given.model, "data": given.data, "max_drop": given.max_drop}
    recipe = find_model(given.model).recipe_called(given.recipe)
    recipe = recipe.lasting(given.epochs) if given.epochs else recipe

    found: dict[str, Build] = {}
    for training in ("plain", "gated"):
        called = training if training == "plain" else f"{training}-{given.fade:g}"
        if training == "gated":
            images = found["plain, all forms"].data.counts["train"]
            recipe = gated(recipe, given.gates, given.fade, images // min(images, recipe.batch_size))
        file = written(recipe, folder / f"{called}.toml")
        for forms in ("all forms", "pairs alone"):
            # Of one training: the second build finds the network trained.
            given_now = {**common, "recipe": str(file), "narrow": forms == "all forms", "out": str(folder / called)}
            build(make_options(**given_now), until="export")
            found[f"{training}, {forms}"] = settled(Build(make_options(**given_now)), folder / f"{training}-{forms[:3]}")
    return found


def settled(found: Build, folder: Path) -> Build:
    """A copy of what a finished build came to, which the next build in its folder replaces."""
    import shutil

    folder.mkdir(exist_ok=True)
    for name in ("dense.onnx", "compressed.onnx"):
        shutil.copy2(found.folder / name, folder / name)
    for loaded in ("plan", "exported", "data", "dense", "compressed", "collapsed", "task"):
        getattr(found, loaded)
    return found


def measure(given: argparse.Namespace) -> dict[str, Any]:
    from lorita_deploy.measure.accuracy import artifact_accuracy
    from lorita_deploy.measure.latency import race
    from lorita_deploy.networks import survey
    from lorita_deploy.records import TrainRecord
    from lorita_deploy.train.gates import faded_channels

    made, before = builds(given), load()
    folder = Path(given.folder) / f"narrowing-{given.model}"
    artifacts, points = {}, {}
    for name, found in made.items():
        training, _, forms = name.partition(", ")
        for role in ("dense", "compressed"):
            label = f"{training}, dense" if role == "dense" else name
            if label in points:
                continue
            artifact = next(each for each in found.artifacts if each.role == role)
            path = f"{training}-{forms[:3]}/{role}.onnx"
            artifacts[label.replace(", ", "-").replace(" ", "-")] = artifact.model_copy(update={"path": path})
            session = found.exporter.open(folder / path)
            right = artifact_accuracy(session, found.task.input_names, found.dataset.batches("test", 1), "test")
            network = found.dense if role == "dense" else found.compressed.module
            faded, recipe = faded_channels(found.dense), TrainRecord.load(found.folder / "trained.json").recipe
            choices = found.plan.choices if role == "compressed" else ()
            points[label] = {
                "right": right.correct,
                "test": right.total,
                "gate_decay": recipe.gate_decay,
                "faded": sum(map(len, faded.values())),
                "channels": sum(len(found.dense.get_submodule(each).weight) for each in faded),
                "widths": [(each.group, each.kept, each.width) for each in found.plan.groups] if choices else [],
                "pairs": sum("pair" in each.form for each in choices),
                "layers": len(choices),
                "params": sum(each.numel() for each in network.parameters()),
                "macs": survey(network, found.task.examples).macs,
            }
    receipt = race(
        *(made["plain, all forms"].board, folder, artifacts),
        settings=made["plain, all forms"].settings,
        baseline="plain-dense",
        max_seconds=RACE_SECONDS * len(artifacts),
        model=given.model,
        result="race.receipt",
    )
    ratios = {each.candidate: each for each in receipt.ratios}
    for label, point in points.items():
        ratio = ratios.get(label.replace(", ", "-").replace(" ", "-"))
        point["speedup"] = 1 / ratio.ratio if ratio else 1.0
        point["interval"] = [1 / bound for bound in reversed(ratio.ci95)] if ratio else [1.0, 1.0]
    recipe = made["plain, all forms"].recipe
    facts = {
        "data": given.dataset or given.data,
        "epochs": recipe.epochs,
        "gates": given.gates,
        "fade": given.fade,
        "max_drop": given.max_drop,
    }
    dense_ms = next(each.median_ms for each in receipt.series if each.name == "plain-dense")
    return {"load": before, "model": given.model, **facts, "dense_ms": dense_ms, "points": points}


def document(rows: Mapping[str, dict[str, Any]]) -> str:
    lines = heading("Narrowing by training", "narrowing.py", max(row["load"] for row in rows.values()))
    lines += [
        "Two trainings of each network by one recipe, N = 3, the second with gates on its channels; each dense and compressed, "
        "into pairs alone and into all forms, within the same drop of validation accuracy. *Faster*: than the dense network of "
        "the training without gates, all raced in one run (ONNX Runtime, one thread, batch 1, interleaved). *Right*: test "
        "images, which decided nothing. *Faded*: channels whose scale is below 1/1000 of their layer's largest. "
        "*Channels kept*: of all channel groups that may become narrower.",
    ]
    for row in rows.values():
        gate_decay = row["points"]["gated, dense"]["gate_decay"]
        lines += [
            "",
            f"## {row['model']}, {row['data']}, {row['epochs']} epochs",
            "",
            f"{row['gates']} gates per channel, decay {gate_decay:g}, under which idle channels end at {row['fade']:g} of what "
            f"they were; drop allowed: {row['max_drop']:g} point(s); dense: {row['dense_ms']:.3g} ms.",
            "",
        ]
        columns = ("network", "faded", "channels kept", "pairs", "parameters", "MACs", "right", "faster", "95 % interval")
        cells = []
        points = {name: row["points"][name] for name in POINTS}
        for name, point in points.items():
            kept, width = (sum(each[i] for each in point["widths"]) for i in (1, 2))
            cells.append(
                (
                    name,
                    f"{point['faded']} of {point['channels']}",
                    f"{kept} of {width}" if width else "",
                    f"{point['pairs']} of {point['layers']}" if point["layers"] else "",
                    *(f"{point[key]:,}" for key in ("params", "macs")),
                    f"{point['right']:g} of {point['test']} ({100 * point['right'] / point['test']:.2f} %)",
                    f"{point['speedup']:.2f}",
                    f"{point['interval'][0]:.2f}-{point['interval'][1]:.2f}",
                )
            )
        lines += table(columns, cells)
        for name, point in points.items():
            if point["widths"] and name.endswith("all forms"):
                widths = ", ".join(f"{group} {kept}/{width}" for group, kept, width in point["widths"])
                lines += ["", f"Widths, {name}: {widths}."]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--folder", required=True, help="where builds are kept")
    parser.add_argument("--data", default="digits", help="a data set's name, or folder:DIR")
    parser.add_argument("--dataset", help="what the data are called in the record")
    parser.add_argument("--recipe", default="fast")
    parser.add_argument("--epochs", type=int, help="instead of the recipe's")
    parser.add_argument("--gates", type=int, default=3, help="for each channel")
    parser.add_argument("--fade", type=float, default=1e-3, help="share of its scale at which an idle channel ends")
    parser.add_argument("--max-drop", type=float, default=1.0)
    given = parser.parse_args()
    row = measure(given)
    print(json.dumps(row, indent=1), flush=True)
    rows = keep(HERE / "narrowing.json", f"{given.model} {row['data']} {given.fade:g}", row)
    (HERE / "narrowing.md").write_text(document(rows))


if __name__ == "__main__":
    main()
