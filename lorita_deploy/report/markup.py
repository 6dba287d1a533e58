"""The pieces that the page is put together from: tables, badges, figures, legends."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from .states import STATES, legend as legend_of
from .svg import element, escape, mark
from .table import Table

WIDE, MIDDLE, NARROW = 1028.0, 620.0, 340.0
"""Widths at which every chart is drawn: a desk's, a tablet's, a phone's."""
LONG, LONG_NAME = 48, 20
"""Cells with more letters are folded; those of the first column only on a phone, at their dots."""
FEW = 4
"""So many columns a phone shows side by side, their cells folded."""
PROVENANCE = {"measured": "Measured", "tabled": "Tabled", "estimated": "Estimated"}
_HASH = re.compile("[0-9a-f]{64}")


def badge(provenance: str) -> str:
    """Provenance in a word, in a shape (a filled disc, a ruled square, a broken ring) and in the kind of its border."""
    shapes = {
        "measured": '<circle cx="8" cy="8" r="6"/>',
        "tabled": '<path d="M2.5,2.5H13.5V13.5H2.5ZM2.5,6.2H13.5M2.5,9.8H13.5"/>',
        "estimated": '<circle cx="8" cy="8" r="5.5" stroke-dasharray="3 2.2"/>',
    }
    glyph = f'<svg viewBox="0 0 16 16" width="14" height="14" aria-hidden="true">{shapes[provenance]}</svg>'
    return element("span", glyph, PROVENANCE[provenance], class_=f"badge {provenance}")


def tabled(table: Table, *, sortable: bool = False, titled: bool = True) -> str:
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
    caption = element("caption", escape(table.title)) if table.title and titled else ""
    kinds = ("sortable" if sortable else "", "few" if len(table.columns) <= FEW else "")
    body = element("table", caption, head, element("tbody", *rows), class_=" ".join(filter(None, kinds)) or None)
    note = "".join(element("p", escape(text), class_="note") for text in (table.note, legend_of(table)) if text)
    return element("div", body, class_="scroll", tabindex=0, role="region", aria_label=table.title or "table") + note


def _cell(table: Table, place: int, said: str) -> str:
    numeric, first = table.columns[place].startswith(">"), place == 0
    long = len(said) > (LONG_NAME if first else LONG)
    news = STATES[said].news if said in STATES else ""
    kinds = ("number" if numeric else "", "long" if long else "", "hash" if _HASH.fullmatch(said) else "", news)
    kind = " ".join(filter(None, kinds))
    shown = re.sub(r"[.](?=\w)", ".<wbr>", escape(said)) if first and long else escape(said)
    value = sort_value(said) if numeric else None
    return element("th" if first else "td", shown, class_=kind or None, scope="row" if first else None, data_v=value)


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


def figure(draw: Callable[[float], str], wide: float = WIDE) -> str:
    """A chart at each width; the page shows the one that fits."""
    widths = {"wide": wide, "middle": MIDDLE, "narrow": NARROW}
    return element("figure", *(element("div", draw(width), class_=name) for name, width in widths.items()))


def warnings(texts: Sequence[str]) -> str:
    """What to bear in mind about the figures above; nothing where there is nothing."""
    listed = element("ul", *(element("li", escape(text)) for text in texts))
    return element("div", element("strong", "Bear in mind"), listed, class_="warnings") if texts else ""


def said(text: str, class_: str = "") -> str:
    return element("p", escape(text), class_=f"lead {class_}".strip())


def sample(shape: str) -> str:
    return f'<svg viewBox="-9 -9 18 18" width="18" height="18" aria-hidden="true">{mark(shape, 0, 0)}</svg>'


def legend(*entries: tuple[str, str]) -> str:
    return element("ul", *(element("li", element("i", class_=kind), escape(said)) for kind, said in entries), class_="legend")
