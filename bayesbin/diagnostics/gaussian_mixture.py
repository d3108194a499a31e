"""Mixtures of S Gaussians of equal weight, for B quantities at once: all functions take (S, B) and (B,)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_HALVINGS = 80  # of a bracket: to 1e-24 of it, far below rounding


def cdf(means: Tensor, stds: Tensor, y: Tensor) -> Tensor:
    r"""P(Y <= y) = (1/S) sum_s Phi((y - m_s) / sigma_s)."""
    return torch.special.ndtr((y - means) / stds).mean(0)


def log_prob(means: Tensor, stds: Tensor, y: Tensor) -> Tensor:
    """Log density at y, summed in log space: finite at any distance."""
    kernels = -0.5 * ((y - means) / stds).square() - stds.log() - 0.5 * math.log(2.0 * math.pi)
    return kernels.logsumexp(0) - math.log(len(means))


def quantile(means: Tensor, stds: Tensor, probability: float) -> Tensor:
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
        below = cdf(means, stds, middle) < probability
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return 0.5 * (low + high)


def crps(means: Tensor, stds: Tensor, y: Tensor) -> Tensor:
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
