"""Each likelihood against sums over all signs, with the likelihood written anew in numpy and scipy."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from oracles import expectation, gradient, kl
from pyro import poutine
from scipy import special, stats
from torch import nn

from bayesbin.estimators import Enumerate
from bayesbin.guides import AutoSignBernoulli
from bayesbin.infer import TraceBinary_ELBO
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

N, NAN = 6, float("nan")
CUTS, CLASS_WEIGHTS = [-0.7, 0.2, 1.1], [0.5, 2.0, 1.25]


class Laplace(Likelihood):
    def latents(self):
        return {"width": dist.HalfNormal(1.0)}

    def distribution(self, outputs, width):
        return dist.Laplace(outputs, width)


class Dirichlet(Likelihood):
    """One target is a vector: an event axis."""

    def distribution(self, outputs):
        return dist.Dirichlet(outputs.exp())


def labels(f, y, weights=(1.0, 1.0, 1.0)):
    counts = y != -100
    y = np.where(counts, y, 0)
    chosen = np.take_along_axis(special.log_softmax(f, -1), y[..., None], -1)[..., 0]
    return counts * np.asarray(weights)[y] * chosen


def levels(f, y):
    edges = special.expit(np.array([-np.inf, *CUTS, np.inf]) - f)
    return np.log(np.take_along_axis(np.diff(edges, axis=-1), y[:, None], 1)[:, 0])


def nbinom(f, y, r):
    return stats.nbinom.logpmf(y, r, r / (r + np.exp(f)))


@dataclass
class Case:
    """A likelihood, targets of it, and log p(y | outputs) of each target.

    :param outputs: how many the network has. :param latents: values that latents are conditioned on.
    """

    model: Callable[[nn.Module], Any]
    outputs: int
    y: Callable[[np.random.Generator], np.ndarray]
    log_prob: Callable[[np.ndarray, np.ndarray], np.ndarray]
    latents: dict[str, float] | None = None
    prior: Any = 0.0  # log p of those values
    x: tuple[int, ...] = (2,)
    after: nn.Module | None = None


def some_labels(shape, ignored=False):
    def draw(rng):
        y = rng.integers(0, 3, shape)
        if ignored:
            y[0, 0] = y[3] = -100
        return y

    return draw


CASES = {
    "classes": Case(lambda n: Classifier(n, N), 3, some_labels((N,)), labels),
    "weighted classes": Case(
        lambda n: Classifier(n, N, class_weights=CLASS_WEIGHTS), 3, some_labels((N,)),
        lambda f, y: labels(f, y, CLASS_WEIGHTS),
    ),
    "tokens": Case(
        lambda n: Classifier(n, N, class_weights=CLASS_WEIGHTS), 3, some_labels((N, 4), True),
        lambda f, y: labels(f, y, CLASS_WEIGHTS), x=(4, 2),
    ),
    "pixels": Case(
        lambda n: Classifier(n, N, class_dim=1), 4, lambda rng: rng.integers(0, 2, (N, 2)),
        lambda f, y: labels(f.transpose(0, 2, 1), y, (1.0, 1.0)), after=nn.Unflatten(1, (2, 2)),
    ),
    "one target": Case(
        lambda n: Regressor(n, N, noise=0.6), 1, lambda rng: rng.normal(size=N),
        lambda f, y: stats.norm.logpdf(y, f[:, 0], 0.6),
    ),
    "noise of each target": Case(
        lambda n: Regressor(n, N, noise=[0.6, 2.0]), 2, lambda rng: rng.normal(size=(N, 2)),
        lambda f, y: stats.norm.logpdf(y, f, [0.6, 2.0]),
    ),
    "latent noise": Case(
        lambda n: Regressor(n, N), 2, lambda rng: rng.normal(size=(N, 2)),
        lambda f, y: stats.norm.logpdf(y, f, 0.4),
        {"noise": 0.4}, stats.lognorm.logpdf(0.4, 1.0, scale=np.exp(-1.0)),
    ),
    "heteroscedastic": Case(
        lambda n: Regressor(n, N, noise="heteroscedastic"), 4, lambda rng: rng.normal(size=(N, 2)),
        lambda f, y: stats.norm.logpdf(y, f[:, :2], np.exp(f[:, 2:])),
    ),
    "labels": Case(
        lambda n: MultiLabel(n, N), 3, lambda rng: rng.integers(0, 2, (N, 3)),
        lambda f, y: stats.bernoulli.logpmf(y, special.expit(f)),
    ),
    "poisson": Case(
        lambda n: Poisson(n, N), 2, lambda rng: rng.poisson(2.0, (N, 2)),
        lambda f, y: stats.poisson.logpmf(y, np.exp(f)),
    ),
    "negative binomial": Case(
        lambda n: NegativeBinomial(n, N, concentration=[0.8, 30.0]), 2,
        lambda rng: rng.poisson(2.0, (N, 2)), lambda f, y: nbinom(f, y, np.array([0.8, 30.0])),
    ),
    "latent concentration": Case(
        lambda n: NegativeBinomial(n, N), 1, lambda rng: rng.poisson(2.0, N),
        lambda f, y: nbinom(f[:, 0], y, 1.7),
        {"concentration": 1.7}, stats.lognorm.logpdf(1.7, 1.0, scale=np.exp(1.0)),
    ),
    "ordinal": Case(
        lambda n: Ordinal(n, N, levels=4, cutpoints=CUTS), 1, lambda rng: rng.integers(0, 4, N), levels,
    ),
    "one's own": Case(
        lambda n: Laplace(n, N), 2, lambda rng: rng.normal(size=(N, 2)),
        lambda f, y: stats.laplace.logpdf(y, f, 0.5),
        {"width": 0.5}, stats.halfnorm.logpdf(0.5),
    ),
    "one's own, of vectors": Case(
        lambda n: Dirichlet(n, N), 3, lambda rng: rng.dirichlet([1.0, 2.0, 3.0], N),
        lambda f, y: np.array([stats.dirichlet.logpdf(b, np.exp(a)) for a, b in zip(f, y, strict=True)]),
    ),
}  # fmt: skip


class Problem:
    """A case with data, sample weights and a mask, and a guide somewhere."""

    def __init__(self, name: str, weighted: bool, masked: bool) -> None:
        self.case = case = CASES[name]
        rng = np.random.default_rng(4)
        self.layer = BinaryLinear(2, case.outputs, bias=False, prior=0.2)
        net = self.layer if case.after is None else nn.Sequential(self.layer, case.after)
        self.own = case.model(net)
        self.model: Any = self.own
        if case.latents is not None:
            values = {name: torch.tensor(value) for name, value in case.latents.items()}
            self.model = poutine.condition(self.own, values)
        self.x, self.y = rng.normal(size=(N, *case.x)), case.y(rng)
        self.weight = rng.uniform(0.3, 2.0, N) if weighted else np.ones(N)
        self.weight[1] = 0.0 if weighted else 1.0
        shape = self.terms(self.outputs(np.ones(2 * case.outputs))).shape
        self.mask = rng.uniform(size=shape) < (0.6 if masked else 1.1)
        self.mask[2] = not masked
        self.given = {
            "weight": self.weight if weighted else None,
            "mask": self.mask if masked else None,
        }
        self.guide = AutoSignBernoulli(self.model)
        with torch.no_grad():
            for p in self.guide.natural_parameters():
                p.copy_(torch.as_tensor(rng.normal(scale=0.7, size=p.shape)))

    def outputs(self, signs: np.ndarray) -> np.ndarray:
        scale = float(self.layer.weight.abs().flatten()[0])
        f = scale * self.x @ signs.reshape(self.case.outputs, 2).T
        return f.reshape(N, 2, 2) if self.case.after is not None else f

    def terms(self, f: np.ndarray) -> np.ndarray:
        return self.case.log_prob(f, self.y)

    def nll(self, signs: torch.Tensor, weight: Any = None, mask: Any = None) -> torch.Tensor:
        """Minus log p(y | w), by sums in numpy."""
        weight = self.weight if weight is None else weight
        mask = self.mask if mask is None else mask
        terms = np.where(mask, self.terms(self.outputs(signs.numpy())), 0.0)
        total = (weight * terms.reshape(N, -1).sum(1)).sum()
        return torch.tensor(-float(total + self.case.prior))

    @property
    def natural(self) -> torch.Tensor:
        (parameter,) = self.guide.natural_parameters()
        return parameter.detach().flatten()

    def batch(self, rows: Any, hidden: bool = True) -> tuple[Any, ...]:
        """The batch of some rows; targets that do not count are NaN where they can be."""
        y = self.y.copy()
        if hidden and self.given["mask"] is not None and y.dtype.kind == "f":
            y[~self.mask] = NAN
        return tuple(
            None if part is None else torch.as_tensor(part[rows])
            for part in (self.x, y, self.given["weight"], self.given["mask"])
        )

    def loss(self, rows: Any = slice(None)) -> torch.Tensor:
        return TraceBinary_ELBO(Enumerate())(self.model, self.guide)(*self.batch(rows))

    def site(self) -> Any:
        """The site of the targets in a trace of the model."""
        trace: Any = poutine.trace(self.model).get_trace(*self.batch(slice(None)))
        trace.compute_log_prob()
        return trace.nodes["y"]


@pytest.mark.parametrize("plain", [True, False], ids=["plain", "weighted, masked"])
@pytest.mark.parametrize("name", CASES)
def test_the_elbo_and_its_gradient_are_those_of_a_sum_over_all_signs(name, plain):
    problem = Problem(name, weighted=not plain, masked=not plain)
    natural, prior = problem.natural, torch.full_like(problem.natural, 0.2)
    loss = problem.loss()
    expected = expectation(problem.nll, natural) + kl(natural, prior)
    assert loss.item() == pytest.approx(expected, rel=1e-9)
    loss.backward()
    (parameter,) = problem.guide.natural_parameters()
    slope = natural.clone().requires_grad_()
    states = torch.distributions.Bernoulli(logits=2 * slope)
    reference = torch.distributions.Bernoulli(logits=2 * prior)
    torch.distributions.kl_divergence(states, reference).sum().backward()
    assert slope.grad is not None and parameter.grad is not None
    exact = gradient(problem.nll, natural) + slope.grad
    torch.testing.assert_close(parameter.grad.flatten(), exact, rtol=1e-7, atol=1e-9)
    # Twins that forget the weights, or the mask, are told apart.
    twins = [{"weight": np.ones(N)}, {"mask": np.ones_like(problem.mask)}]
    for twin in [] if plain else twins:
        wrong = expectation(functools.partial(problem.nll, **twin), natural) + kl(natural, prior)
        assert abs(wrong - expected) > 0.01
    # Minibatches: their losses average to that of all data.
    parts = [problem.loss(rows).item() for rows in ([4, 1], [0, 5], [3, 2])]
    assert np.mean(parts) == pytest.approx(expected, rel=1e-9)
    assert max(parts) - min(parts) > 0.01  # not because they were all the same


@pytest.mark.parametrize("name", CASES)
def test_the_site_and_log_prob_are_one(name):
    problem = Problem(name, weighted=True, masked=True)
    site = problem.site()
    scale = problem.layer.weight.abs().flatten()[0]
    x, y, _, mask = problem.batch(slice(None))
    values = poutine.trace(problem.model).get_trace().nodes  # other signs: any will do
    signs = values[next(n for n in values if n.endswith("weight"))]["value"]
    outputs = scale * x @ signs.T
    if problem.case.after is not None:
        outputs = problem.case.after(outputs)
    latents = {k: torch.tensor(v) for k, v in (problem.case.latents or {}).items()}
    got = problem.own.log_prob(outputs, y, mask, **latents)
    terms = problem.terms(outputs.numpy())
    if "weighted" in name or name == "tokens":  # those of the classes do not enter
        terms = labels(outputs.numpy(), problem.y)
    expected = np.where(problem.mask, terms, 0.0).reshape(N, -1).sum(1)
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-9, atol=1e-12)
    assert site["log_prob"].shape == got.shape == (N,)
    assert bool((site["log_prob"][[1, 2]] == 0).all())  # of weight 0, and masked altogether


@pytest.mark.parametrize("name", CASES)
def test_a_batch_without_a_target_that_counts_says_exactly_nothing(name):
    problem = Problem(name, weighted=False, masked=True)
    problem.mask[:] = False
    problem.given["mask"] = problem.mask
    loss = problem.loss()
    natural = problem.natural
    exact = kl(natural, torch.full_like(natural, 0.2)) - problem.case.prior
    assert loss.item() == pytest.approx(exact, rel=1e-12)
    loss.backward()
    (parameter,) = problem.guide.natural_parameters()
    assert parameter.grad is not None and bool(parameter.grad.isfinite().all())
    problem.guide.zero_grad()
    terms = TraceBinary_ELBO(Enumerate(), kl_weight=0.0)(problem.model, problem.guide)
    terms(*problem.batch(slice(None))).backward()
    # The constant log p of a conditioned latent times the sum of all probabilities' slopes.
    rounding = 0.0 if problem.case.latents is None else 1e-15
    assert parameter.grad is None or bool((parameter.grad.abs() <= rounding).all())
