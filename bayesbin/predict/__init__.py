"""Prediction with a posterior: averages over draws."""

from bayesbin.predict.predictive import (
    Prediction,
    RegressionPrediction,
    draw_log_probs,
    draw_outputs,
    predict,
    predict_regression,
)

__all__ = [
    "Prediction",
    "RegressionPrediction",
    "draw_log_probs",
    "draw_outputs",
    "predict",
    "predict_regression",
]
