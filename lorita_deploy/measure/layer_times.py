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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from ..errors import BadArtifact, OutOfResource
from ..ports import Device
from ..records import (
    Candidate,
    Geometry,
    LayerTime,
    NodeTime,
    Precision,
    PriceTable,
    Profile,
    ProfiledArtifact,
    Settings,
)
from ..targets import Target
from .bilayer import Size, time_between
from .latency import time_limit_s
from .roofline import RooflinePricer
from .variants import Variant, empty_chain, find_layers, ladder_variants, make_variant

if TYPE_CHECKING:
    from onnx import ModelProto

Progress = Callable[[float, float, str], object]
FullTimes = dict[tuple[str, int | None], float]
"""(layer, rank) to microseconds at the layer's full widths; rank None is dense."""
Times = dict[tuple[str, Size], float]
"""(layer, size) to microseconds."""
Narrowed = tuple[Path, Mapping[str, tuple[int, int]]]
"""A dense network with fewer channels, as an ONNX file, and (channels read, written) of the layers that have fewer."""

CHAINS = (20, 200)
"""Nodes in the empty chains."""
LEAST_US = 0.1
"""Least that a node, or a layer, is charged."""
MOST_BYTES = 4_000_000_000
"""Most disk that the variants may take: very large networks get fewer of them, and their prices are interpolated."""


