"""What is in a weight file."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from ..networks import read_weights
from ..records import CheckpointSummary, TensorSpec

Shape = tuple[int, ...]


def look_at_weights(path: Path) -> CheckpointSummary:
    """Names, shapes and types of the tensors in a weight file. Raises `BadCheckpoint`."""
    tensors = read_weights(path)
    return CheckpointSummary(
        path=str(path),
        size_bytes=path.stat().st_size,
        sha256=sha256_of(path),
        tensors=tuple(
            TensorSpec(name=name, dtype=str(tensor.dtype).removeprefix("torch."), shape=tuple(tensor.shape))
            for name, tensor in tensors.items()
        ),
        params=sum(tensor.numel() for tensor in tensors.values()),
        depth=depth_of({name: tuple(tensor.shape) for name, tensor in tensors.items()}),
        metadata=_safetensors_metadata(path),
    )


def depth_of(shapes: Mapping[str, Shape]) -> int | None:
    """N of LoRITa, from a state dict's shapes; None where no weight is a product of factors."""
    layers: dict[str, dict[int, Shape]] = {}
    for name, shape in shapes.items():
        layer, _, number = name.rpartition(".parametrizations.weight.original")
        if layer and number.isdecimal() and len(shape) > 1:  # of one dimension: the gates of a norm
            layers.setdefault(layer, {})[int(number)] = shape
    return max((max(parts) + 1 for parts in layers.values() if not _is_weight_norm(parts)), default=None)


def _is_weight_norm(parts: Mapping[int, Shape]) -> bool:
    """Of torch's ``weight_norm`` there are the length of each row, (m, 1, ...), and the rows, (m, n, ...). No factors look like
    that: the squares beside a wide factor share their smaller side with it, and not its rows alone."""
    if parts.keys() != {0, 1} or len(parts[0]) != len(parts[1]):
        return False
    lengths, rows = parts[0], parts[1]
    both_square = lengths == rows and lengths[0] == lengths[1]
    return not both_square and all(one in (1, whole) for one, whole in zip(lengths, rows, strict=True))


def _safetensors_metadata(path: Path) -> dict[str, str]:
    if path.suffix != ".safetensors":
        return {}
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        return dict(file.metadata() or {})


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
