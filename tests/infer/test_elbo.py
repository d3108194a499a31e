"""The negative ELBO and its gradient, against sums over all states and against Pyro's own losses."""

from __future__ import annotations

import copy
import math
import pickle
import warnings

import oracles
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, TraceMeanField_ELBO
from pyro.nn import PyroModule, PyroParam
from stats import assert_within_standard_errors, exceeds_standard_errors
from torch import nn
from torch.nn import functional as F

from bayesbin.distributions import SignBernoulli
from bayesbin.estimators import (
    Concrete,
    Enumerate,
    Estimator,
    LocalReparameterization,
    StraightThrough,
)
from bayesbin.guides import AutoRelaxedSignBernoulli, AutoSignBernoulli
from bayesbin.infer import TraceBinary_ELBO
from bayesbin.nn import BinaryLinear, Classifier, to_binary_

N = 12  # data set size


def network(hidden=1, prior=0.0):
    """Five binary weights per hidden unit in two layers, a curved function, a real-valued bias."""
    net = nn.Sequential(nn.Linear(2, hidden), nn.Tanh(), nn.Linear(hidden, 3, bias=False))
    return to_binary_(net, prior=prior, scale=0.8)


def data(rows=4):
    generator = torch.Generator().manual_seed(3)
    return torch.randn(rows, 2, generator=generator), torch.arange(rows) % 3


def log_likelihood_of(net, x, y):
    """The scaled log-likelihood as a function of the signs in one vector, written out."""

    units = len(net[0].bias)

    def f(w):
        first, second = w[: 2 * units].view(units, 2), w[2 * units :].view(3, units)
        logits = F.linear(torch.tanh(F.linear(x, 0.8 * first, net[0].bias)), 0.8 * second)
        return N / len(x) * torch.log_softmax(logits, -1)[range(len(x)), y].sum()

    return f


def flat(tensors):
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def gradients(module, parameters, *args):
    parameters = list(parameters)
    loss = module(*args)
    return loss, flat(torch.autograd.grad(loss, parameters))


# Against enumeration


@pytest.mark.parametrize(
    ("kl_weight", "rows", "hidden"),
    [(1.0, 4, 1), (1.0, N, 1), (0.3, 4, 1), (0.0, 4, 1), (0.3, 4, 2)],
)
def test_loss_and_gradient_are_the_sum_over_all_states(kl_weight, rows, hidden):
    prior = torch.linspace(-0.9, 1.2, 5 * hidden)
    first, second = prior[: 2 * hidden].view(hidden, 2), prior[2 * hidden :].view(3, hidden)
    net = network(hidden, {"0.weight": first, "2.weight": second})
    model = Classifier(net, dataset_size=N)
    guide = AutoSignBernoulli(model, init_scale=0.8)
    x, y = data(rows)
    f = log_likelihood_of(net, x, y)
    natural = flat(guide.natural_parameters())

    module = TraceBinary_ELBO(Enumerate(), kl_weight=kl_weight)(model, guide)
    loss, gradient = gradients(module, guide.natural_parameters(), x, y)

    kl = oracles.kl(natural, prior)
    expected = kl_weight * kl - oracles.expectation(f, natural)
    torch.testing.assert_close(loss.item(), expected)
    fisher = 1.0 / torch.cosh(natural) ** 2
    torch.testing.assert_close(
        gradient, kl_weight * (natural - prior) * fisher - oracles.gradient(f, natural)
    )
    terms = module.terms(x, y)
    torch.testing.assert_close(terms.kl.item(), kl)
    torch.testing.assert_close(
        terms.loss.item(), terms.negative_log_likelihood.item() + kl_weight * kl
    )
    assert not terms.kl.requires_grad and not terms.negative_log_likelihood.requires_grad


def test_parameters_of_the_model_get_the_exact_gradient_too():
    net = network()
    model = Classifier(net, dataset_size=N)
    guide = AutoSignBernoulli(model, init_scale=0.5)
    x, y = data()
    module = TraceBinary_ELBO(Enumerate())(model, guide)
    _, gradient = gradients(module, [net[0].bias], x, y)

    probabilities = oracles.state_probabilities(flat(guide.natural_parameters()))
    bias = net[0].bias.detach().clone().requires_grad_()
    holder = [type("Layer", (), {"bias": bias})]
    f = log_likelihood_of(holder, x, y)
    values = torch.stack([f(w) for w in oracles.all_states(5)])
    (expected,) = torch.autograd.grad(-(probabilities * values).sum(), bias)
    torch.testing.assert_close(gradient, expected)


