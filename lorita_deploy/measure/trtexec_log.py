"""The text files that come from a board with trtexec: the course of a race as ``run.sh`` noted it, and trtexec's own logs."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from pathlib import Path

from ..bundle import board
from ..errors import BadRecord
from ..records import Conditions

SCHEMA = "lorita-deploy/trtexec-race/1"
AGAIN = "carry the whole folder home again, or run run.sh on the board again"
FACTS = ("started", "trtexec", "system", "cores", "memory_kb")
"""What every race says of itself before it begins."""
SAID = {"Enabled": True, "Disabled": False}
ASKED = {
    "gpu": {"Data transfers": False, "Spin-wait": True, "CUDA Graph": True},
    "e2e": {"Data transfers": True, "Spin-wait": True, "CUDA Graph": True},
}
"""How both kinds are timed, whatever the version does by default."""


@dataclass
class Race:
    """``race.txt``: a word at the head of each line, then what belongs to it."""

    facts: dict[str, str] = field(default_factory=dict)
    networks: dict[str, str] = field(default_factory=dict)
    """Stem of the file to its sha256."""
    engines: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Stem to sha256, bytes, MiB of workspace, and seconds that building took."""
    turns: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Stem to the numbers of its turns, the same for all."""
    conditions: tuple[Conditions, ...] = ()
    version: str = ""
    """Of TensorRT."""
    sha256: str = ""

    @property
    def load_before(self) -> float | None:
        return _number(self.facts.get("load_before"))

    @property
    def load_after(self) -> float | None:
        return _number(self.facts.get("load_after"))


def read_race(folder: Path) -> Race:
    """What ``run.sh`` noted in ``folder``. Raises `BadRecord`."""
    path = folder / "race.txt"
    text = _text(path, "the race on the board was not finished" if (folder / "race.part").exists() else None)
    head, *lines = text.splitlines() or [""]
    if head != SCHEMA:
        raise BadRecord(
            f"its first line is {head[:60]!r}, expected {SCHEMA!r}", where=path, fix="use the release of the bundle"
        )
    found = Race(sha256=hashlib.sha256(text.encode()).hexdigest())
    taken: dict[str, dict[int, set[str]]] = {}
    readings: list[dict[str, object]] = []
    for number, line in enumerate(lines, 2):
        word, _, rest = line.partition(" ")
        try:
            if word == "network":
                stem, sha256 = rest.split()
                found.networks[stem] = sha256
            elif word == "engine":
                stem, *about = rest.split()
                found.engines[stem] = (about[0], *(str(int(each)) for each in about[1:4]))
            elif word == "turn":
                turn, stem, kind = rest.split()
                taken.setdefault(stem, {}).setdefault(int(turn), set()).add(kind)
            elif word == "conditions":
                readings.append({"at": rest, "power_mode": None, "clocks_mhz": {}, "temperatures_c": {}, "throttle_events": {}})
            elif word in ("power_mode", "clock", "temperature", "throttle"):
                _add_reading(readings[-1], word, rest)
            else:
                found.facts[word] = rest.strip()
        except (ValueError, IndexError) as error:
            raise BadRecord(f"line {number} cannot be read: {line[:80]!r}", where=path, fix=AGAIN) from error
    _require_whole(found, taken, bool(readings), path)
    found.turns = {stem: tuple(sorted(turns)) for stem, turns in taken.items()}
    found.conditions = tuple(Conditions.model_validate(each) for each in readings)
    found.version = version_of(found.facts["trtexec"], path)
    return found


def _add_reading(reading: dict[str, object], word: str, rest: str) -> None:
    """One line of readings in the units of the records; files give Hz (devices), kHz (cores) and thousandths of a degree."""
    if word == "power_mode":
        reading["power_mode"] = rest.strip()
        return
    kind = {"clock": "clocks_mhz", "temperature": "temperatures_c", "throttle": "throttle_events"}[word]
    entries = reading[kind]
    assert isinstance(entries, dict)
    if word == "clock":
        device, *values = rest.split()
        name = f"cpu {device}" if device.startswith("policy") else board.clock_name(device)
        now, low, high = (float(value) / (1e3 if device.startswith("policy") else 1e6) for value in values)
        if name:
            entries[device if name in entries else name] = (now, low, high)
    elif word == "temperature":
        value, name = rest.split(maxsplit=1)
        entries[name] = float(value) / 1e3
    else:
        count, name = rest.split(maxsplit=1)
        entries[name] = int(count)


def _require_whole(found: Race, taken: dict[str, dict[int, set[str]]], read: bool, path: Path) -> None:
    lacking = [word for word in (*FACTS, "finished") if not found.facts.get(word)]
    every = set().union(*taken.values()) if taken else set()
    uneven = [stem for stem in found.networks if set(taken.get(stem, ())) != every or not every]
    uneven += [
        stem for stem, turns in taken.items() if stem not in found.networks or any(len(each) != 2 for each in turns.values())
    ]
    uneven += [stem for stem in found.networks if len(found.engines.get(stem, ())) != 4]
    wrong = [word for word in ("cores", "memory_kb") if not found.facts.get(word, "").isdigit()]
    if lacking or uneven or wrong or not read:
        what = f"nothing is said of: {', '.join(lacking)}" if lacking else f"not all of it is told: {', '.join(uneven + wrong)}"
        raise BadRecord(f"the race on the board was not finished, or its account is damaged ({what})", where=path, fix=AGAIN)


def version_of(banner: str, where: object) -> str:
    """``v8502`` is TensorRT 8.5.2, ``v100300`` 10.3.0. Raises `BadRecord`."""
    digits = banner.lstrip("v")
    if not digits.isdigit() or len(digits) not in (4, 5, 6):
        raise BadRecord(f"no version of TensorRT is written {banner!r}", where=where, fix=AGAIN)
    cut = len(digits) - (3 if len(digits) == 4 else 4)
    rest = digits[cut:]
    minor, patch = (rest[0], rest[1:]) if len(rest) == 3 else (rest[:2], rest[2:])
    return f"{int(digits[:cut])}.{int(minor)}.{int(patch)}"


@dataclass(frozen=True)
class Log:
    """One run of trtexec, as it told it."""

    banner: str
    passed: bool
    said: dict[str, bool]
    """Of the inference options that `ASKED` names, those that the log lists."""
    warmups: int
    queries: int
    queries_per_s: float
    load_ms: float | None
    device: dict[str, str]

    @classmethod
    def read(cls, path: Path) -> Log:
        """Raises `BadRecord` where it was cut short or is no such log."""
        text = _text(path)

        def one(pattern: str) -> str | None:
            found = re.search(pattern, text)
            return found.group(1) if found else None

        banner = one(r"&&&& RUNNING TensorRT\.trtexec \[TensorRT (v\d+)\]")
        warm = re.search(r"Warmup completed (\d+) queries over", text)
        queries, rate = one(r"Timing trace has (\d+) queries over"), one(r"Throughput: ([\d.e+]+) qps")
        if banner is None or warm is None or queries is None or rate is None:
            raise BadRecord("this is no whole log of trtexec", where=path, fix=AGAIN)
        loaded = one(r"Engine loaded in ([\d.e-]+) sec")
        gpu, capability = one(r"Selected Device: ([^\n]+)"), one(r"Compute Capability: ([\d.]+)")
        return cls(
            banner=banner,
            passed="&&&& PASSED TensorRT.trtexec" in text,
            said={
                name: SAID[word]
                for name in ASKED["gpu"]
                if (word := one(rf"\[I\] {re.escape(name)}: (Enabled|Disabled)")) is not None
            },
            warmups=int(warm[1]),
            queries=int(queries),
            queries_per_s=float(rate),
            load_ms=None if loaded is None else 1e3 * float(loaded),
            device={key: value.strip() for key, value in (("gpu", gpu), ("compute_capability", capability)) if value},
        )

    def require(self, kind: str, version: str, path: Path) -> None:
        """Raises `BadRecord` where the run did not end well, is of another TensorRT, or timed otherwise than ``kind`` is."""
        other = [name for name, wanted in ASKED[kind].items() if self.said.get(name, wanted) != wanted]
        if not self.passed:
            what = "trtexec did not come to its end here"
        elif version_of(self.banner, path) != version:
            what = f"this was run by TensorRT {version_of(self.banner, path)}, the race by {version}"
        elif other:
            what = f"timed in another way than run.sh asks for: {', '.join(other)}"
        else:
            return
        raise BadRecord(what, where=path, fix=AGAIN)


def _number(text: str | None) -> float | None:
    try:
        return float(text or "")
    except ValueError:
        return None


def _text(path: Path, otherwise: str | None = None) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise BadRecord(otherwise or f"cannot be read: {error.strerror}", where=path, fix=AGAIN) from error
