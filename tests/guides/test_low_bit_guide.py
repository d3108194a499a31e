"""The mean-field guide of weights with a few levels, and the posterior it gives."""

# A gradient is None until there is one, which the assertion at hand would tell.
# pyright: reportOptionalMemberAccess=false, reportArgumentType=false
# pyright: reportAttributeAccessIssue=false, reportTypedDictNotRequiredAccess=false

from __future__ import annotations

import copy
import io
import itertools
import math
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from stats import assert_within_standard_errors, exceeds_standard_errors
from torch import nn
from torch.distributions import kl_divergence

from bayesbin.data import Batches, two_moons
from bayesbin.distributions import LowBitCategorical, SignBernoulli, equal_levels
from bayesbin.ensemble import Ensemble
from bayesbin.estimators import (
    Concrete,
    DisARM,
    Enumerate,
    ExpectedWeight,
    LocalReparameterization,
    ScoreFunction,
    StraightThrough,
)
from bayesbin.guides import AutoLowBit, AutoSignBernoulli, with_effects
from bayesbin.infer import TraceBinary_ELBO, fit
from bayesbin.nn import Classifier, mlp, to_binary_
from bayesbin.optim import BayesianLearningRule, Schedule, exponential
from bayesbin.posterior import BinaryPosterior, LowBitPosterior

TERNARY = (-1.0, 0.0, 1.0)
WIDE = torch.float64  # these are made before the fixture sets the default
PRIOR = torch.tensor([[0.5, 1.0, -0.5], [0.0, 0.3, 0.2]], dtype=WIDE)
X = torch.tensor([[0.3, -1.2], [0.7, 0.4], [-0.9, 0.5], [1.1, 0.8]], dtype=WIDE)
Y = torch.tensor([-0.2, 0.9, -1.0, 1.3], dtype=WIDE)


def model():
    """Two ternary weights with a prior of their own, three signs, and a real-valued site."""
    w = pyro.sample("layer.w", LowBitCategorical(TERNARY, PRIOR).to_event(1))
    v = pyro.sample("v", SignBernoulli(natural=torch.tensor([0.2, 0.0, -0.4])).to_event(1))
    noise = pyro.sample("noise", dist.LogNormal(torch.tensor(-0.5), 0.5))
    with pyro.plate("data", 4):
        pyro.sample("y", dist.Normal(X @ w + 0.2 * v.sum(), noise), obs=Y)


def weights_only():
    w = pyro.sample("w", LowBitCategorical(TERNARY, PRIOR).to_event(1))
    with pyro.plate("data", 4):
        pyro.sample("y", dist.Normal(X @ w, 0.6), obs=Y)


def exact_elbo(logits):
    """The negative ELBO of ``weights_only`` by a loop over its nine states."""
    total = torch.zeros(())
    q, p = logits.log_softmax(-1), PRIOR.log_softmax(-1)
    for state in itertools.product(range(3), repeat=2):
        w = torch.tensor([TERNARY[k] for k in state])
        log_q = q[0, state[0]] + q[1, state[1]]
        log_p = p[0, state[0]] + p[1, state[1]]
        likelihood = dist.Normal(X @ w, 0.6).log_prob(Y).sum()
        total = total + log_q.exp() * (log_q - log_p - likelihood)
    return total


def test_sites_parameters_and_draws():
    guide = AutoLowBit(model)
    assert [tuple(p.shape) for p in guide.logits()] == [(2, 3), (3, 3)]
    assert [p.shape for p in guide.real_parameters()] == [(), ()]
    assert list(guide.natural_parameters()) == list(guide.offsets()) == []
    assert {"logit.layer.w", "logit.v", "loc.noise", "log_scale.noise"} == set(guide.state_dict())
    assert guide.prior_levels() == {"v": TERNARY}
    seen = torch.cat([torch.cat([d["layer.w"], d["v"]]) for d in (guide() for _ in range(50))])
    assert set(seen.tolist()) == set(TERNARY)


def test_the_exact_loss_and_its_gradient():
    guide = AutoLowBit(weights_only, init_scale=1.0)
    (logits,) = guide.logits()
    expected = exact_elbo(logits)
    loss = TraceBinary_ELBO(Enumerate())(weights_only, guide)()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(
        torch.autograd.grad(loss, logits)[0], torch.autograd.grad(expected, logits)[0]
    )


