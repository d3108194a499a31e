"""Priors given as probabilities, and priors that are learned: one hyperparameter per layer."""

from __future__ import annotations

import copy
import math

import numpy as np
import oracles
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, TraceMeanField_ELBO
from torch import nn

from bayesbin.data import Batches, Dataset
from bayesbin.distributions import SignBernoulli
from bayesbin.ensemble import Ensemble
from bayesbin.estimators import ARMS, Enumerate, LocalReparameterization, StraightThrough
from bayesbin.guides import (
    AutoNestedSignBernoulli,
    AutoRelaxedSignBernoulli,
    AutoSignBernoulli,
)
from bayesbin.infer import TraceBinary_ELBO, fit
from bayesbin.nn import (
    BinaryConv1d,
    BinaryConv2d,
    BinaryLinear,
    Classifier,
    Regressor,
    binary_sites,
    to_binary_,
)
from bayesbin.nn.priors import on_device
from bayesbin.optim import BayesianLearningRule, make_optimizers, training_groups
from bayesbin.posterior import BinaryPosterior

N = 12


def two_layers(**options):
    net = nn.Sequential(nn.Linear(2, 1), nn.Tanh(), nn.Linear(1, 3, bias=False))
    return to_binary_(net, scale=0.8, **options)


def flat(tensors):
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


# Given as probabilities


def half_log_odds(p):
    return 0.5 * math.log(p / (1.0 - p))


