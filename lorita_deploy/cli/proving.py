"""verify, bench, compare: proof again, on what a build or a bundle holds."""

from __future__ import annotations

from pathlib import Path

import click

from ..errors import EnvironmentDiffers
from ..report import proofs, words
from .screen import Screen, with_screen

REGRESSION = 1
FOLDER = click.Path(path_type=Path)


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
@click.argument("path", type=FOLDER)
@click.option("--threads", type=click.IntRange(min=1), default=None, metavar="N", help="[default: as the build did]")
@with_screen
def bench(screen: Screen, path: Path, threads: int | None) -> None:
    """Race artifacts again.

    Those of a build folder or an unpacked bundle, interleaved, in a process of their own. The receipt
    is written beside those that are there; none is overwritten.

    \b
    Example:
      lorita-deploy bench build/vgg16-cpu
    """
    from ..pipeline.again import bench_again

    receipt, where = bench_again(path, threads=threads)
    screen.show(receipt, proofs.latency(receipt), proofs.ratios(receipt))
    for warning in receipt.warnings:
        screen.say(f"note: {warning}")
    screen.result(str(where), *(f"{ratio.candidate}: {words.speed(ratio)}" for ratio in receipt.ratios))


@click.command()
@click.argument("before", metavar="A", type=FOLDER)
@click.argument("after", metavar="B", type=FOLDER)
@click.option(
    "--tolerance", type=click.FloatRange(min=0), default=5.0, show_default=True, help="Per cent that B may be slower."
)
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
