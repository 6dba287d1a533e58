"""The command line: parse, one library call, render.

    edge.py       where exceptions become messages and exit codes (the only place)
    screen.py     results on stdout, progress on stderr, --json, -q, -v
    options.py    the options of a build, drawn from `BuildOptions`
    building.py   build, train, plan, compress, export
    proving.py    verify, bench, compare
    looking.py    inspect, doctor, and the groups models, targets, exporters

Nothing here loads torch before a command runs.
"""

from .commands import cli

__all__ = ["cli", "main"]


def main() -> None:
    """The entry point of the ``lorita-deploy`` script."""
    cli(prog_name="lorita-deploy")
