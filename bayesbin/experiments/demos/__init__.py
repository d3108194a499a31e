"""Demonstrations on generated data: return the numbers, draw the picture."""

from bayesbin.experiments.demos.estimators import (
    EstimatorComparison,
    compare_estimators,
    logistic_model,
)
from bayesbin.experiments.demos.regression import LocalBumps, regression_demo
from bayesbin.experiments.demos.result import DemoResult
from bayesbin.experiments.demos.two_moons import two_moons_demo

__all__ = [
    "DemoResult",
    "EstimatorComparison",
    "LocalBumps",
    "compare_estimators",
    "logistic_model",
    "regression_demo",
    "two_moons_demo",
]
