"""What benchmark scripts share: the machine in words, images without a meaning, and a table in Markdown."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent


def here_and_now() -> str:
    """Day, machine and versions."""
    import onnxruntime
    import torch

    import lorita_deploy
    from lorita_deploy.targets import this_host

    host = this_host()
    return (
        f"{time.strftime('%Y-%m-%d')}: {host.machine}, {host.cores} cores, "
        f"{host.memory_bytes / 1e9:.0f} GB, {platform.platform()}; Python {platform.python_version()}, "
        f"torch {torch.__version__}, onnxruntime {onnxruntime.__version__}, lorita-deploy {lorita_deploy.__version__}"
    )


def heading(title: str, script: str, load: float) -> list[str]:
    """The first lines of a recorded result: what was run where."""
    return [f"# {title}", "", f"`benchmarks/{script}` on {here_and_now()}; load average before: {load:.2f}.", ""]


def load() -> float:
    return os.getloadavg()[0]


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """Markdown; the first column is text, the others are numbers."""
    rules = ["---", *("---:" for _ in columns[1:])]
    return ["| " + " | ".join(map(str, row)) + " |" for row in (columns, rules, *rows)]


def random_images(folder: Path, count: int = 64) -> Path:
    """Smooth random images, 256 pixels square: they vary, which is all that random weights can make use of."""
    import numpy as np
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    for index in range(count):
        coarse = generator.integers(0, 256, (4 + index % 12, 4 + index % 12, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((256, 256), Image.Resampling.BICUBIC).save(folder / f"{index:02d}.png")
    return folder


def watched(command: Sequence[str]) -> tuple[int, float, float]:
    """Exit status, wall seconds and peak resident gigabytes of a command and what it waits for, from outside."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    return os.waitstatus_to_exitcode(status), time.perf_counter() - start, usage.ru_maxrss * 1024 / 1e9


def keep(file: Path, name: str, row: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """All rows of a long benchmark so far: those in the file, the new one among them. It may so be run network by network."""
    rows: dict[str, dict[str, Any]] = json.loads(file.read_text()) if file.exists() else {}
    rows[name] = row
    file.write_text(json.dumps(rows, indent=1, sort_keys=True) + "\n")
    return rows
