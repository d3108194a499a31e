"""Moments carried through a network: exact where they are said to be, near elsewhere."""

# A gradient is None until there is one, which the assertion at hand would tell.
# pyright: reportOptionalMemberAccess=false, reportArgumentType=false
# pyright: reportCallIssue=false

from __future__ import annotations

import pytest
import torch
from stats import assert_within_standard_errors, exceeds_standard_errors
from torch import nn

from bayesbin.distributions import LowBitCategorical
from bayesbin.ensemble import Ensemble
from bayesbin.nn import BinaryLinear, Scale, Sign, conv_net, mlp, to_binary_
from bayesbin.nn.moment_propagation import propagate_moments
from bayesbin.posterior import BinaryPosterior, LowBitPosterior


def outputs(net, posterior, x, num_samples=4000):
    return torch.stack([posterior.sample_network(net, s)(x) for s in range(num_samples)]).detach()


def test_a_linear_layer_is_exact():
    net = nn.Sequential(BinaryLinear(6, 3), Scale(1.7))
    natural = {"0.weight": torch.randn(3, 6)}
    x = torch.randn(4, 6)
    draws = outputs(net, posterior := BinaryPosterior(natural), x)
    found = propagate_moments(net, posterior, x)
    assert_within_standard_errors(draws, found.mean)
    assert_within_standard_errors((draws - found.mean) ** 2, found.variance)
    assert exceeds_standard_errors((draws - found.mean) ** 2, 1.2 * found.variance)


def test_ternary_weights_and_signs_of_one_layer_are_exact_in_the_mean():
    # Two inputs: nine states, so that the sum is far from Gaussian; its moments are exact all the same.
    logits = torch.randn(3, 2, 3)
    posterior = LowBitPosterior({"0.weight": LowBitCategorical((-1, 0, 1), logits)})
    net, x = nn.Sequential(BinaryLinear(2, 3)), torch.randn(2, 2)
    draws = outputs(net, posterior, x)
    found = propagate_moments(net, posterior, x)
    assert_within_standard_errors(draws, found.mean)
    assert_within_standard_errors((draws - found.mean) ** 2, found.variance)


@pytest.mark.parametrize("mean", [-3.0, -0.4, 0.0, 1.2])
@pytest.mark.parametrize("variance", [0.01, 1.0, 9.0])
def test_activations_of_gaussian_inputs_by_quadrature(mean, variance):
    # A real layer with random inputs stands for any Gaussian: moments of the unit itself.
    from bayesbin.nn.moment_propagation import Moments, _through

    points = torch.linspace(-10, 10, 200_001)
    density = torch.exp(-0.5 * points**2) / (2 * torch.pi) ** 0.5
    a = mean + variance**0.5 * points
    for layer, value in ((nn.ReLU(), a.clamp_min(0)), (Sign(), torch.where(a >= 0, 1.0, -1.0))):
        first = torch.trapezoid(value * density, points)
        second = torch.trapezoid((value - first) ** 2 * density, points)
        got = _through(layer, "", {}, Moments(torch.tensor([mean]), torch.tensor([variance])))
        torch.testing.assert_close(got.mean[0], first, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(got.variance[0], second, atol=1e-4, rtol=1e-4)


def test_without_spread_it_is_the_network():
    for activation in ("relu", "sign"):
        net = to_binary_(mlp(5, [7], 3, activation=activation)).eval()
        net[1].running_mean.normal_()
        posterior = BinaryPosterior(
            {
                n: 300.0 * torch.randn(s).sign()
                for n, s in (("0.weight", (7, 5)), ("3.weight", (3, 7)))
            }
        )
        x = torch.randn(20, 5)
        found = propagate_moments(net, posterior, x)
        expected = posterior.mode_network(net)(x)
        torch.testing.assert_close(found.mean, expected, atol=1e-8, rtol=1e-8)
        assert found.variance.max() < 1e-12


def test_it_is_near_the_predictive_of_a_wide_network():
    torch.manual_seed(2)
    net = to_binary_(mlp(40, [200], 3, activation="sign", normalize=False)).eval()
    sites = {"0.weight": (200, 40), "2.weight": (3, 200)}
    posterior = BinaryPosterior({n: 0.8 * torch.randn(s) for n, s in sites.items()})
    x = torch.randn(10, 40)
    draws = Ensemble(net, posterior, 2000, head="classes").predict(x).probs
    gap = (propagate_moments(net, posterior, x).probs() - draws).abs().max()
    mode = posterior.mode_network(net)(x).softmax(-1)
    assert gap < 0.02 < (mode - draws).abs().max()


def test_convolutions_and_what_has_no_rule():
    net = to_binary_(conv_net((1, 12, 12), (4,), (8,), 3, kernel_size=3)).eval()
    with pytest.raises(ValueError, match=r"no rule for MaxPool2d \(2\)"):
        propagate_moments(net, all_zero(net), torch.randn(2, 1, 12, 12))
    net[2] = nn.AvgPool2d(2)
    found = propagate_moments(net, all_zero(net), torch.randn(2, 1, 12, 12))
    assert found.mean.shape == found.variance.shape == (2, 3)
    assert bool((found.variance > 0).all()) and torch.isfinite(found.probs()).all()


def all_zero(net):
    from bayesbin.nn import binary_sites

    return BinaryPosterior({n: torch.zeros(s.shape) for n, s in binary_sites(net).items()})