class MeasuredPricer:
    """Prices the candidates of one network on ``device``; ``onnx_path`` is the dense network as it would ship.

    ``layers`` names the geometry of every layer that has candidates. Variants are written beside the file, and removed.
    ``lower`` makes a variant of ``precision`` out of one in fp32.
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
        lower: Callable[[bytes], bytes] | None = None,
        samples: int = 30,
        max_seconds: float = 45.0,
    ) -> None:
        self.onnx_path, self.layers, self.device, self.settings = onnx_path, dict(layers), device, settings
        self.network_sha256, self.target, self.precision = network_sha256, target.name, precision
        roofline = RooflinePricer(
            None, layers=layers, network_sha256=network_sha256, target=target, precision=precision, batch=settings.batch
        )
        self.estimate = roofline.layer_us
        self.workdir, self.progress = onnx_path.parent, progress or (lambda done, total, text: None)
        self.samples, self.max_seconds, self.lower = samples, max_seconds, lower

    def price(self, candidates: Sequence[Candidate], narrowed: Sequence[Narrowed] = ()) -> PriceTable:
        """Measured prices of all ``candidates``; those at smaller widths from the networks of ``narrowed``.

        Raises `BadArtifact` where a layer is not in the ONNX file under its name.
        """
        import onnx

        lost = sorted({each.layer for each in candidates} - find_layers(onnx.load(self.onnx_path), self.layers))
        if lost:
            raise BadArtifact(f"no weight is called {lost[0]}.weight, so it cannot be priced", where=self.onnx_path)
        ranks = {layer: self._ranks(candidates, layer, self._widths(layer)) for layer in self.layers}
        rungs = ladder_variants(ranks, most=max(4, MOST_BYTES // self.onnx_path.stat().st_size))
        written: list[Path] = []
        try:
            smaller = list(self._narrowed(candidates, narrowed))
            jobs = [(self.onnx_path, each) for each in rungs] + [(path, each) for path, _, each in smaller]
            variants = self._write(jobs, written)
            for length in CHAINS:
                written.append(self.workdir / f"empty-chain-{length}.onnx")
                _write(written[-1], empty_chain(length))
            self.progress(0.3, 1.0, f"timing {len(variants)} variants")
            profile = self._profile(written)
        finally:
            for path in written:
                path.unlink(missing_ok=True)
        self.progress(1.0, 1.0, "")
        *profiled, short, long = profile.artifacts
        call_us, node_us = overheads(short, long)
        scale = median((each.whole_us - call_us) / _nodes_us(each, node_us) for each in profiled)
        rungs += [each for _, _, each in smaller]
        widths = [self._all_widths({}) for _ in rungs[: len(rungs) - len(smaller)]]
        widths += [self._all_widths(each) for _, each, _ in smaller]
        times = layer_times(list(zip(variants, profiled, rungs, widths, strict=True)), node_us)
        full = {(name, size[2]): us for (name, size), us in times.items() if size[:2] == self._widths(name)}
        dense_us = scale * sum(us for (_, rank), us in full.items() if rank is None)
        # Not the whole less the layers: a compressed network may take less time than that difference is uncertain by.
        rest_us = call_us + scale * others_us(variants[0], profiled[0], node_us)
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
            network_us=rest_us + dense_us,
            rest_us=rest_us,
            times=tuple(
                LayerTime(candidate=each.key, us=scale * self._us(each, times, full), provenance="measured")
                for each in candidates
            ),
            geometries=self.layers,
        )

    def _us(self, candidate: Candidate, times: Times, full: FullTimes) -> float:
        size = (candidate.k_in, candidate.k_out, candidate.rank)
        if (candidate.layer, None) not in full:  # on constants: worked out when the network is loaded, so no run holds it
            return LEAST_US
        if size[:2] == self._widths(candidate.layer):
            return time_at(full, candidate.layer, candidate.rank)
        measured = {at: us for (name, at), us in times.items() if name == candidate.layer}
        return time_between(measured, size, self.layers[candidate.layer], self.estimate)

    def _widths(self, layer: str) -> tuple[int, int]:
        return self.layers[layer].in_channels, self.layers[layer].out_channels

    def _all_widths(self, changed: Mapping[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
        return {layer: changed.get(layer, self._widths(layer)) for layer in self.layers}

    def _ranks(self, candidates: Sequence[Candidate], layer: str, widths: tuple[int, int]) -> list[int]:
        """The ranks on offer for a layer at certain widths."""
        return sorted(
            {each.rank for each in candidates if each.layer == layer and (each.k_in, each.k_out) == widths and each.rank}
        )

    def _narrowed(
        self, candidates: Sequence[Candidate], narrowed: Sequence[Narrowed]
    ) -> Iterator[tuple[Path, Mapping[str, tuple[int, int]], dict[str, int]]]:
        """Each narrowed network whole, and with every layer as a pair, on rungs that differ from network to network."""
        for number, (path, widths) in enumerate(narrowed):
            ranks = {layer: self._ranks(candidates, layer, both) for layer, both in self._all_widths(widths).items()}
            yield path, widths, {}
            yield (
                path,
                widths,
                {layer: each[(number + place) % len(each)] for place, (layer, each) in enumerate(ranks.items()) if each},
            )

    def _write(self, jobs: Sequence[tuple[Path, Mapping[str, int]]], written: list[Path]) -> list[Variant]:
        """Write variants of ONNX files at ranks; files are added to ``written`` as they come to be.

        One network is in memory at a time: of large ones there is no room for more.
        """
        import onnx

        variants = []
        for done, (path, ranks) in enumerate(jobs):
            number = len(written)
            self.progress(0.3 * done / len(jobs), 1.0, f"variant {done + 1} of {len(jobs)}")
            variant = make_variant(onnx.load(path), self.layers, ranks, seed=number)
            written.append(self.workdir / f"variant-{number}.onnx")
            _write(written[-1], variant.model, self.lower)
            variants.append(replace(variant, model=onnx.ModelProto()))  # clearing a message would not give its memory back
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
        return Profile.load(self.device.run(self.workdir, job, timeout_s=time_limit_s(self.settings.runtime)))


def _write(path: Path, model: ModelProto, lower: Callable[[bytes], bytes] | None = None) -> None:
    """Without waiting for the disk, which for half a gigabyte can take minutes: these files are gone in seconds."""
    try:
        path.write_bytes(lower(model.SerializeToString()) if lower else model.SerializeToString())
    except OSError as error:
        raise OutOfResource(f"cannot write: {error.strerror}", where=path, fix="free some space, then run again") from error


def overheads(short: ProfiledArtifact, long: ProfiledArtifact) -> tuple[float, float]:
    """(call, node) in microseconds, from two chains of empty nodes: what entering the runtime costs, and what a node costs
    with the profiler off beyond what its profile says."""
    more = len(long.nodes) - len(short.nodes)
    each_us = max(0.0, (long.whole_us - short.whole_us) / more)
    call_us = max(0.0, short.whole_us - len(short.nodes) * each_us)
    return call_us, each_us - sum(node.us for node in long.nodes) / len(long.nodes)


def _node_us(node: NodeTime, node_us: float) -> float:
    return max(LEAST_US, node.us + node_us)


def _nodes_us(artifact: ProfiledArtifact, node_us: float) -> float:
    return sum(_node_us(node, node_us) for node in artifact.nodes)


Timed = tuple[Variant, ProfiledArtifact, Mapping[str, int], Mapping[str, tuple[int, int]]]
"""A variant, its profile, the ranks of its pairs, and the widths of its layers."""


def layer_times(profiled: Sequence[Timed], node_us: float) -> Times:
    """Microseconds of layers: the nodes charged to them, the median where several variants measured the same."""
    found: dict[tuple[str, Size], list[float]] = {}
    for variant, artifact, ranks, widths in profiled:
        sums: dict[str, float] = {}
        before: str | None = None
        for node in artifact.nodes:
            owner = variant.owner(node.name, before)
            if owner is not None:
                before = owner
                sums[owner] = sums.get(owner, 0.0) + _node_us(node, node_us)
        for layer, us in sums.items():
            found.setdefault((layer, (*widths[layer], ranks.get(layer))), []).append(us)
    return {key: median(values) for key, values in found.items()}


def others_us(variant: Variant, artifact: ProfiledArtifact, node_us: float) -> float:
    """What is charged to no layer."""
    total, before = 0.0, None
    for node in artifact.nodes:
        owner = variant.owner(node.name, before)
        before = owner or before
        if owner is None:
            total += _node_us(node, node_us)
    return total


def time_at(times: FullTimes, layer: str, rank: int | None, block: int = 16) -> float:
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
