"""Leave-one-out of each likelihood, with weights and masks, against sums over all states of the signs."""

from __future__ import annotations

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from scipy.special import expit, log_softmax, logsumexp

from bayesbin import BinaryPosterior, to_inference_data
from bayesbin.distributions import SignBernoulli
from bayesbin.guides import AutoSignBernoulli
from bayesbin.infer.checks import posterior_predictive_check, psis_loo, replicate
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

N = 8
X = torch.randn(N, 3, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
COUNTS = torch.tensor([0.0, 1.0, 2.0, 0.0, 1.0, 3.0, 1.0, 0.0], dtype=torch.float64)
LEVELS = torch.tensor([0, 1, 2, 1, 0, 2, 1, 1])
BOTH = torch.stack([COUNTS, COUNTS.flip(0)], 1)


class Laplace(Likelihood):
    def distribution(self, outputs):
        return dist.Laplace(outputs.squeeze(-1), 1.5)


# Likelihood of a network, outputs, targets, log p(y | outputs) of each target by scipy.
CASES = {
    "classes": (
        lambda net: Classifier(net, N), 2, LEVELS % 2,
        lambda f, y: np.take_along_axis(log_softmax(f, -1), y[:, None], -1),
    ),
    "levels": (
        lambda net: Ordinal(net, N, 3, [-0.5, 0.8]), 1, LEVELS,
        lambda f, y: np.log(
            expit(np.array([-0.5, 0.8, np.inf])[y] - f[:, 0])
            - expit(np.array([-np.inf, -0.5, 0.8])[y] - f[:, 0])
        )[:, None],
    ),
    "labels": (
        lambda net: MultiLabel(net, N), 2, (BOTH > 0).double(),
        lambda f, y: stats.bernoulli(expit(f)).logpmf(y),
    ),
    "normal": (
        lambda net: Regressor(net, N, noise=1.5), 1, COUNTS,
        lambda f, y: stats.norm(f[:, 0], 1.5).logpdf(y)[:, None],
    ),
    "two targets": (
        lambda net: Regressor(net, N, noise=[1.5, 2.0]), 2, BOTH,
        lambda f, y: stats.norm(f, [1.5, 2.0]).logpdf(y),
    ),
    "heteroscedastic": (
        lambda net: Regressor(net, N, noise="heteroscedastic"), 2, COUNTS,
        lambda f, y: stats.norm(f[:, 0], np.exp(f[:, 1])).logpdf(y)[:, None],
    ),
    "poisson": (
        lambda net: Poisson(net, N), 1, COUNTS,
        lambda f, y: stats.poisson(np.exp(f[:, 0])).logpmf(y)[:, None],
    ),
    "negative binomial": (
        lambda net: NegativeBinomial(net, N, 2.0), 1, COUNTS,
        lambda f, y: stats.nbinom(2.0, 2.0 / (2.0 + np.exp(f[:, 0]))).logpmf(y)[:, None],
    ),
    "own": (
        lambda net: Laplace(net, N), 1, COUNTS, lambda f, y: stats.laplace(f[:, 0], 1.5).logpdf(y)[:, None],
    ),
}  # fmt: skip


def all_states(count: int) -> np.ndarray:
    return 2.0 * ((np.arange(2**count)[:, None] >> np.arange(count)) & 1) - 1.0


def enumerated(name: str, weight, mask) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """log p(y_n | all others), log p(y_n | all), and the marginals of the signs, by sums over states."""
    _, outputs, y, log_prob = CASES[name]
    states = all_states(3 * outputs)
    scale = BinaryLinear(3, outputs, bias=False).scale
    kept = np.ones((N, len(np.atleast_2d(y.numpy()[0])[0])), dtype=bool) if mask is None else mask
    kept = np.broadcast_to(
        np.asarray(kept).reshape(N, -1), (N, kept.shape[-1] if kept.ndim > 1 else 1)
    )
    each = []
    for state in states:
        f = X.numpy() @ (float(scale) * state.reshape(outputs, 3)).T
        rows = log_prob(f, y.numpy())
        each.append(np.where(np.broadcast_to(kept, rows.shape), rows, 0.0).sum(-1))
    each = np.stack(each)  # (states, N)
    power = np.ones(N) if weight is None else np.asarray(weight)
    joint = (power * each).sum(1)[:, None]
    without = joint - power * each
    loo = logsumexp(without + each, axis=0) - logsumexp(without, axis=0)
    inside = logsumexp(joint + each, axis=0) - logsumexp(joint)
    posterior = np.exp(joint[:, 0] - logsumexp(joint))
    return loo, inside, posterior @ states


WEIGHT = [1.0, 2.0, 0.0, 0.5, 1.0, 1.5, 1.0, 1.0]
ROWS = np.array([True, True, True, False, True, True, True, True])


@pytest.mark.parametrize("given", ["plain", "weighted", "masked"])
@pytest.mark.parametrize("name", CASES)
def test_loo_is_that_of_enumeration(name, given):
    make, outputs, y, _ = CASES[name]
    if given != "plain" and name not in ("classes", "normal", "two targets", "own"):
        pytest.skip("weights and masks are the same code for all")
    model = make(BinaryLinear(3, outputs, bias=False))
    weight = mask = None
    data: dict = {"x": X, "y": y}
    kept = np.ones(N, dtype=bool)
    if given == "weighted":
        weight, kept = WEIGHT, np.asarray(WEIGHT) > 0
        data["weight"] = torch.tensor(weight, dtype=torch.float64)
    if given == "masked":
        mask = ROWS if y.dim() == 1 else np.stack([ROWS, ROWS & (np.arange(N) > 1)], 1)
        kept = ROWS
        damaged = torch.where(torch.from_numpy(mask), y, torch.nan) if y.is_floating_point() else y
        data |= {"y": damaged, "mask": torch.from_numpy(mask)}
    exact, inside, means = enumerated(name, weight, mask)
    natural = torch.atanh(torch.from_numpy(means).clamp(-0.98, 0.98)).reshape(outputs, 3)
    guide = AutoSignBernoulli(model, init=BinaryPosterior({"weight": natural}))
    found = psis_loo(model, guide, data, num_samples=250)
    assert len(found.pointwise) == kept.sum()
    error = np.abs(found.pointwise.numpy() - exact[kept])
    spread = np.abs(inside - exact)[kept].max()  # of what saw the datum: the twin that must fail
    assert error.max() < 0.5 * spread or error.max() < 0.05
    assert abs(found.elpd - exact[kept].sum()) < 0.5 * abs((inside - exact)[kept].sum())


def test_class_weights_weigh_the_posterior_and_not_the_density():
    """Weights inside the distribution of several targets of a datum."""

    class Twice(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = BinaryLinear(3, 2, bias=False)

        def forward(self, x):
            return torch.stack([self.linear(x), -self.linear(x)], 1)

    y = torch.stack([LEVELS % 2, torch.full((N,), -100)], 1)  # the second target never counts
    model = Classifier(Twice(), N, class_weights=[4.0, 0.1])
    weight = [4.0 if label == 0 else 0.1 for label in (LEVELS % 2).tolist()]
    exact, _, means = enumerated("classes", weight, None)
    natural = torch.atanh(torch.from_numpy(means).clamp(-0.98, 0.98)).reshape(2, 3)
    guide = AutoSignBernoulli(model, init=BinaryPosterior({"linear.weight": natural}))
    found = [psis_loo(model, guide, (X, y), num_samples=60, seed=seed).elpd for seed in range(5)]
    error = np.std(found) / 2.0  # of their mean
    unweighted, _, _ = enumerated("classes", None, None)
    assert abs(np.mean(found) - exact.sum()) < 3.0 * error
    assert abs(np.mean(found) - unweighted.sum()) > 6.0 * error


def test_arviz_gets_the_log_likelihood_of_the_likelihood():
    model = Regressor(BinaryLinear(3, 2, bias=False), N, noise=[1.5, 2.0])
    mask = torch.from_numpy(ROWS)[:, None].expand(N, 2)
    weight = torch.tensor(WEIGHT, dtype=torch.float64)
    y = torch.where(mask, BOTH, torch.nan)
    data = {"x": X, "y": y, "weight": weight, "mask": mask}
    posterior = BinaryPosterior({"weight": torch.zeros(2, 3)})
    found = to_inference_data(posterior, model, data, num_samples=3)
    kept = np.flatnonzero(ROWS & (np.asarray(WEIGHT) > 0))
    assert found.log_likelihood["y"].dims == ("chain", "draw", "y_kept")
    assert np.array_equal(found.log_likelihood["y_kept"], kept)
    signs = np.asarray(found.posterior["weight"])[0].astype(float)
    for draw in range(3):
        f = X.numpy() @ (float(model.net.scale) * signs[draw]).T
        expected = stats.norm(f, [1.5, 2.0]).logpdf(BOTH).sum(-1)[kept]
        np.testing.assert_allclose(found.log_likelihood["y"][0, draw], expected, rtol=1e-9)
    observed = np.asarray(found.observed_data["y"])
    assert np.isnan(observed[3]).all() and np.isfinite(observed[kept]).all()


def test_checks_of_replicated_data_leave_masked_ones_out():
    model = Regressor(BinaryLinear(3, 1, bias=False), N, noise=1.5)
    posterior = BinaryPosterior({"weight": torch.zeros(1, 3)})
    mask = torch.from_numpy(ROWS)
    y = torch.where(mask, COUNTS, torch.nan)
    data = {"x": X, "y": y, "mask": mask}
    drawn = replicate(model, (posterior.sample(s) for s in range(10)), data)["y"]
    found = posterior_predictive_check(torch.mean, y, drawn, mask)
    assert found.observed == pytest.approx(COUNTS[mask].mean().item())
    torch.testing.assert_close(found.replicated, drawn[:, mask].mean(1))
    with pytest.raises(ValueError, match="one finite number"):
        posterior_predictive_check(torch.mean, y, drawn)
    with pytest.raises(ValueError, match="mask of truth values"):
        posterior_predictive_check(torch.mean, y, drawn, mask.float())


def test_a_scaled_model_removes_a_datum_as_often_as_it_counts():
    """With a likelihood to the power of 3, leaving a datum out takes its third power away."""
    x = X[:, 0]

    def model(y):
        w = pyro.sample("w", SignBernoulli(natural=torch.zeros(1)).to_event(1))
        with pyro.plate("data", N), pyro.poutine.scale(scale=3.0):
            pyro.sample("y", dist.Normal(w * x, 2.0), obs=y)

    y = COUNTS - 1.0
    each = np.stack([stats.norm(w * x.numpy(), 2.0).logpdf(y) for w in (-1.0, 1.0)])
    without = 3.0 * (each.sum(1)[:, None] - each)
    exact = logsumexp(without + each, axis=0) - logsumexp(without, axis=0)
    found = psis_loo(
        model, AutoSignBernoulli(model, args=(y,), init_scale=0.0), (y,), num_samples=400
    )
    assert found.elpd == pytest.approx(exact.sum(), abs=0.05)
    once = each.sum(1)[:, None] - each  # the biased twin: taken away once
    biased = logsumexp(2.0 * each.sum(1)[:, None] + once + each, 0) - logsumexp(
        2.0 * each.sum(1)[:, None] + once, 0
    )
    assert abs(biased.sum() - exact.sum()) > 0.1
    assert math.isfinite(found.p_loo)
