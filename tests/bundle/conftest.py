"""The runner's files find their neighbours by their bare names; here as on a board."""

from __future__ import annotations

import sys
from pathlib import Path

from lorita_deploy import bundle

sys.path.append(str(Path(bundle.__file__).parent))
