"""When a posterior becomes a prior: at the end of a task, or within it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass


class Boundary(ABC):
    """When the prior is replaced. Every task also begins with a boundary."""

    @property
    @abstractmethod
    def steps(self) -> int | None:
        """The number of optimizer steps between two boundaries within a task; None: there are none."""


@dataclass(frozen=True)
class AtTaskEnd(Boundary):
    """The posterior of a whole task becomes the next one's prior.

    >>> AtTaskEnd().steps is None
    True
    """

    @property
    def steps(self) -> int | None:
        return None


@dataclass(frozen=True)
class EveryNSteps(Boundary):
    """A boundary after each n optimizer steps, whatever task the data are from.

    What is learned between two boundaries is a posterior of its own: the likelihood of a batch of B
    is scaled to the n B data of those steps, so that data seen in a second epoch count twice.

    :param n: at least 1. :raises ValueError: for another n.

    >>> EveryNSteps(5).steps
    5
    """

    n: int

    def __post_init__(self) -> None:
        if not isinstance(self.n, int) or self.n < 1:
            raise ValueError(f"n is a whole number of steps, at least 1; got {self.n!r}.")

    @property
    def steps(self) -> int | None:
        return self.n


@dataclass(frozen=True)
class Continuous(Boundary):
    """A boundary after each step: learning without tasks, from a stream.

    Each step starts at its prior, where the KL has no gradient: lambda moves by lr times the natural
    gradient of the batch's log-likelihood, and what it holds is all that is remembered. lr = 1 without
    momentum or ``normalize`` is one natural-gradient step of Bayes' rule per batch.

    >>> Continuous().steps
    1

    Source: Zeno et al. 2018, arXiv 1803.10123 (Bayesian gradient descent, for Gaussian weights).
    """

    @property
    def steps(self) -> int | None:
        return 1
