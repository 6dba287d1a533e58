"""Race receipts are inputs like any other: kept from their first measurement, so that a resumed build decides the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..records import Receipt
from .folder import RACES, key_of, program

if TYPE_CHECKING:
    from .context import Build


def kept_race(build: Build, what: dict[str, Any], race: Callable[[], Receipt]) -> Receipt:
    """The receipt of ``race``, or the one that is kept of an earlier race of ``what``, timed in the same way on the same host
    by the same version of this program.

    Raises what ``race`` raises, and `BadRecord` for a kept receipt that is damaged.
    """
    way = {"host": build.host_key, "settings": build.settings.model_dump(), "version": program()}
    kept = build.folder / RACES / f"{key_of({**what, **way})[:16]}.json"
    if not kept.exists():
        race().save(kept)
    return Receipt.load(kept)
