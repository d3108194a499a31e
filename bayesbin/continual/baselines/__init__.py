"""Learners to compare a posterior as prior with, on the same signature."""

from bayesbin.continual.baselines.elastic import OnlineEWC
from bayesbin.continual.baselines.metaplastic import MetaplasticAdam
from bayesbin.continual.baselines.straight_through import StraightThroughLearner
from bayesbin.continual.learner import fine_tuning, fixed_prior, joint_training

__all__ = [
    "MetaplasticAdam",
    "OnlineEWC",
    "StraightThroughLearner",
    "fine_tuning",
    "fixed_prior",
    "joint_training",
]
