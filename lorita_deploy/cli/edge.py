"""The edge of the program: the one place where exceptions become three-part messages and exit codes.

A `LoritaDeployError` never shows a traceback, nor does a command line that cannot be understood; a programming error always
does.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import click

from ..errors import LoritaDeployError, OutOfResource
from ..memory import memory_is_full

CONTEXT: dict[str, Any] = {"help_option_names": ["-h", "--help"], "max_content_width": 110}
RESUME = "nothing finished is lost: run the same command again to go on"
FULL = "free some, or choose another place (--out); what is finished is kept"
REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP)
"""Whose names they are, the user has given."""
UNUSABLE = "check the path, and who may read and write there"
_COMMAND = "lorita_deploy.command"
INTERRUPTED, TERMINATED, BROKEN_PIPE = 130, 143, 141


class Terminated(BaseException):
    """SIGTERM arrived."""


class Edge(click.Group):
    """The outermost group."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            _misused(ctx, error)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order in which they were added: that of the work."""
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with _terminable():
                result = super().invoke(ctx)
                sys.stdout.flush()
                return result
        except click.UsageError as error:
            _misused(ctx, error)
        except LoritaDeployError as error:
            _stop(ctx, error.told(_command(ctx)), error.exit_code)
        except KeyboardInterrupt:
            _stop(ctx, f"interrupted; {RESUME}", INTERRUPTED, prefix="")
        except Terminated:
            _stop(ctx, f"terminated; {RESUME}", TERMINATED, prefix="")
        except BrokenPipeError:
            # Whoever read our output has left. Keep Python from complaining about the same pipe when it exits.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit(BROKEN_PIPE)
        except Exception as error:
            if isinstance(error, OSError) and error.errno in REFUSED and error.filename:
                told = LoritaDeployError(os.strerror(error.errno).lower(), where=error.filename, fix=UNUSABLE)
                _stop(ctx, told.told(_command(ctx)), told.exit_code)
            what = _exhausted(error)
            if what is None:
                raise
            _stop(ctx, OutOfResource(what, fix=FULL).told(_command(ctx)), OutOfResource.exit_code)


def begun(ctx: click.Context) -> None:
    """Note which command runs, for errors that know of no nearer place."""
    ctx.meta[_COMMAND] = ctx.command_path


def _command(ctx: click.Context) -> str:
    return str(ctx.meta.get(_COMMAND) or f"{ctx.command_path} {ctx.invoked_subcommand or ''}".strip())


def _misused(ctx: click.Context, error: click.UsageError) -> NoReturn:
    """Of a group without a command, its help; of everything else the same three parts as of any error."""
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        raise error
    command = error.ctx.command_path if error.ctx else _command(ctx)
    what = error.format_message().rstrip(".")
    told = LoritaDeployError(f"{what[:1].lower()}{what[1:]}", fix=f"{command} -h says what can be given")
    _stop(ctx, told.told(command), error.exit_code)


def _stop(ctx: click.Context, message: str, code: int, *, prefix: str = "error: ") -> NoReturn:
    click.echo(prefix + message, err=True)
    ctx.exit(code)


def _exhausted(error: Exception) -> str | None:
    """What ran out, if that is why this was raised."""
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    if memory_is_full(error):
        return f"out of memory: {text}"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk is full: {error.filename or text}"
    return None


@contextmanager
def _terminable() -> Iterator[None]:
    """Turn SIGTERM into an exception, so that locks and temporary files are cleaned up on the way out."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def on_terminate(number: int, frame: object) -> NoReturn:
        raise Terminated

    before = signal.signal(signal.SIGTERM, on_terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