@pytest.mark.parametrize("p", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_one_distribution_is_the_prior_of_all_layers_however_it_is_given(p):
    distribution = SignBernoulli(probs=torch.tensor(p))
    for prior in (
        distribution,
        {"0.weight": distribution, "2.weight": distribution},
        lambda name, weight: distribution,
    ):
        for site in binary_sites(two_layers(prior=prior)).values():
            assert site.prior.item() == pytest.approx(half_log_odds(p), abs=1e-15)


def test_distributions_numbers_and_tensors_mix_in_a_mapping():
    distribution = SignBernoulli(probs=torch.tensor([[0.2, 0.6]]))
    sites = binary_sites(two_layers(prior={"0.weight": distribution, "2.weight": 0.3}))
    expected = torch.tensor([[half_log_odds(0.2), half_log_odds(0.6)]])
    torch.testing.assert_close(sites["0.weight"].prior, expected)
    assert sites["2.weight"].prior.item() == 0.3


@pytest.mark.parametrize(
    "layer",
    [
        lambda prior: BinaryLinear(3, 2, prior=prior),
        lambda prior: BinaryConv1d(3, 2, 2, prior=prior),
        lambda prior: BinaryConv2d(3, 2, 2, prior=prior),
        lambda prior: to_binary_(nn.Embedding(5, 3), lambda name, owner: True, prior=prior),
    ],
)
def test_layers_take_a_distribution(layer):
    (site,) = binary_sites(layer(SignBernoulli(probs=0.3))).values()
    assert site.prior.item() == pytest.approx(half_log_odds(0.3))


def test_a_given_probability_is_that_of_the_weights_in_the_model():
    model = Classifier(two_layers(prior=SignBernoulli(probs=0.3)), dataset_size=N)
    distribution = poutine.trace(model).get_trace().nodes["0.weight"]["fn"].base_dist
    torch.testing.assert_close(distribution.probs, torch.full((1, 2), 0.3))


@pytest.mark.parametrize("p", [0.0, 1.0, -0.1, 1.5, math.nan])
def test_probabilities_outside_the_open_interval(p):
    with pytest.raises(ValueError, match="values strictly between 0 and 1 for probs"):
        SignBernoulli(probs=torch.tensor(p), validate_args=True)
    distribution = SignBernoulli(probs=torch.tensor(p), validate_args=False)
    net = nn.Linear(3, 2)
    with pytest.raises(ValueError, match=r"P\(w = \+1\) strictly between 0 and 1; got NaN or inf"):
        to_binary_(net, prior=distribution)
    assert type(net) is nn.Linear


@pytest.mark.parametrize(
    ("prior", "message"),
    [
        (SignBernoulli(natural=torch.zeros(3)), r"of shape \(1, 2\) is one.*got shape \(3,\)"),
        (dist.Normal(0.0, 1.0), r"or a SignBernoulli, elementwise; got Normal\..*hyperprior="),
        ({"0.weight": dist.Beta(2.0, 2.0), "2.weight": 0.0}, "got Beta"),
        (SignBernoulli(natural=torch.zeros(2, 3)).to_event(1), "got Independent"),
    ],
)
def test_distributions_that_are_no_prior_of_a_layer(prior, message):
    with pytest.raises(ValueError, match=message):
        two_layers(prior=prior)


# Learned: what is declared


def hyperprior_of(kind):
    # Made inside a test, so that its parameters are in float64.
    return dist.Beta(2.0, 0.7) if kind == "probability" else dist.Normal(0.3, 1.2)


def test_one_independent_hyperparameter_per_layer_before_its_weights():
    model = Classifier(two_layers(), dataset_size=N, hyperprior=dist.Beta(2.0, 2.0))
    trace = poutine.trace(model).get_trace()
    sites = [name for name, node in trace.nodes.items() if node["type"] == "sample"]
    assert sites == ["0.weight.prior", "0.weight", "2.weight.prior", "2.weight"]
    first, second = (trace.nodes[name]["value"] for name in (sites[0], sites[2]))
    assert first.shape == second.shape == () and first != second
    for name, p in (("0.weight", first), ("2.weight", second)):
        probs = trace.nodes[name]["fn"].base_dist.probs
        torch.testing.assert_close(probs, p.expand_as(probs))


def test_a_distribution_on_the_real_line_shifts_the_layers_own_prior():
    own = torch.tensor([[0.4, -0.2]])
    net = two_layers(prior={"0.weight": own, "2.weight": 0.1})
    model = Regressor(net, dataset_size=N, hyperprior={"0.weight": dist.Normal(0.0, 1.0)})
    trace = poutine.trace(model).get_trace()
    shift = trace.nodes["0.weight.prior"]["value"]
    torch.testing.assert_close(trace.nodes["0.weight"]["fn"].base_dist.natural, own + shift)
    assert "2.weight.prior" not in trace.nodes
    assert bool((trace.nodes["2.weight"]["fn"].base_dist.natural == 0.1).all())


def test_without_a_hyperprior_the_sites_are_as_before():
    for hyperprior in (None, {}):
        model = Classifier(two_layers(), dataset_size=N, hyperprior=hyperprior)
        nodes = poutine.trace(model).get_trace().nodes.items()
        assert [n for n, node in nodes if node["type"] == "sample"] == ["0.weight", "2.weight"]


@pytest.mark.parametrize(
    ("hyperprior", "message"),
    [
        (0.5, r"is a Pyro distribution, such as .*; got builtins\.float"),
        (torch.distributions.Beta(2.0, 2.0), r"is a Pyro distribution.*got torch\.distributions"),
        (dist.Bernoulli(0.5), r"on the real line .* or inside \[0, 1\].*discrete Bernoulli"),
        (SignBernoulli(natural=0.0), "got the discrete SignBernoulli"),
        (dist.Gamma(2.0, 2.0), "got a Gamma on"),
        (dist.LogNormal(0.0, 1.0), "got a LogNormal on"),
        (dist.Uniform(-1.0, 1.0), "got a Uniform on"),
        (dist.Uniform(0.5, 1.5), "got a Uniform on"),
        (
            dist.Beta(torch.ones(2), torch.ones(2)),
            r"distribution of one number.*batch shape \(2,\)",
        ),
        (dist.Normal(torch.zeros(1), 1.0), r"batch shape \(1,\)"),
        (dist.Dirichlet(torch.ones(2)), r"event shape \(2,\)"),
        ({"weight": dist.Beta(2.0, 2.0)}, r"names 'weight', where.*it has 0\.weight, 2\.weight"),
        ({"0.weight": None}, "got builtins.NoneType"),
    ],
)
@pytest.mark.parametrize("Likelihood", [Classifier, Regressor])
def test_hyperpriors_that_are_refused_at_construction(Likelihood, hyperprior, message):
    with pytest.raises(ValueError, match=message):
        Likelihood(two_layers(), dataset_size=N, hyperprior=hyperprior)


def test_a_distribution_of_probabilities_does_not_silently_replace_a_prior():
    net = two_layers(prior={"0.weight": 0.0, "2.weight": 0.4})
    with pytest.raises(ValueError, match=r"'2\.weight' has a prior of its own"):
        Classifier(net, dataset_size=N, hyperprior=dist.Beta(2.0, 2.0))
    Classifier(net, dataset_size=N, hyperprior=dist.Normal(0.0, 1.0))
    Classifier(net, dataset_size=N, hyperprior={"0.weight": dist.Beta(2.0, 2.0)})


def test_uniform_distributions_and_distributions_by_transformation_are_probabilities_too():
    logit_normal = dist.TransformedDistribution(
        dist.Normal(0.5, 1.0), [dist.transforms.SigmoidTransform()]
    )
    for distribution in (dist.Uniform(0.0, 1.0), dist.Uniform(0.2, 0.4), logit_normal):
        model = Classifier(two_layers(), dataset_size=N, hyperprior=distribution)
        trace = poutine.trace(model).get_trace()
        probs = trace.nodes["0.weight"]["fn"].base_dist.probs
        torch.testing.assert_close(probs[0, 0], trace.nodes["0.weight.prior"]["value"])
        guide = AutoSignBernoulli(model)
        loss = TraceBinary_ELBO(Enumerate())(model, guide)(*data())
        assert all(bool(g.isfinite()) for g in torch.autograd.grad(loss, real(guide)))


# Learned: the ELBO against enumeration of the weights and quadrature over the hyperparameter


def data(rows=4):
    generator = torch.Generator().manual_seed(3)
    return torch.randn(rows, 2, generator=generator), torch.arange(rows) % 3


def real(guide):
    return list(guide.real_parameters())


NODES, WEIGHTS = (torch.from_numpy(a) for a in np.polynomial.hermite_e.hermegauss(24))
WEIGHTS = WEIGHTS / math.sqrt(2.0 * math.pi)  # E[f(e)] = sum of weights times f(nodes), e ~ N(0, 1)
MEDIAN = (torch.zeros(1), torch.ones(1))  # the biased twin: all the mass at the median


class Case:
    """A model with one hyperparameter, and the log-likelihood of all states by naive means."""

    def __init__(self, name):
        self.name, self.x, self.y = name, *data()
        if name == "some layers":
            net = two_layers(prior={"0.weight": 0.4, "2.weight": 0.0})
            self.learned = torch.tensor([False, False, True, True, True])
            self.own = torch.tensor([0.4, 0.4, 0.0, 0.0, 0.0])
            self.distribution = hyperprior_of("probability")
            hyperprior = {"2.weight": self.distribution}
        else:
            self.own = torch.linspace(-0.5, 0.6, 6) * (name == "shift")
            net = BinaryLinear(2, 3, prior=self.own.view(3, 2))
            self.learned = torch.ones(6, dtype=torch.bool)
            self.distribution = hyperprior = hyperprior_of(name)
        self.net = net
        self.model = Classifier(net, dataset_size=N, hyperprior=hyperprior)
        self.guide = AutoSignBernoulli(self.model, init_scale=0.8, real_scale=0.7)
        self.parameters = [*self.guide.natural_parameters(), *real(self.guide)]

    def log_likelihood(self, w):
        shapes = {name: site.shape for name, site in binary_sites(self.net).items()}
        parts = w.split([shape.numel() for shape in shapes.values()])
        signs = {
            name: part.view(shape)
            for (name, shape), part in zip(shapes.items(), parts, strict=True)
        }
        logits = torch.func.functional_call(self.net, signs, (self.x,))
        return N / 4 * torch.log_softmax(logits, -1)[range(4), self.y].sum()

    def at(self, z):
        """Natural parameters of the prior and log p(z), at an unconstrained hyperparameter z."""
        if self.name == "shift":
            return self.own + z, self.distribution.log_prob(z)
        a, b = self.distribution.concentration1, self.distribution.concentration0
        log_p, log_other = -torch.log(1.0 + torch.exp(-z)), -torch.log(1.0 + torch.exp(z))
        log_beta = torch.lgamma(a) + torch.lgamma(b) - torch.lgamma(a + b)
        return torch.where(self.learned, 0.5 * z, self.own), a * log_p + b * log_other - log_beta

    def exact(self, kl_weight=1.0, quadrature=(NODES, WEIGHTS)):
        """The loss, and its gradient in natural parameters, location and log scale."""
        *naturals, loc, log_scale = (p.detach().clone().requires_grad_() for p in self.parameters)
        q = oracles.state_probabilities(torch.cat([n.flatten() for n in naturals]))
        loss = -(q * oracles.table(self.log_likelihood, len(self.own))).sum()
        for node, weight in zip(*quadrature, strict=True):
            z = loc + log_scale.exp() * node
            natural, log_prior = self.at(z)
            kl_weights = (q * (q.log() - oracles.state_probabilities(natural).log())).sum()
            log_q = dist.Normal(loc, log_scale.exp()).log_prob(z)
            loss = loss + kl_weight * weight * (kl_weights + log_q - log_prior)
        return loss.item(), flat(torch.autograd.grad(loss, [*naturals, loc, log_scale]))


def draw_of(module, case):
    loss = module(case.x, case.y)
    return loss.item(), flat(torch.autograd.grad(loss, case.parameters))


@pytest.mark.parametrize("kl_weight", [1.0, 0.3])
@pytest.mark.parametrize("name", ["probability", "shift", "some layers"])
def test_loss_and_gradient_are_the_sum_over_states_and_the_integral_over_the_hyperparameter(
    monkeypatch, name, kl_weight
):
    case = Case(name)
    module = TraceBinary_ELBO(Enumerate(), kl_weight=kl_weight)(case.model, case.guide)
    loss, gradient = 0.0, torch.zeros(len(case.own) + 2)
    for node, weight in zip(NODES, WEIGHTS, strict=True):
        with monkeypatch.context() as patch:  # the guide's only Normal draw is that node
            patch.setattr(
                "torch.distributions.normal._standard_normal",
                lambda shape, dtype, device, node=node: node.expand(shape),
            )
            at_node = draw_of(module, case)
        loss, gradient = loss + weight.item() * at_node[0], gradient + weight * at_node[1]
    exact_loss, exact_gradient = case.exact(kl_weight)
    assert loss == pytest.approx(exact_loss, abs=1e-9)
    torch.testing.assert_close(gradient, exact_gradient, atol=1e-9, rtol=0.0)
    twin_loss, twin_gradient = case.exact(kl_weight, MEDIAN)
    assert abs(loss - twin_loss) > 1e-3 and (gradient - twin_gradient).abs().max() > 1e-3


@pytest.mark.parametrize("estimator", [LocalReparameterization(), StraightThrough(), ARMS(6)])
@pytest.mark.parametrize(
    "Guide", [AutoSignBernoulli, AutoNestedSignBernoulli, AutoRelaxedSignBernoulli]
)
@pytest.mark.parametrize("name", ["probability", "shift"])
def test_every_parameter_gets_a_gradient_from_every_guide_and_estimator(Guide, estimator, name):
    model = Classifier(two_layers(), dataset_size=N, hyperprior=hyperprior_of(name))
    guide = Guide(model, init_scale=0.5)
    parameters = dict(guide.named_parameters())
    for site in ("0.weight", "2.weight"):
        assert parameters[f"loc.{site}.prior"].shape == ()
        assert parameters[f"log_scale.{site}.prior"].shape == ()
    TraceBinary_ELBO(estimator)(model, guide)(*data()).backward()
    for key, parameter in parameters.items():
        assert parameter.grad is not None and bool(parameter.grad.isfinite().all()), key
        assert bool((parameter.grad != 0).any()), key


def test_the_nested_guide_keeps_a_sites_offsets_and_its_hyperparameter_apart():
    model = Classifier(BinaryLinear(3, 2), dataset_size=N, hyperprior=dist.Beta(2.0, 2.0))
    names = [name for name, _ in AutoNestedSignBernoulli(model).named_parameters()]
    assert {"offset.weight.layer", "offset.weight.weight", "loc.weight.prior"} <= set(names)


@pytest.mark.parametrize("where", ["stock loss", "ours"])
def test_svi_trains_the_hyperparameter(where):
    model = Classifier(two_layers(), dataset_size=N, hyperprior=dist.Beta(5.0, 1.0))
    if where == "stock loss":
        guide, loss = AutoRelaxedSignBernoulli(model), TraceMeanField_ELBO()
    else:
        guide, loss = AutoSignBernoulli(model), TraceBinary_ELBO(StraightThrough())
    before = flat(real(guide))
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), loss)
    assert math.isfinite(svi.step(*data()))
    assert bool((flat(real(guide)) != before).all())


