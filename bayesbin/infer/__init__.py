"""Inference: the ELBO for models with binary sites, the training loop, and how estimators compare;
MCMC, and what else can be held against a guide."""

from bayesbin.infer.convergence import Convergence, Restarts, convergence, restarts_as_chains
from bayesbin.infer.elbo import Terms, TraceBinary_ELBO
from bayesbin.infer.estimator_report import EstimatorReport, EstimatorRow, estimator_report
from bayesbin.infer.evidence import (
    EvidenceGap,
    MonteCarloEstimate,
    elbo_with_standard_error,
    evidence,
    evidence_gap,
)
from bayesbin.infer.fit import FitResult, fit
from bayesbin.infer.importance import WeightedDraws, log_joint_and_guide, pareto_khat
from bayesbin.infer.leave_one_out import LooComparison, LooResult, compare_loo, psis_loo
from bayesbin.infer.mcmc import (
    DiscreteLangevin,
    GibbsWithGradients,
    MCMCResult,
    MixedKernel,
    run_mcmc,
)
from bayesbin.infer.predictive_checks import (
    PredictiveCheck,
    posterior_predictive_check,
    replicate,
)
from bayesbin.infer.setup import natural_rules
from bayesbin.infer.training_run import EpochReport

__all__ = [
    "Convergence",
    "DiscreteLangevin",
    "EpochReport",
    "EstimatorReport",
    "EstimatorRow",
    "EvidenceGap",
    "FitResult",
    "GibbsWithGradients",
    "LooComparison",
    "LooResult",
    "MCMCResult",
    "MixedKernel",
    "MonteCarloEstimate",
    "PredictiveCheck",
    "Restarts",
    "Terms",
    "TraceBinary_ELBO",
    "WeightedDraws",
    "compare_loo",
    "convergence",
    "elbo_with_standard_error",
    "estimator_report",
    "evidence",
    "evidence_gap",
    "fit",
    "log_joint_and_guide",
    "natural_rules",
    "pareto_khat",
    "posterior_predictive_check",
    "psis_loo",
    "replicate",
    "restarts_as_chains",
    "run_mcmc",
]
