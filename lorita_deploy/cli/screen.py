"""Where words go: results on stdout, progress on stderr, a bar only on a terminal."""

from __future__ import annotations

import functools
import json
import logging
import shutil
import sys
import warnings
from collections.abc import Callable
from typing import Any, TextIO

import click
from rich.console import Console

from ..records import Document
from ..report.table import Table
from ..report.terminal import render
from .edge import begun
from .stdout import own_stdout

NARROWEST = 160
"""Columns of a table written into a pipe or a file."""


class Screen:
    """One command's output. ``as_json``: stdout gets the record and nothing else."""

    def __init__(self, as_json: bool = False, quiet: bool = False, verbose: bool = False, stdout: TextIO | None = None) -> None:
        self.as_json, self.quiet, self.verbose = as_json, quiet, verbose
        self.stdout = stdout or sys.stdout
        self.out = _console(self.stdout)
        self.err = _console(sys.stderr)
        logging.basicConfig(level=logging.INFO if verbose else logging.ERROR, format="%(name)s: %(message)s")
        if not verbose:
            warnings.filterwarnings("ignore")

    def show(self, answer: Any, *tables: Table) -> None:
        """The result: as JSON (a record, or plain values), or as tables."""
        if self.as_json:
            click.echo(as_json(answer), file=self.stdout)
            return
        for table in tables:
            self.out.print(render(table, self.out.width))

    def result(self, *lines: str) -> None:
        """Closing lines of a command's result (never wrapped: paths stay whole)."""
        if not self.as_json:
            for line in lines:
                self.out.print(line, soft_wrap=True, markup=False, highlight=False)

    def say(self, line: str) -> None:
        """Progress, which -q keeps quiet."""
        if not self.quiet:
            self.err.print(line, soft_wrap=True, markup=False, highlight=False)


def as_json(answer: Any) -> str:
    """A document as its file's text, a part as an object, anything else as it is."""
    if isinstance(answer, Document):
        return answer.to_json().rstrip("\n")
    return json.dumps(answer, indent=1, default=lambda part: part.model_dump(mode="json"))


def with_screen(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --json, -q and -v; the command gets a `Screen` as its first argument."""

    @click.option("--json", "as_json", is_flag=True, help="Print the record, and nothing else, on stdout.")
    @click.option("-q", "--quiet", is_flag=True, help="Only results and errors.")
    @click.option("-v", "--verbose", is_flag=True, help="More detail, and the warnings of the libraries underneath.")
    @functools.wraps(command)
    def with_its_screen(*args: Any, as_json: bool, quiet: bool, verbose: bool, **options: Any) -> Any:
        begun(click.get_current_context())
        with own_stdout() as stdout:
            return command(Screen(as_json, quiet, verbose, stdout), *args, **options)

    return with_its_screen


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Leave it to the edge, which knows the exit code."""
        raise BrokenPipeError


def _console(stream: Any) -> Console:
    # rich itself honours NO_COLOR and leaves colours out where the stream is no terminal.
    width = None if stream.isatty() else max(NARROWEST, shutil.get_terminal_size((NARROWEST, 24)).columns)
    return _Console(file=stream, width=width, highlight=False, emoji=False)  # folders may be called :this:
