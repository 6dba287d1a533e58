"""What ships, by the race: never something slower, and a lower precision only where it is proven faster than fp32."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..measure.latency import artifact_name
from ..records import Artifact, LatencyRatio, Receipt, Role, ratio_between

if TYPE_CHECKING:
    from .context import Build


def ships(build: Build, receipt: Receipt) -> Artifact:
    """What ``model.onnx`` is. Where the target is not at hand, the bundle carries both networks and the board decides."""
    role = decide(build, receipt)
    lower = next(artifact for artifact in build.artifacts if artifact.role == role)
    reference = {artifact.role: artifact for artifact in build.exported.reference}
    if not reference or not build.on_target:
        return lower
    exact = reference[_role(build, ratio_between(receipt, _name(reference["compressed"]), _name(reference["dense"])))]
    faster = all(ratio_between(receipt, artifact_name(lower), _name(each)).faster for each in reference.values())
    return lower if faster else exact


def decide(build: Build, receipt: Receipt) -> Role:
    """Which network of the build's precision is the one to use."""
    return _role(build, receipt.ratios[0])


def _role(build: Build, compressed: LatencyRatio) -> Role:
    if not build.plan.changed() or (build.on_target and not compressed.never_slower):
        return "dense"
    return "compressed"


def _name(artifact: Artifact) -> str:
    return Path(artifact.path).stem
