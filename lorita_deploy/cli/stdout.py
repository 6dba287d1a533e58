"""Stdout belongs to results. What libraries write there while a command runs, in Python, in C or in a process of their own,
goes to stderr: the solver of the plans, for one, has a debug line that its C++ code prints straight to file descriptor 1."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import TextIO

STDOUT, STDERR = 1, 2


@contextlib.contextmanager
def own_stdout() -> Iterator[TextIO]:
    """The stream for results; everything else that is written to file descriptor 1 comes out on stderr.

    Where stdout is no file of its own (a test's buffer, a closed one) it is handed out as it is.
    """
    if not _is_the_real_one():
        yield sys.stdout
        return
    sys.stdout.flush()
    kept, ours = os.dup(STDOUT), os.dup(STDOUT)
    stream = os.fdopen(
        ours, "w", encoding=sys.stdout.encoding, errors=sys.stdout.errors, buffering=1 if os.isatty(ours) else -1
    )
    os.dup2(STDERR, STDOUT)
    try:
        yield stream
        stream.flush()
    finally:
        with contextlib.suppress(OSError):  # a flush that fails has raised already
            stream.close()
        _empty_buffers()
        os.dup2(kept, STDOUT)
        os.close(kept)


def open_what_is_closed() -> None:
    """Started without stdout or stderr (``>&-`` in a shell), a program has none; what is written there then goes nowhere."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w", encoding="utf-8"))


def _is_the_real_one() -> bool:
    try:
        os.fstat(STDERR)
        return sys.stdout.fileno() == STDOUT
    except (AttributeError, OSError, ValueError, io.UnsupportedOperation):
        return False


def _empty_buffers() -> None:
    """What libraries wrote and nobody has seen yet is theirs as well: Python's buffer, and that of C."""
    import ctypes

    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).fflush(None)
