"""Inference: the ELBO for models with binary sites, and the training loop."""

from bayesbin.infer.elbo import Terms, TraceBinary_ELBO
from bayesbin.infer.fit import FitResult, fit
from bayesbin.infer.training_run import EpochReport

__all__ = ["EpochReport", "FitResult", "Terms", "TraceBinary_ELBO", "fit"]
