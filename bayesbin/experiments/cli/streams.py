"""Standard streams that are closed, full, or unable to encode a character.

Reports go to standard output, everything else to standard error. A message that cannot be written is
dropped, since the work it speaks of goes on; a report that cannot be written is an error.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from typing import Any, TextIO


def say(message: str, quiet: bool = False) -> None:
    """Write a message to standard error, unless ``quiet`` or there is none.

    ``print`` would send it to standard output where the process was started with standard error closed.
    """
    if quiet or sys.stderr is None:
        return
    try:
        _write(sys.stderr, message)
    except (OSError, ValueError):  # a full disk; a stream that was closed since
        _discard(sys.stderr)


def write_report(text: str) -> None:
    """Write a report to standard output.

    :raises OSError: if it cannot be written there, with a sentence that says so. A pipe whose reader
        has seen enough, ``head`` say, is no error.
    """
    try:
        _write(sys.stdout, text)
    except BrokenPipeError:
        _discard(sys.stdout)
    except (OSError, ValueError) as error:
        _discard(sys.stdout)
        reason = getattr(error, "strerror", None) or str(error)
        raise OSError(f"cannot write the report to standard output: {reason.lower()}.") from error


def require_output() -> None:
    """Raise OSError if the process has no standard output for the report to come."""
    if sys.stdout is None:
        raise OSError(
            "expected a standard output for the report, but it is closed; redirect it to a file, or "
            "to /dev/null."
        )


def open_closed_streams() -> None:
    """Occupy the numbers of standard streams that are closed.

    The next file that is opened would otherwise get number 1 or 2, and whatever a library prints there
    would be written into it.
    """
    if None in (sys.__stdin__, sys.__stdout__, sys.__stderr__):
        while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
            pass
        os.close(descriptor)


def _write(stream: TextIO, text: str) -> None:
    encoding = getattr(stream, "encoding", None) or "utf-8"
    encodable = text.encode(encoding, "backslashreplace").decode(encoding)
    stream.write(f"{encodable}\n")
    stream.flush()


def _discard(stream: Any) -> None:
    """Let a stream that cannot be written end in nothing, so that Python's exit does not fail on it."""
    with contextlib.suppress(OSError, ValueError, io.UnsupportedOperation):
        number = stream.fileno()
        descriptor = os.open(os.devnull, os.O_WRONLY)
        os.dup2(descriptor, number)
        os.close(descriptor)
