"""What becomes of a posterior when it is the next task's prior."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

Naturals = Mapping[str, Tensor]


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
        if not 0 <= self.gamma <= 1:
            raise ValueError(f"gamma is in [0, 1], 1 for the exact prior; got {self.gamma}.")

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
        if not 0 < self.cap < math.inf:
            raise ValueError(f"cap is a positive bound on |lambda| of the prior; got {self.cap}.")

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
        if not self.window > 1:
            raise ValueError(f"window is a number of updates above 1; got {self.window}.")

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


_POLICIES: dict[str, tuple[type[PriorPolicy], str | None]] = {
    "exact": (ExactPrior, None),
    "none": (NoPrior, None),
    "fixed": (FixedPrior, None),
    "relax": (RelaxedPrior, "gamma"),
    "cap": (CappedPrior, "cap"),
    "leak": (LeakyPrior, "window"),
}
POLICY_NAMES = tuple(_POLICIES)


def named_prior_policy(
    name: str, *, gamma: float | None = None, cap: float | None = None, window: float | None = None
) -> PriorPolicy:
    """A policy by its name, one of POLICY_NAMES, with the one setting it takes.

    :raises ValueError: for another name, a missing setting, or one that belongs to another policy.

    >>> named_prior_policy("relax", gamma=0.9)
    RelaxedPrior(gamma=0.9)
    """
    if name not in _POLICIES:
        raise ValueError(f"expected a prior policy among {', '.join(_POLICIES)}; got {name!r}.")
    kind, setting = _POLICIES[name]
    settings: dict[str, Any] = {"gamma": gamma, "cap": cap, "window": window}
    given = {key: value for key, value in settings.items() if value is not None}
    if set(given) != ({setting} if setting else set()):
        wanted = f"{setting}=" if setting else "no setting"
        came = ", ".join(f"{key}=" for key in given) or "none"
        raise ValueError(f"the prior policy {name!r} takes {wanted}; got {came}.")
    return kind(**given)


def _towards(previous: Naturals, initial: Naturals, keep: float) -> dict[str, Tensor]:
    return {
        site: initial[site] + keep * (natural - initial[site]) for site, natural in previous.items()
    }
