"""Guides: posteriors over binary weights for any Pyro model."""

from bayesbin.guides.combine import Combine, PolicyNetwork
from bayesbin.guides.effects import with_effects
from bayesbin.guides.low_bit import AutoLowBit
from bayesbin.guides.mean_field import AutoSignBernoulli
from bayesbin.guides.named import names, register
from bayesbin.guides.nested import AutoNestedSignBernoulli
from bayesbin.guides.pretrained import natural_from_latent, ternary_from_latent
from bayesbin.guides.relaxed import AutoRelaxedSignBernoulli
from bayesbin.guides.sign_delta import AutoSignDelta

__all__ = [
    "AutoLowBit",
    "AutoNestedSignBernoulli",
    "AutoRelaxedSignBernoulli",
    "AutoSignBernoulli",
    "AutoSignDelta",
    "Combine",
    "PolicyNetwork",
    "names",
    "natural_from_latent",
    "register",
    "ternary_from_latent",
    "with_effects",
]
