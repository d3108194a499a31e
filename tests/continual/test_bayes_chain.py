"""Bayes' rule over tasks: a chain of posteriors against the posterior given all data at once."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from oracles import (
    all_states,
    kl,
    log_evidence,
    log_joint,
    mean_field_optimum,
    posterior_marginals,
    state_probabilities,
    table,
)
from torch import Tensor
from torch.nn import functional as F

from bayesbin.continual import ContinualLearner, Task
from bayesbin.continual.priors import RelaxedPrior
from bayesbin.data import Dataset
from bayesbin.distributions import SignBernoulli
from bayesbin.estimators import Enumerate
from bayesbin.guides import AutoSignBernoulli
from bayesbin.optim import BayesianLearningRule

D, SIZE, TASKS = 4, 6, 3
PRIOR = torch.tensor([0.3, -0.2, 0.0, 0.1], dtype=torch.float64)
STRENGTH = 0.35


def linear(w: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """log p(y | w) of signs y (N, D) that agree with w more often than not: linear in w."""
    return SignBernoulli(natural=STRENGTH * w).log_prob(y).sum()


def logistic(w: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return F.logsigmoid(1.5 * y[:, 0] * (x @ w)).sum()


def linear_model(x: Tensor, y: Tensor) -> None:
    w = pyro.sample("w", SignBernoulli(natural=PRIOR).to_event(1))
    with pyro.plate("data", len(x)):
        # A natural parameter that any sign of w multiplies: its log-partition is even in w.
        pyro.sample("y", SignBernoulli(natural=STRENGTH * w.expand(len(x), D)).to_event(1), obs=y)


def logistic_model(x: Tensor, y: Tensor) -> None:
    w = pyro.sample("w", SignBernoulli(natural=PRIOR).to_event(1))
    logits = 3.0 * 0.5 * (x @ w)
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Bernoulli(logits=logits), obs=(y[:, 0] + 1.0) / 2.0)


def sequence() -> list[Dataset]:
    generator = torch.Generator().manual_seed(11)
    result = []
    for t in range(TASKS):
        x = torch.randn(SIZE, D, generator=generator)
        y = torch.randint(0, 2, (SIZE, D), generator=generator) * 2.0 - 1.0
        result.append(Dataset(x, y, f"task {t}", num_classes=None))
    return result


def chain(
    model: Any, lr: float, epochs: int, policy: Any = "exact", count: int = TASKS
) -> ContinualLearner:
    """Full-batch natural gradients with all states summed over, until nothing moves."""
    data = sequence()[:count]
    guide = AutoSignBernoulli(model, args=(data[0].x, data[0].y))
    learner = ContinualLearner(
        model,
        guide,
        Enumerate(),
        prior_policy=policy,
        epochs=epochs,
        batch_size=SIZE,
        optimizers=lambda g, m, n: [BayesianLearningRule(g.natural_parameters(), lr=lr)],
        schedulers=lambda optimizers, epochs: [],
        progress=False,
    )
    for t, part in enumerate(data):
        learner.observe(Task(f"task {t}", part, part))
    return learner


def on_all_data(log_likelihood: Any) -> Any:
    x, y = (torch.cat([getattr(part, name) for part in sequence()]) for name in ("x", "y"))
    return lambda w: log_likelihood(w, x, y)


@pytest.mark.parametrize("log_likelihood", [linear, logistic])
def test_exact_posteriors_chain_to_the_posterior_given_all_data(log_likelihood: Any) -> None:
    log_prob = state_probabilities(PRIOR).log()
    for part in sequence():
        log_prob = log_prob + table(lambda w, p=part: log_likelihood(w, p.x, p.y), D)
        log_prob = log_prob - torch.logsumexp(log_prob, 0)  # a posterior, and the next prior
    joint = log_joint(on_all_data(log_likelihood), PRIOR)
    torch.testing.assert_close(log_prob, joint - torch.logsumexp(joint, 0))


def test_variational_chain_is_exact_where_the_likelihood_is_linear_in_the_signs() -> None:
    learner = chain(linear_model, lr=1.0, epochs=2)  # one step of the rule is exact here
    natural = learner.posterior["w"].natural
    y = torch.cat([part.y for part in sequence()])
    torch.testing.assert_close(natural, PRIOR + STRENGTH * y.sum(0))
    marginals = posterior_marginals(on_all_data(linear), PRIOR)
    torch.testing.assert_close(learner.posterior["w"].probs, marginals)
    # A policy that departs from Bayes' rule is seen to.
    relaxed = chain(linear_model, 1.0, 2, RelaxedPrior(0.5)).posterior["w"].probs
    assert (relaxed - marginals).abs().max() > 0.05


def test_elsewhere_the_gap_is_known(capsys: pytest.CaptureFixture[str]) -> None:
    target = on_all_data(logistic)
    natural = chain(logistic_model, lr=0.5, epochs=60).posterior["w"].natural
    evidence = log_evidence(target, PRIOR)

    def gap(natural: Tensor) -> float:
        """KL of q to the posterior given all data: log evidence minus ELBO, in nats."""
        expected = (state_probabilities(natural) * table(target, D)).sum().item()
        return evidence - (expected - kl(natural, PRIOR))

    joint = log_joint(target, PRIOR)
    true = joint - torch.logsumexp(joint, 0)
    q = state_probabilities(natural)
    assert gap(natural) == pytest.approx((q * (q.log() - true)).sum().item())
    at_once = mean_field_optimum(target, PRIOR, start=natural)
    print(f"gap: chain {gap(natural):.4f} nats, all data at once {gap(at_once):.4f} nats")
    assert "gap: chain" in capsys.readouterr().out
    assert 0.0 < gap(at_once) <= gap(natural) < gap(PRIOR)
    assert len(all_states(D)) == 2**D
    # Each link is the optimum of its own task.
    first = chain(logistic_model, 0.5, 60, count=1).posterior["w"].natural
    part = sequence()[0]
    best = mean_field_optimum(lambda w: logistic(w, part.x, part.y), PRIOR, start=first)
    torch.testing.assert_close(first, best)


def test_real_valued_sites_pass_their_posterior_on() -> None:
    # Normal with known noise, whose posterior is known.
    def model(x: Tensor, y: Tensor) -> None:
        pyro.sample("w", SignBernoulli(natural=torch.zeros(1)).to_event(1))
        mean = pyro.sample("mean", dist.Normal(0.0, 2.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    parts = [
        Dataset(torch.zeros(SIZE, 1), mean + torch.linspace(-1.0, 1.0, SIZE), "y", None)
        for mean in (-2.0, 3.0)
    ]
    guide = AutoSignBernoulli(model, args=(parts[0].x, parts[0].y))
    learner = ContinualLearner(
        model, guide, Enumerate(), epochs=150, batch_size=SIZE, progress=False,
        optimizers=lambda g, m, n: [torch.optim.Adam(g.parameters(), lr=0.1)],
    )  # fmt: skip
    learner.observe(Task("first", parts[0], parts[0]))
    first = learner.posterior.real["mean"]
    learner.observe(Task("second", parts[1], parts[1]))
    second = learner.posterior.real["mean"]
    # Bayes' rule from the first to the second. The first is found by stochastic gradients, too, and
    # near 6 (-2) / (6 + 1/4); with the model's prior instead of it, the second would be near 3.
    assert first.loc.item() == pytest.approx(-1.92, abs=0.2)
    precision = first.scale.item() ** -2 + SIZE
    mean = (first.loc.item() * first.scale.item() ** -2 + SIZE * 3.0) / precision
    assert second.loc.item() == pytest.approx(mean, abs=0.1)
    assert second.scale.item() == pytest.approx(precision**-0.5, abs=0.03)


def test_a_model_without_a_network_is_trained_but_not_scored() -> None:
    learner = chain(linear_model, lr=1.0, epochs=2)  # one step of the rule is exact here
    part = sequence()[0]
    with pytest.raises(ValueError, match="to be scored; got function, which can only be trained"):
        learner.evaluate([Task("a", part, part)])
