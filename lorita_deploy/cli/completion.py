"""What the shell offers on TAB: names of models, targets and exporters, files and folders. Click does the talking to the
shell; nothing here loads torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import click
from click.shell_completion import CompletionItem

from ..ports import EXPORTERS, MODEL_FAMILIES, MODELS, names
from ..targets import all_targets

Completer = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def _offering(known: Callable[[], Iterable[str]]) -> Completer:
    def complete(context: click.Context, parameter: click.Parameter, begun: str) -> list[CompletionItem]:
        return [CompletionItem(name) for name in sorted(known()) if name.startswith(begun)]

    return complete


def _path(kind: str) -> Completer:
    def complete(context: click.Context, parameter: click.Parameter, begun: str) -> list[CompletionItem]:
        return [CompletionItem(begun, type=kind)]

    return complete


models = _offering(lambda: [*names(MODELS), *(f"{family}:" for family in names(MODEL_FAMILIES))])
targets = _offering(lambda: [name for target in all_targets() for name in (target.name, *target.aliases)])
exporters = _offering(lambda: names(EXPORTERS))
files, folders = _path("file"), _path("dir")

OF_OPTIONS: dict[str, Completer] = {
    "model": models,
    "target": targets,
    **dict.fromkeys(("checkpoint", "teacher", "plan", "receipt", "layer_times"), files),
    **dict.fromkeys(("out", "data_root", "calibration"), folders),
}
"""By the name of the option."""