# Learned: saturation


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("loc", [-200.0, -40.0, -15.0, 15.0, 40.0, 200.0])
def test_loss_and_gradient_are_finite_at_saturated_probabilities(loc, dtype):
    torch.set_default_dtype(dtype)
    model = Classifier(BinaryLinear(50, 3), dataset_size=N, hyperprior=dist.Beta(2.0, 2.0))
    guide = AutoSignBernoulli(model, init_scale=3.0)
    with torch.no_grad():
        real(guide)[0].fill_(loc)
    module = TraceBinary_ELBO(LocalReparameterization())(model, guide)
    loss = module(torch.randn(4, 50), torch.arange(4) % 3)
    loss.backward()
    assert bool(loss.isfinite())
    assert all(bool(p.grad.isfinite().all()) for p in guide.parameters())
    assert math.isfinite(TraceBinary_ELBO(StraightThrough()).loss(model, guide))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_natural_parameter_of_a_drawn_probability(dtype):
    torch.set_default_dtype(dtype)
    model = Classifier(BinaryLinear(3, 2), dataset_size=N, hyperprior=dist.Beta(2.0, 2.0))

    def natural(p):
        with poutine.condition(data={"weight.prior": p}):
            trace = poutine.trace(model).get_trace()
        return trace.nodes["weight"]["fn"].base_dist.natural[0, 0]

    z = torch.linspace(-8.0, 8.0, 17)
    found = torch.stack([natural(p) for p in torch.sigmoid(z)])
    # p itself is known to eps: its log-odds to eps / (p (1 - p)).
    tolerance = torch.finfo(dtype).eps * torch.cosh(z / 2.0).square() * 8.0
    assert bool(((found - 0.5 * z).abs() <= tolerance).all())
    ends = [natural(torch.tensor(p)) for p in (0.0, 1.0)]
    assert ends[0].item() == pytest.approx(-ends[1].item(), rel=1e-3)
    assert ends[1] > 7.0 and bool(ends[1].isfinite())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_keep_their_dtype(dtype):
    net = BinaryLinear(3, 2, dtype=dtype)
    for kind in ("probability", "shift"):
        model = Classifier(net, dataset_size=N, hyperprior=hyperprior_of(kind))
        assert poutine.trace(model).get_trace().nodes["weight"]["value"].dtype == dtype


