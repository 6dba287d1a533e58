"""The command line: parse, one library call, render.

    edge.py       where exceptions become messages and exit codes (the only place)
    screen.py     results on stdout, progress on stderr, --json, -q, -v
    stdout.py     nothing but results reaches stdout
    options.py    the options of a build, drawn from `BuildOptions`
    completion.py what the shell offers on TAB
    building.py   build, train, plan, compress, export
    proving.py    verify, bench, compare
    looking.py    inspect, doctor, and the groups models, targets, exporters

Nothing here loads torch before a command runs.
"""

from .commands import cli
from .stdout import open_what_is_closed

__all__ = ["cli", "main"]


def main() -> None:
    """The entry point of the ``lorita-deploy`` script."""
    open_what_is_closed()
    cli(prog_name="lorita-deploy")
