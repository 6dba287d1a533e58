"""How a build is followed from outside."""

from __future__ import annotations


class Watch:
    """Told how a build goes; every method may be left as it is."""

    def stage_started(self, name: str) -> None: ...

    def progress(self, done: float, total: float, text: str = "") -> None: ...

    def stage_finished(self, name: str, seconds: float, line: str, cached: bool) -> None: ...

    def note(self, text: str) -> None: ...


class Noting(Watch):
    """Passes on what it is told, and keeps the notes: of a stage that is found done they are told again."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch
        self.notes: list[str] = []
        """Of the stage at work."""

    def stage_started(self, name: str) -> None:
        self.notes = []
        self.watch.stage_started(name)

    def progress(self, done: float, total: float, text: str = "") -> None:
        self.watch.progress(done, total, text)

    def stage_finished(self, name: str, seconds: float, line: str, cached: bool) -> None:
        self.watch.stage_finished(name, seconds, line, cached)

    def note(self, text: str) -> None:
        self.notes.append(text)
        self.watch.note(text)

    def event(self, text: str) -> None:
        """A note of what happened in this run, and is not to be said of the next."""
        self.watch.note(text)
