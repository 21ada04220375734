"""Refusals: an error that is no bug ends a command with one line and status 1, and so does a disk that takes no more.

The verbs and the doors of the stages share it. Where the reader of the output has gone, as ``head`` goes, the command
ends without a word: the rest was not wanted.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import sys
from collections.abc import Callable
from types import TracebackType

from modeling_pgolf.errors import PGolfError

DISK_REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
# And those of a place that is another's, or no place for a file.
PLACE_REFUSALS = (errno.EACCES, errno.EISDIR, errno.ENOTDIR)
# What a shell reports of a command that Ctrl-C ended.
INTERRUPTED = 128 + signal.SIGINT
# How libraries in Rust tell the number of an error of the operating system; tokenizers raises a plain Exception with
# it, safetensors an error of its own.
RUST_NUMBER = re.compile(r"\(os error (\d+)\)")


class TellRefusals:
    """A block that is a whole command: what it refuses is told on the error stream; errors that are bugs pass.

    A context manager and no ``except``: libraries raise errors of many classes for a full disk.
    before_telling: called when there is something to tell.
    """

    def __init__(self, before_telling: Callable[[], None] = lambda: None) -> None:
        self.before_telling = before_telling

    def __enter__(self) -> None:
        """Begin the command."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the command: exits with status 1 on a refusal, and on output that nobody reads."""
        # An error of a pipe may be another pipe's: a line more shows whether the output takes any.
        unwritten = write_out("\n" if isinstance(error, BrokenPipeError) else "")
        if isinstance(error, BrokenPipeError | SystemExit | None):
            error = unwritten or error
            if isinstance(unwritten, BrokenPipeError):
                sys.exit(1)
        if isinstance(error, KeyboardInterrupt):
            print("pgolf: stopped; what was complete is kept", file=sys.stderr)
            sys.exit(INTERRUPTED)
        line = None if error is None else refusal(error)
        if line:
            self.before_telling()
            print(f"pgolf: {line}", file=sys.stderr)
            sys.exit(1)


def refusal(error: BaseException) -> str | None:
    """Return the line that tells an error; None for one that nobody has foreseen."""
    if isinstance(error, PGolfError):
        return f"{type(error).__name__}: {error}"
    if isinstance(error, OSError) and error.errno in PLACE_REFUSALS:
        return f"asked for {error.filename}; found: {error.strerror}; choose another place"
    if refused_by_disk(error):
        return f"the disk refuses ({error}); complete folders are kept: free space or choose another place, start again"
    return None


def refused_by_disk(error: BaseException) -> bool:
    """Say whether a file could not be written because its disk is full, over quota or read-only."""
    if isinstance(error, OSError):
        return error.errno in DISK_REFUSALS
    number = RUST_NUMBER.search(str(error))
    return number is not None and int(number[1]) in DISK_REFUSALS


def write_out(end: str) -> OSError | None:
    """Write ``end`` and what was printed before it; returns the error where that is refused.

    Python would try again when it ends, so the output then leads nowhere. Source: Python's manual, "Note on SIGPIPE" in
    the chapter on signals.
    """
    try:
        print(end=end, flush=True)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return error
    return None
