"""Prediction with a posterior: averages over draws."""

from bayesbin.predict.kernels import kernel_tier
from bayesbin.predict.packed import PackedPredictive
from bayesbin.predict.predictive import (
    Prediction,
    RegressionPrediction,
    draw_log_probs,
    draw_outputs,
    predict,
    predict_regression,
)

__all__ = [
    "PackedPredictive",
    "Prediction",
    "RegressionPrediction",
    "draw_log_probs",
    "draw_outputs",
    "kernel_tier",
    "predict",
    "predict_regression",
]
