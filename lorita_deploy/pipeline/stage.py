"""What a stage of the build is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .context import Build


@dataclass(frozen=True)
class Stage:
    """A step of the build: ``key`` gathers what decides its output, ``run`` writes ``outputs`` and gives one line of result;
    ``finished`` tidies up once it is on record that the stage is done."""

    name: str
    outputs: Callable[[Build], tuple[str, ...]]
    key: Callable[[Build], dict[str, Any]]
    run: Callable[[Build], str]
    finished: Callable[[Build], None] = lambda build: None
