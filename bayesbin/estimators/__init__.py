"""Gradient estimators for binary weights, on one signature: ``estimator(objective, natural)``."""

from bayesbin.estimators.antithetic import ARM, ARMS, DisARM
from bayesbin.estimators.base import BatchObjective, Estimator
from bayesbin.estimators.baselines import Baseline, Learned, LeaveOneOut, MovingAverage
from bayesbin.estimators.control_variate import REBAR, RELAX
from bayesbin.estimators.exact import Enumerate, LocalExpectation
from bayesbin.estimators.expected_weight import ExpectedWeight
from bayesbin.estimators.flipout import Flipout, FlipoutWhereShared
from bayesbin.estimators.gumbel_rao import GumbelRao
from bayesbin.estimators.local_reparam import LocalReparameterization
from bayesbin.estimators.named import named_estimator, names, register
from bayesbin.estimators.pathwise import Concrete, StraightThrough
from bayesbin.estimators.pseudo_reward import PseudoReward
from bayesbin.estimators.score_function import ScoreFunction

__all__ = [
    "ARM",
    "ARMS",
    "REBAR",
    "RELAX",
    "Baseline",
    "BatchObjective",
    "Concrete",
    "DisARM",
    "Enumerate",
    "Estimator",
    "ExpectedWeight",
    "Flipout",
    "FlipoutWhereShared",
    "GumbelRao",
    "Learned",
    "LeaveOneOut",
    "LocalExpectation",
    "LocalReparameterization",
    "MovingAverage",
    "PseudoReward",
    "ScoreFunction",
    "StraightThrough",
    "named_estimator",
    "names",
    "register",
]
