"""Prices in context: whole networks on a ladder of ranks, timed node by node with the runtime's own profiler.

A layer alone does not cost what it costs between its neighbours (fusions, changes of layout, what lies in the caches), so
variant v of the network has *every* layer as a pair, each on a rung of its own; about as many variants as the longest
ladder has rungs measure every candidate at least once. Of every variant

    whole run, profiler off = call + scale * sum over nodes (profiled time + node)

where ``call`` (entering the runtime) and ``node`` (negative: the profiler's own cost) are measured on two chains of empty
nodes, and ``scale``, near 1, is the median over all variants: a disturbance that hits one of them moves no price.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from ..errors import BadArtifact, BadRecord, EnvironmentDiffers, OutOfResource, PlanMismatch
from ..ports import Device
from ..records import (
    Candidate,
    Geometry,
    Host,
    LayerTime,
    NodeTime,
    Precision,
    PriceTable,
    Profile,
    ProfiledArtifact,
    Settings,
)
from ..targets import Target
from .variants import Variant, empty_chain, find_layers, ladder_variants, make_variant

if TYPE_CHECKING:
    from onnx import ModelProto

Progress = Callable[[float, float, str], object]
Times = dict[tuple[str, int | None], float]
"""(layer, rank) to microseconds; rank None is dense."""

CHAINS = (20, 200)
"""Nodes in the empty chains."""
MOST_BYTES = 4_000_000_000
"""Most disk that the variants may take: very large networks get fewer of them, and their prices are interpolated."""
TIMEOUT_S = 1800.0


class MeasuredPricer:
    """Prices the candidates of one network on ``device``; ``onnx_path`` is the dense network as it would ship.

    ``layers`` names the geometry of every layer that has candidates. Variants are written beside the file, and removed.
    """

    def __init__(
        self,
        onnx_path: Path,
        *,
        layers: Mapping[str, Geometry],
        device: Device,
        settings: Settings,
        network_sha256: str,
        target: Target,
        precision: Precision,
        progress: Progress | None = None,
        samples: int = 30,
        max_seconds: float = 45.0,
    ) -> None:
        self.onnx_path, self.layers, self.device, self.settings = onnx_path, dict(layers), device, settings
        self.network_sha256, self.target, self.precision = network_sha256, target.name, precision
        self.workdir, self.progress = onnx_path.parent, progress or (lambda done, total, text: None)
        self.samples, self.max_seconds = samples, max_seconds

    def price(self, candidates: Sequence[Candidate]) -> PriceTable:
        """Measured prices of all ``candidates``. Raises `BadArtifact` where a layer is not in the ONNX file under its name."""
        import onnx

        model = onnx.load(self.onnx_path)
        lost = sorted({each.layer for each in candidates} - find_layers(model, self.layers))
        if lost:
            raise BadArtifact(f"no weight is called {lost[0]}.weight, so it cannot be priced", where=self.onnx_path)
        ranks = {
            layer: sorted({each.rank for each in candidates if each.layer == layer and each.rank}) for layer in self.layers
        }
        rungs = ladder_variants(ranks, most=max(4, MOST_BYTES // self.onnx_path.stat().st_size))
        written: list[Path] = []
        try:
            variants = self._write(model, rungs, written)
            self.progress(0.3, 1.0, f"timing {len(variants)} variants")
            profile = self._profile(written)
        finally:
            for path in written:
                path.unlink(missing_ok=True)
        self.progress(1.0, 1.0, "")
        *profiled, short, long = profile.artifacts
        call_us, node_us = overheads(short, long)
        scale = median((each.whole_us - call_us) / _nodes_us(each, node_us) for each in profiled)
        times = layer_times(list(zip(variants, profiled, rungs, strict=True)), node_us)
        network_us = call_us + scale * _nodes_us(profiled[0], node_us)
        dense_us = scale * sum(us for (_, rank), us in times.items() if rank is None)
        return PriceTable(
            network_sha256=self.network_sha256,
            target=self.target,
            runtime=f"{self.settings.runtime} {profile.host.versions.get(self.settings.runtime, '')}".strip(),
            precision=self.precision,
            threads=self.settings.threads,
            batch=self.settings.batch,
            host=profile.host,
            provenance="measured",
            method=f"{len(rungs)} whole-network variants profiled node by node, {profiled[0].runs} runs each",
            network_us=network_us,
            rest_us=network_us - dense_us,
            times=tuple(
                LayerTime(candidate=each.key, us=scale * time_at(times, each.layer, each.rank), provenance="measured")
                for each in candidates
            ),
            geometries=self.layers,
        )

    def _write(self, model: ModelProto, rungs: Sequence[Mapping[str, int]], written: list[Path]) -> list[Variant]:
        """Write the variants and the empty chains; files are added to ``written`` as they come to be."""
        variants = []
        for number, ranks in enumerate(rungs):
            self.progress(0.3 * number / len(rungs), 1.0, f"variant {number + 1} of {len(rungs)}")
            variant = make_variant(model, self.layers, ranks, seed=number)
            written.append(self.workdir / f"variant-{number}.onnx")
            _write(written[-1], variant.model)
            variant.model.Clear()
            variants.append(variant)
        for length in CHAINS:
            written.append(self.workdir / f"empty-chain-{length}.onnx")
            _write(written[-1], empty_chain(length))
        return variants

    def _profile(self, files: Sequence[Path]) -> Profile:
        job: dict[str, Any] = {
            "tasks": ["profile"],
            "settings": self.settings.model_dump(),
            "artifacts": [
                {"name": path.stem, "path": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
                for path in files
            ],
            "samples": self.samples,
            "max_seconds": self.max_seconds,
            "kind": self.target,
            "result": "profile.json",
        }
        return Profile.load(self.device.run(self.workdir, job, timeout_s=TIMEOUT_S))


def _write(path: Path, model: ModelProto) -> None:
    """Without waiting for the disk, which for half a gigabyte can take minutes: these files are gone in seconds."""
    try:
        path.write_bytes(model.SerializeToString())
    except OSError as error:
        raise OutOfResource(f"cannot write: {error.strerror}", where=path, fix="free some space, then run again") from error


class TablePricer:
    """Prices from a table that was measured earlier, on this host or on another one."""

    def __init__(
        self,
        path: Path,
        *,
        layers: Mapping[str, Geometry],
        host: Host | None,
        settings: Settings,
        precision: Precision,
        network_sha256: str,
        target: Target,
        trust: bool = False,
    ) -> None:
        """``host`` is the machine that the prices are for; None where it is not at hand, and only its kind is known."""
        self.path, self.layers, self.host, self.settings, self.precision = path, dict(layers), host, settings, precision
        self.network_sha256, self.target, self.trust = network_sha256, target.name, trust

    def price(self, candidates: Sequence[Candidate]) -> PriceTable:
        """The stored prices of ``candidates``; they are ``tabled`` unless they were measured on this very host.

        Raises `BadRecord` (damaged, or a candidate is missing), `PlanMismatch` (a layer of another geometry), and
        `EnvironmentDiffers` where host, threads, precision or batch differ, unless ``trust`` was given.
        """
        table = PriceTable.load(self.path)
        differences = self._differences(table)
        if differences and not self.trust:
            raise EnvironmentDiffers(
                f"these prices were measured under other conditions: {'; '.join(differences)}",
                where=self.path,
                fix="measure again without --layer-times, or say --trust-times",
            )
        for layer, geometry in self.layers.items():
            if table.geometries.get(layer, geometry) != geometry:
                raise PlanMismatch(f"these prices are of another network: {layer} has another geometry", where=self.path)
        prices = {each.candidate: each for each in table.times}
        missing = [each.key for each in candidates if each.key not in prices]
        if missing:
            raise BadRecord(
                f"{len(missing)} candidates have no price; first: {missing[0]}", where=self.path, fix="measure again"
            )
        provenance = (
            "tabled" if table.provenance == "measured" and (differences or table.host != self.host) else table.provenance
        )
        times = tuple(prices[each.key].model_copy(update={"provenance": provenance}) for each in candidates)
        changes = {"network_sha256": self.network_sha256, "target": self.target, "provenance": provenance, "times": times}
        return table.model_copy(update=changes)

    def _differences(self, table: PriceTable) -> list[str]:
        pairs: list[tuple[str, object, object]] = [
            ("target", table.target, self.target),
            ("precision", table.precision, self.precision),
            ("threads", table.threads, self.settings.threads),
            ("batch", table.batch, self.settings.batch),
        ]
        if self.host and table.host:
            runtime = self.settings.runtime
            pairs += [("machine", table.host.machine, self.host.machine), ("cores", table.host.cores, self.host.cores)]
            pairs += [(runtime, table.host.versions.get(runtime), self.host.versions.get(runtime))]
        elif self.host:
            pairs += [("host", "none (an estimate)", self.host.machine)]
        return [f"{name} {there} there, {here} here" for name, there, here in pairs if there != here]


def overheads(short: ProfiledArtifact, long: ProfiledArtifact) -> tuple[float, float]:
    """(call, node) in microseconds, from two chains of empty nodes: what entering the runtime costs, and what a node costs
    with the profiler off beyond what its profile says."""
    more = len(long.nodes) - len(short.nodes)
    each_us = max(0.0, (long.whole_us - short.whole_us) / more)
    call_us = max(0.0, short.whole_us - len(short.nodes) * each_us)
    return call_us, each_us - sum(node.us for node in long.nodes) / len(long.nodes)


def _node_us(node: NodeTime, node_us: float) -> float:
    return max(0.1, node.us + node_us)


def _nodes_us(artifact: ProfiledArtifact, node_us: float) -> float:
    return sum(_node_us(node, node_us) for node in artifact.nodes)


def layer_times(profiled: Sequence[tuple[Variant, ProfiledArtifact, Mapping[str, int]]], node_us: float) -> Times:
    """(layer, rank) to microseconds: the nodes charged to the layer, the median where several variants measured it."""
    found: dict[tuple[str, int | None], list[float]] = {}
    for variant, artifact, ranks in profiled:
        sums: dict[str, float] = {}
        before: str | None = None
        for node in artifact.nodes:
            owner = variant.owner(node.name, before)
            if owner is not None:
                before = owner
                sums[owner] = sums.get(owner, 0.0) + _node_us(node, node_us)
        for layer, us in sums.items():
            found.setdefault((layer, ranks.get(layer)), []).append(us)
    return {key: median(values) for key, values in found.items()}


def time_at(times: Times, layer: str, rank: int | None, block: int = 16) -> float:
    """The measured time, or one between the measured ranks of the same alignment.

    Time over rank is a staircase: runtimes pad channels to ``block`` or change the layout when they do not fit. So a rank
    is interpolated among those that fill their blocks as it does, and held level outside of them.
    """
    if (layer, rank) in times:
        return times[layer, rank]
    if rank is None:
        raise KeyError(layer)
    measured = {r: us for (name, r), us in times.items() if name == layer and r is not None}
    alike = {r: us for r, us in measured.items() if (r % block == 0) == (rank % block == 0)} or measured
    below, above = (
        max((r for r in alike if r < rank), default=min(alike)),
        min((r for r in alike if r > rank), default=max(alike)),
    )
    if below >= above:
        return alike[below]
    share = (rank - below) / (above - below)
    return (1 - share) * alike[below] + share * alike[above]
