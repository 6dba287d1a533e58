"""What is in a weight file."""

from __future__ import annotations

import hashlib
from pathlib import Path

from ..networks import read_weights
from ..records import CheckpointSummary, TensorSpec


def look_at_weights(path: Path) -> CheckpointSummary:
    """Names, shapes and types of the tensors in a weight file. Raises `BadCheckpoint`."""
    tensors = read_weights(path)
    factors = [name for name in tensors if ".parametrizations." in name and name.rsplit("original", 1)[-1].isdigit()]
    return CheckpointSummary(
        path=str(path),
        size_bytes=path.stat().st_size,
        sha256=sha256_of(path),
        tensors=tuple(
            TensorSpec(name=name, dtype=str(tensor.dtype).removeprefix("torch."), shape=tuple(tensor.shape))
            for name, tensor in tensors.items()
        ),
        params=sum(tensor.numel() for tensor in tensors.values()),
        depth=max((int(name.rsplit("original", 1)[-1]) for name in factors), default=-1) + 1 or None,
        metadata=_safetensors_metadata(path),
    )


def _safetensors_metadata(path: Path) -> dict[str, str]:
    if path.suffix != ".safetensors":
        return {}
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        return dict(file.metadata() or {})


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
