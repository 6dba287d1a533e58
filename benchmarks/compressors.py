"""Accuracy against time: this compressor and others, on networks trained here.

    python benchmarks/compressors.py --folder DIR [NAME ...]      writes compressors.json, compressors.md and images/

Each network is trained twice by its own recipe, as a product of three factors (LoRITa) and plainly (N = 1). The rules for low
rank and this compressor start from the first, torch-pruning from the second. What they make is fine-tuned alike: distilled from
the dense network it came from, for the same number of epochs. Everything goes through the same exporter, and all artifacts of a
network are raced in one run, interleaved. Budgets are a fixed list, validation images decide whether new batch norm statistics
and fine-tuning are kept, test images decide nothing.

DIR keeps trained networks and finished points: the benchmark may be run in pieces (``--minutes``), network by network. The race
of a network is run once all its points are there; run it alone. ``--data folder:PATH`` takes other images than digits,
``--checkpoints DIR`` networks that are trained already: NAME.safetensors and NAME-plain.safetensors.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from curves import document, picture
from judging import better, shuffled, wrong_answers, wrong_in_torch
from rivals import low_rank, threshold_ranks, torch_pruned, uniform_ranks
from setting import HERE, keep, load

from lorita_deploy.compress.recover import distill, reestimate_batchnorm
from lorita_deploy.compress.rewrite import duplicate
from lorita_deploy.measure.latency import race
from lorita_deploy.networks import survey
from lorita_deploy.pipeline.build import build
from lorita_deploy.pipeline.context import Build
from lorita_deploy.pipeline.exporting import export
from lorita_deploy.pipeline.options import make_options
from lorita_deploy.pipeline.tasks import InputsOnly
from lorita_deploy.records import Artifact

if TYPE_CHECKING:
    from torch import Tensor, nn

    from lorita_deploy.train.splits import Batches

STRENGTHS = {
    "fcn": (1.5, 2, 3, 4, 5, 6, 9, 18, 36),
    "resnet20": (1.25, 1.5, 1.75, 2, 2.5, 3.5, 5, 8),
    "vgg16": (6, 12, 20, 32, 56, 100),
    "vit": (1.25, 1.6, 2, 2.5, 3.5, 6),
}
"""So many times faster for this compressor, so many times fewer multiply-adds for the others."""
SAMPLES = 256
"""Training images that torch-pruning's Taylor expansion sees, as many as calibrate our compressor."""
BEHIND = 0.02
"""Share of validation images by which a plain network may be worse than the factored one and count as trained."""
RACE_SECONDS = 4.0
"""For each artifact."""


class Made(NamedTuple):
    """What a method made of a network."""

    strength: float
    network: nn.Module
    note: str = ""


