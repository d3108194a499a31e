"""Inference: the ELBO for models with binary sites, the training loop, and how estimators compare;
MCMC, and what else can be held against a guide."""

from bayesbin.infer.elbo import Terms, TraceBinary_ELBO
from bayesbin.infer.fit import FitResult, fit
from bayesbin.infer.mcmc import (
    DiscreteLangevin,
    GibbsWithGradients,
    MCMCResult,
    MixedKernel,
    run_mcmc,
)
from bayesbin.infer.training_run import EpochReport

__all__ = [
    "DiscreteLangevin",
    "EpochReport",
    "FitResult",
    "GibbsWithGradients",
    "MCMCResult",
    "MixedKernel",
    "Terms",
    "TraceBinary_ELBO",
    "fit",
    "run_mcmc",
]
