"""report.html: the whole build as one page that needs nothing else. What it says is what report.md says, with pictures.

Every chart is drawn twice, for a wide page and for a phone, and the style sheet shows one of them, so that letters keep
their size. The page's own policy forbids it to load anything.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Iterator
from importlib import resources

from ..records import BuildReport
from . import facts, networks, proofs, words
from .distributions import distributions, sizes
from .margins import margins
from .spectra import Spectrum, floor, picture, spectra
from .svg import element, escape, mark
from .table import Table
from .tradeoff import LEGEND, marks, tradeoff
from .waterfall import table as waterfall_table, waterfall

WIDE, NARROW = 860.0, 340.0
SPECTRA_SHOWN = 24
"""More than these are folded away: a page of them says less than the first ones."""
STATES = {"passed": "good", "within": "good", "kept": "good", "FAILED": "bad", "OVER BUDGET": "bad", "too lossy": "bad"}
PROVENANCE = {"measured": "Measured", "tabled": "Tabled", "estimated": "Estimated"}
MEANING = {
    "measured": "timed on this very device",
    "tabled": "timed earlier, on another device of this kind",
    "estimated": "worked out from data sheets: a ratio, not a time",
}
Section = tuple[str, str, str]
"""Anchor, heading, body."""


def render(report: BuildReport) -> str:
    """The text of ``report.html``."""
    style, script = (
        resources.files(__package__).joinpath(name).read_text(encoding="utf-8") for name in ("page.css", "page.js")
    )
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    sections = list(_sections(report))
    links = "".join(element("a", escape(heading), href=f"#{anchor}") for anchor, heading, _ in sections)
    bodies = (
        element("section", element("h2", escape(heading)), body, id=anchor, class_="card") for anchor, heading, body in sections
    )
    title = f"{report.model} for {report.target}"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><meta name="referrer" content="no-referrer">'
        f"<title>{escape(title)} · lorita-deploy</title><style>{style}</style></head>\n<body>"
        + element("header", _head(report, title))
        + element("nav", links, aria_label="Sections")
        + element("main", *bodies)
        + element(
            "footer", escape(f"lorita-deploy {report.host.versions.get('lorita-deploy', '')}; {words.provenance(report)}")
        )
        + f"\n<script>{script}</script></body></html>\n"
    )


# ---------------------------------------------------------------------------------------------- the head


def _head(report: BuildReport, title: str) -> str:
    parts = [
        element("h1", escape(title)),
        element(
            "p", badge(report.provenance), escape(f" Times on {report.target}: {MEANING[report.provenance]}."), class_="from"
        ),
        element("p", escape(report.headline), class_="headline"),
    ]
    parts += [element("p", element("strong", "Missed: "), escape(missed), class_="alert") for missed in report.missed]
    if report.shipped == "dense":
        parts.append(element("p", "model.onnx is the dense network.", class_="alert"))
    return "".join(parts) + element("div", *_tiles(report), class_="tiles")


def badge(provenance: str) -> str:
    """Provenance in a word, in a shape (a filled disc, a ruled square, a broken ring) and in the kind of its border."""
    shapes = {
        "measured": '<circle cx="8" cy="8" r="6"/>',
        "tabled": '<path d="M2.5,2.5H13.5V13.5H2.5ZM2.5,6.2H13.5M2.5,9.8H13.5"/>',
        "estimated": '<circle cx="8" cy="8" r="5.5" stroke-dasharray="3 2.2"/>',
    }
    glyph = f'<svg viewBox="0 0 16 16" width="14" height="14" aria-hidden="true">{shapes[provenance]}</svg>'
    return element("span", glyph, PROVENANCE[provenance], class_=f"badge {provenance}")


def _tiles(report: BuildReport) -> Iterator[str]:
    race = report.receipt.ratios[0] if report.receipt and report.receipt.ratios else None
    if report.estimated_ratio is not None and report.provenance != "measured":
        yield _tile(
            f"on {report.target}", f"≈ {words.times(1 / report.estimated_ratio)}", "a ratio of times", report.provenance
        )
    if race is not None and report.receipt is not None:
        low, high = 1 / race.ci95[1], 1 / race.ci95[0]
        claim = words.times(race.speedup) if race.faster else "no faster" if low <= 1 else "slower"
        yield _tile(f"on {report.receipt.host.kind}", claim, f"95 % interval {low:.2f} to {high:.2f}", "measured")
    role = report.shipped
    if role in report.accuracy and "dense" in report.accuracy:
        dense, found = report.accuracy["dense"], report.accuracy[role]
        if found.metric == "score":
            yield _tile("score", f"{dense.value:.4g} → {found.value:.4g}", f"on {found.split} data")
        else:
            what = "agree with dense" if found.metric == "agreement" else "right"
            change = f"{dense.correct:,.0f} → {found.correct:,.0f}"
            yield _tile(f"{what}, of {found.total:,}", change, f"{found.split} images, artifacts")
    less = report.params[0] / report.params[1]
    yield _tile("parameters", f"÷ {less:.3g}", f"{words.amount(report.params[0])} → {words.amount(report.params[1])}")
    files = {artifact.role: artifact.size_bytes for artifact in report.artifacts}
    if {"dense", role} <= files.keys():
        sizes_said = f"{words.megabytes(files['dense'])} → {words.megabytes(files[role])}"
        yield _tile("file", f"÷ {files['dense'] / files[role]:.3g}", sizes_said)


def _tile(name: str, figure: str, detail: str, provenance: str | None = None) -> str:
    mark_of = badge(provenance) if provenance else ""
    return element(
        "div",
        element("span", escape(name), class_="name"),
        element("span", escape(figure), class_="figure"),
        element("span", escape(detail), class_="detail"),
        mark_of,
        class_=f"tile {provenance or ''}".strip(),
    )


# ---------------------------------------------------------------------------------------------- the sections


def _sections(report: BuildReport) -> Iterator[Section]:
    plan, receipt = report.plan, report.receipt
    provenance = badge(plan.provenance)
    compared = tabled(facts.summary(report)) + _both(lambda width: sizes(report, width))
    yield (
        "sizes",
        "Dense and shipped",
        compared + _legend(("square dense", "dense"), ("square measured", f"ships ({report.shipped})")),
    )
    probes = folded("The plans as a table", tabled(networks.probes(plan))) if plan.probes else ""
    named = dict(LEGEND)
    shapes = element("ul", *(element("li", _sample(shape), escape(named[shape])) for shape in marks(report)), class_="legend")
    yield "tradeoff", "Accuracy against time", provenance + _both(lambda width: tradeoff(report, width)) + shapes + probes
    if plan.changed():
        steps = folded("The steps as a table", tabled(waterfall_table(report)))
        said = "Each bar is what one layer gains by its new form; what is gained too little for a row is summed."
        body = provenance + _said(said) + _both(lambda width: waterfall(report, width)) + _legend(*WATERFALL) + steps
        yield "waterfall", "Where the time went", body
    if receipt:
        body = badge("measured") + _both(lambda width: distributions(receipt, width))
        body += tabled(proofs.latency(receipt)) + tabled(proofs.ratios(receipt))
        body += "".join(element("p", escape(warning), class_="warning") for warning in receipt.warnings)
        yield "latency", f"Latency on {receipt.host.kind}", body
    layers = tabled(networks.layers(plan, report.collapsed), sortable=True)
    alone = folded("Left alone", tabled(networks.left_alone(report.left_alone))) if report.left_alone else ""
    yield "layers", "Layers", provenance + _said("Click on a column's name to sort by it.", "screen-only") + layers + alone
    if found := spectra(report):
        yield "spectra", "Spectra", _spectra(found)
    if report.ledger:
        yield "ledger", "Error ledger", _both(lambda width: margins(report, width)) + tabled(proofs.ledger(report))
    yield "fidelity", "Artifact against torch", tabled(proofs.fidelity(report.fidelity))
    yield "environment", "Environment and hashes", tabled(facts.environment(report.host)) + tabled(facts.hashes(report))
    notes = [element("li", escape(note)) for note in (*plan.notes, *report.notes)]
    yield "stages", "Stages", tabled(facts.stages(report.stages)) + (element("ul", *notes, class_="notes") if notes else "")


WATERFALL = (
    ("square dense", "dense"),
    ("square gain", "time saved"),
    ("square loss", "time paid back"),
    ("square predicted", "predicted"),
    ("square measured", "compressed, measured"),
)


def _spectra(found: list[Spectrum]) -> str:
    bottom = floor(found)
    order = sorted(found, key=lambda each: each.cut is None)  # stable: those with a cut first
    pictures = [element("li", picture(each, bottom)) for each in order]
    said = (
        "Singular values of each dense layer over the largest, on a logarithmic scale; the line is the cut, the filled part "
        "is kept. Cuts are chosen by their effect on outputs, so they need not stand where the weights' own spectrum falls."
    )
    shown = _said(said) + element("ul", *pictures[:SPECTRA_SHOWN], class_="multiples")
    rest = pictures[SPECTRA_SHOWN:]
    return shown + (folded(f"{len(rest)} more layers", element("ul", *rest, class_="multiples")) if rest else "")


# ---------------------------------------------------------------------------------------------- pieces


def tabled(table: Table, *, sortable: bool = False) -> str:
    """A table in a box of its own that scrolls sideways where the page is narrow. Numbers carry their value to sort by."""
    head = ""
    if any(table.columns):
        cells = []
        for column in table.columns:
            name = escape(column.removeprefix(">"))
            body = element("button", name, type="button") if sortable and name else name
            cells.append(element("th", body, scope="col", class_="number" if column.startswith(">") else None))
        head = element("thead", element("tr", *cells))
    rows = [element("tr", *(_cell(table, place, said) for place, said in enumerate(row))) for row in table.rows]
    caption = element("caption", escape(table.title)) if table.title else ""
    body = element("table", caption, head, element("tbody", *rows), class_="sortable" if sortable else None)
    note = element("p", escape(table.note), class_="note") if table.note else ""
    return element("div", body, class_="scroll", tabindex=0, role="region", aria_label=table.title or "table") + note


def _cell(table: Table, place: int, said: str) -> str:
    numeric = table.columns[place].startswith(">")
    kind = " ".join(filter(None, ("number" if numeric else "", STATES.get(said, ""))))
    value = sort_value(said) if numeric else None
    return element(
        "th" if place == 0 else "td", escape(said), class_=kind or None, scope="row" if place == 0 else None, data_v=value
    )


def sort_value(said: str) -> str | None:
    """The number that a cell begins with, its prefix applied: 1.49 M is 1490000; ``full`` (a rank) is beyond all numbers."""
    if said == "full":
        return "1e300"
    found = re.match(r"([+-]?[\d,]*\.?\d+(?:e[+-]?\d+)?)\s*([kMG]?)\b", said)
    if not found:
        return None
    return repr(float(found[1].replace(",", "")) * {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9}[found[2]])


def folded(summary: str, body: str) -> str:
    return element("details", element("summary", escape(summary)), body)


def _both(draw: Callable[[float], str]) -> str:
    wide, narrow = element("div", draw(WIDE), class_="wide"), element("div", draw(NARROW), class_="narrow")
    return element("figure", wide, narrow)


def _said(text: str, class_: str = "") -> str:
    return element("p", escape(text), class_=f"lead {class_}".strip())


def _sample(shape: str) -> str:
    return f'<svg viewBox="-9 -9 18 18" width="18" height="18" aria-hidden="true">{mark(shape, 0, 0)}</svg>'


def _legend(*entries: tuple[str, str]) -> str:
    return element("ul", *(element("li", element("i", class_=kind), escape(said)) for kind, said in entries), class_="legend")
