"""What a regressor's draws know and do not know, and scores of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bayesbin.core.arrays import as_tensor
from bayesbin.diagnostics._accepted import share

_HALVINGS = 80  # of a bracket: to 1e-24 of it, far below rounding


@dataclass(frozen=True, eq=False)
class RegressionUncertainty:
    """Predictive distributions of B targets: for each a mixture of the draws' Gaussians.

    Quantities are (B,), in the unit of the targets; variances in its square.

    :param means: of the draws, (S, B). :param variances: noise variances of the draws, (S, B).
    """

    means: Tensor
    variances: Tensor

    @property
    def num_samples(self) -> int:
        """How many draws."""
        return len(self.means)

    @property
    def mean(self) -> Tensor:
        """Mean over draws."""
        return self.means.mean(0)

    @property
    def aleatoric_variance(self) -> Tensor:
        """Mean noise variance: what more data would not take away."""
        return self.variances.mean(0)

    @property
    def epistemic_variance(self) -> Tensor:
        """Variance of the means over draws: what they disagree about."""
        return self.means.var(0, correction=0)

    @property
    def variance(self) -> Tensor:
        """Total variance, the sum of the two: that of the mixture."""
        return self.aleatoric_variance + self.epistemic_variance

    @property
    def std(self) -> Tensor:
        """Square root of the total variance."""
        return self.variance.sqrt()

    def quantile(self, probability: float) -> Tensor:
        """What the target is below with that probability: of the mixture itself, not of one Gaussian.

        :raises ValueError: for a probability outside (0, 1).
        """
        return _quantile(self.means, self.variances.sqrt(), share("probability", probability))

    def interval(self, coverage: float = 0.95) -> tuple[Tensor, Tensor]:
        """Ends of the central interval: as much probability is below the first as above the second.

        :raises ValueError: for a coverage outside (0, 1).
        """
        tail = 0.5 * (1.0 - share("coverage", coverage))
        return self.quantile(tail), self.quantile(1.0 - tail)

    def cdf(self, y: Tensor) -> Tensor:
        """Probability of a target of at most y, (B,); uniform over (0, 1) at true ones if calibrated."""
        return _cdf(self.means, self.variances.sqrt(), self._targets(y))

    def log_prob(self, y: Tensor) -> Tensor:
        """Log density at y, (B,), in nats for the unit that the targets have."""
        return _log_prob(self.means, self.variances.sqrt(), self._targets(y))

    def crps(self, y: Tensor) -> Tensor:
        """Continuous ranked probability score at y, (B,): 0 is best; for one sure draw |y - mean|."""
        return _crps(self.means, self.variances.sqrt(), self._targets(y))

    def _targets(self, y: Any) -> Tensor:
        y = as_tensor("targets", y).to(self.means.device)
        if y.shape != self.means.shape[1:]:
            raise ValueError(
                f"expected targets of shape {tuple(self.means.shape[1:])}, got {tuple(y.shape)}; "
                "give one for each prediction."
            )
        return y.detach().double()


def regression_uncertainty(means: Tensor, variances: Tensor | float) -> RegressionUncertainty:
    r"""The predictive distributions that S draws make, and their mean, variances, intervals and scores.

    .. math:: p(y | x) = \frac1S \sum_s N\big(y;\, m_s(x), \sigma_s^2(x)\big), \qquad
        \mathrm{Var}[y | x] = \underbrace{\tfrac1S \textstyle\sum_s \sigma_s^2}_{\text{aleatoric}}
        + \underbrace{\mathrm{Var}_s[m_s]}_{\text{epistemic}}

    :param means: (S, B), draws first. :param variances: of the noise, (S, B) or what broadcasts to it.
    :raises ValueError: for other shapes, numbers that are not finite, or variances that are not positive.

    Example::

        >>> import torch
        >>> from bayesbin.diagnostics import regression_uncertainty
        >>> found = regression_uncertainty(torch.tensor([[-1.0], [1.0]]), 0.25)
        >>> found.aleatoric_variance.item(), found.epistemic_variance.item()
        (0.25, 1.0)
        >>> [round(end.item(), 3) for end in found.interval(0.9)]
        [-1.641, 1.641]

    Source: Gneiting and Raftery 2007, JASA 102 (scores of predictive distributions).
    """
    means = as_tensor("means", means)
    spread = as_tensor("variances", variances).to(means.device).detach().double()
    if means.dim() != 2 or 0 in means.shape:
        raise ValueError(
            f"expected means (S, B), at least one draw and one input, got {tuple(means.shape)}; stack "
            "the draws along the first dimension."
        )
    try:
        spread = spread.expand(means.shape)
    except RuntimeError:
        raise ValueError(
            f"expected variances that broadcast to {tuple(means.shape)}, got {tuple(spread.shape)}; a "
            "variance per draw is (S, 1)."
        ) from None
    if not bool(means.isfinite().all()) or not bool((spread.isfinite() & (spread > 0.0)).all()):
        raise ValueError(
            "expected finite means and positive, finite variances, got others; the squares of noise "
            "standard deviations are meant."
        )
    return RegressionUncertainty(means.detach().double(), spread)


def regression_scores(
    means: Tensor, variances: Tensor | float, y: Tensor, coverage: float = 0.95
) -> dict[str, float]:
    """RMSE, negative log-likelihood, CRPS, and coverage and mean width (sharpness) of central intervals.

    "rmse", "crps" and "sharpness" are in the unit of y, "nll" in nats per datum for that unit;
    "coverage" is the share of targets inside, to be compared with ``coverage``.

    :param means, variances: as for :func:`regression_uncertainty`. :param y: targets (B,).
    :raises ValueError: as there, for targets that do not fit, or a coverage outside (0, 1).

    Example::

        >>> import torch
        >>> from bayesbin.diagnostics import regression_scores
        >>> found = regression_scores(torch.zeros(1, 3), 1.0, torch.tensor([-1.0, 0.0, 3.0]))
        >>> {name: round(value, 3) for name, value in found.items() if name in ("rmse", "coverage")}
        {'rmse': 1.826, 'coverage': 0.667}
    """
    found = regression_uncertainty(means, variances)
    low, high = found.interval(coverage)
    y = as_tensor("targets", y).to(found.means.device).detach().double()
    values = {
        "nll": -found.log_prob(y),
        "crps": found.crps(y),
        "coverage": ((low <= y) & (y <= high)).double(),
        "sharpness": high - low,
    }
    rmse = (found.mean - y).square().mean().sqrt().item()
    return {"rmse": rmse} | {name: value.mean().item() for name, value in values.items()}


# Mixtures of S Gaussians of equal weight, for B quantities at once: all functions take (S, B) and (B,).


def _cdf(means: Tensor, stds: Tensor, y: Tensor) -> Tensor:
    r"""P(Y <= y) = (1/S) sum_s Phi((y - m_s) / sigma_s)."""
    return torch.special.ndtr((y - means) / stds).mean(0)


def _log_prob(means: Tensor, stds: Tensor, y: Tensor) -> Tensor:
    """Log density at y, summed in log space: finite at any distance."""
    kernels = -0.5 * ((y - means) / stds).square() - stds.log() - 0.5 * math.log(2.0 * math.pi)
    return kernels.logsumexp(0) - math.log(len(means))


def _quantile(means: Tensor, stds: Tensor, probability: float) -> Tensor:
    """The y with P(Y <= y) = probability, by bisection.

    It lies between the smallest and the largest of the components' own quantiles, as a mean of numbers
    that are all above the probability, or all below it, is not equal to it.
    """
    own = means + stds * torch.special.ndtri(torch.tensor(probability, dtype=means.dtype))
    low, high = own.amin(0), own.amax(0)
    for _ in range(_HALVINGS):
        middle = 0.5 * (low + high)
        if bool(((middle <= low) | (middle >= high)).all()):
            break  # no number is between them
        below = _cdf(means, stds, middle) < probability
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return 0.5 * (low + high)


def _crps(means: Tensor, stds: Tensor, y: Tensor) -> Tensor:
    r"""Continuous ranked probability score, in closed form, in the unit of y.

    .. math:: \frac1S \sum_s A(y - m_s, \sigma_s^2)
        - \frac{1}{2 S^2} \sum_{s,t} A(m_s - m_t, \sigma_s^2 + \sigma_t^2)

    with A(m, v) = E|X| for X ~ N(m, v). Source: Grimit et al. 2006, Q. J. R. Meteorol. Soc. 132.
    """
    spread = torch.zeros_like(y)
    for mean, std in zip(means, stds, strict=True):  # (S, B) at a time, not (S, S, B)
        spread = spread + _mean_size(mean - means, torch.hypot(std, stds)).mean(0)
    return _mean_size(y - means, stds).mean(0) - 0.5 * spread / len(means)


def _mean_size(mean: Tensor, std: Tensor) -> Tensor:
    """E|X| of a Gaussian: m (2 Phi(m / s) - 1) + 2 s phi(m / s)."""
    z = mean / std
    density = torch.exp(-0.5 * z.square()) / math.sqrt(2.0 * math.pi)
    return mean * torch.erf(z / math.sqrt(2.0)) + 2.0 * std * density
