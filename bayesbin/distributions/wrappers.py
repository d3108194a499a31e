"""Finding the distribution of signs, or of a few levels, inside what Pyro wraps around it."""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions import ExpandedDistribution, MaskedDistribution

from bayesbin.distributions import LowBitCategorical, SignBernoulli


def sign_distribution(distribution: Any) -> SignBernoulli | None:
    """The SignBernoulli inside ``to_event``, ``expand`` and ``mask``, or None for any other distribution."""
    found = weight_distribution(distribution)
    return found if isinstance(found, SignBernoulli) else None


def weight_distribution(distribution: Any) -> SignBernoulli | LowBitCategorical | None:
    """The distribution of signs or levels inside ``to_event``, ``expand`` and ``mask``, or None for
    any other."""
    while True:
        if isinstance(distribution, (SignBernoulli, LowBitCategorical)):
            return distribution
        if not isinstance(distribution, TRANSPARENT):
            return None
        distribution = distribution.base_dist


TRANSPARENT = (
    torch.distributions.Independent,
    MaskedDistribution,
    ExpandedDistribution,
)
