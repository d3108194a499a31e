"""What the literature says of its methods' relations: what holds exactly, and what does not."""

# A gradient is None until there is one, which the assertion at hand would tell.
# pyright: reportOptionalMemberAccess=false, reportArgumentType=false

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from bayesbin.core import numerics
from bayesbin.estimators import Concrete, ExpectedWeight, StraightThrough
from bayesbin.guides import AutoSignBernoulli
from bayesbin.infer import TraceBinary_ELBO
from bayesbin.nn import Classifier, binarize_, latents, to_binary_
from bayesbin.nn.binarizers import Signs, SignSTE, SoftSign
from bayesbin.optim import BayesianLearningRule, Bop

X, LABELS = (
    torch.linspace(-2, 2, 80, dtype=torch.float64).reshape(20, 4).sin(),
    torch.arange(20) % 3,
)


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 12), nn.Tanh(), nn.Linear(12, 3))


def rule_and_plain(binarizer, estimator, *, kl_weight=0.0, lr=0.02):
    """A mean-field guide under the rule, and a plain network, of one architecture; biases stay."""
    plain = binarize_(network(), binarizer)
    model = Classifier(to_binary_(network()), dataset_size=20)
    guide = AutoSignBernoulli(model)
    elbo = TraceBinary_ELBO(estimator, kl_weight=kl_weight)(model, guide)
    rule = BayesianLearningRule(guide.natural_parameters(), lr)
    return plain, list(latents(plain).values()), list(guide.natural_parameters()), elbo, rule


def copy_into(targets, sources):
    with torch.no_grad():
        for p, q in zip(targets, sources, strict=True):
            p.copy_(q)


def loss_of(plain):
    return 20 * nn.functional.cross_entropy(plain(X), LABELS)


def run(plain, optimizer, elbo, rule, steps):
    for _ in range(steps):
        rule.zero_grad()
        optimizer.zero_grad()
        elbo(X, LABELS).backward()
        loss_of(plain).backward()
        rule.step()
        optimizer.step()
        yield


# The straight-through estimator


def test_the_straight_through_estimator_is_the_rule_with_unit_scale():
    """SGD on latents equals the rule without prior, draws w = sign(lambda), s = 1; step for step."""
    plain, ours, naturals, elbo, rule = rule_and_plain(SignSTE(None), StraightThrough(noise=False))
    copy_into(naturals, ours)
    before = [p.detach().clone() for p in ours]
    for _ in run(plain, torch.optim.SGD(ours, 0.02), elbo, rule, 30):
        for p, q in zip(ours, naturals, strict=True):
            torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-10)
    signs = [(p.sign() != q.sign()).any() for p, q in zip(before, ours, strict=True)]
    assert all(bool(flipped) for flipped in signs)


def test_with_the_prior_it_is_sgd_with_weight_decay():
    plain, ours, naturals, elbo, rule = rule_and_plain(
        SignSTE(None), StraightThrough(noise=False), kl_weight=0.3
    )
    copy_into(naturals, ours)
    for _ in run(plain, torch.optim.SGD(ours, 0.02, weight_decay=0.3), elbo, rule, 30):
        for p, q in zip(ours, naturals, strict=True):
            torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-10)
    assert any(bool((p.detach().abs() > 0.1).any()) for p in ours)


def test_the_clipped_derivative_is_another_rule():
    """With a window, or latents clipped to it, the equality ends at the first latent outside."""
    plain, ours, naturals, elbo, rule = rule_and_plain(SignSTE(), StraightThrough(noise=False))
    copy_into(ours, [1.5 * p.sign() for p in ours])
    copy_into(naturals, ours)
    next(run(plain, torch.optim.SGD(ours, 0.02), elbo, rule, 1))
    assert all(bool((p.abs() == 1.5).all()) for p in ours)  # nothing passes
    assert all(bool((p.abs() != 1.5).any()) for p in naturals)


@pytest.mark.parametrize("natural", [0.4, -1.2])
def test_it_is_not_the_limit_of_small_temperature(natural):
    """s of Concrete averages to 1 as tau tends to 0, but is 1 for no draw: its variance grows as 1/tau."""
    lam = torch.full((400_000,), natural, requires_grad=True)
    scales = {}
    for temperature in (0.1, 0.01):
        torch.manual_seed(1)
        surrogate = Concrete(temperature)(lambda values: values["w"][0].sum()[None], {"w": lam})
        (slope,) = torch.autograd.grad(surrogate, lam)
        s = slope / numerics.variance(lam.detach())
        scales[temperature] = s
        error = s.std() / len(s) ** 0.5
        if temperature == 0.01:
            assert (s.mean() - 1).abs() < 5 * error
    ratio = (scales[0.01].var() / scales[0.1].var()).item()
    assert ratio == pytest.approx(10.0, rel=0.15)
    assert ((scales[0.01] - 1).abs() < 0.5).double().mean() < 0.05


# Bop


