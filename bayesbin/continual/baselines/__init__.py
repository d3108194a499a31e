"""What a posterior as prior is measured against, each a learner of the same kind."""

from bayesbin.continual.baselines.elastic import OnlineEWC
from bayesbin.continual.baselines.metaplastic import MetaplasticAdam
from bayesbin.continual.baselines.straight_through import StraightThroughLearner
from bayesbin.continual.baselines.variational import (
    fine_tuning,
    fixed_prior,
    joint_training,
)

__all__ = [
    "MetaplasticAdam",
    "OnlineEWC",
    "StraightThroughLearner",
    "fine_tuning",
    "fixed_prior",
    "joint_training",
]
