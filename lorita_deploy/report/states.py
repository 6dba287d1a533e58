"""Words of state that tables use, what each of them means, and whether it is good news: one list for every medium."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .table import Table

GOOD: Literal["good"] = "good"
BAD: Literal["bad"] = "bad"
PLAIN: Literal["plain"] = "plain"


@dataclass(frozen=True)
class State:
    """``news`` decides the colour, which only repeats what the word says."""

    news: Literal["good", "bad", "plain"]
    meaning: str


STATES = {
    "ok": State(GOOD, "as it should be"),
    "note": State(PLAIN, "worth knowing, nothing to mend"),
    "missing": State(BAD, "keeps a build from running"),
    "wrong": State(BAD, "keeps the file from loading"),
    "cached": State(GOOD, "done by an earlier run, and used again"),
    "would run": State(PLAIN, "not done yet, or what it depends on has changed"),
    "passed": State(GOOD, "max rel within the tolerance"),
    "FAILED": State(BAD, "max rel beyond the tolerance"),
    "kept": State(GOOD, "within the budget for accuracy"),
    "too lossy": State(BAD, "loses more than the budget for accuracy"),
    "chosen": State(GOOD, "what the artifacts are written in"),
    "refused": State(PLAIN, "not an option, for the reason given"),
    "within": State(GOOD, "error within its budget"),
    "OVER BUDGET": State(BAD, "error beyond its budget"),
    "faster": State(GOOD, "the whole interval lies below 0"),
    "same": State(PLAIN, "the interval holds 0"),
    "slower": State(BAD, "the whole interval lies above 0"),
    "regression": State(BAD, "slower by more than the tolerance"),
}


def found_in(table: Table) -> list[str]:
    """The states that stand in a cell of their own, in the order of the list."""
    cells = {cell for row in table.rows for cell in row[1:]}
    return [word for word in STATES if word in cells]


def legend(table: Table) -> str:
    """What the states in ``table`` mean; empty where there are none."""
    return "; ".join(f"{word}: {STATES[word].meaning}" for word in found_in(table))
