"""What is shipped. The runner's files import nothing of ours and are copied into every bundle as they are."""

from __future__ import annotations

RUNNER_FILES = (
    "run.py",
    "runner.py",
    "job.py",
    "clock.py",
    "runtimes.py",
    "machine.py",
    "board.py",
    "power.py",
    "progress.py",
    "prepare.py",
    "race.py",
    "layer_profile.py",
    "engines.py",
    "trt.py",
    "trt_session.py",
    "cuda_runtime.py",
)
