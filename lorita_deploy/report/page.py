"""report.html: the whole build as one page that needs nothing else. What it says is what report.md says, with pictures.

The page's own policy forbids it to load anything.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from importlib import resources

from ..records import BuildReport
from . import shipped, words
from .markup import badge
from .sections import Section, sections
from .svg import element, escape


def render(report: BuildReport) -> str:
    """The text of ``report.html``."""
    style, script = (
        resources.files(__package__).joinpath(name).read_text(encoding="utf-8") for name in ("page.css", "page.js")
    )
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    parts = list(sections(report))
    links = "".join(element("a", escape(part.short), href=f"#{part.anchor}") for part in parts)
    title = f"{report.model} for {report.target}"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><meta name="referrer" content="no-referrer">'
        f"<title>{escape(title)} · lorita-deploy</title><style>{style}</style></head>\n<body>"
        + element("header", _head(report, title))
        + element("nav", links, aria_label="Sections")
        + element("main", *map(_section, parts))
        + element(
            "footer", escape(f"lorita-deploy {report.host.versions.get('lorita-deploy', '')}; {words.provenance(report)}")
        )
        + f"\n<script>{script}</script></body></html>\n"
    )


def _section(part: Section) -> str:
    heading = element("h2", escape(part.heading), badge(part.provenance) if part.provenance else "")
    return element("section", heading, part.body, id=part.anchor, class_="card")


def _head(report: BuildReport, title: str) -> str:
    plans = report.provenance != "measured" and shipped.raced_there(report)
    whose = "The times that the plan was made with" if plans else f"Times on {report.target}"
    parts = [
        element("h1", escape(title)),
        element(
            "p",
            badge(report.provenance),
            escape(f" {whose}: {words.MEANING[report.provenance]}."),
            class_="from",
        ),
        element("p", escape(report.headline), class_="headline"),
    ]
    parts += [element("p", element("strong", "Missed: "), escape(missed), class_="alert") for missed in report.missed]
    if report.shipped == "dense":
        parts.append(element("p", "model.onnx is the dense network.", class_="alert"))
    return "".join(parts) + element("div", *_tiles(report), class_="tiles")


def _tiles(report: BuildReport) -> Iterator[str]:
    race = shipped.race(report)
    if report.estimated_ratio is not None and report.provenance != "measured":
        yield _tile(
            f"on {report.target}", f"≈ {words.times(1 / report.estimated_ratio)}", "a ratio of times", report.provenance
        )
    if race is not None and report.receipt is not None:
        low, high = 1 / race.ci95[1], 1 / race.ci95[0]
        claim = words.times(race.speedup) if race.faster else "slower" if high < 1 else "no faster"
        yield _tile(f"on {report.receipt.host.kind}", claim, f"95 % interval {low:.2f} to {high:.2f}", "measured")
    role = report.shipped
    before, after = (each.energy for each in pair) if (pair := shipped.series(report)) else (None, None)
    if before and after:
        less = words.number(before.per_call_mj / after.per_call_mj)
        drawn = f"{words.millijoules(before)} → {words.millijoules(after)}"
        yield _tile("energy a call", f"÷ {less}", f"{drawn}, by the board's own sensors", "measured")
    if role in report.accuracy and "dense" in report.accuracy:
        dense, found = report.accuracy["dense"], report.accuracy[role]
        if found.metric == "score":
            yield _tile("score", f"{dense.value:.4g} → {found.value:.4g}", f"on {found.split} data")
        else:
            what = "agree with dense" if found.metric == "agreement" else "right"
            change = f"{dense.correct:,.0f} → {found.correct:,.0f}"
            yield _tile(f"{what}, of {found.total:,}", change, f"{found.split} images, artifacts")
    less = words.number(report.params[0] / report.params[1])
    yield _tile("parameters", f"÷ {less}", f"{words.amount(report.params[0])} → {words.amount(report.params[1])}")
    if files := shipped.artifacts(report):
        dense_bytes, bytes_ = (each.size_bytes for each in files)
        sizes_said = f"{words.size(dense_bytes)} → {words.size(bytes_)}"
        yield _tile("file", f"÷ {words.number(dense_bytes / bytes_)}", sizes_said)


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