def test_distributions_follow_the_network_to_its_device():
    device = torch.device("meta")
    logit_normal = dist.TransformedDistribution(
        dist.Normal(0.5, 1.0), [dist.transforms.SigmoidTransform()]
    )
    kinds = [hyperprior_of(kind) for kind in ("probability", "shift")]
    for distribution in (*kinds, dist.Uniform(0.0, 1.0), logit_normal):
        assert distribution.sample().device.type == "cpu"
        assert on_device(distribution, torch.device("cpu")) is distribution
        moved = on_device(distribution, device)
        with pyro.validation_enabled(False):  # which looks at values; meta tensors have none
            assert moved.log_prob(torch.tensor(0.3, device=device)).device == device
        assert distribution.sample().device.type == "cpu"  # the one that was given has stayed


# Learned: evidence and learning


def skewed(signs, rows=60, noise=0.3):
    """Targets of a linear regression with the given signs."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(rows, len(signs), generator=generator)
    y = x @ signs + noise * torch.randn(rows, generator=generator)
    return Dataset(x, y, "skewed", None)


def regression(signs, train, noise=0.3, hyperprior=None):
    net = BinaryLinear(len(signs), 1, bias=False, scale=1.0)
    return Regressor(net, len(train), noise=noise, hyperprior=hyperprior)


def trained(model, train, steps=150):
    guide = AutoSignBernoulli(model, init_scale=0.1)
    rule = BayesianLearningRule(guide.natural_parameters(), lr=0.1, normalize=True)
    adam = torch.optim.Adam(real(guide), lr=0.1)
    module = TraceBinary_ELBO(LocalReparameterization())(model, guide)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
    for _ in range(steps):
        for optimizer in (rule, adam):
            optimizer.zero_grad()
        module(train.x, train.y).backward()
        for optimizer in (rule, adam):
            optimizer.step()
        schedule.step()
    return guide


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_elbo_is_below_the_exact_evidence_and_above_that_of_a_prior_that_is_fixed(sign):
    signs = sign * torch.ones(6)
    train = skewed(signs, rows=20, noise=0.5)  # enough to determine the signs: the ELBO comes close
    a, b = 1.5, 1.5

    def log_likelihood(w):
        return dist.Normal(train.x @ w, 0.5).log_prob(train.y).sum()

    states, d = oracles.all_states(6), 6
    plus = (states > 0).sum(1).double()
    log_beta = lambda a, b: torch.lgamma(a) + torch.lgamma(b) - torch.lgamma(a + b)
    # The weights' marginal prior: integral of p^(a + k - 1) (1 - p)^(b + d - k - 1) over p.
    one = torch.tensor(1.0)
    log_prior = log_beta(a + plus, b + d - plus) - log_beta(a * one, b * one)
    table = oracles.table(log_likelihood, 6)
    evidence = torch.logsumexp(log_prior + table, 0).item()
    assert log_prior.exp().sum().item() == pytest.approx(1.0)

    model = regression(signs, train, 0.5, dist.Beta(a, b))

    def elbo(guide):
        module = TraceBinary_ELBO(Enumerate(), num_particles=50)(model, guide)
        with torch.no_grad():
            return -module(train.x, train.y).item()

    start, end = elbo(AutoSignBernoulli(model)), elbo(trained(model, train))
    fixed = oracles.log_evidence(log_likelihood, torch.zeros(6))
    assert start < end < evidence
    # The bound is tight enough to tell a prior that is learned from one that is not.
    assert fixed + 1.0 < end and evidence - end < 0.5


@pytest.mark.parametrize(("plus", "expected"), [(21, "up"), (3, "down")])
@pytest.mark.parametrize("kind", ["probability", "shift"])
def test_the_prior_moves_to_the_share_of_signs_in_the_data(kind, plus, expected):
    signs = torch.where(torch.arange(24) < plus, 1.0, -1.0)
    train = skewed(signs)
    distribution = dist.Beta(2.0, 2.0) if kind == "probability" else dist.Normal(0.0, 0.5)
    model = regression(signs, train, hyperprior=distribution)
    guide = trained(model, train)
    posterior = guide.posterior()
    assert torch.equal(posterior.mode()["weight"][0], signs)  # the data determine the weights
    median = posterior.real["weight.prior"].at(0.0).item()
    if kind == "probability":
        # Given the signs p ~ Beta(2 + k, 2 + 24 - k).
        assert median == pytest.approx((2.0 + plus) / 28.0, abs=0.06)
    assert (median > (0.7 if kind == "probability" else 0.4)) == (expected == "up")
    assert (median < (0.3 if kind == "probability" else -0.4)) == (expected == "down")


def test_layers_learn_their_own():
    """Weights that the data fix at +1 in one layer and at -1 in the other."""

    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = BinaryLinear(8, 1, bias=False, scale=1.0)
            self.b = BinaryLinear(8, 1, bias=False, scale=1.0)

        def forward(self, x):
            return self.a(x[:, :8]) + self.b(x[:, 8:])

    train = skewed(torch.cat([torch.ones(8), -torch.ones(8)]))
    model = Regressor(Both(), len(train), noise=0.3, hyperprior=dist.Beta(1.0, 1.0))
    real = trained(model, train).posterior().real
    assert real["a.weight.prior"].at(0.0) > 0.75 and real["b.weight.prior"].at(0.0) < 0.25


# What uses a posterior afterwards


@pytest.fixture
def fitted():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3))
    x, y = torch.randn(40, 2), torch.arange(40) % 3
    model = Classifier(to_binary_(net), dataset_size=40, hyperprior=dist.Beta(2.0, 2.0))
    guide = AutoSignBernoulli(model)
    fit(model, guide, Batches(Dataset(x, y, "noise", 3), 20), epochs=2, progress=False)
    return model, guide, x


def test_prediction_takes_no_notice_of_the_hyperparameter(fitted):
    model, guide, x = fitted
    posterior = guide.posterior()
    assert list(posterior.real) == ["0.weight.prior", "3.weight.prior"]
    signs_only = BinaryPosterior(dict(posterior))
    results = []
    for each in (posterior, signs_only):
        ensemble = Ensemble(model, each, 3, seed=1).calibrate(x)
        drawn, mode = ensemble.network(2)(x), ensemble.mode.network(0)(x)
        results.append((ensemble.predict(x).log_probs, drawn, mode))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert not torch.equal(results[0][1], results[0][2])


def test_the_regressors_noise_is_found_beside_the_hyperparameter():
    train = skewed(torch.ones(4))
    model = regression(torch.ones(4), train, None, dist.Beta(2.0, 2.0))
    posterior = AutoSignBernoulli(model, init_scale=1.0).posterior()
    assert list(posterior.real) == ["weight.prior", "noise"]
    prediction = Ensemble(model, posterior, 3).predict(train.x)
    noise = torch.stack([posterior.sample_real("noise", i) for i in range(3)])
    expected = noise.double().square().mean().expand(60)
    torch.testing.assert_close(prediction.aleatoric_variance, expected)


def test_a_saved_posterior_keeps_the_hyperparameter(fitted, tmp_path):
    _, guide, _ = fitted
    posterior = guide.posterior()
    posterior.save(tmp_path / "p.safetensors")
    loaded = BinaryPosterior.load(tmp_path / "p.safetensors")
    first, second = posterior.sample(5), loaded.sample(5)
    assert first.keys() == second.keys() and "3.weight.prior" in first
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert 0.0 < second["3.weight.prior"] < 1.0


def test_a_fit_continues_where_its_checkpoint_ends(tmp_path):
    x, y = torch.randn(40, 2), torch.arange(40) % 3
    batches = Batches(Dataset(x, y, "noise", 3), 20)
    ends = []
    start = Classifier(two_layers(), dataset_size=40, hyperprior=dist.Beta(2.0, 2.0))
    for epochs in ([4], [2, 4]):
        torch.manual_seed(1)
        model = copy.deepcopy(start)
        guide = AutoSignBernoulli(model)
        for until in epochs:
            options = {"optimizers": make_optimizers(training_groups(guide, model))}
            options |= {"checkpoint_dir": tmp_path / "c"} if len(epochs) > 1 else {}
            fit(model, guide, batches, epochs=until, progress=False, **options)
        ends.append(flat(guide.parameters()))
    assert torch.equal(*ends)
