"""Update rules for natural parameters, signs and latents, as torch optimizers, and schedules for them."""

from bayesbin.optim.assembly import (
    DEFAULTS,
    TrainingGroup,
    make_optimizers,
    make_schedules,
    training_groups,
)
from bayesbin.optim.bayesian_learning_rule import BayesianLearningRule
from bayesbin.optim.bop import Bop, SecondOrderBop
from bayesbin.optim.clipping import clip_, clip_after_step
from bayesbin.optim.schedules import (
    Schedule,
    cosine,
    cosine_by_step_,
    exponential,
    linear,
    recu_tau,
    step_decay,
    warm_restarts,
)

__all__ = [
    "DEFAULTS",
    "BayesianLearningRule",
    "Bop",
    "Schedule",
    "SecondOrderBop",
    "TrainingGroup",
    "clip_",
    "clip_after_step",
    "cosine",
    "cosine_by_step_",
    "exponential",
    "linear",
    "make_optimizers",
    "make_schedules",
    "recu_tau",
    "step_decay",
    "training_groups",
    "warm_restarts",
]
