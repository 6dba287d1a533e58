"""inspect and doctor, and what there is: models, targets, exporters."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click

from .. import targets as target_files
from ..errors import BadArtifact, BadNetwork
from ..ports import EXPORTERS, MODEL_FAMILIES, MODELS, Exporter, ModelSpec, find_exporter, find_model, names
from ..records import ArtifactSummary, EngineSummary, LoadCheck
from ..report import facts
from ..report.table import Table
from . import completion
from .edge import CONTEXT
from .screen import Screen, with_screen
from .showing import offers_of, tables_of

WOULD_NOT_LOAD = 1
UNFIT = 3
"""Exit code of doctor where something is missing: this environment differs from one that builds."""


@click.command()
@click.argument("path", type=click.Path(path_type=Path), metavar="FILE")
@click.option("-t", "--target", help="Also say whether an ONNX file or an engine would load there (see: targets check).")
@click.option("--layer", help="Of a plan: all that was on offer for this layer, with times, losses, and why it was not taken.")
@with_screen
def inspect(screen: Screen, path: Path, target: str | None, layer: str | None) -> None:
    """Say what is in a file or build folder.

    A record, weights (.safetensors, .pt), an ONNX artifact, a TensorRT engine (.engine, .plan; TensorRT is not needed), or a
    folder. A plan is shown layer by layer, with the why.

    \b
    Example:
      lorita-deploy inspect build/vgg16-cpu/plan.json
      lorita-deploy inspect build/vgg16-cpu/plan.json --layer features.3
      lorita-deploy inspect build/vgg16-cpu/model.onnx
      lorita-deploy inspect model.engine --target jetson-orin-nano@jp6.2
      lorita-deploy inspect w.safetensors
    """
    from ..inspection.files import look_at
    from ..inspection.loading import check_loading

    asked = target_files.load_target(target) if target else None  # a misspelt one is told first
    record = look_at(path)
    if asked and not isinstance(record, ArtifactSummary | EngineSummary):
        raise BadArtifact("only an ONNX file or an engine can be judged for a target", where=path, fix="leave out --target")
    judged = check_loading(path, asked) if asked else None
    if layer is not None:
        screen.show(record, offers_of(record, path, layer))
        return
    if judged is None:
        screen.show(record, *tables_of(record, path))
        return
    if not screen.as_json:
        screen.show(record, *tables_of(record, path))
    _verdict(screen, judged, path)


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("build"), help="Where a build would write.")
@click.option("-t", "--target", help="Also say whether the machine is that device and runs its profile's software.")
@click.option("--device", default="local", help="Look at a board instead: ssh://user@host.", show_default=True)
@with_screen
def doctor(screen: Screen, out: Path, target: str | None, device: str) -> None:
    """Look whether this machine is fit to build on, or a board to run on.

    Every problem comes with a remedy. Exits with code 3 where something is missing that it takes.

    \b
    Example:
      lorita-deploy doctor
      lorita-deploy doctor --target jetson-orin-nano@jp6.2 --device ssh://me@orin
    """
    from ..devices.address import find_device
    from ..devices.ssh import SshDevice
    from ..doctor.device import check_device
    from ..doctor.machine import check_machine

    asked, board = target_files.load_target(target) if target else None, find_device(device)
    health = check_device(board, asked) if isinstance(board, SshDevice) else check_machine(out, asked)
    screen.show(health, facts.health(health))
    if any(finding.state == "missing" for finding in health.findings):
        click.get_current_context().exit(UNFIT)
    screen.result("fit to build" if device == "local" else "fit to run bundles")


@click.group(context_settings=CONTEXT)
def models() -> None:
    """The networks that can be named.

    \b
    Example:
      lorita-deploy models list
    """


@models.command("list")
@with_screen
def list_models(screen: Screen) -> None:
    """Every registered model and model family.

    \b
    Example:
      lorita-deploy models list
    """
    rows = [(name, _summary(find_model, name)) for name in names(MODELS)]
    rows += [(f"{family}:NAME", f"any network of {family}") for family in names(MODEL_FAMILIES)]
    rows.append(("package.module:function", "a network of your own"))
    _catalogue(screen, "Models", rows)


@models.command("show")
@click.argument("name", shell_complete=completion.models)
@with_screen
def show_model(screen: Screen, name: str) -> None:
    """A model's input and the recipe it is trained by.

    \b
    Example:
      lorita-deploy models show vgg16
    """
    spec = find_model(name)
    about = {"name": spec.name, "summary": spec.summary, "input": spec.input_shape(), "recipe": spec.recipe.model_dump()}
    about["recipes"] = list(spec.recipes)
    rows = [("summary", spec.summary), ("input", "x".join(map(str, spec.input_shape())))]
    rows += [("recipes", ", ".join(spec.recipes))] if spec.recipes else []
    rows += [(key.replace("_", " "), str(value)) for key, value in spec.recipe.model_dump().items()]
    screen.show(about, Table(spec.name, ("", ""), tuple(rows)))


@click.group(context_settings=CONTEXT)
def targets() -> None:
    """The devices that can be named.

    \b
    Example:
      lorita-deploy targets show jetson
    """


@targets.command("list")
@with_screen
def list_targets(screen: Screen) -> None:
    """Every target that ships with the library.

    \b
    Example:
      lorita-deploy targets list
    """
    known = target_files.all_targets()
    rows = [
        (", ".join((target.name, *target.aliases)), target.title, ", ".join(f"@{name}" for name in target.profiles))
        for target in known
    ]
    listed = [
        {"name": target.name, "aliases": target.aliases, "summary": target.title, "profiles": target.profiles}
        for target in known
    ]
    screen.show(listed, Table("Targets", ("name", "", "profiles"), tuple(rows)))


@targets.command("show")
@click.argument("name", shell_complete=completion.targets)
@with_screen
def show_target(screen: Screen, name: str) -> None:
    """A target's numbers and where they come from.

    \b
    Example:
      lorita-deploy targets show jetson-orin-nano
      lorita-deploy targets show jetson-orin-nano@jp5.1
    """
    target = target_files.load_target(name)
    screen.show(target, facts.target(target))


@targets.command("check")
@click.argument("path", type=click.Path(path_type=Path), metavar="FILE")
@click.option("-t", "--target", required=True, help="Name, alias or TOML file of a device; board@profile for a JetPack.")
@with_screen
def check_target(screen: Screen, path: Path, target: str) -> None:
    """Answer whether an ONNX file or an engine would load on a device.

    Looks at versions, every operator, types, zero points, shapes, weights in other files and size; each finding comes with the
    fix. Nothing is run, and the device is not asked. Exits with 1 where it would not load.

    \b
    Example:
      lorita-deploy targets check model.onnx --target jetson-orin-nano@jp5.1
      lorita-deploy targets check model.engine --target jetson
    """
    from ..inspection.loading import check_loading

    _verdict(screen, check_loading(path, target_files.load_target(target)), path)


def _verdict(screen: Screen, found: LoadCheck, path: Path) -> None:
    """Exits with 1 where the file would not load."""
    screen.show(found, *tables_of(found, path))
    wrong = [finding.subject for finding in found.findings if finding.state == "wrong"]
    verdict = (
        f"would not load on {found.target}: {', '.join(dict.fromkeys(wrong))}" if wrong else f"would load on {found.target}"
    )
    screen.result(verdict)
    if wrong:
        click.get_current_context().exit(WOULD_NOT_LOAD)


@click.group(context_settings=CONTEXT)
def exporters() -> None:
    """The artifact formats that can be written.

    \b
    Example:
      lorita-deploy exporters list
    """


@exporters.command("list")
@with_screen
def list_exporters(screen: Screen) -> None:
    """Every registered exporter.

    \b
    Example:
      lorita-deploy exporters list
    """
    _catalogue(screen, "Exporters", [(name, _summary(find_exporter, name)) for name in names(EXPORTERS)])


@exporters.command("show")
@click.argument("name", shell_complete=completion.exporters)
@with_screen
def show_exporter(screen: Screen, name: str) -> None:
    """What an exporter starts from, and what it lacks here.

    \b
    Example:
      lorita-deploy exporters show onnx
    """
    exporter = find_exporter(name)
    problems = exporter.check()
    about = {"name": exporter.name, "summary": exporter.summary, "source": exporter.source, "suffix": exporter.suffix}
    rows = [*about.items(), *(("missing", problem) for problem in problems)]
    screen.show({**about, "problems": problems}, Table(name, ("", ""), tuple(rows)))


def _summary(find: Callable[[str], ModelSpec | Exporter], name: str) -> str:
    """A plug-in that cannot be loaded does not hide the others."""
    try:
        return find(name).summary
    except BadNetwork as error:
        return error.what


def _catalogue(screen: Screen, title: str, rows: list[tuple[str, str]]) -> None:
    screen.show([{"name": name, "summary": summary} for name, summary in rows], Table(title, ("name", ""), tuple(rows)))
