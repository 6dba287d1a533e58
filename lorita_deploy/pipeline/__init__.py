"""The stages in order, and the only loops that go back; resumable. `build` is the whole of it."""

from .build import STAGES, StagePreview, build, preview
from .context import Watch
from .options import BuildOptions, make_options, read_config
from .training import forecast

__all__ = ["STAGES", "BuildOptions", "StagePreview", "Watch", "build", "forecast", "make_options", "preview", "read_config"]