def vector_model(log_likelihood, prior):
    def model():
        w = pyro.sample("w", SignBernoulli(natural=prior).to_event(1))
        pyro.factor("data", log_likelihood(w))

    return model


def asymmetric(w):
    """A curved, asymmetric target on four signs."""
    return (
        0.7 * torch.sin(2.0 * w[..., 0] + w[..., 1]) - 0.4 * w[..., 1] * w[..., 2] + 0.9 * w[..., 3]
    )


def test_the_elbo_is_below_the_log_evidence_and_meets_it_at_the_exact_posterior():
    prior = torch.tensor([0.3, -0.2, 0.5, -0.7])
    model = vector_model(asymmetric, prior)
    evidence = oracles.log_evidence(asymmetric, prior)
    loss = TraceBinary_ELBO(Enumerate())
    for scale in (0.0, 0.5, 2.0):
        guide = AutoSignBernoulli(model, init_scale=scale)
        assert -loss.terms(model, guide).loss.item() < evidence

    prior = torch.tensor([0.4])
    model = vector_model(lambda w: 1.3 * w.sum() - 0.2, prior)
    guide = AutoSignBernoulli(model)
    with torch.no_grad():
        next(guide.natural_parameters()).fill_(1.7)  # 0.4 + 1.3, the posterior's natural parameter
    evidence = oracles.log_evidence(lambda w: 1.3 * w.sum() - 0.2, prior)
    torch.testing.assert_close(-loss.terms(model, guide).loss.item(), evidence)
    # Every draw gives the same value there: loss() has no noise left but that of the KL's average.
    single = loss(model, guide)()
    (slope,) = torch.autograd.grad(single, list(guide.natural_parameters()))
    torch.testing.assert_close(slope, torch.zeros(1), atol=1e-14, rtol=0.0)


@pytest.mark.parametrize(
    "where", ["handler", "handler in a plate", "distribution", "distribution of the event"]
)
def test_masks(where):
    """A weight that is masked out has no prior: its KL does not count."""
    mask = torch.tensor([True, False, True])
    prior, pull = torch.tensor([0.3, 0.2, -0.4]), torch.tensor([0.5, 1.0, -0.6])

    def model():
        distribution = SignBernoulli(natural=prior)
        if where == "handler":
            with poutine.mask(mask=mask):
                w = torch.stack([pyro.sample(f"w{i}", distribution.expand([3])) for i in range(1)])[
                    0
                ]
        elif where == "handler in a plate":
            with pyro.plate("weights", 3), poutine.mask(mask=mask):
                w = pyro.sample("w", distribution)
        elif where == "distribution":
            w = pyro.sample("w", distribution.mask(mask).to_event(1))
        else:
            rows = SignBernoulli(natural=prior[:, None]).to_event(1).mask(mask).to_event(1)
            w = pyro.sample("w", rows)[:, 0]
        pyro.factor("data", (w * pull).sum())

    guide = AutoSignBernoulli(model, init_scale=0.5)
    natural = flat(guide.natural_parameters())
    expected_kl = oracles.kl(natural[mask], prior[mask])
    with warnings.catch_warnings():
        # Pyro's validation asks for a plate around batch dimensions; one case goes without.
        warnings.simplefilter("ignore")
        terms = TraceBinary_ELBO(Enumerate()).terms(model, guide)
        torch.testing.assert_close(terms.kl.item(), expected_kl)
        (gradient,) = torch.autograd.grad(terms.loss, list(guide.natural_parameters()))
        hard = TraceBinary_ELBO(StraightThrough()).hard_terms(model, guide)
        torch.testing.assert_close(hard.kl.item(), expected_kl)
    fisher = 1.0 / torch.cosh(natural) ** 2
    torch.testing.assert_close(
        gradient.flatten(), fisher * (torch.where(mask, natural - prior, 0.0) - pull)
    )


def test_masked_observations_do_not_count():
    mask = torch.tensor([True, False, True, True])
    x, y = data()
    net = network()

    def model(x, y):
        classifier = Classifier(net, dataset_size=4)
        values = classifier.sample_weights()
        logits = torch.func.functional_call(net, values, (x,))
        with pyro.plate("data", 4), poutine.mask(mask=mask):
            pyro.sample("y", dist.Categorical(logits=logits), obs=y)

    guide = AutoSignBernoulli(model, args=(x, y), init_scale=0.5)
    loss = TraceBinary_ELBO(Enumerate(), kl_weight=0.0).terms(model, guide, x, y).loss
    f = log_likelihood_of(net, x[mask], y[mask])
    natural = flat(guide.natural_parameters())
    torch.testing.assert_close(loss.item(), -3 / N * oracles.expectation(f, natural))