class Benchmark:
    """One network: its two trainings, and the points made from them."""

    def __init__(self, name: str, arguments: argparse.Namespace) -> None:
        self.name, self.epochs = name, arguments.epochs
        self.folder = Path(arguments.folder) / name
        self.points = self.folder / "points"
        self.strengths = STRENGTHS[name]
        self.options: dict[str, dict[str, Any]] = {}
        self.teachers: dict[Build, nn.Module] = {}
        for role, suffix, depth in (("factored", "", None), ("plain", "-plain", 1)):
            given = {"model": name, "target": "cpu", "data": arguments.data, "out": str(self.folder / role)}
            if arguments.checkpoints:
                checkpoint = Path(arguments.checkpoints) / f"{name}{suffix}.safetensors"
                given |= {"checkpoint": str(checkpoint), "train": False}
            else:
                given |= {"depth": depth}
            self.options[role] = given

    def train(self) -> None:
        """Both networks, and for the factored one calibration and prices: each only where it is not there yet."""
        self.points.mkdir(parents=True, exist_ok=True)
        build(make_options(**self.options["factored"]), until="price")
        self.factored = Build(make_options(**self.options["factored"]))
        self.plain = self._twin()

    def _twin(self) -> Build:
        """The plain network, by the same recipe; where that leaves it behind on validation images, as recipes made for factored
        weights may, at a third or a tenth of the learning rate."""
        for part in (1, 3, 10):
            given = dict(self.options["plain"])
            if part > 1:
                given |= {"lr": self.factored.recipe.lr / part, "out": f"{given['out']}-{part}"}
            build(make_options(**given), until="collapse")
            found = Build(make_options(**given))
            behind = self.factored.validation().value - found.validation().value
            if behind <= BEHIND or not self.factored.trains:
                break
        self.twin_note = "" if part == 1 else f"at 1/{part} of the recipe's learning rate"
        return found

    # ------------------------------------------------------------------------------------------ the methods

    def methods(self) -> dict[str, tuple[Build, Callable[[list[float]], Iterator[Made]]]]:
        """By name: the dense network that a method starts from, and the method, which is given the strengths still to do."""
        return {
            "dense": (self.factored, lambda _: iter([Made(1.0, self.factored.dense)])),
            "dense N=1": (self.plain, lambda _: iter([Made(1.0, self.plain.dense, self.twin_note)])),
            "ours": (self.factored, self._ours),
            "uniform": (self.factored, lambda todo: self._low_rank(uniform_ranks, todo)),
            "paper": (self.factored, lambda todo: self._low_rank(threshold_ranks, todo)),
            "magnitude": (self.plain, lambda todo: self._torch_pruning(todo, None)),
            "taylor": (self.plain, lambda todo: self._torch_pruning(todo, shuffled(self.plain, SAMPLES))),
        }

    def _ours(self, todo: list[float]) -> Iterator[Made]:
        """Builds for several speed-ups in one folder: only planning and compressing are done for each."""
        for strength in self.strengths:
            if strength not in todo:
                continue
            options = make_options(**self.options["factored"], speedup=strength)
            build(options, until="compress")
            found = Build(options)
            if not found.plan.changed():
                continue
            forms = [choice.form for choice in found.plan.changed()]
            narrow = sum(each.startswith("narrow") for each in forms)
            note = f"{forms.count('pair')} pairs, {narrow} narrow, of {len(found.plan.choices)} layers"
            if any("cannot be met" in each for each in found.plan.notes):
                yield Made(strength, found.compressed.module, f"{note}; the fastest plan")
                return
            yield Made(strength, found.compressed.module, note)

    def _low_rank(self, rule: Callable[..., dict[str, int]], todo: list[float]) -> Iterator[Made]:
        layers = self.factored.collapsed.layers
        for strength in todo:
            ranks = rule(layers, strength)
            yield Made(strength, low_rank(self.factored.dense, ranks), f"{len(ranks)} pairs of {len(layers)} layers")

    def _torch_pruning(self, todo: list[float], labelled: Batches | None) -> Iterator[Made]:
        try:
            found = torch_pruned(self.plain.dense, self.plain.task.examples, self.plain.classes, self.strengths, labelled)
            for strength, network in found:
                if strength in todo:
                    yield Made(strength, network)
        except Exception as error:  # a rival that cannot do a network is a result
            (self.points / "failed.txt").open("a").write(f"torch-pruning: {type(error).__name__}: {error}\n")

    # ------------------------------------------------------------------------------------------ the points

    def run(self, until: float) -> bool:
        """Make the points that are not there yet until the clock says ``until``; whether all are there."""
        for method, (start, make) in self.methods().items():
            done = self.points / f"{method}.done"
            tried = json.loads(done.read_text()) if done.exists() else []
            todo = [each for each in self.strengths if each not in tried and not self._file(method, each).exists()]
            for made in make(todo) if todo else ():
                self._finish(method, start, made)
                if time.monotonic() > until:
                    return False
            done.write_text(json.dumps(self.strengths))
        return True

    def _file(self, method: str, strength: float) -> Path:
        return self.points / f"{method}-{strength:g}.json"

    def _finish(self, method: str, start: Build, made: Made) -> None:
        """Fine-tune, export and judge one network."""
        began = time.monotonic()
        inputs, trained = InputsOnly(shuffled(start)), method.startswith("dense")
        before = made.network if trained else better(start, made.network, reestimate_batchnorm(duplicate(made.network), inputs))
        after = before
        if not trained:
            student = duplicate(before)
            distill(student, self._teacher(start), inputs, epochs=self.epochs, freeze_batchnorm=False)
            after = better(start, before, student)
        stem = f"{method}-{made.strength:g}".replace(" ", "-").replace("=", "").replace(".", "_")
        artifact = export(start, after, "compressed", self.points, metadata={}, filename=f"{stem}.onnx")
        wrong = wrong_answers(start, self.points / artifact.path)
        found = {
            "method": method,
            "strength": made.strength,
            "note": made.note,
            "params": sum(each.numel() for each in after.parameters()),
            "macs": survey(after, start.task.examples).macs,
            "validation": start.task.evaluate(after).correct,
            "wrong": wrong,
            "wrong_untuned": wrong_in_torch(start, before),
            "artifact": artifact.model_dump(mode="json"),
            "seconds": round(time.monotonic() - began, 1),
        }
        self._file(method, made.strength).write_text(json.dumps(found) + "\n")
        print(f"{self.name} {method} {made.strength:g}: {len(found['wrong_untuned'])} -> {len(wrong)} wrong", flush=True)

    def _teacher(self, start: Build) -> nn.Module:
        """The dense network, which answers every batch once: all points are taught the same."""
        import torch

        class Teacher(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.dense, self.known = start.dense, {}

            def forward(self, images: Tensor) -> Tensor:
                key = images.numpy().tobytes()
                if key not in self.known:
                    self.known[key] = self.dense(images)
                return self.known[key]

        return self.teachers.setdefault(start, Teacher())

    # ------------------------------------------------------------------------------------------ the race

    def raced(self) -> dict[str, Any]:
        """The row of this network: all artifacts raced in one run."""
        before = load()
        points = [json.loads(path.read_text()) for path in sorted(self.points.glob("*-*.json"))]
        named = {Path(each["artifact"]["path"]).stem: _artifact(each.pop("artifact")) for each in points}
        names = dict(zip(named, points, strict=True))
        baseline = next(name for name, each in names.items() if each["method"] == "dense")
        receipt = race(
            self.factored.board,
            self.points,
            named,
            settings=self.factored.settings,
            baseline=baseline,
            max_seconds=RACE_SECONDS * len(named),
            model=self.name,
            result="race.receipt",
        )
        ratios = {each.candidate: each for each in receipt.ratios}
        for name, point in names.items():
            found = ratios.get(name)
            point |= {key: " ".join(map(str, point[key])) for key in ("wrong", "wrong_untuned")}
            point["ratio"] = found.ratio if found else 1.0
            point["ci95"] = found.ci95 if found else (1.0, 1.0)
        failed = self.points / "failed.txt"
        return {
            "name": self.name,
            "data": self.factored.data.name,
            "test": self.factored.data.counts["test"],
            "train": self.factored.data.counts["train"],
            "epochs": self.epochs,
            "load": before,
            "dense_ms": next(each.median_ms for each in receipt.series if each.name == baseline),
            "points": sorted(points, key=lambda each: (list(self.methods()).index(each["method"]), each["strength"])),
            "failed": failed.read_text().splitlines() if failed.exists() else [],
            "warnings": len(receipt.warnings),
        }


def _artifact(found: dict[str, Any]) -> Artifact:
    return Artifact.model_validate_json(json.dumps(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", default=[], help=", ".join(STRENGTHS))
    parser.add_argument(
        "--folder", help="where trained networks and points are kept; without it only the page is written again"
    )
    parser.add_argument("--data", help="a data set as --data of lorita-deploy takes it (digits)")
    parser.add_argument("--checkpoints", help="a folder of trained networks")
    parser.add_argument("--epochs", type=int, default=3, help="of fine-tuning (3)")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="of making points; then no further one is begun")
    arguments = parser.parse_args()
    if arguments.folder is None:
        write(json.loads((HERE / "compressors.json").read_text()))
        return
    for name in arguments.names or STRENGTHS:
        benchmark = Benchmark(name, arguments)
        benchmark.train()
        if not benchmark.run(time.monotonic() + 60 * arguments.minutes):
            print(f"{name}: more to do", flush=True)
            return
        write(keep(HERE / "compressors.json", name, benchmark.raced()))


def write(known: dict[str, dict[str, Any]]) -> None:
    """The page and the pictures, from the rows."""
    (HERE / "images").mkdir(exist_ok=True)
    rows = [known[name] for name in STRENGTHS if name in known]
    for row in rows:
        (HERE / "images" / f"compressors-{row['name']}.svg").write_text(picture(row))
    (HERE / "compressors.md").write_text(document(rows))


if __name__ == "__main__":
    main()
