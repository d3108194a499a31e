"""What a posterior's predictions are worth: scores, calibration, what they know and do not know."""

from bayesbin.diagnostics.by_likelihood import likelihood_scores
from bayesbin.diagnostics.calibration import ece, ece_equal_mass, top_label
from bayesbin.diagnostics.held_out import Estimate
from bayesbin.diagnostics.out_of_distribution import ood_scores
from bayesbin.diagnostics.regression import (
    RegressionUncertainty,
    regression_scores,
    regression_uncertainty,
)
from bayesbin.diagnostics.reliability import Reliability, reliability
from bayesbin.diagnostics.resampling import bootstrap
from bayesbin.diagnostics.scores import brier, classification_scores, scores, sharpness
from bayesbin.diagnostics.selective import RiskCoverage, risk_coverage
from bayesbin.diagnostics.temperature import TemperatureScaling
from bayesbin.diagnostics.uncertainty import Uncertainty, uncertainty

__all__ = [
    "Estimate",
    "RegressionUncertainty",
    "Reliability",
    "RiskCoverage",
    "TemperatureScaling",
    "Uncertainty",
    "bootstrap",
    "brier",
    "classification_scores",
    "ece",
    "ece_equal_mass",
    "likelihood_scores",
    "ood_scores",
    "regression_scores",
    "regression_uncertainty",
    "reliability",
    "risk_coverage",
    "scores",
    "sharpness",
    "top_label",
    "uncertainty",
]
