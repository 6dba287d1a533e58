"""report.md: the whole build on one page, provenance first."""

from __future__ import annotations

from collections.abc import Iterator

from ..records import BuildReport
from . import facts, networks, proofs, words
from .states import legend
from .table import Table


def render(report: BuildReport) -> str:
    """The text of ``report.md``. Its first line says where the times come from."""
    return "\n\n".join(_sections(report)) + "\n"


def _sections(report: BuildReport) -> Iterator[str]:
    yield plain(words.provenance(report))
    yield f"# {plain(report.model)} for {plain(report.target)}"
    yield f"**{plain(report.headline)}**"
    for missed in report.missed:
        yield f"**Missed:** {plain(missed)}"
    yield _drawn(facts.summary(report), heading="Dense and shipped")
    if report.receipt:
        receipt = report.receipt
        yield _drawn(proofs.latency(receipt), heading=f"Latency on `{receipt.host.kind}`")
        for table in proofs.on_the_board(receipt):
            yield _drawn(table, heading=table.title)
        yield _drawn(proofs.ratios(receipt), heading="Interleaved race")
        yield from (f"> {plain(warning)}" for warning in receipt.warnings)
    if report.precision and report.precision.trials:
        yield _drawn(proofs.precisions(report.precision), heading=f"Precision (ships in {report.shipped_precision})")
    yield _drawn(networks.layers(report.plan, report.collapsed), heading="Layers")
    if report.left_alone:
        yield _drawn(networks.left_alone(report.left_alone), heading="Left alone")
    if report.plan.probes:
        yield _drawn(networks.probes(report.plan), heading="How the budget was searched")
    yield _drawn(proofs.fidelity(report.fidelity), heading="Artifact against torch")
    if report.ledger:
        yield _drawn(proofs.ledger(report), heading="Error ledger")
    yield _drawn(facts.environment(report.host), heading="Environment")
    yield _drawn(facts.hashes(report), heading="Hashes (sha256)")
    yield _drawn(facts.stages(report.stages), heading="Stages")
    notes = [*report.plan.notes, *report.notes]
    if notes:
        yield "## Notes\n\n" + "\n".join(f"* {plain(note)}" for note in notes)


def _drawn(table: Table, heading: str) -> str:
    return f"## {heading}\n\n{drawn(table)}"


def drawn(table: Table) -> str:
    """``table`` in Markdown, without its title; its note and the legend of its words below it."""
    head = [column.removeprefix(">") for column in table.columns]
    rules = ["---:" if column.startswith(">") else "---" for column in table.columns]
    lines = [_line(head), _line(rules), *(_line(row) for row in table.rows)]
    note = "".join(f"\n\n{plain(text)}" for text in (table.note, legend(table)) if text)
    return "\n".join(lines) + note


def _line(cells: tuple[str, ...] | list[str]) -> str:
    return "| " + " | ".join(plain(cell).replace("|", "\\|") for cell in cells) + " |"


def plain(text: str) -> str:
    """``text``, which may hold names that somebody else chose, in one line and without markup of HTML."""
    return " ".join(text.splitlines()).replace("&", "&amp;").replace("<", "&lt;")
