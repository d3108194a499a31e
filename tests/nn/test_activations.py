"""The sign as an activation."""

from __future__ import annotations

import math

import pytest
import torch

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
