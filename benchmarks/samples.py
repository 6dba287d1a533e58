"""Trains the networks that ship, N = 3, the same at N = 2, and their twins without LoRITa, N = 1.

    python benchmarks/samples.py MODEL --data cifar10 --dataset NAME --folder RUNS [--seeds 3] [--ship]

All are trained by the recipe ``sample``; --depths, --epochs, --search-epochs and --compile take fewer networks, or less time.

A run is a build up to the collapsed network in a folder of its own under RUNS: stopped, it goes on where it was. The decay of
the twin is its own: most right validation images, at seed 0 (with --search-epochs after so many; the best is then trained
whole). Test images are recorded and decide nothing. With --ship the network of seed 0 goes to sample_models/checkpoints, as
small as gives the same answers to all test images, logits within 1e-3. Rows in samples.json and, from it, samples.md.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

from setting import HERE, heading, keep, load, table

if TYPE_CHECKING:
    from torch import Tensor

    from lorita_deploy.records import TrainRecord

SAME_LOGITS = 1e-3
RECIPE = "sample"
"""Of the model's recipes, that of the networks that ship."""
SHIPPED = 3
"""N of the networks that ship."""
WEIGHTS = "collapsed.safetensors"
"""What a run came to, in its folder."""
LARGEST_MB = 10.0
"""What is larger does not ship: the training did not make it low-rank."""
DECAYS, STEP, FURTHEST = (0.25, 1.0, 4.0), 4.0, (1 / 64, 64.0)
"""Weight decays that a twin is trained with, as multiples of the recipe's; where the best is at an end, further ones by this
factor, up to here."""


def run_name(
    model: str,
    depth: int,
    decay: float | None,
    seed: int,
    epochs: int | None = None,
    recipe: str = RECIPE,
    *,
    taught: bool = False,
) -> str:
    name = f"{model}-n{depth}" + (f"-{recipe}" if recipe != RECIPE else "") + ("-taught" if taught else "")
    name += f"-decay{decay:g}" if decay else ""
    return f"{name}-seed{seed}" + (f"-epochs{epochs}" if epochs else "")


def called(given: argparse.Namespace, depth: int, decay: float | None, seed: int, epochs: int | None) -> str:
    """The run's name, with what is ``given`` for all."""
    return run_name(given.model, depth, decay, seed, epochs, given.recipe, taught=bool(given.taught_by))


def run(
    given: argparse.Namespace, depth: int, decay: float | None, seed: int, epochs: int | None = None
) -> tuple[Path, TrainRecord]:
    """One training, and its folder; of so many ``epochs`` instead of those that are given for all."""
    from lorita_deploy.pipeline import build
    from lorita_deploy.pipeline.context import Build
    from lorita_deploy.pipeline.options import make_options
    from lorita_deploy.records import TrainRecord
    from lorita_deploy.targets import this_host

    name, runs = called(given, depth, decay, seed, epochs), Path(given.folder)
    folder = runs / name
    started, taught = (other and other.format(seed=seed) for other in (given.init_from, given.taught_by))
    start, teacher = (other and str(runs / other / WEIGHTS) for other in (started, taught))
    options = {
        "model": given.model,
        "data": given.data,
        "recipe": given.recipe if depth > 1 else str(steady(given)),
        "epochs": epochs or given.epochs,
        "compile": given.compile,
        "checkpoint": start,
        "teacher": teacher,
    }
    asked = make_options(**options, depth=depth, weight_decay=decay, seed=seed, out=str(folder))
    build(asked, until="collapse")
    record = TrainRecord.load(folder / "trained.json")
    finished = Build(asked)
    test = finished.task.test(finished.dense)
    row = {
        "load": load(),
        "model": given.model,
        "dataset": given.dataset,
        "depth": depth,
        "course": record.recipe.course,
        "start": started,
        "taught": taught,
        "decay": record.recipe.weight_decay,
        "seed": seed,
        "epochs": len(record.epochs),
        "validation": record.best.validation.value,
        "test": test.value,
        "images": test.total,
        "rank": record.best.rank_fraction,
        "device": this_host().machine if record.device == "cpu" else record.device,
    }
    print(name, row, flush=True)
    rows = keep(HERE / "samples.json", name, row)
    (HERE / "samples.md").write_text(document(rows))
    return folder, record