def test_sampling_estimators_meet_the_exact_gradient():
    guide = AutoLowBit(weights_only, init_scale=1.0)
    (logits,) = guide.logits()
    expected = torch.autograd.grad(exact_elbo(logits), logits)[0]
    elbo = TraceBinary_ELBO(ScoreFunction(60))(weights_only, guide)
    slopes = torch.stack([torch.autograd.grad(elbo(), logits)[0] for _ in range(100)])
    assert_within_standard_errors(slopes, expected)
    assert exceeds_standard_errors(slopes, 0.5 * expected)
    # The model is linear in w with Gaussian noise: its pre-activation is all that matters, and two
    # moments of it give the expectation exactly.
    elbo = TraceBinary_ELBO(LocalReparameterization(4))(weights_only, guide)
    slopes = torch.stack([torch.autograd.grad(elbo(), logits)[0] for _ in range(300)])
    assert_within_standard_errors(slopes, expected)
    hard = TraceBinary_ELBO(Concrete())
    losses = torch.tensor([hard.loss(weights_only, guide) for _ in range(400)])
    assert_within_standard_errors(losses, exact_elbo(logits).detach())


def test_training_finds_the_posterior():
    guide = AutoLowBit(weights_only)
    elbo = TraceBinary_ELBO(Enumerate())(weights_only, guide)
    optimizer = torch.optim.LBFGS(guide.logits(), max_iter=100, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = elbo()
        loss.backward()
        return loss

    optimizer.step(closure)
    # Coordinate ascent on the table of log joints, which needs no gradient.
    q = torch.full((2, 3), 1 / 3)
    joint = torch.stack([
        torch.stack([dist.Normal(X @ torch.tensor([a, b]), 0.6).log_prob(Y).sum() for b in TERNARY])
        for a in TERNARY
    ]) + PRIOR[0].log_softmax(-1)[:, None] + PRIOR[1].log_softmax(-1)  # fmt: skip
    for _ in range(2000):
        q = torch.stack([(joint @ q[1]).softmax(-1), q[1]])
        q = torch.stack([q[0], (q[0] @ joint).softmax(-1)])
    torch.testing.assert_close(guide.posterior()["w"].probs, q, atol=1e-4, rtol=0)
    assert elbo().item() == pytest.approx(exact_elbo(q.log()).item(), abs=1e-6)


def test_with_the_levels_of_signs_it_is_the_mean_field_guide():
    prior = torch.tensor([0.4, -0.3, 0.0])

    def signs():
        w = pyro.sample("w", SignBernoulli(natural=prior).to_event(1))
        pyro.factor("data", torch.sin(2 * w.sum()) + w[0])

    low_bit, mean_field = AutoLowBit(signs, (-1, 1)), AutoSignBernoulli(signs)
    natural = torch.tensor([0.2, -1.0, 0.7])
    with torch.no_grad():
        next(low_bit.logits()).copy_(torch.stack([-natural, natural], -1))
        next(mean_field.natural_parameters()).copy_(natural)
    losses = [TraceBinary_ELBO(Enumerate())(signs, g)() for g in (low_bit, mean_field)]
    torch.testing.assert_close(*losses)
    (slope,) = torch.autograd.grad(losses[0], list(low_bit.logits()))
    (expected,) = torch.autograd.grad(losses[1], list(mean_field.natural_parameters()))
    torch.testing.assert_close(slope[:, 1] - slope[:, 0], expected)


def test_with_the_levels_of_signs_its_natural_steps_are_the_rules():
    prior = torch.tensor([0.4, -0.3, 0.0])

    def signs():
        w = pyro.sample("w", SignBernoulli(natural=prior).to_event(1))
        pyro.factor("data", torch.sin(2 * w.sum()) + w[0])

    low_bit, mean_field = AutoLowBit(signs, (-1, 1)), AutoSignBernoulli(signs)
    (logits,), (natural,) = low_bit.logits(), mean_field.natural_parameters()
    with torch.no_grad():
        natural.copy_(torch.tensor([0.2, -6.0, 0.7]))
        logits.copy_(torch.stack([-natural, natural], -1))
    rules = [
        BayesianLearningRule([logits], 0.1, 0.5, preconditioner=low_bit.natural_gradient),
        BayesianLearningRule([natural], 0.1, 0.5),
    ]
    modules = [TraceBinary_ELBO(Enumerate())(signs, g) for g in (low_bit, mean_field)]
    for _ in range(20):
        for rule, module in zip(rules, modules, strict=True):
            rule.zero_grad()
            module().backward()
            rule.step()
        torch.testing.assert_close(logits[:, 1] - logits[:, 0], 2 * natural)
    assert (natural - torch.tensor([0.2, -6.0, 0.7])).abs().min() > 0.01


def test_natural_steps_solve_with_the_fisher_information():
    guide = AutoLowBit(weights_only, init_scale=2.0)
    (logits,) = guide.logits()
    gradient = torch.autograd.grad(exact_elbo(logits), logits)[0]
    (step,) = guide.natural_gradient([gradient])
    for p, s, g in zip(logits.detach().softmax(-1), step, gradient, strict=True):
        fisher = torch.diag(p) - torch.outer(p, p)
        torch.testing.assert_close(fisher @ s, g)
        torch.testing.assert_close(s, torch.linalg.pinv(fisher) @ g)
    assert guide.natural_gradient([None]) == [None]


def test_the_prior_of_a_sign_becomes_its_tilt_over_levels():
    prior = torch.tensor([0.5, -0.2])

    def signs():
        pyro.sample("w", SignBernoulli(natural=prior).to_event(1))

    guide = AutoLowBit(signs, init_scale=1.0)
    tilted = LowBitCategorical(TERNARY, prior[:, None] * torch.tensor(TERNARY))
    expected = kl_divergence(guide.posterior()["w"], tilted).sum()
    terms = TraceBinary_ELBO(LocalReparameterization()).terms(signs, guide)
    torch.testing.assert_close(terms.kl, expected)
    nodes = pyro.poutine.trace(with_effects(signs, guide)).get_trace().nodes
    assert nodes["w"]["fn"].base_dist.levels == TERNARY


def test_stock_pyro_trains_it_by_the_score_function():
    def signs():
        w = pyro.sample("w", SignBernoulli(natural=torch.zeros(2)).to_event(1))
        pyro.factor("data", 2.0 * w[0] - 3.0 * w[1].abs())

    guide = AutoLowBit(signs)
    svi = SVI(
        with_effects(signs, guide), guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO(num_particles=8)
    )
    for _ in range(150):
        svi.step()
    assert guide.posterior().mode()["w"].tolist() == [1.0, 0.0]


def test_estimators_of_signs_alone_say_so():
    guide = AutoLowBit(weights_only)
    for estimator in (DisARM(), StraightThrough()):
        with pytest.raises(ValueError, match="takes weights that are signs; 'w' has other levels"):
            TraceBinary_ELBO(estimator)(weights_only, guide)()


def test_copies_types_and_state():
    guide = AutoLowBit(model)
    other = AutoLowBit(model)
    file = io.BytesIO()
    torch.save(guide.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    for twin in (other, copy.deepcopy(guide), pickle.loads(pickle.dumps(guide))):
        assert torch.equal(twin.posterior()["v"].logits, guide.posterior()["v"].logits)
        assert twin.prior_levels() == guide.prior_levels()
    assert copy.deepcopy(guide).to(torch.float32)()["v"].dtype == torch.float32
    assert not pyro.get_param_store().keys()


def test_starting_points():
    real = nn.Linear(6, 4)
    net = to_binary_(copy.deepcopy(real))
    guide = AutoLowBit(Classifier(net, dataset_size=10), init=real, init_scale=2.0)
    weight = real.weight.detach()
    size = weight.square().mean().sqrt()
    expected = -((weight / size)[..., None] - torch.tensor(TERNARY)).square()
    torch.testing.assert_close(next(guide.logits()).detach(), expected)
    spread = next(AutoLowBit(Classifier(net, 10), init_scale=0.0).logits())
    assert torch.equal(spread, torch.zeros(4, 6, 3))
    with pytest.raises(ValueError, match="levels are at least two finite increasing"):
        AutoLowBit(weights_only, levels=(1, -1))
    with pytest.raises(ValueError, match="a prior of the model"):
        AutoLowBit(weights_only, levels=equal_levels(2))


@pytest.mark.parametrize(
    ("levels", "estimator"),
    [
        (TERNARY, LocalReparameterization()),
        (equal_levels(2), LocalReparameterization()),
        (equal_levels(4), Concrete(1.0, 4)),
        (TERNARY, ExpectedWeight()),
    ],
    ids=["ternary", "two bits", "four bits, relaxed", "SLB"],
)
def test_a_network_trains_through_fit(levels, estimator):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 2))
    net_model = Classifier(to_binary_(net.float()), dataset_size=200)
    guide, data = AutoLowBit(net_model, levels), two_moons(seed=0)
    search = isinstance(estimator, ExpectedWeight)
    schedules = [Schedule(estimator, "sharpness", exponential(1.0, 50.0, 60))] if search else []
    adam = torch.optim.Adam([*net_model.parameters(), *guide.parameters()], lr=0.03)
    result = fit(
        net_model, guide, Batches(data, batch_size=100), epochs=60, estimator=estimator,
        optimizers=[adam], schedulers=schedules, kl_weight=0.0 if search else 0.1,
        validation=Batches(data, batch_size=100), validate_every=60, progress=False,
    )  # fmt: skip
    posterior = guide.posterior()
    if search:  # of one network, the mode: what was sharpened has draws of another distribution
        found = posterior.mode_network(net_model.net)(data.x).argmax(-1)
        assert (found == data.y).double().mean() > 0.8
    else:
        assert result.history[-1]["validation_accuracy"] > 0.8
    used = set(torch.cat([w.flatten() for w in posterior.signs(0).values()]).double().tolist())
    assert len(used) == len(levels)


