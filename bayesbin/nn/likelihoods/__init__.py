"""Likelihoods: Pyro models around a binary network, which say what its outputs mean."""

from bayesbin.nn.likelihoods.base import Likelihood
from bayesbin.nn.likelihoods.classes import Classifier, MultiLabel, Ordinal
from bayesbin.nn.likelihoods.numbers import NegativeBinomial, Poisson, Regressor

__all__ = [
    "Classifier",
    "Likelihood",
    "MultiLabel",
    "NegativeBinomial",
    "Ordinal",
    "Poisson",
    "Regressor",
]
