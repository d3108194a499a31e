"""Validation scores: per datum, for our likelihoods and for a model of the user's."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch

from bayesbin.data import Batches
from bayesbin.distributions import SignBernoulli
from bayesbin.estimators import StraightThrough
from bayesbin.guides import AutoSignBernoulli
from bayesbin.infer import fit
from bayesbin.infer.validation import validation_metrics
from bayesbin.nn import BinaryLinear, Classifier, Regressor

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


@pytest.mark.parametrize(
    ("likelihood", "names"),
    [(Classifier, ["accuracy", "nll", "ece"]), (Regressor, ["nll", "rmse"])],
)
def test_our_likelihoods_are_scored_in_training(likelihood, names):
    x = torch.randn(N, 4)
    y = (x[:, 0] > 0).long() if likelihood is Classifier else x[:, 0]
    net = BinaryLinear(4, 2 if likelihood is Classifier else 1)
    model = likelihood(net, dataset_size=N)
    batches = Batches((x, y), 20)
    history = fit(
        model, AutoSignBernoulli(model), batches, epochs=1, validation=batches, progress=False
    ).history
    assert [name for name in history[-1] if name.startswith("validation_")] == [
        f"validation_{name}" for name in names
    ]


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