@pytest.mark.parametrize("scale", [0.25, torch.tensor([1.0, 2.0, 0.5])])
def test_poutine_scale(scale):
    prior, pull = torch.tensor([0.3, 0.2, -0.4]), torch.tensor([0.5, 1.0, -0.6])

    def model():
        with pyro.plate("weights", 3), poutine.scale(scale=scale):
            w = pyro.sample("w", SignBernoulli(natural=prior))
        with poutine.scale(scale=3.0):
            pyro.factor("data", (w * pull).sum())

    guide = AutoSignBernoulli(model, init_scale=0.5)
    natural = flat(guide.natural_parameters())
    terms = TraceBinary_ELBO(Enumerate()).terms(model, guide)
    each = torch.tensor([oracles.kl(q, p) for q, p in zip(natural, prior, strict=True)])
    torch.testing.assert_close(terms.kl, (each * scale).sum())
    torch.testing.assert_close(
        terms.negative_log_likelihood, -3.0 * (torch.tanh(natural) * pull).sum()
    )


# Priors that depend on other sites


def test_a_prior_that_depends_on_another_binary_site():
    """log p(v | w) is averaged together with the likelihood: against the sum over all states."""
    coupling = torch.tensor([0.8, -1.1])

    def model():
        w = pyro.sample("w", SignBernoulli(natural=torch.tensor([0.2, -0.3])).to_event(1))
        v = pyro.sample("v", SignBernoulli(natural=coupling * w + 0.1).to_event(1))
        pyro.factor("data", asymmetric(torch.cat([w, v])))

    def joint(state):
        w, v = state[:2], state[2:]
        log_w = SignBernoulli(natural=torch.tensor([0.2, -0.3])).log_prob(w).sum()
        log_v = SignBernoulli(natural=coupling * w + 0.1).log_prob(v).sum()
        return asymmetric(state) + log_w + log_v

    guide = AutoSignBernoulli(model, init_scale=0.7)
    natural = flat(guide.natural_parameters())
    module = TraceBinary_ELBO(Enumerate())(model, guide)
    loss, gradient = gradients(module, guide.natural_parameters())
    uniform = torch.zeros(4)
    entropy = 4 * math.log(2.0) - oracles.kl(natural, uniform)
    torch.testing.assert_close(loss.item(), -oracles.expectation(joint, natural) - entropy)
    minus_entropy_slope = natural / torch.cosh(natural) ** 2
    torch.testing.assert_close(gradient, minus_entropy_slope - oracles.gradient(joint, natural))
    # The KL of v cannot be told apart from the likelihood; that of w can.
    torch.testing.assert_close(
        module.terms().kl.item(), oracles.kl(natural[:2], torch.tensor([0.2, -0.3]))
    )
    losses = torch.tensor(
        [TraceBinary_ELBO(StraightThrough()).loss(model, guide) for _ in range(800)]
    )
    assert_within_standard_errors(losses, loss.item())


def test_a_continuous_prior_that_depends_on_a_binary_site():
    """z | w ~ N(w, 1): closed-form KL of z at each state, averaged over the states."""

    def model():
        w = pyro.sample("w", SignBernoulli(natural=torch.tensor(0.4)))
        z = pyro.sample("z", dist.Normal(1.5 * w, 1.0))
        pyro.sample("y", dist.Normal(z, 0.5), obs=torch.tensor(0.7))

    guide = AutoSignBernoulli(model, init_scale=0.5, real_scale=0.3)
    (natural,), (loc, log_scale) = list(guide.natural_parameters()), list(guide.real_parameters())
    module = TraceBinary_ELBO(Enumerate(), num_particles=1)(model, guide)
    p = torch.sigmoid(2.0 * natural.detach())
    q = dist.Normal(loc.detach(), log_scale.detach().exp())
    kl = oracles.kl(natural.detach(), torch.tensor(0.4))
    kl += sum(
        weight * torch.distributions.kl_divergence(q, dist.Normal(1.5 * w, 1.0))
        for weight, w in ((p, 1.0), (1 - p, -1.0))
    )
    # E_q[-log N(y | z, 0.5)], in closed form.
    nll = ((0.7 - q.mean) ** 2 + q.variance) / (2 * 0.25) + math.log(0.5 * math.sqrt(2 * math.pi))
    draws, slopes = [], []
    for _ in range(600):
        loss = module()
        draws.append(loss.detach())
        slopes.append(torch.stack(torch.autograd.grad(loss, [natural, loc])))
    assert_within_standard_errors(torch.stack(draws), kl + nll)
    half = 0.5 * sum(  # dKL/dmu of z: half the difference between the two states
        sign * torch.distributions.kl_divergence(q, dist.Normal(1.5 * sign, 1.0))
        for sign in (1, -1)
    )
    for_natural = (natural.detach() - 0.4 + half) / torch.cosh(natural.detach()) ** 2
    for_loc = loc.detach() - 1.5 * (2 * p - 1) + (loc.detach() - 0.7) / 0.25
    assert_within_standard_errors(torch.stack(slopes), torch.stack([for_natural, for_loc]))


