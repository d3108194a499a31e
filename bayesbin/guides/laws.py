"""Finding the law of signs, or of a few levels, inside what Pyro wraps around it."""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions import ExpandedDistribution, MaskedDistribution

from bayesbin.distributions import LowBitCategorical, SignBernoulli


def sign_law(law: Any) -> SignBernoulli | None:
    """The SignBernoulli inside ``to_event``, ``expand`` and ``mask``, or None for any other law."""
    found = weight_law(law)
    return found if isinstance(found, SignBernoulli) else None


def weight_law(law: Any) -> SignBernoulli | LowBitCategorical | None:
    """The law of signs or levels inside ``to_event``, ``expand`` and ``mask``, or None for any other."""
    while True:
        if isinstance(law, (SignBernoulli, LowBitCategorical)):
            return law
        if not isinstance(law, TRANSPARENT):
            return None
        law = law.base_dist


TRANSPARENT = (
    torch.distributions.Independent,
    MaskedDistribution,
    ExpandedDistribution,
)