# The posterior


def test_draws_of_the_posterior_fit_and_repeat():
    logits = torch.tensor([[0.0, 0.7, -0.5], [3.0, 0.0, 0.0]])
    posterior = LowBitPosterior({"w": LowBitCategorical(TERNARY, logits.expand(20_000, 2, 3))})
    draw = posterior.signs(3, seed=1)["w"]
    assert torch.equal(draw, posterior.sample(3, seed=1)["w"])
    assert not torch.equal(draw, posterior.signs(4, seed=1)["w"])
    for k, level in enumerate(TERNARY):
        assert_within_standard_errors((draw == level).double(), logits.softmax(-1)[:, k])
        assert exceeds_standard_errors(
            (draw == level).double(), logits.softmax(-1).roll(1, -1)[:, k]
        )
    assert posterior.num_weights == 40_000 and "40000 weights" in repr(posterior)
    uniform = LowBitCategorical(TERNARY, torch.zeros(20_000, 2, 3))
    expected = kl_divergence(posterior["w"], uniform).sum()
    torch.testing.assert_close(posterior.kl()["w"], expected)


def test_signs_as_levels_draw_what_their_posterior_draws():
    natural = torch.randn(200, 5)
    levels = LowBitCategorical((-1, 1), torch.stack([-natural, natural], -1))
    one, other = LowBitPosterior({"w": levels}), BinaryPosterior({"w": natural})
    assert torch.equal(one.mode()["w"], other.mode()["w"])
    agree = [(one.signs(s)["w"] == other.signs(s)["w"]).double().mean() for s in range(3)]
    assert min(agree) > 0.3  # the same noise, read from the other end where the mode is +1


def test_the_posterior_is_by_value_and_serves_an_ensemble():
    torch.manual_seed(1)
    net_model = Classifier(to_binary_(mlp(2, [8], 2)), dataset_size=50)
    guide = AutoLowBit(net_model)
    posterior = guide.posterior()
    kept = posterior.signs()
    x = torch.randn(50, 2)
    ensemble = Ensemble(net_model, posterior, 2).calibrate(x)
    probs = ensemble.predict(x).probs
    torch.testing.assert_close(probs.sum(-1), torch.ones(50, dtype=torch.float64))
    assert torch.equal(ensemble.network(1)[0].weight, posterior.signs(1)["0.weight"])
    assert math.isfinite(ensemble.mode.network(0)(x).sum().item())
    with torch.no_grad():
        for p in guide.logits():
            p.sub_(torch.randn_like(p))
    assert all(torch.equal(posterior.signs()[n], w) for n, w in kept.items())
    with pytest.raises(ValueError, match="at least one site"):
        LowBitPosterior({})
