"""What is finished of a run, in a file beside its result, so that a run that was stopped goes on where it was.

Probes and reloads are kept as they come. They are taken up again only for the same job on the same machine with the same
software, power mode and clock limits: anything else would mix two measurements. Valid Python 3.6.
"""

import hashlib
import json
import os

from typing import Any, List

from job import Json, write_json

SCHEMA = "lorita-deploy/progress/1"


def digest(body: Any) -> str:
    """sha256 of the canonical JSON text."""
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode("utf-8")).hexdigest()


class Progress:
    """Read from ``path`` where that belongs to ``key``, else begun anew."""

    def __init__(self, path: str, key: str) -> None:
        self.path = path
        self.body = {
            "schema": SCHEMA, "key": key, "probes": {}, "calls": {}, "reloads": [], "conditions": [], "spent_s": 0.0,
        }  # type: Json  # fmt: skip
        try:
            with open(path, encoding="utf-8") as file:
                found = json.load(file)
            if found["schema"] == SCHEMA and found["key"] == key and found.keys() == self.body.keys():
                self.body = found
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            pass
        self.resumed = len(self.reloads)
        self.save()  # so that a folder that cannot be written to is found out now

    @property
    def probes(self) -> Json:
        return self.body["probes"]  # type: ignore[no-any-return]

    @property
    def calls(self) -> Json:
        return self.body["calls"]  # type: ignore[no-any-return]

    @property
    def reloads(self) -> List[Json]:
        return self.body["reloads"]  # type: ignore[no-any-return]

    @property
    def conditions(self) -> List[Json]:
        return self.body["conditions"]  # type: ignore[no-any-return]

    def add_reload(self, reload: Json, conditions: Json, spent_s: float) -> None:
        self.reloads.append(reload)
        self.conditions.append(conditions)
        self.body["spent_s"] = spent_s
        self.save()

    def save(self) -> None:
        """Raises `JobError` (exit code 6) when the disk is full or read-only."""
        write_json(self.path, self.body)

    def remove(self) -> None:
        os.unlink(self.path)
