"""Ctrl-C between two training steps instead of in the middle of one."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass
class Interrupt:
    requested: bool = False


@contextmanager
def deferred_interrupt() -> Iterator[Interrupt]:
    """Turn the first Ctrl-C into a request; the second raises KeyboardInterrupt at once."""
    interrupt, before = Interrupt(), signal.getsignal(signal.SIGINT)

    def request(signum: int, frame: Any) -> None:
        if interrupt.requested:
            raise KeyboardInterrupt("Interrupted twice: the step begun is lost.")
        interrupt.requested = True

    # Only the main thread may set handlers; one that ignores Ctrl-C (nohup) or is C code stays.
    here = threading.current_thread() is threading.main_thread()
    if not here or before in (None, signal.SIG_IGN):
        yield interrupt
        return
    signal.signal(signal.SIGINT, request)
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGINT, before)


def until_interrupted(batches: Iterator[Any], interrupt: Interrupt) -> Iterator[Any]:
    while not interrupt.requested:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except RuntimeError:  # Ctrl-C reaches a DataLoader's worker processes too, and ends them
            if not interrupt.requested:
                raise
        else:
            yield batch
