"""The sections of the page, in the order of its questions: how good, how fast, why, what exactly, by which proof."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..records import BuildReport, PrecisionRecord, Provenance, Receipt
from . import facts, networks, proofs
from .distributions import distributions, sizes
from .margins import margins
from .markup import figure, folded, legend, said, sample, tabled, warnings
from .spectra import Spectrum, floor, names, picture, spectra
from .svg import element, escape
from .table import Table
from .tradeoff import LEGEND, marks, tradeoff
from .waterfall import steps, table as waterfall_table, waterfall

BESIDE = 400.0
"""Width of a chart that stands beside a table."""
SPECTRA_SHOWN = 24
"""More than these are folded away: a page of them says less than the first ones."""

SHORT = {
    "tradeoff": "Trade-off",
    "waterfall": "Time",
    "latency": "Latency",
    "ledger": "Ledger",
    "fidelity": "Fidelity",
    "environment": "Environment",
}


@dataclass(frozen=True)
class Section:
    anchor: str
    heading: str
    body: str
    provenance: Provenance | None = None
    """Of its times."""

    @property
    def short(self) -> str:
        """For the list of sections, which has one line."""
        return SHORT.get(self.anchor, self.heading)


def sections(report: BuildReport) -> Iterator[Section]:
    """Those that the report has something for."""
    plan, receipt = report.plan, report.receipt
    yield Section("sizes", "Dense and shipped", _compared(report))
    yield Section("tradeoff", "Accuracy against time", _tradeoff(report), plan.provenance)
    if plan.changed():
        yield Section("waterfall", "Where the time went", _waterfall(report), plan.provenance)
    if receipt:
        yield Section("latency", f"Latency on {receipt.host.kind}", _latency(receipt), "measured")
    if report.precision and report.precision.trials:
        yield Section("precision", "Precision", _precision(report), _timed(report.precision))
    yield Section("layers", "Layers", _layers(report), plan.provenance)
    if found := spectra(report):
        yield Section("spectra", "Spectra", _spectra(found))
    if report.ledger:
        body = figure(lambda width: margins(report, width)) + tabled(proofs.ledger(report), titled=False)
        yield Section("ledger", "Error ledger", body)
    yield Section("fidelity", "Artifact against torch", tabled(proofs.fidelity(report.fidelity), titled=False))
    about = tabled(facts.environment(report.host)) + tabled(facts.hashes(report))
    yield Section("environment", "Environment and hashes", about)
    notes = [element("li", escape(note)) for note in (*plan.notes, *report.notes)]
    listed = element("ul", *notes, class_="notes") if notes else ""
    yield Section("stages", "Stages", tabled(facts.stages(report.stages), titled=False) + listed)


def _compared(report: BuildReport) -> str:
    drawn = figure(lambda width: sizes(report, width), wide=BESIDE)
    shown = legend(("dense", "dense"), ("measured", f"ships ({report.shipped})"))
    listed = tabled(facts.summary(report), titled=False)
    return element("div", element("div", listed), element("div", drawn, shown), class_="split")


def _tradeoff(report: BuildReport) -> str:
    named = dict(LEGEND)
    entries = (element("li", sample(shape), escape(named[shape])) for shape in marks(report))
    listed = tabled(networks.probes(report.plan), titled=False)
    probes = folded("The plans as a table", listed) if report.plan.probes else ""
    return figure(lambda width: tradeoff(report, width)) + element("ul", *entries, class_="legend") + probes


def _waterfall(report: BuildReport) -> str:
    lead = said(
        "Each bar is what one layer gains by its new form, as it was priced in the context of the whole network. What the race "
        "then found beyond the prices (changes of layout, launches, caches) stands below the prediction."
    )
    listed = folded("The steps as a table", tabled(waterfall_table(report), titled=False))
    return lead + figure(lambda width: waterfall(report, width)) + legend(*_looks(report)) + listed


def _looks(report: BuildReport) -> list[tuple[str, str]]:
    meaning = {
        "dense": "dense network",
        "gain": "time saved",
        "loss": "time paid back",
        "predicted": "what the compressed network was predicted to take",
        "measured": "what it takes, measured",
    }
    drawn = {step.look for step in steps(report)}
    return [(look, text) for look, text in meaning.items() if look in drawn]


def _latency(receipt: Receipt) -> str:
    listed = "".join(map(tabled, (proofs.latency(receipt), *proofs.on_the_board(receipt), proofs.ratios(receipt))))
    return figure(lambda width: distributions(receipt, width)) + listed + warnings(receipt.warnings)


def _precision(report: BuildReport) -> str:
    assert report.precision is not None
    shipped = f"What ships is in {report.shipped_precision}."
    if report.shipped_precision != report.precision.chosen:
        shipped += f" In the race above, {report.precision.chosen} was not faster than both networks in fp32."
    return said(shipped) + tabled(proofs.precisions(report.precision), titled=False)


def _timed(found: PrecisionRecord) -> Provenance:
    return "measured" if any(trial.ratio for trial in found.trials) else "estimated"


def _layers(report: BuildReport) -> str:
    listed = tabled(_times_first(networks.layers(report.plan, report.collapsed)), sortable=True)
    alone = tabled(networks.left_alone(report.left_alone), titled=False)
    rest = folded("Left alone", alone) if report.left_alone else ""
    return said("Click on a column's name to sort by it.", "screen-only") + listed + rest


def _times_first(layers: Table) -> Table:
    """What a layer becomes, and at what time and loss, before what it is: that is what a narrow page shows."""
    size = ("geometry", ">numerical rank", ">params", ">MACs")
    order = sorted(range(len(layers.columns)), key=lambda place: layers.columns[place] in size)  # stable
    columns, *rows = (tuple(row[place] for place in order) for row in (layers.columns, *layers.rows))
    return Table(layers.title, columns, tuple(rows), layers.note)


def _spectra(found: list[Spectrum]) -> str:
    bottom, written = floor(found), names(found)
    order = sorted(found, key=lambda each: each.cut is None)  # stable: those with a cut first
    pictures = [element("li", picture(each, written[each.layer.name], bottom)) for each in order]
    lead = said(
        "Singular values of each dense layer over the largest, on a logarithmic scale; the line is the cut, the filled part "
        "is kept. Cuts are chosen by their effect on outputs, so they need not stand where the weights' own spectrum falls."
    )
    shown = lead + element("ul", *pictures[:SPECTRA_SHOWN], class_="multiples")
    rest = pictures[SPECTRA_SHOWN:]
    return shown + (folded(f"{len(rest)} more layers", element("ul", *rest, class_="multiples")) if rest else "")
