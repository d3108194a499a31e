"""Two demonstrations: train on generated data, return the numbers, draw the picture."""

from bayesbin.demos.regression import LocalBumps, regression_demo
from bayesbin.demos.result import DemoResult
from bayesbin.demos.two_moons import two_moons_demo

__all__ = ["DemoResult", "LocalBumps", "regression_demo", "two_moons_demo"]
