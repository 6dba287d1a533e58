"""verify, bench, compare: proof again, on what a build or a bundle holds."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import click

from ..errors import EnvironmentDiffers
from ..report import proofs, words
from .screen import Screen, with_screen

REGRESSION = MISSED = 1
FOLDER = click.Path(path_type=Path)


class FiniteRange(click.FloatRange):
    """As its base, which takes ``nan`` for a number within any range: nothing would ever be slower than that."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        found = float(super().convert(value, param, ctx))
        if not math.isfinite(found):
            self.fail(f"{value} is not a finite number", param, ctx)
        return found


@click.command()
@click.argument("path", type=FOLDER)
@with_screen
def verify(screen: Screen, path: Path) -> None:
    """Verify artifacts against golden outputs.

    Looks at a build folder or an unpacked bundle: hashes first, then outputs. Exits with code 4
    where an artifact does not compute what the network computes.

    \b
    Example:
      lorita-deploy verify build/vgg16-cpu
    """
    from ..measure.fidelity import require_passed
    from ..pipeline.again import verify_again

    report = verify_again(path)
    screen.show(report, proofs.fidelity(report.checks))
    require_passed(report.checks, path)
    worst = max(check.max_rel for check in report.checks)
    screen.result(f"{len(report.checks)} artifacts verified, largest relative difference {worst:.1e}")


@click.command()
@click.argument("path", type=FOLDER, required=False)
@click.option("--device", default="local", show_default=True, help="Where: this machine, or a board: ssh://user@host.")
@click.option(
    "--receipt",
    type=FOLDER,
    help="Race nothing: read the receipt.json, or the trtexec-DATE.tar.gz of run.sh, that was carried here from a board.",
)
@click.option("--threads", type=click.IntRange(min=1), default=None, metavar="N", help="[default: as the build did]")
@click.option(
    "--deadline", type=FiniteRange(min=0, min_open=True), metavar="MS", help="Name the best of a bundle that meets it."
)
@with_screen
def bench(
    screen: Screen, path: Path | None, device: str, receipt: Path | None, threads: int | None, deadline: float | None
) -> None:
    """Race artifacts again.

    Those of a build folder or a bundle (unpacked or .tar.gz), interleaved, in a process of their own, here or on a board
    (see docs/devices.md). The receipt is written beside those that are there; none is overwritten. Exits with code 1
    where nothing meets the deadline (at p99).

    \b
    Example:
      lorita-deploy bench build/vgg16-cpu
      lorita-deploy bench --device ssh://me@orin build/vgg16-jetson/bundle.tar.gz
      lorita-deploy bench --receipt receipt.json build/vgg16-jetson
      lorita-deploy bench --receipt trtexec-20261123T214000Z.tar.gz build/vgg16-jetson
    """
    from ..devices.address import find_device
    from ..pipeline.again import bench_again, keep_receipt, read_receipt

    if path is None and receipt is None:
        raise click.UsageError("Missing argument 'PATH': a build folder or a bundle.")
    if receipt is not None and deadline is not None:
        raise click.UsageError("--deadline is judged while racing: python3 run.py --deadline MS on the board.")
    where: Path | None = None
    if receipt is None:
        assert path is not None
        board = find_device(device)
        if device != "local":
            screen.say(f"asking {board.name}: should the connection break, the run goes on there")
        found, where = bench_again(path, threads=threads, device=board, deadline_ms=deadline)
    elif path is None:
        found = read_receipt(receipt)
    else:
        found, where = keep_receipt(receipt, path)
    screen.show(found, proofs.latency(found), *proofs.on_the_board(found), proofs.ratios(found))
    for warning in found.warnings:
        screen.say(f"note: {warning}")
    lines = [f"{ratio.candidate}: {words.speed(ratio)}" for ratio in found.ratios]
    lines += [f"use on {found.host.machine}: {found.faster}"] if found.faster else []
    if found.deadline is not None:
        lines.append(f"within {found.deadline.deadline_ms:g} ms at p99: {found.deadline.chosen or 'none of them'}")
    screen.result(*([str(where)] if where else []), *lines)
    if found.deadline is not None and found.deadline.chosen is None:
        click.get_current_context().exit(MISSED)


@click.command()
@click.argument("before", metavar="A", type=FOLDER)
@click.argument("after", metavar="B", type=FOLDER)
@click.option("--tolerance", type=FiniteRange(min=0), default=5.0, show_default=True, help="Per cent that B may be slower.")
@click.option("--force", is_flag=True, help="Compare even what was measured in different environments.")
@with_screen
def compare(screen: Screen, before: Path, after: Path, tolerance: float, force: bool) -> None:
    """Compare two measurements.

    Receipts, reports, build folders or bundles. Exits with code 1 where B is slower by more than the tolerance, 3
    where the environments differ.

    \b
    Example:
      lorita-deploy compare build/before build/after --tolerance 3
    """
    from ..measure.compare import compare as compare_receipts
    from ..pipeline.again import read_receipt

    found = compare_receipts(
        read_receipt(before), read_receipt(after), names=(str(before), str(after)), tolerance=tolerance / 100
    )
    if found.differences and not force:
        raise EnvironmentDiffers(
            f"measured in different environments: {'; '.join(found.differences)}",
            where=f"{before} and {after}",
            fix="measure both on the same machine with the same settings, or compare all the same with --force",
        )
    screen.show(found, proofs.comparison(found))
    if any(change.verdict == "regression" for change in found.changes):
        click.get_current_context().exit(REGRESSION)