def steady(given: argparse.Namespace) -> Path:
    """The recipe without its phases, which are about factors: twins have none. A file in the folder of the runs."""
    from lorita_deploy.ports import find_model

    recipe = find_model(given.model).recipe_called(given.recipe)
    path = Path(given.folder) / f"{given.model}-twin.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    held = recipe.model_dump(mode="json", exclude={"phases", "depth", "seed"}).items()
    lines = [f"{name} = {json.dumps(value)}" for name, value in held if value is not None]
    path.write_text("\n".join([*lines, *(["clip_norm = false"] if recipe.clip_norm is None else [])]) + "\n")
    return path


def twins(given: argparse.Namespace) -> None:
    """Networks without LoRITa: seed 0 with each decay, all else with the best of these. A search that is on record is not made
    again."""
    from lorita_deploy.ports import find_model

    usual = find_model(given.model).recipe_called(given.recipe).weight_decay
    recorded: dict[str, dict[str, Any]] = json.loads((HERE / "samples.json").read_text())

    def right(share: float) -> float:
        decay = share * usual
        row = recorded.get(called(given, 1, decay, 0, given.search_epochs)) if given.search_epochs else None
        return float(row["validation"]) if row else run(given, 1, decay, 0, given.search_epochs)[1].best.validation.value

    found = {share: right(share) for share in DECAYS}
    while (best := max(found, key=lambda share: found[share])) in (min(found), max(found)):
        further = best / STEP if best == min(found) else best * STEP
        if not FURTHEST[0] <= further <= FURTHEST[1]:
            break
        found[further] = right(further)
    best *= usual
    for seed in range(0 if given.search_epochs else 1, given.seeds):
        run(given, 1, best, seed)


def ship(given: argparse.Namespace, folder: Path) -> None:
    """Write the checkpoint of a finished run, and its record."""
    import torch

    from lorita_deploy.measure.accuracy import accuracy
    from lorita_deploy.networks import read_weights
    from lorita_deploy.ports import find_model
    from lorita_deploy.records import CollapsedRecord, DataSummary, SampleRecord, TrainRecord
    from lorita_deploy.train.datasets import load_dataset
    from lorita_deploy.train.factored import multiplied_out, save_factored

    spec = find_model(given.model)
    assert spec.sample is not None
    record = CollapsedRecord.load(folder / "collapsed.json")
    tensors = read_weights(folder / WEIGHTS)
    trained = TrainRecord.load(folder / "trained.json")
    dataset = load_dataset(given.data, shape=spec.input_shape(), seed=trained.recipe.seed)
    module = spec.build(record.classes, spec.input_size).eval()

    def logits(weights: Mapping[str, Tensor]) -> Tensor:
        module.load_state_dict(weights)
        with torch.inference_mode():
            return torch.cat([module(images) for images, _ in dataset.batches("test", 256)])

    expected = logits(tensors)

    def agrees(weights: Mapping[str, Tensor]) -> bool:
        found = logits(weights)
        return bool((found - expected).abs().max() <= SAME_LOGITS and (found.argmax(1) == expected.argmax(1)).all())

    spec.sample.parent.mkdir(exist_ok=True)
    tolerance = save_factored(tensors, [layer.name for layer in record.layers], spec.sample, agrees)
    megabytes = spec.sample.stat().st_size / 1e6
    if megabytes > LARGEST_MB:
        spec.sample.unlink()
        print(f"{spec.sample.name}: {megabytes:.2f} MB with the same answers, {LARGEST_MB:g} MB at most ship: not written")
        return
    difference = float((logits(multiplied_out(read_weights(spec.sample))) - expected).abs().max())
    SampleRecord(
        data=DataSummary.load(folder / "data.json"),
        trained=trained,
        dataset=given.name or given.data,
        trained_on=given.dataset,
        test=accuracy(module, dataset.batches("test", 256), "test"),
        weights_sha256=hashlib.sha256(spec.sample.read_bytes()).hexdigest(),
        largest_difference=difference,
    ).save(spec.sample.with_suffix(".json"))
    print(f"{spec.sample.name}: {megabytes:.2f} MB, tolerance {tolerance:g}, logits within {difference:.1e}")


