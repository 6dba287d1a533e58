"""How a build is followed from outside."""

from __future__ import annotations


class Watch:
    """Told how a build goes; every method may be left as it is."""

    def stage_started(self, name: str) -> None: ...

    def progress(self, done: float, total: float, text: str = "") -> None: ...

    def stage_finished(self, name: str, seconds: float, line: str, cached: bool) -> None: ...

    def note(self, text: str) -> None: ...
