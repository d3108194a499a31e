"""What can be held against a guide: evidence, k-hat, LOO, predictive checks, agreement of restarts."""

from bayesbin.infer.checks.convergence import Convergence, Restarts, convergence, restarts_as_chains
from bayesbin.infer.checks.estimator_report import EstimatorReport, EstimatorRow, estimator_report
from bayesbin.infer.checks.evidence import (
    EvidenceGap,
    MonteCarloEstimate,
    elbo_with_standard_error,
    evidence,
    evidence_gap,
)
from bayesbin.infer.checks.importance import WeightedDraws, log_joint_and_guide, pareto_khat
from bayesbin.infer.checks.leave_one_out import LooComparison, LooResult, compare_loo, psis_loo
from bayesbin.infer.checks.predictive_checks import (
    PredictiveCheck,
    posterior_predictive_check,
    replicate,
)

__all__ = [
    "Convergence",
    "EstimatorReport",
    "EstimatorRow",
    "EvidenceGap",
    "LooComparison",
    "LooResult",
    "MonteCarloEstimate",
    "PredictiveCheck",
    "Restarts",
    "WeightedDraws",
    "compare_loo",
    "convergence",
    "elbo_with_standard_error",
    "estimator_report",
    "evidence",
    "evidence_gap",
    "log_joint_and_guide",
    "pareto_khat",
    "posterior_predictive_check",
    "psis_loo",
    "replicate",
    "restarts_as_chains",
]
