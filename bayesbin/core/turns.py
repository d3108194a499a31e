"""One thread at a time for what belongs to the whole process: Pyro's handlers and torch's generators.

Pyro keeps its stack of handlers, its parameter store and its validation flags, and torch its global
generators, its default dtype and its module hooks, once per process. Two threads that use them at the same
time get each other's random numbers and sites. Whatever the package computes with them therefore runs
``in_turn()``, and what a user's own loop calls piece by piece is used ``alone(...)``.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class _Turn:
    """A lock that its thread may take again, and that knows how often it did."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.owner, self.depth = 0, 0

    def entered(self) -> None:
        self.owner, self.depth = threading.get_ident(), self.depth + 1

    def left(self) -> None:
        self.depth -= 1

    def after_fork(self) -> None:
        """Free the lock in a new process, unless the thread that lives on there holds it."""
        if not (self.depth and self.owner == threading.get_ident()):
            self.__init__()


_TURN = _Turn()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_TURN.after_fork)


@contextmanager
def in_turn() -> Iterator[None]:
    """Wait until no other thread of the process is inside, and keep the others out until the end.

    A thread may enter again. An exception, KeyboardInterrupt too, gives the turn back.

    >>> with in_turn(), in_turn():
    ...     pass
    """
    with _TURN.lock:
        _TURN.entered()
        try:
            yield
        finally:
            _TURN.left()


@contextmanager
def alone(what: str) -> Iterator[None]:
    """Refuse to go on while another thread is inside: its random numbers and sites would mix with these.

    :param what: the object that is used, for the message.
    :raises RuntimeError: if another thread is inside.
    """
    if not _TURN.lock.acquire(blocking=False):
        raise RuntimeError(
            f"expected {what} to be used by one thread at a time, since Pyro's handlers and torch's "
            "generators belong to the whole process; got a call while another thread is inside. Use "
            "bayesbin.fit, which waits for its turn, or put `with bayesbin.core.turns.in_turn():` around "
            "the whole loop of each thread, or use processes."
        )
    try:
        _TURN.entered()
        yield
    finally:
        _TURN.left()
        _TURN.lock.release()


@contextmanager
def turn_given_up() -> Iterator[None]:
    """Let other threads in meanwhile, such as those that a callback starts and waits for.

    Where the turn was taken several times, an outer block still relies on it, and it is kept.
    """
    if _TURN.depth != 1 or _TURN.owner != threading.get_ident():
        yield
        return
    _TURN.left()
    _TURN.lock.release()
    try:
        yield
    finally:
        _TURN.lock.acquire()
        _TURN.entered()
