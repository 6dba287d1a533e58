"""What follows from the samples of a race: the faster one, the one that is in time, what is warned of."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import clock
import pytest
import race
from progress import Progress

from lorita_deploy.records import Deadline, LatencyRatio, LatencySeries
from lorita_deploy.records.timing import FEWEST_PAIRS

HEAD: dict[str, Any] = {"baseline": "dense", "settings": {"batch": 4}}


def reload(scale: dict[str, float], number: int, gpu: bool) -> dict[str, Any]:
    """100 samples of each artifact, in nanoseconds, with a little of everything."""
    found = {}
    for name, factor in scale.items():
        samples = [1e6 * factor * (1 + 0.01 * ((7 * i + number) % 10)) for i in range(100)]
        dense = [ns * scale["dense"] / factor for ns in samples]
        found[name] = {
            "samples": samples,
            "pairs": [list(pair) for pair in zip(samples[::4], dense[::4], strict=True)],
            "gpu": [0.6 * ns for ns in samples] if gpu else [],
            "per_s": 900.0 / factor if gpu else None,
            "warm": [20, True],
        }
    return found


def finished(folder: Path, scale: dict[str, float], gpu: bool = False) -> tuple[dict[str, Any], Progress]:
    job = {**HEAD, "folder": str(folder), "artifacts": []}
    progress = Progress(str(folder / "receipt-progress.json"), "key")
    calm = {"power_mode": None, "clocks_mhz": {}, "temperatures_c": {}, "throttle_events": {}}
    progress.conditions.append({"at": "start", **calm})
    for name in scale:
        (folder / f"{name}.onnx").write_bytes(name.encode())
        job["artifacts"].append(
            {"name": name, "path": f"{name}.onnx", "sha256": "0" * 64, "accuracy": None, "rung": "rung" in name}
        )
        progress.probes[name] = {"load_ms": 1.0, "first_ms": 2.0, "peak_memory_bytes": None, "max_rel": 1e-6, "call_ms": 1.0}
        progress.calls[name] = 1
    for number in range(12):
        progress.add_reload(reload(scale, number, gpu), {"at": f"reload {number + 1}", **calm}, float(number))
    return job, progress


def test_series_and_ratios_are_records(tmp_path: Path) -> None:
    job, progress = finished(tmp_path, {"compressed": 0.5, "dense": 1.0})
    series, ratios, faster, warnings = race.results(job, progress)
    compressed, dense = [LatencySeries.model_validate_json(json.dumps(each)) for each in series]
    assert (compressed.n, compressed.gpu) == (1200, None)
    assert compressed.throughput_per_s == pytest.approx(4 * 1e3 * 1200 / sum(compressed.samples_ms)), "examples, not calls"
    assert dense.p99_ci95_ms
    assert dense.p99_ms
    assert dense.p99_ci95_ms[0] <= dense.p99_ms <= dense.p99_ci95_ms[1]
    (ratio,) = [LatencyRatio.model_validate_json(json.dumps(each)) for each in ratios]
    assert ratio.ratio == pytest.approx(0.5)
    assert faster == "compressed"
    assert warnings == []


def test_times_on_the_gpu_alone_are_named_apart(tmp_path: Path) -> None:
    job, progress = finished(tmp_path, {"dense": 1.0}, gpu=True)
    ((body,), ratios, faster, _) = race.results(job, progress)
    dense = LatencySeries.model_validate_json(json.dumps(body))
    assert dense.gpu
    assert dense.gpu.n == 1200
    assert dense.gpu.median_ms == pytest.approx(0.6 * dense.median_ms)
    assert dense.throughput_per_s == 4 * 900.0
    assert (ratios, faster) == ([], None)


def test_the_ladder_is_weighed_by_accuracy(tmp_path: Path) -> None:
    scale = {"dense": 4.0, "compressed": 1.0, "compressed-rung1": 2.0, "compressed-rung2": 0.8}
    job, progress = finished(tmp_path, scale)
    stated = {"dense": 0.95, "compressed": 0.90, "compressed-rung1": 0.93, "compressed-rung2": 0.5}
    for artifact in job["artifacts"]:
        artifact["accuracy"] = stated[artifact["name"]]
    series, ratios, faster, _ = race.results(job, progress)
    assert len(ratios) == 3
    for limit_ms, chosen in (
        (10.0, "dense"),
        (3.5, "compressed-rung1"),
        (1.5, "compressed"),
        (0.95, "compressed-rung2"),
        (0.5, None),
    ):
        found = Deadline.model_validate(race.deadline(limit_ms, series))
        assert found.chosen == chosen, limit_ms
    assert set(found.p99_at_most_ms) == set(scale)
    assert faster == "compressed", "without a deadline no rung is taken for its speed alone"


def test_without_accuracies_the_larger_file_counts_as_the_more_accurate() -> None:
    series = [
        {"name": name, "accuracy": None, "file_bytes": size, "p99_ci95_ms": [1.0, 2.0]} for name, size in (("a", 5), ("b", 9))
    ]
    assert race.deadline(3.0, series)["chosen"] == "b"


def test_a_tail_that_was_not_seen_meets_no_deadline() -> None:
    series = [{"name": "a", "accuracy": 1.0, "file_bytes": 1, "p99_ci95_ms": None}]
    assert race.deadline(1e9, series) == {"deadline_ms": 1e9, "chosen": None, "p99_at_most_ms": {"a": None}}


class Noted:
    """A session that notes every call."""

    inputs = (("x", "float32", (1, 2)),)

    def __init__(self, name: str, said: list[str]) -> None:
        self.name, self.said = name, said
        said.append(f"load {name}")

    def run(self, feeds: dict[str, Any]) -> None:
        self.said.append(self.name)

    def close(self) -> None: ...


class Slow(Noted):
    def run(self, feeds: dict[str, Any]) -> None:
        time.sleep(2e-3)


def test_a_race_that_is_far_too_slow_still_takes_what_an_interval_needs(tmp_path: Path) -> None:
    job = {"artifacts": [{"name": name} for name in ("dense", "compressed")], "baseline": "dense", "golden": None}
    job |= {"settings": {"batch": 1}, "samples": 12, "max_seconds": 1e-3, "deadline_ms": 0.0}
    progress = Progress(str(tmp_path / "progress.json"), "key")
    race.race(job, lambda artifact: Slow(artifact["name"], []), progress)
    pairs = [pair for each in progress.reloads for pair in each["compressed"]["pairs"]]
    assert len(pairs) == clock.FEWEST
    ratios = [race._ratio("compressed", "dense", progress.reloads[:count]) for count in (5, 6)]
    found = [{**each, "ci95": (0.5, 0.9)} for each in ratios]
    assert [clock.faster_of("dense", [each]) for each in found] == ["dense", "compressed"]
    assert clock.FEWEST == FEWEST_PAIRS


def test_every_second_reload_mirrors_the_orders_of_the_one_before() -> None:
    """What being loaded, warmed up or visited first is worth does not add up in favour of one of them."""
    names = ("dense", "compressed", "compressed-rung1")
    job = {"artifacts": [{"name": name} for name in names], "baseline": "dense", "golden": None, "settings": {"batch": 1}}
    job |= {"samples": 240, "max_seconds": 60.0, "deadline_ms": 0.0}
    calls = dict.fromkeys(names, 1)
    orders = []
    for number in range(12):
        said: list[str] = []
        race._reload(job, lambda artifact, said=said: Noted(artifact["name"], said), calls, number, time.monotonic() + 60)
        loads, warm, last_round = said[:3], list(dict.fromkeys(said[3:])), said[-18::3]
        assert last_round == last_round[::-1]
        orders.append((loads, warm, last_round[:3]))
    for one, other in zip(orders[::2], orders[1::2], strict=True):
        assert [each[::-1] for each in one] == list(other)
    assert len({str(each) for each in orders}) > 4, "the orders are drawn anew for every two reloads"
