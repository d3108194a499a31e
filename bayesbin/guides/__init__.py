"""Guides: posteriors over binary weights for any Pyro model."""

from bayesbin.guides.combine import Combine, PolicyNetwork
from bayesbin.guides.effects import with_effects
from bayesbin.guides.mean_field import AutoSignBernoulli
from bayesbin.guides.nested import AutoNestedSignBernoulli
from bayesbin.guides.relaxed import AutoRelaxedSignBernoulli

__all__ = [
    "AutoNestedSignBernoulli",
    "AutoRelaxedSignBernoulli",
    "AutoSignBernoulli",
    "Combine",
    "PolicyNetwork",
    "with_effects",
]
