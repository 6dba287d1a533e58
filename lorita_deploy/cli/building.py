"""build, and its beginnings: train, plan, compress, export run the same stages up to theirs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import click

from ..pipeline.options import BuildOptions
from ..records import ParetoFront, Plan, TrainingForecast
from ..report import facts, front, networks
from ..report.table import Table
from ..train import processes
from .options import BuildCommand, chosen, with_build_options
from .screen import Screen, with_screen
from .showing import tables_of

MISSED = 1
"""Exit code where a demand was not met."""


def _of_the_family(name: str) -> Callable[..., click.Command]:
    """A command with all options of a build."""

    def decorate(function: Callable[..., Any]) -> click.Command:
        stages = "the stages, what is cached, and what would be written"
        shown = "what the training would take, from a few steps of it" if name == "train" else stages
        dry_run = click.option("--dry-run", is_flag=True, help=f"Only show {shown}.")
        return click.command(name, cls=BuildCommand)(with_build_options(dry_run(with_screen(function))))

    return decorate


@_of_the_family("build")
def build(screen: Screen, dry_run: bool, config: Path | None, **given: Any) -> None:
    """The whole job: train, compress, export, verify, time, pack.

    One network for one target. A build that was stopped goes on where it was; the build folder holds every record, weight
    and artifact.

    \b
    Example:
      lorita-deploy build --model vgg16 --target jetson
      lorita-deploy build --model resnet20 --data folder:images/ --max-drop 1
      lorita-deploy build --model torchvision:resnet18 --checkpoint w.safetensors --no-train --calibration images/
    """
    options = chosen(given, config)
    if dry_run:
        _preview(screen, options, "bundle")
        return
    report = _run(screen, options, "bundle")
    screen.show(report, *(tables_of(report, options.folder) if screen.verbose else [facts.summary(report)]))
    screen.result(str(options.folder / report.artifact), report.headline)
    _end_if_missed(screen, report.missed)


@_of_the_family("train")
def train(screen: Screen, dry_run: bool, config: Path | None, **given: Any) -> None:
    """Train a network to be low-rank.

    LoRITa: every weight is trained as a product of N matrices, under weight decay. The build folder's metrics.jsonl gets a
    line for each epoch. --dry-run runs a few steps and says how much memory and time the whole would take.

    \b
    Example:
      lorita-deploy train --model vgg16 --data cifar10 --epochs 40
      lorita-deploy train --model resnet20 --recipe paper --dry-run
      lorita-deploy train --model resnet20 --init-from w.safetensors --teacher w.safetensors
    """
    options = chosen(given, config)
    if dry_run:
        found = _forecast(screen, options)
        _end_if_joined()
        screen.show(found, networks.forecast(found))
        return
    _part(screen, dry_run, options, "train", "trained")


@_of_the_family("plan")
@click.option("--pareto", is_flag=True, help="Sweep the budget instead: accuracy against time, as JSON, Markdown and SVG.")
def plan(screen: Screen, dry_run: bool, pareto: bool, config: Path | None, **given: Any) -> None:
    """Choose what each layer becomes.

    The plan is a small file to read, edit and feed back with --plan.

    \b
    Example:
      lorita-deploy plan --model vgg16 --target cpu --max-drop 1
      lorita-deploy plan --model vgg16 --target cpu --pareto
    """
    options = chosen(given, config)
    if not pareto or dry_run:
        _part(screen, dry_run, options, "price" if pareto else "plan", "plan")
        return
    found = _front(screen, options)
    screen.show(found, front.table(found))
    screen.result(*(str(options.folder / f"pareto.{suffix}") for suffix in ("json", "md", "svg")))


@_of_the_family("compress")
def compress(screen: Screen, dry_run: bool, config: Path | None, **given: Any) -> None:
    """Put the layers into the forms of the plan.

    \b
    Example:
      lorita-deploy compress --model vgg16 --plan build/vgg16-cpu/plan.json
    """
    _part(screen, dry_run, chosen(given, config), "compress", "compressed")


@_of_the_family("export")
def export(screen: Screen, dry_run: bool, config: Path | None, **given: Any) -> None:
    """Write the artifacts.

    The compressed and the dense network, in exactly the same way.

    \b
    Example:
      lorita-deploy export --model vgg16 --target jetson --opset 17
    """
    _part(screen, dry_run, chosen(given, config), "export", "artifacts")


def _forecast(screen: Screen, options: BuildOptions) -> TrainingForecast:
    from ..pipeline import forecast
    from .progress import TerminalWatch

    with TerminalWatch(screen) as watch, redirect_stdout(sys.stderr):
        return forecast(options, watch)


def _front(screen: Screen, options: BuildOptions) -> ParetoFront:
    from ..pipeline.front import pareto
    from .progress import TerminalWatch

    with TerminalWatch(screen) as watch, redirect_stdout(sys.stderr):
        return pareto(options, watch)


def _part(screen: Screen, dry_run: bool, options: BuildOptions, until: str, record_name: str) -> None:
    """Run up to a stage, show its record, and end with where its outputs lie."""
    from ..inspection.files import read_record

    if dry_run:
        _preview(screen, options, until)
        return
    _run(screen, options, until)
    outputs = _outputs(options, until)
    if (name := f"{record_name}.json") in outputs:  # --no-train leaves no record of a training
        path = options.folder / name
        record = read_record(path)
        screen.show(record, *tables_of(record, path))
    screen.result(*(str(options.folder / output) for output in outputs))
    if until != "train":
        from ..pipeline.reporting import missed_by

        _end_if_missed(screen, tuple(missed_by(Plan.load(options.folder / "plan.json"))))


def _end_if_missed(screen: Screen, demands: Sequence[str]) -> None:
    """What was demanded in vain is told, and the exit code says so."""
    for missed in demands:
        screen.err.print(f"missed: {missed}", soft_wrap=True, markup=False)
    if demands:
        click.get_current_context().exit(MISSED)


def _run(screen: Screen, options: BuildOptions, until: str) -> Any:
    from ..pipeline import build as run
    from .progress import TerminalWatch

    if processes.follows():
        screen.quiet = True
    with TerminalWatch(screen) as watch, redirect_stdout(sys.stderr):  # what libraries print is no result
        report = run(options, until=until, watch=watch)
    _end_if_joined()
    return report


def _end_if_joined() -> None:
    """What there is to be told, the first of several processes tells."""
    if processes.follows():
        click.get_current_context().exit()


def _outputs(options: BuildOptions, until: str) -> tuple[str, ...]:
    from ..pipeline import preview

    return preview(options, until)[-1].outputs


def _preview(screen: Screen, options: BuildOptions, until: str) -> None:
    from ..pipeline import preview

    found = preview(options, until)
    rows = tuple((each.name, "cached" if each.cached else "would run", ", ".join(each.outputs)) for each in found)
    plain = [{"stage": each.name, "cached": each.cached, "outputs": each.outputs} for each in found]
    screen.show(plain, Table("", ("stage", "", "writes"), rows))
    screen.result(str(options.folder))
