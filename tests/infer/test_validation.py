"""Validation scores: per datum, for our likelihoods and for a model of the user's."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from bayesbin.core import networks
from bayesbin.data import Batches
from bayesbin.distributions import SignBernoulli
from bayesbin.estimators import StraightThrough
from bayesbin.guides import AutoSignBernoulli
from bayesbin.infer import fit
from bayesbin.infer.validation import validation_metrics
from bayesbin.nn import (
    BinaryLinear,
    Classifier,
    Likelihood,
    MultiLabel,
    NegativeBinomial,
    Ordinal,
    Poisson,
    Regressor,
)

N = 40


def test_a_hand_written_model_gives_its_nll_per_datum():
    x = torch.randn(N, 3)
    y = x @ torch.tensor([1.0, -1.0, 1.0]) + 0.5 * torch.randn(N)

    def model(x, y=None):
        w = pyro.sample("w", SignBernoulli(natural=torch.zeros(3)).to_event(1))
        with pyro.plate("data", N, subsample_size=len(x)):
            return pyro.sample("y", dist.Normal(x @ w, 0.5), obs=y)

    # A posterior without spread, so that the expectation is a single term.
    init = {"w": torch.tensor([1.0, -1.0, 1.0])}
    guide = AutoSignBernoulli(model, args=(x, y), init=init, init_scale=40.0)
    held_out = Batches((x[:10], y[:10]), 4, shuffle=False)
    got = validation_metrics(model, guide, held_out, [], dataset_size=N)
    expected = -dist.Normal(x[:10] @ init["w"], 0.5).log_prob(y[:10]).mean()
    assert got == {"nll": pytest.approx(expected.item())}
    as_keywords = [{"x": x[:10], "y": y[:10]}]
    assert validation_metrics(model, guide, as_keywords, [], N) == pytest.approx(got)


class Own(Likelihood):
    def __init__(self, net, dataset_size, kind):
        super().__init__(net, dataset_size)
        self.kind = kind

    def latents(self):
        return {"width": dist.LogNormal(0.0, 0.1)}

    def distribution(self, outputs, width):
        return self.kind(outputs, width)


LEVELS, PAIRS, linear = torch.arange(N) % 4, torch.arange(2 * N).reshape(N, 2), BinaryLinear
KINDS: dict[str, tuple[Callable[[], Any], Any, list[str]]] = {
    "classes": (lambda: Classifier(linear(4, 3), N), torch.arange(N) % 3, ["accuracy", "nll", "ece"]),
    "pixels": (
        lambda: Classifier(
            nn.Sequential(linear(4, 6), nn.Unflatten(1, (3, 2))), N, class_dim=1
        ), torch.where(PAIRS % 7 == 0, -100, PAIRS % 3),
        ["accuracy", "nll", "ece"],
    ),
    "targets": (lambda: Regressor(linear(4, 2), N), torch.randn(N, 2), ["nll", "rmse"]),
    "labels": (lambda: MultiLabel(linear(4, 2), N), PAIRS % 2, ["accuracy", "nll"]),
    "poisson": (lambda: Poisson(linear(4, 1), N), LEVELS, ["nll", "rmse"]),
    "negative binomial": (lambda: NegativeBinomial(linear(4, 1), N), LEVELS, ["nll", "rmse"]),
    "ordinal": (lambda: Ordinal(linear(4, 1), N, levels=4), LEVELS, ["accuracy", "nll", "mae"]),
    "a mean": (lambda: Own(linear(4, 1), N, dist.Laplace), torch.randn(N), ["nll", "rmse"]),
    "no mean": (lambda: Own(linear(4, 1), N, dist.Cauchy), torch.randn(N), ["nll"]),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_scores_follow_the_likelihood(kind):
    make, y, names = KINDS[kind]
    model, x = make(), torch.randn(N, 4)
    weight, mask = torch.rand(N).round(decimals=1), torch.rand(y.shape) < 0.8
    guide = AutoSignBernoulli(model)
    batches = [
        {"x": x[rows], "y": y[rows], "weight": weight[rows], "mask": mask[rows]}
        for rows in (slice(0, 15), slice(15, N))
    ]
    row = fit(model, guide, batches, epochs=1, validation=batches, progress=False).history[-1]
    got = {k.removeprefix("validation_"): v for k, v in row.items() if k.startswith("validation_")}
    assert list(got) == names
    posterior, rows = guide.posterior(), []
    for k in range(8):
        network = networks.copy_with(model.net, posterior.signs(k, seed=0))
        latents = {name: posterior.sample_real(name, k, seed=0) for name in model.latents()}
        f = network(x)
        if kind == "pixels":
            f, ignored = f.transpose(1, 2), y == -100
            terms = dist.Categorical(logits=f).log_prob(torch.where(ignored, 0, y))
            counts = mask & ~ignored
        else:
            distribution = model.distribution(f, **latents)
            terms, counts = distribution.log_prob(y.double().reshape(distribution.shape())), mask
        terms = terms.reshape(counts.shape)
        rows.append(torch.where(counts, terms, 0.0).reshape(N, -1).sum(1))
    known = counts.reshape(N, -1).any(1)
    nll = -(torch.stack(rows).logsumexp(0) - math.log(8))
    expected = (weight * nll)[known].sum() / weight[known].sum()
    assert got["nll"] == pytest.approx(expected.item(), rel=1e-6)
    unweighted, unmasked = nll[known].mean(), (weight * nll).sum() / weight.sum()
    assert unweighted.item() != pytest.approx(got["nll"], rel=1e-4)
    if not bool(known.all()):
        assert unmasked.item() != pytest.approx(got["nll"], rel=1e-4)


def test_layers_that_train_differently_are_validated_in_evaluation_mode():
    seen = []

    class Model(torch.nn.Module):
        def forward(self, x, y=None):
            seen.append(self.training)
            w = pyro.sample("w", SignBernoulli(natural=torch.zeros(3)).to_event(1))
            with pyro.plate("data", N, subsample_size=len(x)):
                return pyro.sample("y", dist.Normal((x * w).sum(1), 1.0), obs=y)

    model, x, y = Model(), torch.randn(N, 3), torch.randn(N)
    guide = AutoSignBernoulli(model, args=(x, y))
    seen.clear()
    fit(
        model, guide, [(x, y)], estimator=StraightThrough(), epochs=2, dataset_size=N,
        validation=[(x, y)], progress=False,
    )  # fmt: skip
    first = seen.index(False)
    assert any(seen[:first]) and True in seen[first:]  # trained, validated, trained on
