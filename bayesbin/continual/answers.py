"""How a network and a posterior answer for a task: predictions and scores, by the kind of likelihood."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from bayesbin.core.checks import is_number
from bayesbin.diagnostics import draw_gaussians, regression_scores, scores
from bayesbin.nn import Classifier, Regressor, Statistics
from bayesbin.predict import Prediction, RegressionPrediction, predict, predict_regression

# The first score of a kind is its main one: what metrics are made of.
SCORES: Mapping[str, tuple[str, ...]] = {
    "classification": ("accuracy", "nll", "ece"),
    "regression": ("rmse", "nll"),
}


def kind_of(model: Any) -> str | None:
    """Return "classification", "regression", or None for a model that can be trained but not scored."""
    if isinstance(model, Classifier):
        return "classification"
    return "regression" if isinstance(model, Regressor) else None


def network_of(model: Any) -> nn.Module | None:
    """Return the network inside a model of ours; None for any other model."""
    return model.net if isinstance(model, (Classifier, Regressor)) else None


def predicted(
    model: Any,
    net: nn.Module,
    posterior: Any,
    x: Tensor,
    num_samples: int,
    seed: int,
    statistics: Statistics | None,
) -> Prediction | RegressionPrediction:
    """Return the prediction for inputs, averaged over draws."""
    if kind_of(model) == "classification":
        return predict(net, posterior, x, num_samples, seed, statistics)
    return predict_regression(net, posterior, x, _noise_of(model), num_samples, seed, statistics)


def classification_scores(prediction: Prediction, y: Tensor) -> dict[str, float]:
    """Return accuracy, nll and ece of a prediction."""
    return scores(prediction.log_probs, y)


def gaussian_scores(
    model: Any,
    net: nn.Module,
    posterior: Any,
    x: Tensor,
    y: Tensor,
    num_samples: int,
    seed: int,
    statistics: Statistics | None,
) -> dict[str, float]:
    """Return rmse and nll of a regressor; its predictive distribution is the mixture of its draws."""
    noise = _noise_of(model)
    if num_samples:
        means, variances = draw_gaussians(net, posterior, x, noise, num_samples, seed, statistics)
    else:
        mode = predict_regression(net, posterior, x, noise, 0, seed, statistics)
        means, variances = mode.mean[None], mode.aleatoric[None]
    found = regression_scores(means, variances, y.reshape(len(y)))
    return {name: found[name] for name in SCORES["regression"]}


def _noise_of(model: Regressor) -> float | str:
    """Return the noise standard deviation, or the name of the site that it is drawn at."""
    return float(model.noise) if is_number(model.noise) else "noise"