def document(rows: Mapping[str, dict[str, Any]]) -> str:
    lines = heading("Trained networks and their twins", "samples.py", max(row["load"] for row in rows.values()))
    lines += [
        "Right answers in per cent; weight decay: that of the first epoch; rank: share of the singular values above 1/1000 of "
        "the largest, mean over layers. A run that starts from another one goes on with its weights; *taught* by one, it "
        "learns its answers beside the labels.",
        "",
    ]
    columns = (
        "run",
        "data",
        "N",
        "weight decay",
        "starts from",
        "epochs",
        "validation",
        "test",
        "test images",
        "rank",
        "trained on",
    )
    cells = [
        (
            *(name, row["dataset"], row.get("course", row["depth"]), f"{row['decay']:g}"),
            *((row.get("start") or "random") + (f", taught by {row['taught']}" if row.get("taught") else ""), row["epochs"]),
            *(f"{100 * row['validation']:.2f}", f"{100 * row['test']:.2f}", row["images"], f"{row['rank']:.2f}", row["device"]),
        )
        for name, row in sorted(rows.items())
    ]
    return "\n".join(lines + table(columns, cells) + seeds(rows)) + "\n"


def seeds(rows: Mapping[str, dict[str, Any]]) -> list[str]:
    """What courses came to that were run with several seeds, as lines; none where there is no such course."""
    courses: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for name, row in sorted(rows.items()):
        courses[name.replace(f"-seed{row['seed']}", "")].append(row)

    def over(runs: list[dict[str, Any]], split: str) -> str:
        right = [100 * row[split] for row in runs]
        return f"{mean(right):.2f} ({min(right):.2f}-{max(right):.2f})"

    cells = [
        (course, len(runs), over(runs, "validation"), over(runs, "test")) for course, runs in courses.items() if len(runs) > 1
    ]
    if not cells:
        return []
    said = ["", "Several seeds: the mean (the least and the greatest).", ""]
    return said + table(("course", "seeds", "validation", "test"), cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data", required=True, help="folder:DIR, or a data set's name")
    parser.add_argument("--dataset", required=True, help="what the images are called in tables")
    parser.add_argument("--name", help="the data set's name for users of what ships, where --data is a folder")
    parser.add_argument("--folder", required=True, help="where runs are kept")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--recipe", default=RECIPE)
    parser.add_argument("--init-from", metavar="RUN", help="go on from another run under RUNS; {seed} stands for its seed")
    parser.add_argument("--taught-by", metavar="RUN", help="learn another run's answers beside the labels")
    parser.add_argument("--depths", type=int, nargs="+", default=[SHIPPED, 2, 1], help="which N, in this order")
    parser.add_argument("--epochs", type=int, help="instead of the recipe's")
    parser.add_argument("--search-epochs", type=int, help="to compare the twin's decays after; all where not given")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--ship", action="store_true")
    given = parser.parse_args()

    for depth in given.depths:
        if depth == 1:
            twins(given)
            continue
        folder = run(given, depth, None, 0)[0]
        if given.ship and depth == SHIPPED:
            ship(given, folder)
        for seed in range(1, given.seeds if depth == SHIPPED else 1):
            run(given, depth, None, seed)


if __name__ == "__main__":
    main()
