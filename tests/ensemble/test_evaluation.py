"""Scores of an ensemble, against the same scores of networks drawn one by one."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.special import logsumexp

from bayesbin import BinaryPosterior, Ensemble
from bayesbin.diagnostics import brier, regression_scores, scores
from bayesbin.nn import BinaryLinear, Classifier, Regressor


def ensemble_of(model, seed=0, num_samples=5):
    torch.manual_seed(seed)
    weight = model.net.weight if isinstance(model.net, BinaryLinear) else model.net[0].weight
    return Ensemble(model, BinaryPosterior({"weight": torch.randn(weight.shape)}), num_samples)


def test_classes_are_scored_by_draw_by_mean_and_by_mode():
    ensemble = ensemble_of(Classifier(BinaryLinear(4, 3), dataset_size=9))
    x, y = torch.randn(50, 4), torch.randint(3, (50,))
    found = ensemble.evaluate(x, y)

    def of(log_probs):
        return scores(log_probs, y) | {"brier": brier(log_probs, y)}

    draws = [ensemble.network(s)(x).double().log_softmax(1).detach() for s in range(5)]
    rows = [of(draw) for draw in draws]
    mean = of(torch.logsumexp(torch.stack(draws), 0) - math.log(5))
    mode = of(ensemble.mode.network(0)(x).double().log_softmax(1).detach())
    assert found["num_samples"] == 5 and set(found["mean"]) == {"accuracy", "nll", "ece", "brier"}
    for name, value in found["mean"].items():
        assert value == pytest.approx(mean[name], abs=1e-6)
        assert found["mode"][name] == pytest.approx(mode[name], abs=1e-6)
        each = [row[name] for row in rows]
        assert found["draws"]["mean"][name] == pytest.approx(np.mean(each), abs=1e-6)
        assert found["draws"]["std"][name] == pytest.approx(np.std(each), abs=1e-6)
        assert found["draws"]["low"][name] == pytest.approx(np.quantile(each, 0.025), abs=1e-6)


@pytest.mark.parametrize("targets", [1, 2])
def test_normal_targets_are_scored_as_a_mixture(targets):
    ensemble = ensemble_of(Regressor(BinaryLinear(4, targets), dataset_size=9, noise=0.7))
    x = torch.randn(50, 4)
    y = torch.randn(50, targets) if targets > 1 else torch.randn(50)
    found = ensemble.evaluate(x, y)
    draws = torch.stack([ensemble.network(s)(x).double().detach() for s in range(5)])
    mode = ensemble.mode.network(0)(x).double().detach()
    for name, means in (("mean", draws), ("mode", mode[None])):
        flat = means.reshape(len(means), -1)
        expected = regression_scores(flat, torch.full_like(flat, 0.49), y.double().reshape(-1))
        law = stats.norm(
            means.reshape(len(means), 50, -1), 0.7
        )  # of all targets of a datum together
        each = law.logpdf(y.reshape(50, -1)).sum(-1)
        expected["nll"] = -(logsumexp(each, 0) - math.log(len(means))).mean()
        assert found[name] == pytest.approx(expected, abs=1e-6)
    assert found["mode"] != found["mean"]
    with pytest.raises(ValueError, match="one target for each of the 50 inputs"):
        ensemble.evaluate(x, torch.randn(49, *y.shape[1:]))


def test_the_mode_of_joined_posteriors_is_the_mixture_of_their_modes():
    x, y = torch.randn(50, 4), torch.randn(50)
    model = Regressor(BinaryLinear(4, 1), dataset_size=9, noise=0.7)
    parts = [ensemble_of(model, seed) for seed in (0, 1)]
    found = Ensemble.join(parts).evaluate(x, y)
    modes = torch.stack([part.mode.network(0)(x).double().detach()[:, 0] for part in parts])
    expected = regression_scores(modes, torch.full_like(modes, 0.49), y.double())
    assert found["mode"] == pytest.approx(expected, abs=1e-6)


def test_a_plain_network_has_no_scores():
    ensemble = Ensemble(BinaryLinear(4, 3), BinaryPosterior({"weight": torch.randn(3, 4)}))
    with pytest.raises(ValueError, match="head"):
        ensemble.evaluate(torch.randn(5, 4), torch.randn(5))
