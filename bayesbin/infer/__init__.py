"""Inference: the ELBO for models with binary sites, the training loop, and how estimators compare."""

from bayesbin.infer.elbo import Terms, TraceBinary_ELBO
from bayesbin.infer.estimator_report import EstimatorReport, EstimatorRow, estimator_report
from bayesbin.infer.fit import FitResult, fit
from bayesbin.infer.setup import natural_rules
from bayesbin.infer.training_run import EpochReport

__all__ = [
    "EpochReport",
    "EstimatorReport",
    "EstimatorRow",
    "FitResult",
    "Terms",
    "TraceBinary_ELBO",
    "estimator_report",
    "fit",
    "natural_rules",
]
