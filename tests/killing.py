"""A program killed just before any one of its file operations, in a process of its own.

The program is a function; the process is a fork of this one, so that nothing is imported again. Operations
are what changes files in a folder: opening to write, flushing to the disk, renaming, deleting, and making
folders. To be killed before operation k + 1 is to be killed after operation k.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

_CHANGES = {
    "os.rename",
    "os.remove",
    "os.mkdir",
    "os.rmdir",
    "os.link",
    "os.symlink",
    "os.truncate",
}


def file_operations(program: Callable[[], Any], folder: Path) -> int:
    """How many operations a whole run of the program does in ``folder``."""
    read, write = os.pipe()
    _run(program, folder, None, write)
    with os.fdopen(read) as pipe:
        return int(pipe.read())


def run_killed(program: Callable[[], Any], folder: Path, operation: int) -> None:
    """Run the program, and kill it just before an operation (from 1) in ``folder``."""
    status = _run(program, folder, operation, None)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, status


def spread(count: int, every: int, start: int = 1) -> Iterable[int]:
    """Some of the operations 1 .. count, evenly spread, the last one among them."""
    return sorted({*range(start, count + 1, every), count})


def _run(program: Callable[[], Any], folder: Path, operation: int | None, write: int | None) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads
        child = os.fork()
    if child == 0:
        try:
            done = _counting(folder, operation)
            program()
            if write is not None:
                os.write(write, str(done[0]).encode())
            os._exit(0)
        except BaseException:
            traceback.print_exc(file=sys.__stderr__)
            os._exit(1)
    if write is not None:
        os.close(write)
    status = os.waitpid(child, 0)[1]
    assert operation is not None or status == 0, "the program fails without being killed"
    return status


def _counting(folder: Path, operation: int | None) -> list[int]:
    done, inside = [0], str(folder.resolve())

    def count() -> None:
        done[0] += 1
        if done[0] == operation:
            os.kill(os.getpid(), signal.SIGKILL)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            changes = isinstance(flags, int) and bool(
                flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            )
        else:
            path, changes = (arguments or (None,))[0], event in _CHANGES
        if changes and isinstance(path, (str, bytes, os.PathLike)):
            text = os.fsdecode(path)
            # A name without a folder is one that shutil.rmtree gives, of an open folder.
            if os.path.abspath(text).startswith(inside) or os.sep not in text:
                count()

    fsync = os.fsync

    def counted(descriptor: int) -> None:
        count()
        fsync(descriptor)

    os.fsync = counted
    sys.addaudithook(hook)
    return done
