"""How a network and a posterior answer for a task: an ensemble, and scores by the kind of likelihood."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from bayesbin.core.copies import copy_network
from bayesbin.diagnostics import scores
from bayesbin.ensemble import Ensemble
from bayesbin.nn import Likelihood
from bayesbin.runtime.heads import HEADS

# The first score of a kind is its main one: what metrics are made of.
SCORES: Mapping[str, tuple[str, ...]] = {
    "classification": ("accuracy", "nll", "ece"),
    "regression": ("rmse", "nll"),
}


def kind_of(model: Any) -> str | None:
    """Return "classification", "regression", or None for a model that can be trained but not scored.

    A task has one target for each input: a label of classes or ordered levels, or a number, which may be a
    count. Several labels of an input are none of these.
    """
    kind = model.prediction_head["kind"] if isinstance(model, Likelihood) else "labels"
    if HEADS[kind].has_classes:
        return "classification"
    return None if kind == "labels" else "regression"


def network_of(model: Any) -> nn.Module | None:
    """Return the network inside a model of ours; None for any other model."""
    return model.net if isinstance(model, Likelihood) else None


def ensemble_of(
    model: Any, net: nn.Module, posterior: Any, num_samples: int, seed: int
) -> Ensemble:
    """Return the networks that answer: some draws, or the mode for 0.

    :param net: the network itself, which need not be that of the model.
    """
    head = model.prediction_head
    count = max(num_samples, 1)
    if (
        head["kind"] == "outputs"
    ):  # a likelihood of the user's own, which alone knows what they mean
        if net is not model.net:
            model = copy_network(model)
            model.net = net
        ensemble = Ensemble(model, posterior, count, seed)
    else:
        ensemble = Ensemble(net, posterior, count, seed, head=head)
    return ensemble if num_samples else ensemble.mode


def scores_of(ensemble: Ensemble, x: Tensor, y: Tensor) -> dict[str, float]:
    """Return the scores of the mean of the draws, by the kind of likelihood."""
    if HEADS[ensemble.kind].has_classes:
        return scores(ensemble.predict(x).log_probs, y)
    found = ensemble.evaluate(x, y.reshape(len(y)))["mean"]
    if "rmse" not in found:
        raise ValueError(
            "expected a likelihood whose distribution has a mean, for the rmse of a task; got one without."
        )
    return {name: found[name] for name in SCORES["regression"]}
