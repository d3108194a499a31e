"""The sign as an activation."""

from __future__ import annotations

import math

import pytest
import torch
from stats import assert_within_standard_errors, exceeds_standard_errors

from bayesbin.estimators import LocalReparameterization, ScoreFunction
from bayesbin.guides import AutoSignBernoulli
from bayesbin.infer import TraceBinary_ELBO
from bayesbin.nn import Classifier, Sign, mlp, to_binary_


def test_values_and_gradient():
    x = torch.tensor([-2.0, -1.0, -0.0, 0.0, 0.5, 1.0, 1.1, math.inf], requires_grad=True)
    y = Sign()(x)
    assert y.tolist() == [-1.0, -1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0] and y.dtype == x.dtype
    (y * torch.arange(1.0, 9.0)).sum().backward()
    assert x.grad is not None and x.grad.tolist() == [0.0, 2.0, 3.0, 4.0, 5.0, 6.0, 0.0, 0.0]


WIDE = torch.linspace(-2.0, 2.0, 41)


@pytest.mark.parametrize(
    ("derivative", "noisy"),
    [
        ("clipped", lambda x: x.clamp(-1, 1)),
        ("polynomial", lambda x: torch.where(x.abs() < 1, 2 * x - x * x.abs(), x.sign())),
        ("tanh-noise", torch.tanh),
    ],
)
def test_each_slope_is_that_of_a_noisy_sign(derivative, noisy):
    """The slope against autograd of E[sign(x + n)], and that against draws of the noise."""
    x = WIDE.clone().requires_grad_()
    y = Sign(derivative)(x)
    assert torch.equal(y.detach(), Sign()(WIDE))
    (slope,) = torch.autograd.grad(y.sum(), x)
    smooth = WIDE.clone().requires_grad_()
    (expected,) = torch.autograd.grad(noisy(smooth).sum(), smooth)
    inside = (WIDE.abs() - 1).abs() > 1e-9  # where the clipped one has a kink it has no derivative
    torch.testing.assert_close(slope[inside], expected[inside])
    uniform, other = torch.rand(2, 20_000, 1)
    noise = {
        "clipped": 2 * uniform - 1,
        "polynomial": uniform - other,
        "tanh-noise": 0.5 * torch.logit(uniform),
    }[derivative]
    draws = torch.where(WIDE + noise >= 0, 1.0, -1.0)
    assert_within_standard_errors(draws, noisy(WIDE))
    for wrong in (noisy(0.8 * WIDE), noisy(1.2 * WIDE)):
        assert exceeds_standard_errors(draws, wrong)


def test_derivatives_keep_their_dtype_and_run_under_vmap():
    for derivative in ("clipped", "polynomial", "tanh-noise"):
        x = torch.tensor([-40.0, 0.3, 40.0], dtype=torch.float32, requires_grad=True)
        (slope,) = torch.autograd.grad(Sign(derivative)(x).sum(), x)
        assert slope.dtype == torch.float32 and bool(torch.isfinite(slope).all())
        batch = torch.randn(4, 3)
        slopes = torch.vmap(torch.func.grad(lambda v, d=derivative: Sign(d)(v).sum()))(batch)
        twin = batch.clone().requires_grad_()
        torch.testing.assert_close(
            slopes, torch.autograd.grad(Sign(derivative)(twin).sum(), twin)[0]
        )


def test_names():
    assert repr(Sign()) == "Sign()" and repr(Sign("polynomial")) == "Sign(derivative='polynomial')"
    with pytest.raises(ValueError, match="one of clipped, polynomial, tanh-noise; got 'identity'"):
        Sign("identity")


def test_nan_is_not_hidden_and_float32_stays():
    assert torch.isnan(Sign()(torch.tensor([math.nan]))).all()
    assert Sign()(torch.zeros(2, dtype=torch.float32)).dtype == torch.float32


@pytest.mark.parametrize("estimator", [LocalReparameterization(), ScoreFunction(3)], ids=repr)
def test_a_network_of_signs_trains(estimator):
    net = to_binary_(mlp(6, [8, 8], 3, activation="sign"))
    model = Classifier(net, dataset_size=30)
    guide = AutoSignBernoulli(model)
    loss = TraceBinary_ELBO(estimator)(model, guide)(torch.randn(30, 6), torch.arange(30) % 3)
    loss.backward()
    for natural in guide.natural_parameters():
        assert natural.grad is not None and bool((natural.grad != 0).any())
