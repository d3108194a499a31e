"""Markov chain Monte Carlo over signs: exact where it converges, and so the judge of guides."""

from bayesbin.infer.mcmc.discrete_langevin import DiscreteLangevin
from bayesbin.infer.mcmc.gibbs_with_gradients import GibbsWithGradients
from bayesbin.infer.mcmc.log_joint import LogJoint
from bayesbin.infer.mcmc.mixed_kernel import MixedKernel
from bayesbin.infer.mcmc.run import MCMCResult, run_mcmc
from bayesbin.infer.mcmc.sign_kernel import SignKernel

__all__ = [
    "DiscreteLangevin",
    "GibbsWithGradients",
    "LogJoint",
    "MCMCResult",
    "MixedKernel",
    "SignKernel",
    "run_mcmc",
]
