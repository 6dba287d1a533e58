"""A table on a terminal."""

from __future__ import annotations

from rich import box
from rich.console import RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from .table import Table

GOOD, BAD = "green", "bold red"
COLOURS = {
    **dict.fromkeys(("ok", "passed", "faster", "cached", "kept"), GOOD),
    **dict.fromkeys(("missing", "FAILED", "slower", "regression"), BAD),
}


def render(table: Table) -> RenderableType:
    """The table for rich to print; colours appear on terminals only."""
    drawn = RichTable(
        title=table.title or None,
        caption=table.note or None,
        title_justify="left",
        caption_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        show_header=any(table.columns),
        pad_edge=False,
    )
    for column in table.columns:
        drawn.add_column(column.removeprefix(">"), justify="right" if column.startswith(">") else "left", overflow="fold")
    for row in table.rows:
        drawn.add_row(*(Text(cell, style=COLOURS.get(cell, "")) for cell in row))
    return drawn