def test_a_prior_that_depends_on_a_continuous_site():
    """lambda_p = z: value and pathwise gradient by quadrature over z."""

    def model():
        z = pyro.sample("z", dist.Normal(0.3, 1.2))
        w = pyro.sample("w", SignBernoulli(natural=z * torch.tensor([1.0, -0.5])).to_event(1))
        pyro.factor("data", (w * torch.tensor([0.8, 0.3])).sum())

    guide = AutoSignBernoulli(model, init_scale=0.6, real_scale=0.5)
    (natural,), (loc, log_scale) = list(guide.natural_parameters()), list(guide.real_parameters())
    parameters = [natural, loc, log_scale]

    grid = torch.linspace(-8.0, 8.0, 4001)
    weights = torch.exp(-0.5 * grid**2) / math.sqrt(2 * math.pi) * (grid[1] - grid[0])
    z = loc + log_scale.exp() * grid
    prior = z[:, None] * torch.tensor([1.0, -0.5])
    log_cosh = torch.log(2 * torch.cosh(prior)) - torch.log(2 * torch.cosh(natural))
    kl = (weights * ((natural - prior) * torch.tanh(natural) + log_cosh).sum(1)).sum()
    kl = kl + torch.distributions.kl_divergence(
        dist.Normal(loc, log_scale.exp()), dist.Normal(0.3, 1.2)
    )
    expected = kl - (torch.tanh(natural) * torch.tensor([0.8, 0.3])).sum()
    exact = flat(torch.autograd.grad(expected, parameters))

    module = TraceBinary_ELBO(Enumerate())(model, guide)
    draws = [gradients(module, parameters) for _ in range(600)]
    assert_within_standard_errors(
        torch.stack([loss.detach() for loss, _ in draws]), expected.detach()
    )
    slopes = torch.stack([gradient for _, gradient in draws])
    assert_within_standard_errors(slopes, exact)
    twin = exact.clone()
    twin[2] = -twin[2]
    assert exceeds_standard_errors(slopes, twin)


def test_continuous_and_binary_sites_in_one_model():
    """Against a loop over fixed noise: the same draw of the real site, all states of the signs."""
    x = torch.randn(6, 2)
    y = torch.randn(6)

    def model(x, y):
        w = pyro.sample("w", SignBernoulli(natural=torch.zeros(2)).to_event(1))
        noise = pyro.sample("noise", dist.LogNormal(0.0, 1.0))
        with pyro.plate("data", 6):
            pyro.sample("y", dist.Normal(x @ w, noise), obs=y)

    guide = AutoSignBernoulli(model, args=(x, y), init_scale=0.5, real_scale=0.2)
    posterior = guide.posterior()
    q, p = posterior.real["noise"].distribution(), dist.LogNormal(0.0, 1.0)
    torch.manual_seed(5)
    loss = TraceBinary_ELBO(Enumerate())(model, guide)(x, y)
    torch.manual_seed(5)
    noise = q.rsample()
    f = lambda w: dist.Normal(x @ w, noise).log_prob(y).sum()
    natural = flat(guide.natural_parameters())
    expected = oracles.kl(natural, torch.zeros(2)) - oracles.expectation(f, natural)
    torch.testing.assert_close(
        loss.item(), (expected + q.log_prob(noise) - p.log_prob(noise)).item()
    )
    assert all(p.grad is None for p in guide.parameters())
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in guide.parameters())


# Minibatches


def test_subsample_indices_are_replayed_in_every_evaluation_of_one_step():
    seen = []
    x = torch.arange(20.0)

    def model():
        w = pyro.sample("w", SignBernoulli(natural=torch.zeros(3)).to_event(1))
        with pyro.plate("data", 20, subsample_size=4) as index:
            seen.append(tuple(index.tolist()))
            pyro.sample("y", dist.Normal(x[index] * w.sum(), 1.0), obs=torch.zeros(4))

    guide = AutoSignBernoulli(model)
    elbo = TraceBinary_ELBO(Enumerate())
    elbo.terms(model, guide)
    seen.clear()
    elbo.terms(model, guide)
    first = list(seen)
    elbo.terms(model, guide)
    assert len(first) > 1 and len(set(first)) == 1
    assert set(seen[len(first) :]) != set(first)


