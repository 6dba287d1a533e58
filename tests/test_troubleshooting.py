"""docs/troubleshooting.md against the code: every exit code and every error is there, and no message is made up."""

import ast
import re

import pytest
from pages import PAGES, ROOT

from lorita_deploy.cli import edge
from lorita_deploy.errors import LoritaDeployError

PAGE = PAGES["docs/troubleshooting.md"]
CHANGES = "\0"
"""Stands for what a message fills in."""


def kinds(root=LoritaDeployError):
    yield root
    for each in root.__subclasses__():
        if each.__module__ == LoritaDeployError.__module__:
            yield from kinds(each)


def texts():
    """Every text in the code, with what is filled in marked."""
    for folder in ("lorita_deploy", "exporters", "sample_models"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    yield "".join(each.value if isinstance(each, ast.Constant) else CHANGES for each in node.values)
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield re.sub(r"%[-+]?[\d.]*[sdrgf]", CHANGES, node.value).replace("%%", "%")


TEXTS = "\n".join(f"{text}\n" for text in texts())
ROWS = [message for message, *_ in re.findall(r"^\| `([^`]+)` \| (.*) \| (.*) \|$", PAGE, flags=re.MULTILINE)]


def pattern(message):
    """A message of the page, whose ``...`` stand for anything within one text."""
    parts = [re.escape(part) for part in message.split("...")]
    return "[^\n]*".join(parts)


@pytest.mark.parametrize("message", ROWS)
def test_a_quoted_message_is_in_the_code(message):
    # Some are put together of two texts, as in "there is no model called 'x'; did you mean y?".
    pieces = [piece for piece in re.split(r"; did you mean |(?<=artifact) (?=differs|gives)", message) if piece.strip(". ?")]
    for piece in pieces:
        assert re.search(pattern(piece), TEXTS), piece


def test_a_message_that_was_made_up_is_found_out():
    for message in ("the disk is on fire: ...", "two budgets were taken: ...", "no answer within ... hours"):
        assert not re.search(pattern(message), TEXTS)


def test_there_are_many():
    assert len(ROWS) > 70
    assert len(set(ROWS)) == len(ROWS)


def part(code):
    """What the page says under an exit code."""
    return re.split(rf"^## Exit codes? [^\n]*\b{code}\b", PAGE, flags=re.MULTILINE)[1].split("\n## ")[0]


@pytest.mark.parametrize("kind", [kind for kind in kinds() if kind is not LoritaDeployError])
def test_every_error_stands_under_its_exit_code(kind):
    assert f"`{kind.__name__}`" in part(kind.exit_code)


@pytest.mark.parametrize("code", [0, 1, edge.INTERRUPTED, edge.TERMINATED, edge.BROKEN_PIPE, LoritaDeployError.exit_code])
def test_every_other_exit_code_is_told_of(code):
    assert part(code).strip()


def test_the_error_that_is_shown_is_what_is_printed(run_cli, tmp_path):
    done = run_cli("build", "--model", "vgg61", cwd=tmp_path)
    assert done.returncode == 2
    (shown,) = re.findall(r"^```text\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
    assert done.stderr == shown