def same_start(bop, ours, naturals):
    """Signs and averages as those of the rule's natural parameters, which differ from weight to weight."""
    copy_into(naturals, [0.01 * torch.randn_like(p) for p in naturals])
    copy_into(ours, [numerics.sign_of(p.detach()) for p in naturals])
    for p, q in zip(ours, naturals, strict=True):
        bop.state[p]["average"] = -q.detach().clone()
    return bop


def test_bops_average_is_the_rules_decay_and_its_flips_are_the_rules_signs():
    """Bop at threshold 0 and the rule with a uniform prior: m = -lambda, w = sign(lambda), at each step."""
    gamma = 0.1
    plain, ours, naturals, elbo, rule = rule_and_plain(
        Signs(), StraightThrough(noise=False), kl_weight=1.0, lr=gamma
    )
    bop = same_start(Bop(ours, threshold=0.0, gamma=gamma), ours, naturals)
    flips = 0.0
    for _ in run(plain, bop, elbo, rule, 40):
        flips += bop.flip_rate()
        for p, q in zip(ours, naturals, strict=True):
            torch.testing.assert_close(bop.state[p]["average"], -q.detach(), rtol=1e-9, atol=1e-10)
            assert torch.equal(p.detach(), numerics.sign_of(q.detach()))
    assert flips > 1.0


def test_with_a_threshold_bop_keeps_signs_that_the_rule_would_change():
    gamma, threshold = 0.1, 0.05
    plain, ours, naturals, elbo, rule = rule_and_plain(
        Signs(), StraightThrough(noise=False), kl_weight=1.0, lr=gamma
    )
    bop = same_start(Bop(ours, threshold=threshold, gamma=gamma), ours, naturals)
    next(run(plain, bop, elbo, rule, 1))
    apart = [
        p.detach() != numerics.sign_of(q.detach()) for p, q in zip(ours, naturals, strict=True)
    ]
    assert any(bool(a.any()) for a in apart)
    for a, p in zip(apart, ours, strict=True):
        assert bool((bop.state[p]["average"][a].abs() <= threshold).all())


# Mirror descent and proximal mean-field


def test_mirror_descent_at_sharpness_one_is_the_rule_at_the_mean_weight():
    plain, ours, naturals, elbo, rule = rule_and_plain(SoftSign(mirror=True), ExpectedWeight())
    copy_into(naturals, ours)
    for _ in run(plain, torch.optim.SGD(ours, 0.02), elbo, rule, 30):
        for p, q in zip(ours, naturals, strict=True):
            torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("sharpness", [1.0, 4.0])
def test_proximal_mean_field_is_plain_descent_of_the_expected_weight(sharpness):
    plain, ours, naturals, elbo, _ = rule_and_plain(SoftSign(sharpness), ExpectedWeight(sharpness))
    copy_into(naturals, ours)
    sgd, twin = torch.optim.SGD(ours, 0.02), torch.optim.SGD(naturals, 0.02)
    for _ in run(plain, sgd, elbo, twin, 30):
        for p, q in zip(ours, naturals, strict=True):
            torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-10)


# The published BayesBiNN runs


def published_draw(natural, uniform, temperature=1e-10, eps=1e-10):
    """The reference implementation's relaxed weight and its factor s, with its epsilons, in float32."""
    delta = 0.5 * torch.log((uniform + eps) / ((1 - uniform) + eps))
    weight = torch.tanh((natural + delta) / temperature)
    mean = torch.tanh(natural)
    scale = (1 - weight * weight + eps) / temperature / (1 - mean * mean + eps)
    return weight, scale


def test_the_published_image_settings_draw_no_weight_that_differs_from_its_sign():
    torch.manual_seed(0)
    natural = torch.where(torch.rand(500_000) < 0.5, -10.0, 10.0).float()
    weight, scale = published_draw(natural, torch.rand(500_000, dtype=torch.float32))
    assert torch.equal(weight.sign(), natural.sign()) and bool((weight.abs() == 1).all())
    # s is one number, 1/tau, for every weight: the straight-through rule.
    torch.testing.assert_close(scale, torch.full_like(scale, 1e10))
    # Without the epsilons s is 0 at every one of these draws, and nothing would train.
    surrogate = Concrete(1e-10)(
        lambda values: values["w"][0].sum()[None], {"w": natural.requires_grad_()}
    )
    assert not torch.autograd.grad(surrogate, natural)[0].any()


def test_ours_start_where_draws_differ():
    model = Classifier(to_binary_(nn.Linear(200, 100)), dataset_size=10)
    guide = AutoSignBernoulli(model)  # its default, init_scale=0.1
    (natural,) = guide.natural_parameters()
    posterior = guide.posterior()
    differing = (posterior.signs(0)["weight"] != posterior.signs()["weight"]).double()
    expected = torch.sigmoid(-2 * natural.detach().abs())
    error = (expected * (1 - expected)).mean().sqrt() / natural.numel() ** 0.5
    assert abs(differing.mean() - expected.mean()) < 5 * error and differing.mean() > 0.4
    saturated = copy.deepcopy(guide)
    with torch.no_grad():
        next(saturated.natural_parameters()).sign_().mul_(10.0)
    fixed = saturated.posterior()
    assert torch.equal(fixed.signs(0)["weight"], fixed.signs()["weight"])
