r"""Signs whose natural parameter is Normal: their marginal distribution and their expected KL, by quadrature.

With lambda ~ N(m, s^2) an expectation over lambda is one integral for each weight. Integrands here are
analytic but for poles pi / (2 s) away from the real axis, where the trapezoid rule of step h errs by
about exp(-pi^2 / (s h)); nodes reach far enough for the tilt e^{2 lambda} of a rare sign.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from bayesbin.core import numerics

_REACH = 7.0  # standard deviations beyond the tilt: the Normal tail left out is 1e-12
_ACCURACY = 26.0  # -log of the error


def marginal_natural(mean: Tensor, scale: Tensor) -> Tensor:
    r"""Half the log-odds of a sign with lambda ~ N(mean, scale^2), elementwise.

    .. math:: \tfrac12 \log \frac{E[\sigma(2\lambda)]}{E[\sigma(-2\lambda)]}

    In log space, so that a sign that is all but certain keeps its odds.
    """
    plus = minus = torch.full_like(mean, -torch.inf)
    for noise, log_weight in _nodes(scale):
        # Both nodes at once, in an order that does not matter: odds at mean 0 are even to the last bit.
        above, below = 2.0 * (mean + scale * noise), 2.0 * (mean - scale * noise)
        pair = torch.logaddexp(F.logsigmoid(above), F.logsigmoid(below))
        plus = torch.logaddexp(plus, pair + log_weight)
        pair = torch.logaddexp(F.logsigmoid(-above), F.logsigmoid(-below))
        minus = torch.logaddexp(minus, pair + log_weight)
    return 0.5 * (plus - minus)


def expected_kl(mean: Tensor, scale: Tensor, prior: Tensor) -> Tensor:
    """E[KL(lambda || prior)] in nats for lambda ~ N(mean, scale^2), elementwise."""
    total = torch.zeros_like(mean)
    for noise, log_weight in _nodes(scale):
        for natural in (mean + scale * noise, mean - scale * noise):
            divergence = numerics.kl_divergence(natural, prior.expand_as(natural))
            total = total + math.exp(log_weight) * divergence
    return total


def _nodes(scale: Tensor) -> Iterator[tuple[float, float]]:
    """Nodes z >= 0, each to stand for z and -z, and log weights of the trapezoid rule for N(0, 1)."""
    largest = scale.max().item() if scale.numel() else 0.0
    step = min(0.5, math.pi**2 / (_ACCURACY * max(largest, 1e-300)))
    count = math.ceil((_REACH + 2.0 * largest) / step)
    log_scale = math.log(step) - 0.5 * math.log(2.0 * math.pi)
    for k in range(count + 1):
        twice = math.log(0.5) if k == 0 else 0.0  # 0 is its own mirror image
        yield k * step, log_scale + twice - 0.5 * (k * step) ** 2
