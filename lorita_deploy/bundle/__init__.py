"""What is shipped. The runner's files import nothing of ours and are copied into every bundle as they are."""

from __future__ import annotations

RUNNER_FILES = ("run.py", "job.py", "clock.py", "runtimes.py", "machine.py")
