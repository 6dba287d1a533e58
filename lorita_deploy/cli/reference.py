"""docs/cli.md, written from the help pages: ``python -m lorita_deploy.cli.reference > docs/cli.md``."""

from __future__ import annotations

from collections.abc import Iterator

import click

from .commands import cli

WIDTH = 100
HEAD = """\
# Command line

Written from the help pages by `python -m lorita_deploy.cli.reference > docs/cli.md`; a test holds it to them.

Commands, options, and the names of models, targets and exporters are completed on TAB after one line in the shell's start-up
file: `eval "$(_LORITA_DEPLOY_COMPLETE=bash_source lorita-deploy)"` in `~/.bashrc`,
`eval "$(_LORITA_DEPLOY_COMPLETE=zsh_source lorita-deploy)"` in `~/.zshrc`, or
`_LORITA_DEPLOY_COMPLETE=fish_source lorita-deploy | source` in `~/.config/fish/completions/lorita-deploy.fish`. Results go to
stdout and everything else to stderr, so `--json` can be piped; `NO_COLOR=1` takes the colours away.
"""


def reference() -> str:
    """The text of docs/cli.md."""
    return "\n".join((HEAD, *_pages(cli, "lorita-deploy", None)))


def _pages(command: click.Command, name: str, parent: click.Context | None) -> Iterator[str]:
    context = click.Context(command, info_name=name, parent=parent, terminal_width=WIDTH, help_option_names=["-h", "--help"])
    path = context.command_path
    lines = (line.rstrip() for line in command.get_help(context).splitlines())
    yield f"## {path}\n\n```text\n" + "\n".join(lines) + "\n```\n"
    if isinstance(command, click.Group):
        for child in command.list_commands(context):
            yield from _pages(command.commands[child], child, context)


if __name__ == "__main__":
    click.echo(reference(), nl=False)
