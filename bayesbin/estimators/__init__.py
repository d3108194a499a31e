"""Gradient estimators for binary weights, on one signature: ``estimator(objective, natural)``."""

from bayesbin.estimators.base import Estimator
from bayesbin.estimators.exact import Enumerate
from bayesbin.estimators.local_reparam import LocalReparameterization
from bayesbin.estimators.pathwise import Concrete, StraightThrough

__all__ = ["Concrete", "Enumerate", "Estimator", "LocalReparameterization", "StraightThrough"]
