"""The estimate for targets that are not this machine: which form is faster, not how many milliseconds.

A layer is one kernel (what follows it, BN and ReLU, is fused), a pair is two. One kernel takes

    launch + max(compute, transfer)
    compute  = 2 * m' * n' * positions * batch / (peak * utilisation)      m', n': channels rounded up to the alignment
    transfer = bytes of weights, input and output / bandwidth
    utilisation = min(1, accumulators in flight / parallel),  in flight = m' * positions * batch * max(1, n' / SPLIT)

(Williams et al. 2009, "Roofline", with three things that decide whether a low-rank pair pays: alignment, launches, and small
layers that cannot fill the machine; long sums are split over the machine, one piece per ``SPLIT`` terms.) The parameters are
the target's; benchmarks/roofline.py compares the ranking with measured times.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

from ..forms import at_widths, form_geometries
from ..records import Candidate, Geometry, LayerTime, Precision, PriceTable
from ..targets import Target

BYTES: dict[Precision, int] = {"fp32": 4, "fp16": 2, "int8": 1}
SPLIT = 512
FUSED = frozenset(
    ("Add", "BatchNormalization", "Clip", "Constant", "Flatten", "Identity", "Relu", "Reshape", "Sigmoid", "Squeeze")
)
"""Operators without a kernel of their own: fused into the layer before them, or only another view of the same bytes."""


class RooflinePricer:
    """Estimated prices of the layers of ``layers`` on ``target``; ``onnx_path`` tells what else is in the network."""

    def __init__(
        self,
        onnx_path: Path | None,
        *,
        layers: Mapping[str, Geometry],
        network_sha256: str,
        target: Target,
        precision: Precision,
        batch: int,
    ) -> None:
        self.target, self.layers, self.precision, self.batch = target, dict(layers), precision, batch
        self.network_sha256, self.onnx_path = network_sha256, onnx_path

    def price(self, candidates: Sequence[Candidate]) -> PriceTable:
        """The estimate for every candidate, provenance ``estimated``, no host."""
        times = tuple(
            LayerTime(candidate=each.key, us=round(self._candidate_us(each), 4), provenance="estimated") for each in candidates
        )
        dense_us = sum(self.layer_us(geometry, None) for geometry in self.layers.values())
        rest_us = self.rest_us()
        return PriceTable(
            network_sha256=self.network_sha256,
            target=self.target.name,
            runtime=self.target.runtime,
            precision=self.precision,
            threads=1,
            batch=self.batch,
            host=None,
            provenance="estimated",
            method="roofline with alignment, launch cost and utilisation (measure/roofline.py)",
            network_us=dense_us + rest_us,
            rest_us=rest_us,
            times=times,
        )

    def _candidate_us(self, candidate: Candidate) -> float:
        geometry = at_widths(self.layers[candidate.layer], candidate.k_in, candidate.k_out)
        return self.layer_us(geometry, candidate.rank)

    def layer_us(self, geometry: Geometry, rank: int | None) -> float:
        """Microseconds of a layer, dense or as a pair."""
        return sum(self.kernel_us(part) for part in form_geometries(geometry, rank))

    def kernel_us(self, geometry: Geometry) -> float:
        """Microseconds of one convolution or linear layer."""
        roof, size = self.target.roofline, BYTES[self.precision]
        align = roof.align.get(self.precision, 1)
        m = _up(geometry.m, align)
        n = _up(geometry.in_channels // geometry.groups, align) * prod(geometry.kernel)
        outputs = m * geometry.positions * self.batch
        utilisation = min(1.0, outputs * max(1.0, n / SPLIT) / roof.parallel)
        compute_us = 2 * outputs * n / (roof.gflops[self.precision] * 1e3 * utilisation)
        moved = geometry.m * geometry.n + self.batch * (
            geometry.in_channels * prod(geometry.in_shape) + geometry.m * geometry.positions
        )
        return roof.launch_us + max(compute_us, self._transfer_us(moved * size))

    def rest_us(self) -> float:
        """What no candidate changes: one kernel for every other operator that is not fused, moving its bytes.

        Grouped convolutions are computed too. Zero without an ONNX file.
        """
        if self.onnx_path is None:
            return 0.0
        total = 0.0
        for inputs, outputs, macs in _other_operators(self.onnx_path, self.layers, self.batch):
            compute_us = 2 * macs / (self.target.roofline.gflops[self.precision] * 1e3)
            transfer_us = self._transfer_us((inputs + outputs) * BYTES[self.precision])
            total += self.target.roofline.launch_us + max(compute_us, transfer_us)
        return total

    def _transfer_us(self, size_bytes: float) -> float:
        return size_bytes / (self.target.roofline.bandwidth_gb_s * 1e3)


def _up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


def _other_operators(path: Path, layers: Collection[str], batch: int) -> list[tuple[int, int, int]]:
    """(elements read, elements written, multiply-adds) of every operator that is neither one of ``layers`` nor fused, for a
    whole ``batch``, which an open dimension stands for."""
    import onnx

    model = onnx.shape_inference.infer_shapes(onnx.load(path))
    graph = model.graph
    shapes: dict[str, list[int]] = {each.name: list(each.dims) for each in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        shapes[value.name] = [dim.dim_value or batch for dim in value.type.tensor_type.shape.dim]
    found = []
    for node in graph.node:
        if node.op_type in FUSED or _layer(node, layers):
            continue
        read = sum(prod(shapes.get(name, [0])) for name in node.input if name)
        written = sum(prod(shapes.get(name, [0])) for name in node.output)
        weight = shapes.get(node.input[1], [0, 0]) if node.op_type == "Conv" else []
        found.append((read, written, written * prod(weight[1:]) if weight else 0))
    return found


def _layer(node: Any, layers: Collection[str]) -> bool:
    """Whether a node is one of ``layers``, by the exporter's names for weights."""
    weights = (name.removesuffix(".T") for name in node.input[1:2])
    return any(name.removesuffix(".weight") in layers for name in weights)
