"""Temperature scaling recovers a temperature, finds the least loss, and knows where there is none."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import nll_loss

from bayesbin.diagnostics import TemperatureScaling


def sampled(n, temperature, seed=0):
    """Log-probabilities whose labels come from them at another temperature."""
    generator = torch.Generator().manual_seed(seed)
    log_probs = torch.log_softmax(2.0 * torch.randn(n, 5, generator=generator), -1)
    true = (log_probs / temperature).softmax(-1)
    return log_probs, torch.multinomial(true, 1, generator=generator)[:, 0]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_of_the_data_is_found(temperature):
    log_probs, y = sampled(20_000, temperature)
    fitted = TemperatureScaling.fit(log_probs, y)
    # The maximum-likelihood estimate of 1 / T has the inverse of the Fisher information as variance.
    probs = (log_probs / temperature).softmax(-1)
    mean = (probs * log_probs).sum(-1)
    information = (probs * log_probs.square()).sum(-1) - mean.square()
    error = 1.0 / math.sqrt(information.sum().item())
    assert abs(1.0 / fitted.temperature - 1.0 / temperature) < 5 * error


def test_no_other_temperature_has_a_smaller_loss():
    log_probs, y = sampled(200, 2.0)
    fitted = TemperatureScaling.fit(log_probs, y)
    least = nll_loss(fitted.apply(log_probs), y)
    for factor in (0.5, 0.99, 1.01, 2.0):
        other = TemperatureScaling(factor * fitted.temperature)
        assert nll_loss(other.apply(log_probs), y) > least


def test_labels_stay_and_probabilities_add_up():
    log_probs, _ = sampled(50, 1.0)
    for temperature in (0.1, 10.0):
        found = TemperatureScaling(temperature).apply(log_probs)
        torch.testing.assert_close(found.logsumexp(-1), torch.zeros(50), atol=1e-12, rtol=0)
        assert torch.equal(found.argmax(-1), log_probs.argmax(-1))
    torch.testing.assert_close(TemperatureScaling(1.0).apply(log_probs), log_probs)
    # A float32 network's stay in float32.
    assert TemperatureScaling(2.0).apply(log_probs.float()).dtype == torch.float32


def test_where_there_is_no_best_temperature_the_better_end_is_taken():
    log_probs, y = sampled(50, 1.0)
    best = log_probs.argmax(-1)
    assert TemperatureScaling.fit(log_probs, best).temperature == 0.01
    assert TemperatureScaling.fit(log_probs, log_probs.argmin(-1)).temperature == 100.0
    uniform = torch.full((50, 5), -math.log(5.0))
    assert TemperatureScaling.fit(uniform, y).temperature == 1.0


def test_probabilities_of_0_are_left_out():
    log_probs, y = sampled(100, 2.0)
    wider = torch.cat([log_probs, torch.full((100, 1), -math.inf)], dim=1)
    assert TemperatureScaling.fit(wider, y) == TemperatureScaling.fit(log_probs, y)
    assert (TemperatureScaling(2.0).apply(wider)[:, 5] == -math.inf).all()
    with pytest.raises(ValueError, match="some probability, got 1 with none"):
        TemperatureScaling.fit(wider, torch.cat([y[1:], torch.tensor([5])]))


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf, math.nan])
def test_errors(temperature):
    with pytest.raises(ValueError, match=r"temperature to be a .*number above 0"):
        TemperatureScaling(temperature)


def test_errors_of_data():
    with pytest.raises(ValueError, match="pass log_softmax"):
        TemperatureScaling.fit(torch.zeros(2, 3), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=r"labels in 0 \.\. 2"):
        TemperatureScaling.fit(torch.zeros(1, 3).log_softmax(-1), torch.tensor([3]))
