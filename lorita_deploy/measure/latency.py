"""Racing artifacts on a device through the bundle's runner: the one way a latency comes to be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..ports import Device
from ..records import Artifact, Receipt, Settings


def race(
    device: Device,
    folder: Path,
    artifacts: Sequence[Artifact] | Mapping[str, Artifact],
    *,
    settings: Settings,
    baseline: str = "dense",
    golden: Path | None = None,
    tolerance: float = 1e-3,
    samples: int = 1200,
    max_seconds: float = 20.0,
    kind: str = "cpu",
    model: str = "",
    result: str = "receipt.json",
) -> Receipt:
    """Verify and race ``artifacts``, whose paths are relative to ``folder``, interleaved against the ``baseline`` role
    (or name, where ``artifacts`` gives them names of their own).

    ``golden`` is a folder inside ``folder`` with ``inputs.npz`` and ``outputs-<name>.npz``. ``samples`` of each artifact
    are asked for, as far as ``max_seconds`` allow; ``result`` is the file in ``folder`` to write. Raises what `Device.run`
    raises.
    """
    named = dict(artifacts) if isinstance(artifacts, Mapping) else {artifact_name(each): each for each in artifacts}
    job: dict[str, Any] = {
        "tasks": ["verify", "race"],
        "settings": settings.model_dump(),
        "artifacts": [
            {"name": name, "path": found.path, "sha256": found.sha256, "precision": found.precision, "rung": found.rung}
            for name, found in named.items()
        ],
        "baseline": baseline,
        "golden": golden and _golden_files(folder, golden, list(named)),
        "tolerance": tolerance,
        "samples": samples,
        "max_seconds": max_seconds,
        "kind": kind,
        "model": model,
        "result": result,
    }
    return Receipt.load(device.run(folder, job, timeout_s=time_limit_s(settings.runtime)))


def time_limit_s(runtime: str) -> float:
    """How long the runner may be at work. Engines are built on the board before they are timed, which takes minutes each."""
    return 4 * 3600.0 if runtime == "tensorrt" else 1800.0


def artifact_name(artifact: Artifact) -> str:
    """What the runner calls an artifact: its role, and its rung where that is not the plan itself."""
    return artifact.role if artifact.rung == 0 else f"{artifact.role}-rung{artifact.rung}"


def _golden_files(folder: Path, golden: Path, names: list[str]) -> dict[str, Any]:
    place = golden.relative_to(folder)
    outputs = {name: f"{place / f'outputs-{name}.npz'}" for name in names}
    return {
        "inputs": f"{place / 'inputs.npz'}",
        "outputs": {name: path for name, path in outputs.items() if (folder / path).exists()},
    }
