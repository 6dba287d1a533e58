"""What a bundle's ``run.sh`` brought home from a board that has trtexec and no Python: read, checked, made a receipt.

``race.txt`` says what was run and in what order, ``manifest.json`` what the bundle was, and each turn has trtexec's own log
and times (``--exportTimes``). A turn is a process of its own that loads the engine anew: what `clock` calls a reload.
trtexec 8 to 10 and trtexec 11 time by opposite defaults; ``run.sh`` asks all of them for the same, and here their logs are
asked whether they did it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from ..bundle import board, clock
from ..errors import BadRecord, PlanMismatch
from ..records import Artifact, Engine, GpuTimes, Host, LatencyRatio, LatencySeries, Manifest, Receipt, Settings
from ..targets import all_targets, matches
from .latency import artifact_name
from .trtexec_log import Log, Race, read_race

WAY = (
    "timed by trtexec in turns of whole runs, not interleaved call by call; its end-to-end times are transfers and "
    "computing added up, one inference enqueued ahead, and not those of one call after another"
)
UNVERIFIED = "trtexec verifies no outputs: run.py does"


class Turn(NamedTuple):
    """One network's two runs in one turn, warm-up left out."""

    gpu_ms: tuple[float, ...]
    """Between two events on the stream, without transfers."""
    e2e_ms: tuple[float, ...]
    """To the device, computing, and back."""
    log: Log


def is_trtexec(folder: Path) -> bool:
    """Whether ``folder`` holds what ``run.sh`` wrote, finished or not."""
    return any((folder / name).exists() for name in ("race.txt", "race.part"))


def read_trtexec(folder: Path) -> Receipt:
    """The receipt of what ``run.sh`` wrote to ``folder``.

    Raises `BadRecord` (damaged, cut short, or timed in another way than ``run.sh`` asks for) and `PlanMismatch` where what
    was timed is not what the bundle's manifest lists.
    """
    found = read_race(folder)
    manifest = Manifest.load(folder / "manifest.json")
    artifacts = _matched(found, manifest, folder)
    turns = {name: [_turn(folder, name, number, found) for number in found.turns[name]] for name in artifacts}
    warnings = [WAY, UNVERIFIED, *clock.load_warning(found.load_before, int(found.facts["cores"]))]
    series = []
    for stem, artifact in artifacts.items():
        series.append(_series(stem, artifact, turns[stem], found, manifest))
        settled = series[-1].warmup_stable
        warnings += clock.warnings_of(series[-1].name, series[-1].samples_ms, settled, len(turns[stem]))
    warnings += board.changes([each.model_dump() for each in found.conditions])
    baseline = next((stem for stem, each in artifacts.items() if artifact_name(each) == "dense"), next(iter(artifacts)))
    ratios = [
        _ratio(artifact_name(artifacts[stem]), artifact_name(artifacts[baseline]), turns[stem], turns[baseline])
        for stem in artifacts
        if stem != baseline
    ]
    plain = {artifact_name(each) for each in artifacts.values() if not each.rung}
    asked = [each.model_dump() for each in ratios if each.candidate in plain]
    settings = Settings(
        runtime="trtexec", threads=1, graph_level="all", spinning=True, batch=min(map(_batch, artifacts.values()))
    )
    host = _host(found, manifest, next(iter(turns.values()))[0].log)
    if host.kind != manifest.target:
        warnings.append(f"this machine is not a {manifest.target}, which the bundle is made for")
    start = found.conditions[0].model_dump()
    return Receipt(
        run_id=found.sha256[:32],
        started=found.facts["started"],
        host=host,
        settings=settings,
        load_before=found.load_before,
        load_after=found.load_after,
        series=tuple(series),
        ratios=tuple(ratios),
        faster=clock.faster_of(artifact_name(artifacts[baseline]), asked),
        warnings=tuple(warnings),
        model=manifest.model,
        environment=board.environment(start),
        fingerprint=board.fingerprint(host.model_dump(), settings.model_dump(), start),
        conditions=found.conditions,
    )


def _matched(found: Race, manifest: Manifest, folder: Path) -> dict[str, Artifact]:
    """The manifest's artifact of every file that was timed, by the stem of its name."""
    listed = {(Path(each.path).stem, each.sha256): each for each in manifest.artifacts}
    strange = [stem for stem, digest in found.networks.items() if (stem, digest) not in listed]
    if strange or not found.networks:
        raise PlanMismatch(
            f"what was timed is not what the bundle holds: {', '.join(strange) or 'nothing was timed'}",
            where=folder / "race.txt",
            fix="carry the whole folder that run.sh wrote, from one bundle",
        )
    return {stem: listed[stem, digest] for stem, digest in found.networks.items()}


