"""Isotonic reliability: scikit-learn's regression, the parts of the Brier score, and bands that hold."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import binom
from sklearn.isotonic import IsotonicRegression
from stats import FAILURE_RATE

from bayesbin.diagnostics import reliability


def hits(confidence, power=1.0, seed=0):
    """Whether answers are right, with these confidences, or powers of them, as probabilities."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(len(confidence), generator=generator) < confidence**power


def test_the_curve_is_that_of_scikit_learn():
    confidence = torch.rand(300).round(decimals=2)  # with ties
    correct = hits(confidence)
    found = reliability(confidence, correct, num_simulations=2)
    fit = IsotonicRegression().fit(confidence.numpy(), correct.double().numpy())
    np.testing.assert_allclose(found.frequency, fit.predict(found.confidence.numpy()), atol=1e-12)
    values, counts = confidence.unique(return_counts=True)
    assert torch.equal(found.confidence, values) and torch.equal(found.counts, counts)


@pytest.mark.parametrize("power", [1.0, 4.0])
def test_the_parts_add_up_to_the_brier_score(power):
    confidence = torch.rand(300).round(decimals=2)
    correct = hits(confidence, power)
    found = reliability(confidence, correct, num_simulations=2)
    total = found.miscalibration - found.discrimination + found.base_uncertainty
    assert total == pytest.approx((confidence - correct.double()).square().mean().item())
    assert min(found.miscalibration, found.discrimination, found.base_uncertainty) >= 0.0


def test_a_calibrated_predictor_stays_in_the_band_and_a_twin_leaves_it():
    confidence = torch.rand(3000)
    calibrated = reliability(confidence, hits(confidence), num_simulations=200)
    overconfident = reliability(confidence, hits(confidence, 2.0), num_simulations=200)
    assert calibrated.outside < 0.3 < 0.8 < overconfident.outside
    assert calibrated.miscalibration < 0.1 * overconfident.miscalibration


def test_the_band_of_one_confidence_is_binomial():
    confidence = torch.full((40,), 0.7)
    found = reliability(confidence, hits(confidence), level=0.9, num_simulations=4000)
    assert len(found.low) == 1
    distribution = binom(40, 0.7)
    # The ends are quantiles of 4000 draws: each within the quantiles next to it.
    for end, share in ((found.low, 0.05), (found.high, 0.95)):
        error = 5 * np.sqrt(share * (1 - share) / 4000)
        low, high = distribution.ppf(share - error) / 40, distribution.ppf(share + error) / 40
        assert low - 1e-12 <= end.item() <= high + 1e-12


def test_the_band_holds_as_often_as_it_says():
    """Over calibrated data sets, at the middle confidence; too narrow a twin does not."""
    confidence = torch.linspace(0.05, 0.95, 60)
    bands = {level: reliability(confidence, hits(confidence), level=level) for level in (0.9, 0.5)}
    inside = dict.fromkeys(bands, 0)
    for seed in range(200):
        curve = reliability(
            confidence, hits(confidence, seed=seed + 1), num_simulations=1
        ).frequency
        for level, band in bands.items():
            inside[level] += bool(band.low[30] - 1e-12 <= curve[30] <= band.high[30] + 1e-12)
    # The band is itself simulated, 500 times: 2 % more than binomial.
    assert inside[0.9] >= binom(200, 0.9 - 0.02).ppf(FAILURE_RATE)
    assert inside[0.5] < binom(200, 0.9 - 0.02).ppf(FAILURE_RATE)


def test_many_different_confidences_have_a_band_on_fewer():
    confidence = torch.rand(2000)
    found = reliability(confidence, hits(confidence), num_simulations=3)
    assert len(found.frequency) == 2000 and len(found.low) == len(found.band_confidence) == 500
    assert found.band_confidence[0] == confidence.min()
    assert found.band_confidence[-1] == confidence.max()


def test_certain_answers():
    found = reliability(torch.tensor([0.0, 1.0, 1.0]), torch.tensor([False, True, True]))
    assert found.frequency.tolist() == found.low.tolist() == found.high.tolist() == [0.0, 1.0]
    assert found.miscalibration == 0.0 and found.outside == 0.0
    wrong = reliability(torch.tensor([1.0, 1.0]), torch.tensor([False, False]))
    assert wrong.outside == 1.0 and wrong.miscalibration == 1.0
    assert wrong.discrimination == wrong.base_uncertainty == 0.0


def test_the_same_seed_gives_the_same_band():
    confidence = torch.rand(50)
    one, same, other = (reliability(confidence, hits(confidence), seed=s).low for s in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_errors():
    with pytest.raises(ValueError, match="level to be a number above 0 and below 1; got 90"):
        reliability(torch.zeros(1), torch.zeros(1), level=90)
    with pytest.raises(ValueError, match="num_simulations to be a whole number of at least 1"):
        reliability(torch.zeros(1), torch.zeros(1), num_simulations=0)
    with pytest.raises(ValueError, match=r"probabilities, in 0 \.\. 1"):
        reliability(torch.tensor([1.5]), torch.zeros(1))