def test_the_average_over_disjoint_minibatches_is_the_full_batch_loss():
    net = network()
    model = Classifier(net, dataset_size=N)
    guide = AutoSignBernoulli(model, init_scale=0.5)
    module = TraceBinary_ELBO(Enumerate())(model, guide)
    x, y = data(N)
    full = module(x, y).item()
    for size in (1, 3, 4, 6):
        parts = [module(a, b).item() for a, b in zip(x.split(size), y.split(size), strict=True)]
        torch.testing.assert_close(sum(parts) / len(parts), full)


# Estimates


def test_loss_uses_hard_draws_whatever_the_estimator_and_no_graph():
    values = set()

    def curved(w):
        return asymmetric(w) + 1.5 * w[..., 2] ** 2

    def target(w):
        values.update(w.flatten().tolist())
        return curved(w)

    prior = torch.tensor([0.3, -0.2, 0.5, -0.7])
    model = vector_model(target, prior)
    guide = AutoSignBernoulli(model, init_scale=0.8)
    natural = flat(guide.natural_parameters())
    exact = oracles.kl(natural, prior) - oracles.expectation(curved, natural)
    with torch.no_grad():
        relaxed = TraceBinary_ELBO(Concrete(0.5))
        losses = torch.tensor([relaxed.loss(model, guide) for _ in range(600)])
    assert values == {-1.0, 1.0}
    assert_within_standard_errors(losses, exact)
    surrogates = torch.stack([relaxed.terms(model, guide).loss.detach() for _ in range(600)])
    assert exceeds_standard_errors(surrogates, exact)  # the relaxed objective is another one
    assert len(values) > 2


def test_terms_work_without_a_graph():
    model = vector_model(asymmetric, torch.zeros(4))
    guide = AutoSignBernoulli(model, init_scale=0.8)
    for estimator in (Enumerate(), Concrete(), StraightThrough()):
        elbo = TraceBinary_ELBO(estimator, kl_weight=0.5)
        torch.manual_seed(0)
        live = elbo.terms(model, guide)
        torch.manual_seed(0)
        with torch.no_grad():
            dead = elbo.terms(model, guide)
        assert live.loss.requires_grad and not dead.loss.requires_grad
        torch.testing.assert_close(torch.stack(dead), torch.stack(live).detach())


def test_num_particles_average_independent_repetitions():
    model = vector_model(asymmetric, torch.zeros(4))
    guide = AutoSignBernoulli(model, init_scale=0.8)
    torch.manual_seed(1)
    singles = [TraceBinary_ELBO(StraightThrough()).terms(model, guide) for _ in range(5)]
    torch.manual_seed(1)
    mean = TraceBinary_ELBO(StraightThrough(), num_particles=5).terms(model, guide)
    expected = torch.stack([torch.stack(single) for single in singles]).mean(0)
    torch.testing.assert_close(torch.stack(mean), expected)
    assert len({single.loss.item() for single in singles}) > 1
    torch.manual_seed(2)
    singles = [TraceBinary_ELBO(Concrete()).loss(model, guide) for _ in range(3)]
    torch.manual_seed(2)
    mean = TraceBinary_ELBO(Concrete(), num_particles=3).loss(model, guide)
    torch.testing.assert_close(mean, sum(singles) / 3)


def test_the_first_step_draws_the_noise_that_any_other_would():
    """What is found out about a model once takes nothing from the noise: a resumed run goes on."""
    model = Classifier(network(), dataset_size=N)
    guide = AutoSignBernoulli(model)
    x, y = data()

    def seeded(module):
        torch.manual_seed(4)
        return module(x, y).item()

    first, later = (TraceBinary_ELBO(StraightThrough())(model, guide) for _ in range(2))
    later(x, y)
    assert seeded(first) == seeded(later)


@pytest.mark.parametrize(
    "estimator", [LocalReparameterization(2), Concrete(0.3, 2), StraightThrough(2)], ids=str
)
def test_sampling_estimators_train_a_converted_network(estimator):
    net = to_binary_(nn.Sequential(nn.Linear(2, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)))
    model = Classifier(net, dataset_size=N)
    guide = AutoSignBernoulli(model)
    x = data(N)[0]
    y = (x[:, 0] > 0).long() + (x[:, 1] > 0).long()
    module = TraceBinary_ELBO(estimator, kl_weight=0.1)(model, guide)
    adam = torch.optim.Adam(module.parameters(), lr=0.05)
    exact = TraceBinary_ELBO(estimator, kl_weight=0.1, num_particles=20)
    before = exact.loss(model, guide, x, y)
    for _ in range(60):
        adam.zero_grad()
        module(x, y).backward()
        assert all(torch.isfinite(p.grad).all() for p in module.parameters())
        adam.step()
    assert exact.loss(model, guide, x, y) < 0.9 * before


