"""Sequences of tasks: learners whose prior is the previous posterior, streams, baselines, results.

Prior policies and boundaries are in :mod:`bayesbin.continual.priors`, metrics of score matrices in
:mod:`bayesbin.continual.metrics`, coresets in :mod:`bayesbin.continual.coresets`.
"""

from bayesbin.continual import baselines, coresets, metrics, priors, streams
from bayesbin.continual.base import Learner
from bayesbin.continual.baselines import (
    OnlineEWC,
    StraightThroughLearner,
    fine_tuning,
    fixed_prior,
    joint_training,
)
from bayesbin.continual.learn import learn
from bayesbin.continual.learner import ContinualLearner
from bayesbin.continual.networks import GrowingHead, MultiHead, continual_network
from bayesbin.continual.reports import TaskReport
from bayesbin.continual.result import ContinualResult
from bayesbin.continual.streams import (
    PermutedPixels,
    RotatedPixels,
    SplitClasses,
    TaskSequence,
    TaskStream,
    register,
)
from bayesbin.continual.tasks import Task

__all__ = [
    "ContinualLearner",
    "ContinualResult",
    "GrowingHead",
    "Learner",
    "MultiHead",
    "OnlineEWC",
    "PermutedPixels",
    "RotatedPixels",
    "SplitClasses",
    "StraightThroughLearner",
    "Task",
    "TaskReport",
    "TaskSequence",
    "TaskStream",
    "baselines",
    "continual_network",
    "coresets",
    "fine_tuning",
    "fixed_prior",
    "joint_training",
    "learn",
    "metrics",
    "priors",
    "register",
    "streams",
]
