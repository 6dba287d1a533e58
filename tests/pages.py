"""Reading our own pages: fenced blocks, the commands in them, sections, links."""

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = "README.md"
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in (ROOT / README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
}
"""Every page that people read, by its path."""

OPERATORS = {"&&", "||", "|", ";", "&"}


def section(text, title):
    """What stands below ``## title``, up to the next heading of that level."""
    return re.split(r"^## ", text.split(f"## {title}\n")[1], flags=re.MULTILINE)[0]


def blocks(text, language):
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def commands(text):
    """The words of every command in a page's shell blocks, comments and ``sudo`` taken off."""
    for line in "\n".join(blocks(text, "bash")).replace("\\\n", " ").splitlines():
        words = shlex.shlex(line, posix=True, punctuation_chars="&|;")
        words.whitespace_split = True
        found = []
        for word in (*words, ";"):
            if word not in OPERATORS:
                found.append(word)
            elif found:
                yield found[1:] if found[0] == "sudo" else found
                found = []


def links(text):
    """Where the links of a page lead, without the places inside of pages."""
    return [target for target in re.findall(r"\]\(([^)#]*)(?:#[^)]*)?\)", text) if target]
