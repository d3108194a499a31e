"""How a posterior becomes the next prior (policies), and when (boundaries)."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from bayesbin.core.checks import one_of, real_number, whole_number
from bayesbin.core.names import PRIOR_POLICIES

Naturals = Mapping[str, Tensor]

__all__ = [
    "AtTaskEnd",
    "Boundary",
    "CappedPrior",
    "Continuous",
    "EveryNSteps",
    "ExactPrior",
    "FixedPrior",
    "LeakyPrior",
    "NoPrior",
    "PriorPolicy",
    "RelaxedPrior",
    "named_prior_policy",
]


class PriorPolicy(ABC):
    """The rule from the previous posterior to the next prior, both as natural parameters.

    Real-valued sites have no natural parameters here: their next prior is their previous posterior,
    but for :class:`FixedPrior`, which gives them the model's own again.
    """

    uses_kl: ClassVar[bool] = True  # False: the KL term is left out of the loss
    moves_posterior: ClassVar[bool] = False  # True: lambda itself becomes the prior's at a boundary
    keeps_real: ClassVar[bool] = True  # False: real-valued sites get the model's own prior again

    @abstractmethod
    def prior(self, previous: Naturals, initial: Naturals) -> dict[str, Tensor]:
        """The next prior of each site of signs, by value.

        :param previous: the posterior before the boundary. :param initial: the model's own prior.
        """


@dataclass(frozen=True)
class ExactPrior(PriorPolicy):
    """The previous posterior itself: Bayes' rule over tasks, and variational continual learning.

    .. math:: \\lambda_p = \\lambda_{t-1}

    Source: Nguyen et al. 2018, arXiv 1710.10628 (VCL); Meng et al. 2020, arXiv 2002.10778.
    """

    def prior(self, previous: Naturals, initial: Naturals) -> dict[str, Tensor]:
        return {site: natural.clone() for site, natural in previous.items()}


@dataclass(frozen=True)
class RelaxedPrior(PriorPolicy):
    """The previous posterior drawn back towards the model's own prior, which keeps weights plastic.

    .. math:: \\lambda_p = \\lambda_0 + \\gamma\\, (\\lambda_{t-1} - \\lambda_0)

    :param gamma: in [0, 1]; 1 is :class:`ExactPrior`, 0 :class:`FixedPrior`.
    :raises ValueError: for another gamma.
    """

    gamma: float

    def __post_init__(self) -> None:
        gamma = real_number("gamma", self.gamma, at_least=0.0, at_most=1.0)
        object.__setattr__(self, "gamma", gamma)

    def prior(self, previous: Naturals, initial: Naturals) -> dict[str, Tensor]:
        return _towards(previous, initial, self.gamma)


@dataclass(frozen=True)
class CappedPrior(PriorPolicy):
    """The previous posterior with a limit to its confidence: no weight is ever decided for good.

    .. math:: \\lambda_p = \\mathrm{clip}(\\lambda_{t-1}, -c, c)

    :param cap: c, positive. :raises ValueError: for another.
    """

    cap: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "cap", real_number("cap", self.cap, above=0.0))

    def prior(self, previous: Naturals, initial: Naturals) -> dict[str, Tensor]:
        return {site: natural.clamp(-self.cap, self.cap) for site, natural in previous.items()}


@dataclass(frozen=True)
class LeakyPrior(PriorPolicy):
    """A posterior that forgets at a constant rate, as if it had seen the last few updates only.

    .. math:: \\lambda \\leftarrow \\lambda - \\frac{\\lambda - \\lambda_0}{N_w}

    at each boundary, for prior and posterior alike: between two steps with the boundary
    ``Continuous()``, its default. This is the leak of BiMU as a step of its own, where the rate that
    limits its denominator is large; what remains of the rule is left to the optimizer.

    :param window: N_w, in boundaries, above 1. :raises ValueError: for another.

    Source: arXiv 2605.30198 (BiMU).
    """

    window: float
    moves_posterior: ClassVar[bool] = True

    def __post_init__(self) -> None:
        window = real_number("window", self.window, above=1.0, at_most=math.inf)
        object.__setattr__(self, "window", window)

    def prior(self, previous: Naturals, initial: Naturals) -> dict[str, Tensor]:
        return _towards(previous, initial, 1.0 - 1.0 / self.window)


@dataclass(frozen=True)
class FixedPrior(PriorPolicy):
    """The model's own prior at every task: the baseline that forgets, though it regularises."""

    keeps_real: ClassVar[bool] = False

    def prior(self, previous: Naturals, initial: Naturals) -> dict[str, Tensor]:
        return {site: natural.clone() for site, natural in initial.items()}


@dataclass(frozen=True)
class NoPrior(PriorPolicy):
    """No KL term at all: fine-tuning of the expected likelihood from the previous posterior on."""

    uses_kl: ClassVar[bool] = False

    def prior(self, previous: Naturals, initial: Naturals) -> dict[str, Tensor]:
        return {site: natural.clone() for site, natural in previous.items()}


# In the order of core.names.PRIOR_POLICIES.
_POLICIES: dict[str, tuple[type[PriorPolicy], str | None]] = dict(
    zip(
        PRIOR_POLICIES,
        (
            (ExactPrior, None),
            (NoPrior, None),
            (FixedPrior, None),
            (RelaxedPrior, "gamma"),
            (CappedPrior, "cap"),
            (LeakyPrior, "window"),
        ),
        strict=True,
    )
)


def named_prior_policy(
    name: str, *, gamma: float | None = None, cap: float | None = None, window: float | None = None
) -> PriorPolicy:
    """Return a policy by its name, one of ``core.names.PRIOR_POLICIES``, with the setting it takes.

    :raises ValueError: for another name, a missing setting, or one that belongs to another policy.

    >>> named_prior_policy("relax", gamma=0.9)
    RelaxedPrior(gamma=0.9)
    """
    kind, setting = _POLICIES[one_of("prior_policy", name, PRIOR_POLICIES)]
    settings: dict[str, Any] = {"gamma": gamma, "cap": cap, "window": window}
    given = {key: value for key, value in settings.items() if value is not None}
    if set(given) != ({setting} if setting else set()):
        wanted = f"{setting}=" if setting else "no setting"
        came = ", ".join(f"{key}=" for key in given) or "none"
        raise ValueError(f"the prior policy {name!r} takes {wanted}; got {came}.")
    return kind(**given)


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
        object.__setattr__(self, "n", whole_number("n", self.n, at_least=1))

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


def _towards(previous: Naturals, initial: Naturals, keep: float) -> dict[str, Tensor]:
    return {
        site: initial[site] + keep * (natural - initial[site]) for site, natural in previous.items()
    }
