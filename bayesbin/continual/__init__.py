"""Sequences of tasks: streams, learners whose prior is the previous posterior, metrics, baselines."""

from bayesbin.continual.base import Learner
from bayesbin.continual.baselines import (
    MetaplasticAdam,
    OnlineEWC,
    StraightThroughLearner,
    fine_tuning,
    fixed_prior,
    joint_training,
)
from bayesbin.continual.boundaries import AtTaskEnd, Boundary, Continuous, EveryNSteps
from bayesbin.continual.coresets import Coreset, KCenterCoreset, RandomCoreset
from bayesbin.continual.learn import learn
from bayesbin.continual.learner import ContinualLearner
from bayesbin.continual.metrics import (
    average_accuracies,
    average_accuracy,
    backward_transfer,
    forgetting,
    forward_transfer,
    last_k_average,
    learning_accuracy,
)
from bayesbin.continual.networks import MultiHead, continual_network
from bayesbin.continual.normalization import NORMALIZATIONS
from bayesbin.continual.priors import (
    POLICY_NAMES,
    CappedPrior,
    ExactPrior,
    FixedPrior,
    LeakyPrior,
    NoPrior,
    PriorPolicy,
    RelaxedPrior,
    named_prior_policy,
)
from bayesbin.continual.reports import TaskReport
from bayesbin.continual.result import ContinualResult
from bayesbin.continual.streams import (
    SCENARIOS,
    PermutedPixels,
    RotatedPixels,
    SplitClasses,
    TaskStream,
)
from bayesbin.continual.tasks import Task

__all__ = [
    "NORMALIZATIONS",
    "POLICY_NAMES",
    "SCENARIOS",
    "AtTaskEnd",
    "Boundary",
    "CappedPrior",
    "ContinualLearner",
    "ContinualResult",
    "Continuous",
    "Coreset",
    "EveryNSteps",
    "ExactPrior",
    "FixedPrior",
    "KCenterCoreset",
    "LeakyPrior",
    "Learner",
    "MetaplasticAdam",
    "MultiHead",
    "NoPrior",
    "OnlineEWC",
    "PermutedPixels",
    "PriorPolicy",
    "RandomCoreset",
    "RelaxedPrior",
    "RotatedPixels",
    "SplitClasses",
    "StraightThroughLearner",
    "Task",
    "TaskReport",
    "TaskStream",
    "average_accuracies",
    "average_accuracy",
    "backward_transfer",
    "continual_network",
    "fine_tuning",
    "fixed_prior",
    "forgetting",
    "forward_transfer",
    "joint_training",
    "last_k_average",
    "learn",
    "learning_accuracy",
    "named_prior_policy",
]
