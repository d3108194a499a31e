"""Mean, variance and entropy of the relaxed distribution against adaptive quadrature over its noise."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from scipy.integrate import quad

from bayesbin.distributions import RelaxedSignBernoulli, SignBernoulli


def expectation(f, natural: float, temperature: float) -> float:
    """E[f(w_r)] over the logistic noise delta, split where w_r changes sign."""

    def integrand(delta: float) -> float:
        return f(math.tanh((natural + delta) / temperature)) / (2.0 * math.cosh(delta) ** 2)

    centre = -natural
    edges = [
        -30.0 + centre,
        centre - 5 * temperature,
        centre,
        centre + 5 * temperature,
        30.0 + centre,
    ]
    return sum(
        quad(integrand, low, high, epsabs=1e-13, epsrel=1e-12, limit=400)[0]
        for low, high in pairwise(edges)
    )


@pytest.mark.parametrize("temperature", [0.05, 0.5, 2.0])
@pytest.mark.parametrize("natural", [0.0, 0.5, -3.0, 8.0])
def test_mean_and_variance(natural, temperature):
    distribution = RelaxedSignBernoulli(temperature, torch.tensor(natural))
    mean = expectation(lambda w: w, natural, temperature)
    second = expectation(lambda w: w * w, natural, temperature)
    assert distribution.mean.item() == pytest.approx(mean, abs=1e-9)
    assert distribution.variance.item() == pytest.approx(second - mean**2, abs=1e-9)


@pytest.mark.parametrize("temperature", [0.3, 0.5, 2.0])
@pytest.mark.parametrize("natural", [0.0, 0.5, -3.0])
def test_entropy_is_the_mean_of_minus_log_p(natural, temperature):
    distribution = RelaxedSignBernoulli(temperature, torch.tensor(natural))

    def surprise(delta: float) -> float:
        # -log p along the noise: no tanh to round to 1
        scaled = (natural + delta) / temperature
        log_sech2 = 2.0 * (math.log(2.0) - abs(scaled) - math.log1p(math.exp(-2.0 * abs(scaled))))
        log_density = math.log(temperature / 2.0) - 2.0 * math.log(math.cosh(delta)) - log_sech2
        return -log_density / (2.0 * math.cosh(delta) ** 2)

    expected = sum(
        quad(surprise, low, high, epsabs=1e-12, limit=400)[0]
        for low, high in ((-30.0, -natural), (-natural, 30.0))
    )
    assert distribution.entropy().item() == pytest.approx(expected, abs=1e-6)


def test_small_temperatures_give_the_moments_of_the_signs():
    natural = torch.tensor([0.0, 0.4, -2.0])
    relaxed, signs = RelaxedSignBernoulli(1e-4, natural), SignBernoulli(natural=natural)
    torch.testing.assert_close(relaxed.mean, signs.mean, rtol=0, atol=1e-3)
    torch.testing.assert_close(relaxed.variance, signs.variance, rtol=0, atol=1e-3)


def test_moments_carry_gradients():
    natural = torch.tensor([0.3], requires_grad=True)
    distribution = RelaxedSignBernoulli(0.5, natural)
    assert torch.autograd.gradcheck(lambda lam: RelaxedSignBernoulli(0.5, lam).mean, natural)
    (slope,) = torch.autograd.grad(distribution.entropy().sum(), natural)
    step = 1e-5
    up, down = (RelaxedSignBernoulli(0.5, torch.tensor([0.3 + s])).entropy() for s in (step, -step))
    assert slope.item() == pytest.approx((up - down).item() / (2 * step), rel=1e-6)