def _turn(folder: Path, stem: str, number: int, found: Race) -> Turn:
    logs, times = {}, {}
    for kind, metric in (("gpu", "computeMs"), ("e2e", "latencyMs")):
        name = f"{stem}-{kind}-{number}"
        logs[kind] = Log.read(folder / f"time-{name}.log")
        logs[kind].require(kind, found.version, folder / f"time-{name}.log")
        times[kind] = _samples(folder / f"times-{name}.json", metric, logs[kind])
    return Turn(times["gpu"], times["e2e"], logs["e2e"])


def _samples(path: Path, metric: str, log: Log) -> tuple[float, ...]:
    """One metric of every inference after the warm-up, in milliseconds. Up to TensorRT 8.4 the file begins with the warm-up,
    later it does not; the log says how many there were of either.
    """
    try:
        trace = json.loads(path.read_text(encoding="utf-8"))
        kept = [float(each[metric]) for each in trace]
        kept = kept[log.warmups :] if len(kept) == log.warmups + log.queries else kept
        whole = all(math.isfinite(ms) and ms > 0 for ms in kept)
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise BadRecord(
            f"these are not trtexec's times, or not all of them: {error}", where=path, fix="run run.sh on the board again"
        ) from error
    if not kept or not whole or len(kept) != log.queries:
        raise BadRecord(
            f"{len(kept)} inferences are timed here, and the log beside it tells of {log.queries}",
            where=path,
            fix="the file was cut short or changed: copy it again, or run run.sh on the board again",
        )
    return tuple(kept)


def _series(stem: str, artifact: Artifact, turns: Sequence[Turn], found: Race, manifest: Manifest) -> LatencySeries:
    whole = clock.distribution([turn.e2e_ms for turn in turns])
    name = artifact_name(artifact)
    loads = [turn.log.load_ms for turn in turns if turn.log.load_ms is not None]
    accuracy = manifest.accuracy.get(name)
    return LatencySeries(
        **_frozen(whole),
        name=name,
        sha256=artifact.sha256,
        calls_per_sample=1,
        reloads=len(turns),
        spread=clock.spread(whole["samples_ms"]),
        warmup_runs=sum(turn.log.warmups for turn in turns),
        warmup_stable=all(clock.settled(turn.e2e_ms[:14]) for turn in turns),
        load_ms=clock.median(loads) if loads else None,
        first_ms=None,
        peak_memory_bytes=None,
        file_bytes=artifact.size_bytes,
        verified=None,
        max_rel=None,
        throughput_per_s=_batch(artifact) * clock.median([turn.log.queries_per_s for turn in turns]),
        gpu=GpuTimes(**_frozen(clock.distribution([turn.gpu_ms for turn in turns]))),
        engine=_engine(stem, found, turns[0].log),
        accuracy=accuracy.value if accuracy else None,
    )


def _batch(artifact: Artifact) -> int:
    """What was timed: where no shapes are given, trtexec takes 1 for an open dimension."""
    return 1 if artifact.dynamic_batch else artifact.batch


def _ratio(name: str, baseline: str, mine: Sequence[Turn], base: Sequence[Turn]) -> LatencyRatio:
    """One pair per turn: both were run within it, one right after the other."""
    pairs = [[(clock.median(a.e2e_ms), clock.median(b.e2e_ms))] for a, b in zip(mine, base, strict=True)]
    return LatencyRatio(**_frozen(clock.ratio_of(name, baseline, pairs)))


def _frozen(found: dict[str, Any]) -> dict[str, Any]:
    """Lists as the tuples that records hold."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in found.items()}


def _engine(stem: str, found: Race, log: Log) -> Engine:
    sha256, size, workspace_mib, seconds = found.engines[stem]
    return Engine(
        sha256=sha256,
        size_bytes=int(size),
        workspace_bytes=int(workspace_mib) << 20,
        exact=False,
        build_s=float(seconds),
        about={"tensorrt": found.version, **log.device},
    )


def _host(found: Race, manifest: Manifest, log: Log) -> Host:
    facts, name = found.facts, found.facts.get("board", "")
    system = facts["system"]
    memory_bytes = 1024 * int(facts["memory_kb"])
    told = partial(matches, architecture=system.split()[-1], board=name, cuda=True, memory_bytes=memory_bytes)
    here = [each.name for each in all_targets() if told(each)]
    here.sort(key=lambda each: each != manifest.target)
    versions = {"tensorrt": found.version, **({"l4t": facts["l4t"]} if "l4t" in facts else {})}
    return Host(
        machine=name or log.device.get("gpu") or facts.get("processor", "") or "unknown",
        kind=here[0] if here else "cuda",
        cores=int(facts["cores"]),
        memory_bytes=memory_bytes,
        system=system,
        versions=dict(sorted(versions.items())),
    )
