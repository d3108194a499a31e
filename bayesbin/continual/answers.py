"""How a network and a posterior answer for a task: an ensemble, and scores by the kind of likelihood."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from bayesbin.diagnostics import scores
from bayesbin.ensemble import Ensemble
from bayesbin.nn import Classifier, Regressor

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


def ensemble_of(
    model: Any, net: nn.Module, posterior: Any, num_samples: int, seed: int
) -> Ensemble:
    """Return the networks that answer: some draws, or the mode for 0.

    :param net: the network itself, which need not be that of the model.
    """
    head = model.prediction_head
    ensemble = Ensemble(net, posterior, max(num_samples, 1), seed, head=head)
    return ensemble if num_samples else ensemble.mode


def scores_of(ensemble: Ensemble, x: Tensor, y: Tensor) -> dict[str, float]:
    """Return the scores of the mean of the draws, by the kind of likelihood."""
    if ensemble.kind == "classes":
        return scores(ensemble.predict(x).log_probs, y)
    found = ensemble.evaluate(x, y.reshape(len(y)))["mean"]
    return {name: found[name] for name in SCORES["regression"]}
