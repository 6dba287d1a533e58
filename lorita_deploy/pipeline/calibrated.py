"""What calibration rests on and what it came to, for the keys of stages."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .folder import key_of, listing, sha256_of

if TYPE_CHECKING:
    from .context import Build

CALIBRATION = ("calibration.json", "calibration.safetensors")
"""What the stage calibrate writes: losses and orders, by which criterion, and the moments."""


def calibrated_on(build: Build) -> dict[str, object]:
    """What decides the images. A folder of them that is given beside labelled data is in no summary."""
    folder = build.options.calibration
    return {
        "data": build.data.content_sha256,
        "folder": folder and listing(Path(folder)),
        "samples": build.options.calibration_samples,
    }


def calibration_key(build: Build) -> str:
    """Of all that it wrote: moments are the same whatever the criterion."""
    return key_of({name: sha256_of(build.folder / name) for name in CALIBRATION})