def test_local_reparameterization_matches_the_exact_loss_of_a_linear_layer():
    """With a squared-error likelihood only mean and variance of the outputs enter: no bias left."""
    net = BinaryLinear(3, 1, bias=False)
    x, y = torch.randn(5, 3), torch.randn(5)

    def model(x, y):
        w = pyro.sample("weight", SignBernoulli(natural=torch.zeros(1, 3)).to_event(2))
        with pyro.plate("data", 5):
            pyro.sample("y", dist.Normal(F.linear(x * net.scale, w)[:, 0], 0.7), obs=y)

    guide = AutoSignBernoulli(model, args=(x, y), init_scale=0.8)
    exact, slope = gradients(
        TraceBinary_ELBO(Enumerate())(model, guide), guide.natural_parameters(), x, y
    )
    module = TraceBinary_ELBO(LocalReparameterization())(model, guide)
    draws = [gradients(module, guide.natural_parameters(), x, y) for _ in range(800)]
    assert_within_standard_errors(torch.stack([loss.detach() for loss, _ in draws]), exact.item())
    assert_within_standard_errors(torch.stack([gradient for _, gradient in draws]), slope)


class Shifted(Enumerate):
    """The oracle with a control variate of its own: a parameter whose gradient is known."""

    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.tensor(0.3))

    def forward(self, objective, natural):
        return super().forward(objective, natural) + self.shift**2


def test_the_estimators_own_parameters_are_the_modules():
    model = vector_model(asymmetric, torch.zeros(4))
    guide = AutoSignBernoulli(model)
    estimator = Shifted()
    module = TraceBinary_ELBO(estimator)(model, guide)
    assert any(p is estimator.shift for p in module.parameters())
    assert "estimator.shift" in module.state_dict()
    module().backward()
    torch.testing.assert_close(estimator.shift.grad, torch.tensor(-0.6))


# Hand-written guides


def test_a_guide_with_pyro_params():
    prior = torch.tensor([0.3, -0.2, 0.5, -0.7])
    model = vector_model(asymmetric, prior)
    start = torch.tensor([0.1, 0.2, -0.3, 0.4])

    def guide():
        natural = pyro.param("natural", start.clone())
        pyro.sample("w", SignBernoulli(natural=natural).to_event(1))

    elbo = TraceBinary_ELBO(Enumerate())
    svi = SVI(model, guide, pyro.optim.SGD({"lr": 0.1}), elbo)
    expected = oracles.kl(start, prior) - oracles.expectation(asymmetric, start)
    torch.testing.assert_close(svi.step(), expected)
    fisher = 1.0 / torch.cosh(start) ** 2
    slope = (start - prior) * fisher - oracles.gradient(asymmetric, start)
    torch.testing.assert_close(pyro.param("natural").detach(), start - 0.1 * slope)
    for _ in range(150):
        svi.step()
    optimum = oracles.mean_field_optimum(asymmetric, prior, start=start)
    best = oracles.kl(optimum, prior) - oracles.expectation(asymmetric, optimum)
    torch.testing.assert_close(elbo.terms(model, guide).loss.item(), best, rtol=1e-3, atol=1e-3)


class HandWritten(PyroModule):
    """A PyroModule guide whose four natural parameters come from two and a positive size."""

    def __init__(self):
        super().__init__()
        self.base = nn.Parameter(torch.tensor([0.2, -0.4]))
        self.size = PyroParam(torch.tensor(0.5), torch.distributions.constraints.positive)

    def forward(self):
        natural = torch.outer(torch.stack([self.size, -2.0 * self.size]), self.base).flatten()
        pyro.sample("w", SignBernoulli(natural=natural).to_event(1))


