"""A table on a terminal: side by side where it fits, one row under the other where it does not."""

from __future__ import annotations

from typing import Literal

from rich import box
from rich.console import RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from .states import STATES, legend
from .table import Table

COLOURS = {"good": "green", "bad": "bold red", "plain": ""}
GAP = 3
"""Blank columns between two columns."""


def render(table: Table, width: int) -> RenderableType:
    """The table for rich to print in ``width`` columns; colours appear on terminals only."""
    explained = legend(table)
    stacked = _least_width(table, "word") > width
    if stacked:
        table = _stacked(table)
    # rich keeps a column's heading as whole as its cells: where that is too wide, words go one under the other.
    between = "\n" if _least_width(table, "heading") > width else " "
    drawn = RichTable(
        title=Text(table.title) if table.title else None,  # plain: names in brackets are no markup
        caption=Text("\n".join(filter(None, (table.note, explained)))) if table.note or explained else None,
        title_justify="left",
        caption_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        show_header=any(table.columns),
        pad_edge=False,
    )
    for place, column in enumerate(table.columns):
        justify: Literal["left", "right"] = "right" if column.startswith(">") else "left"
        heading = column.removeprefix(">")
        heading = heading.replace(" ", between) if _whole(place, column) else heading
        # A name that is longer than the terminal would leave nothing of what stands beside it.
        drawn.add_column(heading, justify=justify, overflow="fold", no_wrap=_whole(place, column) and not stacked)
    for row in table.rows:
        drawn.add_row(*(Text(cell, style=_colour(cell)) for cell in row))
    return drawn


def _colour(cell: str) -> str:
    return COLOURS[STATES[cell].news] if cell in STATES else ""


def _whole(place: int, column: str) -> bool:
    """Names and numbers stay whole; sentences are folded."""
    return place == 0 or column.startswith(">")


def _least_width(table: Table, whole: Literal["word", "heading"]) -> int:
    """Columns that the table takes at least, where of the headings of whole columns so much stays in one line."""
    total = 0
    for place, column in enumerate(table.columns):
        cells = [row[place] for row in table.rows]
        pieces = cells if _whole(place, column) else [word for cell in cells for word in cell.split()]
        heading = column.removeprefix(">")
        heads = [heading] if whole == "heading" and _whole(place, column) else heading.split()
        total += GAP + max(map(len, (*pieces, *heads)), default=0)
    return total


def _stacked(table: Table) -> Table:
    """Every row as lines of ``column  cell`` under its name."""
    lines: list[tuple[str, str]] = []
    for name, *cells in table.rows:
        lines.append((name, ""))
        lines += [
            (f"  {column.removeprefix('>')}", cell) for column, cell in zip(table.columns[1:], cells, strict=True) if cell
        ]
    return Table(table.title, ("", ""), tuple(lines), table.note)
