"""Starting points of LR-net, from pretrained real weights."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from bayesbin.guides import AutoLowBit, AutoSignBernoulli, natural_from_latent, ternary_from_latent
from bayesbin.nn import Classifier, to_binary_
from bayesbin.posterior import BinaryPosterior


def test_the_published_probabilities():
    weight = torch.randn(20, 30)
    v = weight.numpy() / weight.numpy().std(ddof=1)
    plus = torch.sigmoid(2 * natural_from_latent({"w": weight})["w"]).numpy()
    np.testing.assert_allclose(plus, np.clip((1 + v) / 2, 0.05, 0.95), rtol=1e-10)
    probs = ternary_from_latent({"w": weight})["w"].probs.numpy()
    zero = np.clip(0.95 - 0.9 * np.abs(v), 0.05, 0.95)
    given = np.clip(0.5 * (1 + v / (1 - zero)), 0.05, 0.95)
    expected = np.stack([(1 - zero) * (1 - given), zero, (1 - zero) * given], -1)
    np.testing.assert_allclose(probs, expected, rtol=1e-10)
    assert not np.allclose(probs, expected[..., ::-1])


def test_guides_start_there():
    real = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    model = Classifier(to_binary_(copy.deepcopy(real)), dataset_size=10)
    naturals = natural_from_latent(real)
    assert list(naturals) == ["0.weight", "2.weight"]
    guide = AutoSignBernoulli(model, init=BinaryPosterior(naturals))
    for p, q in zip(guide.natural_parameters(), naturals.values(), strict=True):
        assert torch.equal(p, q)
    start = ternary_from_latent(real)
    ternary = AutoLowBit(model, init=start)
    for p, distribution in zip(ternary.logits(), start.values(), strict=True):
        assert torch.equal(p, distribution.logits)
    with torch.no_grad():
        next(ternary.logits()).zero_()
    assert start["0.weight"].logits.any()
    assert copy.deepcopy(ternary).levels == (-1.0, 0.0, 1.0)


def test_what_does_not_fit():
    with pytest.raises(ValueError, match="two dimensions or more; got bias"):
        natural_from_latent({"bias": torch.zeros(3)})
    with pytest.raises(ValueError, match="least is a probability"):
        ternary_from_latent({"w": torch.randn(2, 2)}, least=0.5)
    assert not natural_from_latent({"w": torch.zeros(2, 2)})["w"].any()
    model = Classifier(to_binary_(nn.Linear(6, 2)), dataset_size=10)
    for init in (
        ternary_from_latent({"w": torch.randn(2, 6)}),
        ternary_from_latent(nn.Linear(5, 2)),
    ):
        with pytest.raises(ValueError, match=r"has at 'weight' the levels .* and the shape"):
            AutoLowBit(model, init=init)
    with pytest.raises(ValueError, match="got a BinaryPosterior"):
        AutoLowBit(model, init=BinaryPosterior({"weight": torch.zeros(2, 6)}))
    with pytest.raises(ValueError, match="has at 'weight' the levels"):
        AutoLowBit(model, levels=(-1, 1), init=ternary_from_latent(nn.Linear(6, 2)))