@pytest.mark.parametrize("local", [True, False])
def test_a_guide_that_is_a_pyro_module(local):
    prior = torch.tensor([0.3, -0.2, 0.5, -0.7])
    model = vector_model(asymmetric, prior)
    with pyro.settings.context(module_local_params=local):
        guide = HandWritten()
        module = TraceBinary_ELBO(Enumerate())(model, guide)
        loss = module()
        (gradient,) = torch.autograd.grad(loss, [guide.base])
    base = torch.tensor([0.2, -0.4], requires_grad=True)
    natural = torch.outer(torch.tensor([0.5, -1.0]), base).flatten()
    fisher = 1.0 / torch.cosh(natural.detach()) ** 2
    slope = (natural.detach() - prior) * fisher - oracles.gradient(asymmetric, natural.detach())
    (expected,) = torch.autograd.grad(natural, base, slope)
    torch.testing.assert_close(gradient, expected)
    value = oracles.kl(natural.detach(), prior) - oracles.expectation(asymmetric, natural.detach())
    torch.testing.assert_close(loss.item(), value)


def test_the_relaxed_guide_goes_through_stock_mean_field_and_ours_alike():
    prior = torch.tensor([0.3, -0.2, 0.5, -0.7])
    model = vector_model(asymmetric, prior)

    def relaxed_model():
        w = pyro.sample("w", SignBernoulli(natural=prior).to_event(1))
        pyro.factor("data", asymmetric(w))

    guide = AutoRelaxedSignBernoulli(model, temperature=0.7, init_scale=0.5)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        stock = TraceMeanField_ELBO().differentiable_loss(relaxed_model, guide)
        torch.manual_seed(3)
        ours = TraceBinary_ELBO(StraightThrough())(relaxed_model, guide)()
    torch.testing.assert_close(ours, stock)
    kl = TraceBinary_ELBO(StraightThrough()).terms(relaxed_model, guide).kl.item()
    torch.testing.assert_close(kl, oracles.kl(flat(guide.natural_parameters()), prior))


# Errors


def test_a_model_site_that_the_guide_does_not_know():
    def model(extra):
        w = pyro.sample("w", SignBernoulli(natural=torch.zeros(2)).to_event(1))
        if extra:
            pyro.sample("surprise", dist.Normal(w.sum(), 1.0))

    guide = AutoSignBernoulli(model, args=(False,))
    with pytest.raises(ValueError, match="'surprise', which the guide does not know"):
        TraceBinary_ELBO(Enumerate())(model, guide)(True)
    with pytest.raises(ValueError, match="'surprise', which the guide does not know"):
        TraceBinary_ELBO(Enumerate()).loss(model, guide, True)


def test_a_forgotten_target_is_a_site_that_the_guide_does_not_know():
    model = Classifier(network(), dataset_size=N)
    guide = AutoSignBernoulli(model)
    with pytest.raises(ValueError, match="'y', which the guide does not know"):
        TraceBinary_ELBO(StraightThrough())(model, guide)(data()[0])


def test_a_guide_site_that_the_model_does_not_have():
    model = vector_model(asymmetric, torch.zeros(4))

    def guide():
        pyro.sample("w", SignBernoulli(natural=pyro.param("l", torch.zeros(4))).to_event(1))
        pyro.sample("other", SignBernoulli(natural=torch.zeros(2)).to_event(1))

    with pytest.raises(ValueError, match="The guide samples 'other', which is not a latent site"):
        TraceBinary_ELBO(StraightThrough()).terms(model, guide)
    with pytest.raises(ValueError, match="The guide samples 'other', which is not a latent site"):
        TraceBinary_ELBO(StraightThrough()).loss(model, guide)


def test_a_guide_distribution_without_a_gradient():
    def model():
        pyro.sample("w", SignBernoulli(natural=torch.zeros(2)).to_event(1))
        pyro.sample("k", dist.Poisson(torch.tensor(3.0)))

    def guide():
        pyro.sample("w", SignBernoulli(natural=torch.zeros(2)).to_event(1))
        pyro.sample("k", dist.Poisson(torch.tensor(2.0)))

    with pytest.raises(
        ValueError, match="distribution at 'k' is Poisson, which is neither a SignBernoulli"
    ):
        TraceBinary_ELBO(StraightThrough()).terms(model, guide)


def test_a_guide_whose_distribution_depends_on_a_binary_draw():
    model = vector_model(asymmetric, torch.zeros(4))

    def ordered_model():
        w = pyro.sample("w", SignBernoulli(natural=torch.zeros(2)).to_event(1))
        v = pyro.sample("v", SignBernoulli(natural=torch.zeros(2)).to_event(1))
        pyro.factor("data", asymmetric(torch.cat([w, v])))

    def good():
        pyro.sample("w", SignBernoulli(natural=torch.zeros(2)).to_event(1))
        pyro.sample("v", SignBernoulli(natural=torch.zeros(2)).to_event(1))

    def bad():
        w = pyro.sample("w", SignBernoulli(natural=torch.zeros(2)).to_event(1))
        pyro.sample("v", SignBernoulli(natural=0.5 * w).to_event(1))

    elbo = TraceBinary_ELBO(Enumerate())
    elbo.terms(ordered_model, good)  # a model seen before does not hide a new guide's mistake
    for _ in range(2):
        with pytest.raises(
            ValueError, match=r"guide's distribution at \['v'\] depends on the draw"
        ):
            elbo.terms(ordered_model, bad)
    assert elbo.terms(model, AutoSignBernoulli(model)).loss.isfinite()


