"""How a build goes, on stderr: one line per finished stage, and a bar while a stage runs on a terminal."""

from __future__ import annotations

from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from ..pipeline import STAGES, Watch
from .screen import Screen

NAME_WIDTH = max(map(len, STAGES))


class TerminalWatch(Watch):
    """Tells a `Screen`. Use as a context manager, so that the bar is taken away however the build ends."""

    def __init__(self, screen: Screen) -> None:
        self.screen = screen
        shown = screen.err.is_terminal and not screen.quiet
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[text]}"), TimeRemainingColumn())
        # Drawn seldom: while times are measured, the bar must not take part.
        self.bar = Progress(*columns, console=screen.err, transient=True, disable=not shown, refresh_per_second=2)
        self.task: TaskID | None = None

    def __enter__(self) -> TerminalWatch:
        self.bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.bar.stop()

    def stage_started(self, name: str) -> None:
        self.task = self.bar.add_task(f"{name:<{NAME_WIDTH}}", total=None, text="")

    def progress(self, done: float, total: float, text: str = "") -> None:
        if self.task is not None:
            self.bar.update(self.task, completed=done, total=total, text=text)

    def stage_finished(self, name: str, seconds: float, line: str, cached: bool) -> None:
        if self.task is not None:
            self.bar.remove_task(self.task)
            self.task = None
        state = "cached" if cached else f"done ({seconds:.1f}s)"
        self.screen.say(f"{name:<{NAME_WIDTH}} {state:<14} {line}".rstrip())

    def note(self, text: str) -> None:
        self.screen.say(f"{'note':<{NAME_WIDTH}} {text}")
