"""A task of a sequence: its data, the head that answers it, and a digest of what made it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from bayesbin.core.files import sha256
from bayesbin.data import Dataset


@dataclass(frozen=True, eq=False)
class Task:
    """One task of a sequence.

    :param name: how results call it. :param train: what it is learned from, None for a task that is
        only tested (late data: learning it then changes nothing). :param test: what it is scored on.
    :param head: which head of a :class:`MultiHead` network answers it, from 0; None: there is one.
    :param digest: SHA-256 of what made the task (a permutation, say), to be kept with results; None:
        that of the data themselves, when it is asked for.
    :raises ValueError: for input shapes that differ, a head below 0 or an empty name.

    >>> from bayesbin.data import digits
    >>> splits = digits()
    >>> Task("digits", splits.train, splits.test).size
    1437
    """

    name: str
    train: Dataset | None
    test: Dataset
    head: int | None = None
    digest: str | None = None

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("expected a name for the task, got an empty one; results go by it.")
        if self.head is not None and (not isinstance(self.head, int) or self.head < 0):
            raise ValueError(
                f"expected a head as a number from 0, or None for the only one; got {self.head!r}."
            )
        if self.train is not None and self.train.x.shape[1:] != self.test.x.shape[1:]:
            raise ValueError(
                f"expected inputs of one shape in task {self.name!r}; got {tuple(self.train.x.shape[1:])} "
                f"to train on and {tuple(self.test.x.shape[1:])} to test on."
            )

    @property
    def size(self) -> int:
        """The number of training data, 0 where there are none."""
        return 0 if self.train is None else len(self.train.x)

    def exam(self) -> Task:
        """The task without its training data, which are large: what is needed to score it."""
        return replace(self, train=None)

    def fingerprint(self) -> str:
        """The digest, or that of all its data where none was given."""
        if self.digest is not None:
            return self.digest
        parts = [] if self.train is None else [self.train.x, self.train.y]
        parts += [self.test.x, self.test.y]
        arrays = [part.detach().cpu().contiguous().numpy() for part in parts]
        return sha256("".join(sha256(array.tobytes()) for array in arrays).encode())