def test_distributions_and_shapes_that_do_not_fit():
    def guide():
        pyro.sample("w", SignBernoulli(natural=torch.zeros(4)).to_event(1))

    def normal_prior():
        pyro.sample("w", dist.Normal(torch.zeros(4), 1.0).to_event(1))

    def other_shape():
        pyro.sample("w", SignBernoulli(natural=torch.zeros(3)).to_event(1))

    elbo = TraceBinary_ELBO(StraightThrough())
    with pytest.raises(ValueError, match="SignBernoulli at 'w', the model a"):
        elbo.terms(normal_prior, guide)
    with pytest.raises(ValueError, match=r"has shape \(4,\) and the model \(3,\)"):
        elbo.terms(other_shape, guide)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(estimator=StraightThrough), "instance of bayesbin.estimators.Estimator"),
        (
            dict(estimator=StraightThrough(), kl_weight=-0.1),
            "expected kl_weight to be",
        ),
        (
            dict(estimator=StraightThrough(), kl_weight=math.nan),
            "expected kl_weight to be",
        ),
        (dict(estimator=StraightThrough(), num_particles=0), "num_particles to be a whole number"),
        (
            dict(estimator=StraightThrough(), num_particles=1.5),
            "num_particles to be a whole number",
        ),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        TraceBinary_ELBO(**arguments)


# Side effects


def test_two_models_in_one_process_each_train_their_own_parameters():
    x, y = data()
    nets = [network(), network()]
    models = [Classifier(net, dataset_size=N) for net in nets]
    guides = [AutoSignBernoulli(model, init_scale=0.5) for model in models]
    elbo = TraceBinary_ELBO(Enumerate())  # one loss serves both
    for net, model, guide in zip(nets, models, guides, strict=True):
        loss = elbo(model, guide)(x, y)
        f = log_likelihood_of(net, x, y)
        natural = flat(guide.natural_parameters())
        expected = oracles.kl(natural, torch.zeros(5)) - oracles.expectation(f, natural)
        torch.testing.assert_close(loss.item(), expected)
        loss.backward()
        assert all(p.grad is not None for p in [*guide.parameters(), *net.parameters()])
        for p in [*guide.parameters(), *net.parameters()]:
            p.grad = None
        for other in (g for g in guides if g is not guide):
            assert all(p.grad is None for p in other.parameters())


def test_no_normalisation_statistics_change_in_the_search_for_dependencies():
    net = to_binary_(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 3)))
    x, y = data()

    def function(x, y):  # a closure, in which no module can be looked up
        values = {
            name: pyro.sample(
                name, SignBernoulli(natural=torch.zeros(net.get_buffer(name).shape)).to_event(2)
            )
            for name in ("0.weight", "2.weight")
        }
        logits = torch.func.functional_call(net, values, (x,))
        with pyro.plate("data", N, subsample=torch.arange(len(x))):
            pyro.sample("y", dist.Categorical(logits=logits), obs=y)

    for model in (Classifier(net, dataset_size=N), function):
        guide = AutoSignBernoulli(model, args=(x, y))
        assert net[1].num_batches_tracked == 0
        module = TraceBinary_ELBO(StraightThrough())(model, guide)
        module(x, y)
        assert net[1].num_batches_tracked == 1  # the step itself, as any forward pass
        net[1].reset_running_stats()


def test_deepcopy_and_pickle():
    prior = torch.tensor([0.3, -0.2, 0.5, -0.7])
    model = vector_model(asymmetric, prior)
    guide = AutoSignBernoulli(model)
    elbo = TraceBinary_ELBO(Shifted(), kl_weight=0.3, num_particles=2)
    module = elbo(model, guide)
    value = module().item()
    twin = copy.deepcopy(module)
    assert twin().item() == value
    assert twin.estimator is twin.elbo.estimator is not module.estimator
    loaded = pickle.loads(pickle.dumps(TraceBinary_ELBO(Enumerate(), 0.3, 2)))
    assert (loaded.kl_weight, loaded.num_particles) == (0.3, 2)
    assert isinstance(loaded.estimator, Estimator)
