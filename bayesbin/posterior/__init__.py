"""Posteriors over signs, with the real-valued sites beside them: what everything downstream consumes."""

from bayesbin.posterior.base import Posterior
from bayesbin.posterior.binary_posterior import SATURATED, BinaryPosterior
from bayesbin.posterior.loading import load_posterior
from bayesbin.posterior.low_bit_posterior import LowBitPosterior
from bayesbin.posterior.real_posterior import RealPosterior

__all__ = [
    "SATURATED",
    "BinaryPosterior",
    "LowBitPosterior",
    "Posterior",
    "RealPosterior",
    "load_posterior",
]
