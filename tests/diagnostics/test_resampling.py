"""Bootstrap intervals: of a mean, of paired and unpaired samples, and what they cover."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats as scipy_stats
from stats import FAILURE_RATE

from bayesbin.diagnostics import bootstrap, classification_scores, ood_scores


def mean(*samples):
    return {str(place): sample.mean().item() for place, sample in enumerate(samples)}


def test_the_interval_of_a_mean_is_that_of_scipy():
    x = torch.randn(200)
    found = bootstrap(mean, x, num_bootstrap=4000, interval=0.9)["0"]
    other = scipy_stats.bootstrap(
        (x.numpy(),), np.mean, n_resamples=4000, confidence_level=0.9, method="percentile", rng=0
    ).confidence_interval
    assert found.value == x.mean().item()
    # Each end is a quantile of 4000 draws of a nearly normal mean.
    error = (
        5 * math.sqrt(2) * math.sqrt(0.05 * 0.95 / 4000) / 0.103 * x.std().item() / math.sqrt(200)
    )
    assert abs(found.low - other.low) < error and abs(found.high - other.high) < error


def test_intervals_cover_as_often_as_they_say_and_halves_of_them_do_not():
    covered = [0, 0]
    for seed in range(200):
        x = torch.randn(100, generator=torch.Generator().manual_seed(seed))
        found = bootstrap(mean, x, num_bootstrap=200, interval=0.9, seed=seed)["0"]
        covered[0] += found.low <= 0.0 <= found.high
        middle, half = (found.low + found.high) / 2, (found.high - found.low) / 4
        covered[1] += abs(middle) <= half
    # At this size percentile intervals fall short by a little more than 1 %.
    least = scipy_stats.binom(200, 0.88).ppf(FAILURE_RATE)
    assert covered[1] < least <= covered[0]


def test_what_is_paired_is_drawn_together_and_what_is_not_is_not():
    x = torch.randn(100)

    def differences(a, b):
        return {"difference": (a - b).mean().item()}

    paired = bootstrap(differences, (x, x + 1.0), num_bootstrap=50)["difference"]
    assert (paired.low, paired.high) == pytest.approx((-1.0, -1.0))
    apart = bootstrap(differences, x, x + 1.0, num_bootstrap=50)["difference"]
    assert apart.high - apart.low > 0.1


def test_scores_share_their_resamples():
    x = torch.randn(50)
    found = bootstrap(lambda s: {"a": s.mean().item(), "b": s.mean().item()}, x, num_bootstrap=20)
    assert found["a"] == found["b"]


def test_every_score_has_an_interval():
    log_probs = torch.log_softmax(2.0 * torch.randn(80, 3), -1)
    y = torch.randint(3, (80,))
    found = bootstrap(classification_scores, (log_probs, y), num_bootstrap=50)
    values = classification_scores(log_probs, y)
    assert {name: estimate.value for name, estimate in found.items()} == values
    for name in ("accuracy", "nll", "brier", "sharpness"):
        assert found[name].low < values[name] < found[name].high
    separated = bootstrap(ood_scores, torch.rand(40), 0.5 + torch.rand(30), num_bootstrap=50)
    assert 0.5 < separated["auroc"].low < separated["auroc"].high < 1.0


def test_infinite_scores_have_an_interval_without_nan():
    log_probs = torch.tensor([[1.0, 0.0]]).log().expand(20, 2)
    y = torch.tensor([1] + [0] * 19)  # one label of probability 0
    found = bootstrap(classification_scores, (log_probs, y), num_bootstrap=100)["nll"]
    assert (found.value, found.low, found.high) == (math.inf, 0.0, math.inf)


def test_a_seed_repeats_the_interval():
    x = torch.randn(30)
    one, same, other = (bootstrap(mean, x, num_bootstrap=20, seed=s) for s in (1, 1, 2))
    assert one == same != other


def test_errors():
    with pytest.raises(ValueError, match="at least one sample"):
        bootstrap(mean)
    with pytest.raises(ValueError, match="data in each"):
        bootstrap(mean, torch.zeros(0))
    with pytest.raises(ValueError, match=r"one length in a tuple, got \[2, 3\]"):
        bootstrap(mean, (torch.zeros(2), torch.zeros(3)))
    with pytest.raises(ValueError, match="interval to be a number above 0 and below 1; got 95"):
        bootstrap(mean, torch.zeros(2), interval=95)
    with pytest.raises(ValueError, match="num_bootstrap to be a whole number of at least 1"):
        bootstrap(mean, torch.zeros(2), num_bootstrap=0)
    with pytest.raises(TypeError, match="numbers by name, got float"):
        bootstrap(lambda x: x.mean().item(), torch.zeros(2))  # pyright: ignore[reportArgumentType]
