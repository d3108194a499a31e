"""Distributions of binary weights, and of the real-valued latents beside them."""

from bayesbin.distributions import constraints
from bayesbin.distributions.low_bit import LowBitCategorical, equal_levels
from bayesbin.distributions.relaxed import RelaxedSignBernoulli, SignBernoulliStraightThrough
from bayesbin.distributions.relaxed_low_bit import RelaxedLowBit
from bayesbin.distributions.sign_bernoulli import SignBernoulli
from bayesbin.distributions.unconstrained_normal import Support, unconstrained_normal

__all__ = [
    "LowBitCategorical",
    "RelaxedLowBit",
    "RelaxedSignBernoulli",
    "SignBernoulli",
    "SignBernoulliStraightThrough",
    "Support",
    "constraints",
    "equal_levels",
    "unconstrained_normal",
]
