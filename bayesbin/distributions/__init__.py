"""Laws of binary weights, and of the real-valued latents beside them."""

from bayesbin.distributions import constraints
from bayesbin.distributions.relaxed import RelaxedSignBernoulli, SignBernoulliStraightThrough
from bayesbin.distributions.sign_bernoulli import SignBernoulli
from bayesbin.distributions.unconstrained_normal import Support, unconstrained_normal

__all__ = [
    "RelaxedSignBernoulli",
    "SignBernoulli",
    "SignBernoulliStraightThrough",
    "Support",
    "constraints",
    "unconstrained_normal",
]
