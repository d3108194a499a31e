"""Finding the law of signs inside what Pyro wraps around it."""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions import ExpandedDistribution, MaskedDistribution

from bayesbin.distributions import SignBernoulli


def sign_law(law: Any) -> SignBernoulli | None:
    """The SignBernoulli inside ``to_event``, ``expand`` and ``mask``, or None for any other law."""
    while True:
        if isinstance(law, SignBernoulli):
            return law
        if not isinstance(law, TRANSPARENT):
            return None
        law = law.base_dist


TRANSPARENT = (
    torch.distributions.Independent,
    MaskedDistribution,
    ExpandedDistribution,
)
