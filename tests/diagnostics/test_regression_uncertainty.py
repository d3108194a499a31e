"""Mixtures of Gaussians against torch's own, single Gaussians' closed forms and numerical integrals."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from stats import assert_within_standard_errors
from torch import distributions as dist
from torch import nn

from bayesbin import BinaryPosterior
from bayesbin.diagnostics import regression_scores, regression_uncertainty
from bayesbin.distributions import Support
from bayesbin.ensemble import Ensemble
from bayesbin.nn import Regressor, to_binary_
from bayesbin.posterior import RealPosterior


def mixture(num_samples=5, batch=7):
    return 2.0 * torch.randn(num_samples, batch), 0.1 + torch.rand(num_samples, batch)


def of_torch(means, variances):
    weights = dist.Categorical(logits=torch.zeros(means.shape[::-1]))
    return dist.MixtureSameFamily(weights, dist.Normal(means.T, variances.sqrt().T))


def test_moments_and_density_are_those_of_torch():
    means, variances = mixture()
    found, other = regression_uncertainty(means, variances), of_torch(means, variances)
    y = torch.randn(7)
    torch.testing.assert_close(found.mean, other.mean)
    torch.testing.assert_close(found.variance, other.variance)
    torch.testing.assert_close(
        found.aleatoric_variance + found.epistemic_variance, found.std.square()
    )
    torch.testing.assert_close(found.log_prob(y), other.log_prob(y))
    torch.testing.assert_close(found.cdf(y), other.cdf(y))
    assert found.num_samples == 5


@pytest.mark.parametrize("probability", [1e-6, 0.025, 0.5, 0.9, 1 - 1e-6])
def test_quantiles_invert_the_distribution_function(probability):
    found = regression_uncertainty(*mixture())
    expected = torch.full((7,), probability)
    at = found.cdf(found.quantile(probability))
    torch.testing.assert_close(at, expected, rtol=1e-10, atol=1e-14)


def test_intervals_are_those_of_the_mixture_and_not_of_a_gaussian_with_its_moments():
    apart = regression_uncertainty(torch.tensor([[-10.0], [10.0]]), 0.01)
    low, high = apart.interval(0.5)
    # A quarter of all probability is half of one component.
    torch.testing.assert_close(torch.cat([low, high]), torch.tensor([-10.0, 10.0]))
    gaussian = dist.Normal(0.0, apart.std).icdf(torch.tensor(0.75))
    assert gaussian.item() < 7.0
    one = regression_uncertainty(torch.tensor([[3.0]]), 4.0)
    low, high = one.interval(0.95)
    assert (low.item(), high.item()) == pytest.approx(
        (3 - 2 * 1.959964, 3 + 2 * 1.959964), abs=1e-5
    )


def test_quantiles_of_draws_that_agree_are_exact():
    found = regression_uncertainty(torch.full((4, 1), 1e6), 1e-12)
    assert found.quantile(0.3).item() == pytest.approx(1e6 - 0.5244e-6, abs=2e-9)


def test_crps_of_one_gaussian_has_its_closed_form():
    mean, std, y = torch.randn(9), 0.1 + torch.rand(9), torch.randn(9)
    z = (y - mean) / std
    normal = dist.Normal(0.0, 1.0)
    density = normal.log_prob(z).exp()
    expected = std * (z * (2 * normal.cdf(z) - 1) + 2 * density - 1 / math.sqrt(math.pi))
    found = regression_uncertainty(mean[None], std[None] ** 2).crps(y)
    torch.testing.assert_close(found, expected)


def test_crps_of_a_mixture_is_the_integral_of_squared_distance():
    means, variances = mixture(4, 3)
    y = torch.tensor([0.3, -5.0, 1.0])
    other = of_torch(means, variances)
    found = regression_uncertainty(means, variances).crps(y)
    for index in range(3):

        def square(t: float, index: int = index) -> float:
            step = float(t >= y[index].item())
            return (other.cdf(torch.full((3,), t))[index].item() - step) ** 2

        edge = y[index].item()
        integral = quad(square, -20.0, edge, limit=200)[0] + quad(square, edge, 20.0, limit=200)[0]
        assert found[index].item() == pytest.approx(integral, abs=1e-6)


def test_crps_of_sure_draws_is_that_of_an_ensemble():
    points, y = torch.randn(6, 10), torch.randn(10)
    spread = (points[:, None] - points[None]).abs().mean((0, 1))
    expected = (points - y).abs().mean(0) - 0.5 * spread
    found = regression_uncertainty(points, 1e-24).crps(y)
    torch.testing.assert_close(found, expected)


def test_scores_prefer_the_distribution_that_the_data_come_from():
    torch.manual_seed(3)
    means = torch.tensor([[-1.0], [1.0]]).expand(2, 20_000)
    y = of_torch(means, torch.full_like(means, 0.25)).sample()
    true = regression_scores(means, 0.25, y, coverage=0.8)
    inside = torch.zeros(20_000)
    inside[: round(true["coverage"] * 20_000)] = 1.0
    assert_within_standard_errors(inside, 0.8)
    for wrong in ((means, 0.05), (means, 1.0), (torch.zeros_like(means), 1.25)):
        other = regression_scores(*wrong, y, coverage=0.8)
        assert true["nll"] < other["nll"] and true["crps"] < other["crps"]
    assert regression_scores(means, 0.01, y, 0.8)["coverage"] < 0.7  # too sure
    assert true["rmse"] == pytest.approx(y.square().mean().sqrt().item())
    low, high = regression_uncertainty(means[:, :1], 0.25).interval(0.8)
    assert true["sharpness"] == pytest.approx((high - low).item())


def test_draws_of_an_ensemble_have_the_moments_of_its_prediction():
    net = to_binary_(nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 1)))
    signs = {"0.weight": torch.randn(6, 3), "2.weight": torch.randn(1, 6)}
    noise = RealPosterior(torch.tensor(-1.0), torch.tensor(0.3), Support("positive"))
    posterior, x = BinaryPosterior(signs, {"noise": noise}), torch.randn(11, 3)
    ensemble = Ensemble(Regressor(net, 11), posterior, 6, seed=2)
    found = regression_uncertainty(ensemble.outputs(x)[..., 0], ensemble.noise[:, None] ** 2)
    prediction = ensemble.predict(x)
    for name in ("mean", "aleatoric_variance", "epistemic_variance", "std"):
        torch.testing.assert_close(getattr(found, name), getattr(prediction, name))
    assert not torch.equal(found.variances[0], found.variances[1])  # each draw its own noise
    fixed = Ensemble(Regressor(net, 11, noise=0.5), BinaryPosterior(signs), 2)
    np.testing.assert_allclose(fixed.noise, [0.5, 0.5])
    with pytest.raises(
        ValueError, match="an ensemble with noise to be one of normal; got 'outputs'"
    ):
        _ = Ensemble(net, BinaryPosterior(signs), 2).noise


@pytest.mark.parametrize(
    ("means", "variances", "message"),
    [
        (torch.zeros(3), 1.0, r"expected means \(S, B\)"),
        (torch.zeros(0, 3), 1.0, "at least one draw"),
        (torch.zeros(2, 3), torch.ones(2), r"broadcast to \(2, 3\), got \(2,\)"),
        (torch.zeros(2, 3), 0.0, "positive, finite variances"),
        (torch.full((2, 3), math.nan), 1.0, "finite means"),
    ],
)
def test_errors(means, variances, message):
    with pytest.raises(ValueError, match=message):
        regression_uncertainty(means, variances)


def test_errors_of_methods():
    found = regression_uncertainty(torch.zeros(2, 3), 1.0)
    with pytest.raises(ValueError, match=r"targets of shape \(3,\), got \(2,\)"):
        found.crps(torch.zeros(2))
    with pytest.raises(ValueError, match=r"coverage to be a number above 0 and below 1; got 1\.5"):
        found.interval(1.5)
    with pytest.raises(ValueError, match="probability to be a number above 0 and below 1; got 0"):
        found.quantile(0)
