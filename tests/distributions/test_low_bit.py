"""The distribution of weights with a few levels, and its relaxation."""

# A gradient is None until there is one, which the assertion at hand would tell.
# pyright: reportOptionalMemberAccess=false, reportArgumentType=false
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import copy
import math
import pickle

import pyro
import pytest
import torch
from pyro.infer import SVI, TraceEnum_ELBO, config_enumerate
from stats import assert_within_standard_errors, exceeds_standard_errors
from torch.distributions import kl_divergence

from bayesbin.core import numerics
from bayesbin.distributions import (
    LowBitCategorical,
    RelaxedLowBit,
    RelaxedSignBernoulli,
    SignBernoulli,
    equal_levels,
)

LEVELS = [(-1.0, 0.0, 1.0), (-1.0, 1.0), equal_levels(2), (-2.0, 0.5, 3.0, 3.25)]


def naive(levels, logits):
    """Mass of each level, one by one, for moderate logits."""
    weights = torch.tensor([math.exp(a) for a in logits.tolist()])
    return weights / weights.sum(), torch.tensor(levels)


@pytest.mark.parametrize("levels", LEVELS, ids=str)
def test_moments_entropy_and_kl_against_enumeration(levels):
    logits, prior = torch.randn(6, len(levels)), torch.randn(6, len(levels))
    q, p = LowBitCategorical(levels, logits), LowBitCategorical(levels, prior)
    for j in range(6):
        mass, values = naive(levels, logits[j])
        prior_mass, _ = naive(levels, prior[j])
        mean = (mass * values).sum()
        torch.testing.assert_close(q.probs[j], mass)
        torch.testing.assert_close(q.mean[j], mean)
        torch.testing.assert_close(q.variance[j], (mass * (values - mean) ** 2).sum())
        torch.testing.assert_close(q.entropy()[j], -(mass * mass.log()).sum())
        expected = (mass * (mass / prior_mass).log()).sum()
        torch.testing.assert_close(kl_divergence(q, p)[j], expected)
        # The other way round is another number: a test that could not tell would be none.
        assert not torch.isclose(kl_divergence(p, q)[j], expected, rtol=1e-4)
        assert q.mode[j] == values[mass.argmax()]
    torch.testing.assert_close(q.log_prob(q.enumerate_support()).exp().sum(0), torch.ones(6))
    assert q.enumerate_support(expand=False).shape == (len(levels), 1)


def test_two_levels_are_the_distribution_of_a_sign():
    natural, prior = torch.randn(7), torch.randn(7)
    sign, sign_prior = SignBernoulli(natural=natural), SignBernoulli(natural=prior)
    q = LowBitCategorical((-1, 1), torch.stack([-natural, natural], -1))
    p = LowBitCategorical((-1, 1), torch.stack([5 - prior, 5 + prior], -1))
    for name in ("mean", "variance", "mode"):
        torch.testing.assert_close(getattr(q, name), getattr(sign, name))
    torch.testing.assert_close(q.entropy(), sign.entropy())
    expected = kl_divergence(sign, sign_prior)
    for pair in ((q, p), (q, sign_prior), (sign, p)):
        torch.testing.assert_close(kl_divergence(*pair), expected)
    for w in (-1.0, 1.0):
        value = torch.full((7,), w)
        torch.testing.assert_close(q.log_prob(value), sign.log_prob(value))
    torch.manual_seed(3)
    draws = q.sample((50,))
    torch.manual_seed(3)
    assert torch.equal(draws, sign.sample((50,)))  # the same noise, the same draw
    assert q.mode.dtype == natural.dtype and LowBitCategorical((-1, 1), torch.zeros(2)).mode == 1


@pytest.mark.parametrize("levels", LEVELS, ids=str)
def test_draws_fit_their_probabilities(levels):
    logits = torch.randn(3, len(levels))
    q = LowBitCategorical(levels, logits)
    draws = q.sample((20_000,))
    for k, level in enumerate(q.level_values):
        assert_within_standard_errors((draws == level).double(), q.probs[:, k])
    assert exceeds_standard_errors(draws, -q.mean)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_everything_is_finite_with_its_gradient_at_every_logit(dtype):
    big = torch.tensor([0.0, 8.5, -20.0, 100.0, -100.0, 1e4, -1e4], dtype=dtype)
    logits = torch.cartesian_prod(big, big, big).requires_grad_()
    prior = logits.detach().flip(0).clone().requires_grad_()
    q = LowBitCategorical((-1, 0, 1), logits)
    p = LowBitCategorical((-1, 0, 1), prior)
    for value in (kl_divergence(q, p), q.entropy(), q.variance, q.mean, q.log_prob(q.sample())):
        assert value.dtype == dtype and bool(torch.isfinite(value).all())
        for slope in torch.autograd.grad(value.sum(), (logits, prior), allow_unused=True):
            assert slope is None or bool(torch.isfinite(slope).all())
    rounding = torch.finfo(dtype).eps
    assert bool((kl_divergence(q, p) >= -8 * rounding).all())
    assert bool((q.variance >= 0).all())


def test_the_variance_keeps_its_digits_where_a_level_is_all_but_certain():
    logits = torch.tensor([0.0, 20.0, -3.0], dtype=torch.float32)
    exact = LowBitCategorical((-1, 0, 1), logits.double()).variance
    got = LowBitCategorical((-1, 0, 1), logits).variance.double()
    torch.testing.assert_close(got, exact, rtol=1e-5, atol=0)
    away = LowBitCategorical((-1, 0, 1), torch.tensor([-20.0, -21.0, 0.0], dtype=torch.float32))
    assert away.variance.double().item() == pytest.approx(
        LowBitCategorical((-1, 0, 1), away.logits.double()).variance.item(), rel=1e-5
    )
    naive_form = (away.probs * away.level_values**2).sum() - away.mean**2
    assert naive_form.item() != pytest.approx(away.variance.item(), rel=0.1)


def test_the_score_is_the_gradient_of_the_log_probability():
    logits = torch.randn(4, 3, requires_grad=True)
    q = LowBitCategorical((-1, 0, 1), logits)
    value = torch.tensor([-1.0, 0.0, 1.0, 0.0])
    (slope,) = torch.autograd.grad(q.log_prob(value).sum(), logits)
    torch.testing.assert_close(q.score(value), slope)


def test_shapes_expansion_and_copies():
    q = LowBitCategorical((-1, 0, 1), torch.randn(4, 1, 3))
    wide = q.expand((2, 4, 5))
    assert wide.batch_shape == (2, 4, 5) and wide.sample((6,)).shape == (6, 2, 4, 5)
    assert wide.to_event(2).log_prob(wide.sample()).shape == (2,)
    assert (
        len(
            LowBitCategorical((-1, 0, 1), torch.zeros(16, 3)).expand((9, 16)).sample().unique(dim=0)
        )
        > 1
    )
    for twin in (copy.deepcopy(q), pickle.loads(pickle.dumps(q))):
        assert torch.equal(twin.mean, q.mean)
    relaxed = RelaxedLowBit(0.3, q.levels, q.logits).expand((2, 4, 5))
    assert relaxed.temperature == 0.3 and relaxed.rsample().shape == (2, 4, 5)
    assert "levels=(-1.0, 0.0, 1.0)" in repr(q)


@pytest.mark.parametrize("shared", ["nothing", "weights", "levels", "weights and levels"])
def test_shared_logits_are_the_same_distribution_as_their_copies(shared):
    """A prior is often one distribution for all weights, and a flat one a single number."""
    shape = (4 if "weights" not in shared else 1, 5, 3 if "levels" not in shared else 1)
    logits = torch.randn(shape, requires_grad=True)
    expanded = LowBitCategorical((-1, 0, 2), logits.expand(4, 5, 3))
    copied = LowBitCategorical((-1, 0, 2), logits.expand(4, 5, 3).clone())
    q = LowBitCategorical((-1, 0, 2), torch.randn(4, 5, 3))
    value = q.sample()
    for quantity in (
        lambda p: p.log_prob(value),
        lambda p: p.log_prob(value[0]),
        lambda p: p.log_prob(torch.tensor(2.0)),
        lambda p: p.expand((2, 4, 5)).log_prob(value),
        lambda p: kl_divergence(q, p),
        lambda p: kl_divergence(p, q),
    ):
        found, expected = quantity(expanded), quantity(copied)
        torch.testing.assert_close(found, expected)
        slopes = [torch.autograd.grad(each.sum(), logits)[0] for each in (found, expected)]
        torch.testing.assert_close(*slopes)


def test_one_distribution_for_all_weights():
    logits = torch.randn(3, requires_grad=True)
    distribution = LowBitCategorical((-1, 0, 2), logits.expand(4, 5, 3))
    value = distribution.sample()
    log_probs = dict(zip((-1.0, 0.0, 2.0), distribution.log_probs[0, 0].tolist(), strict=True))
    expected = torch.tensor([[log_probs[w] for w in row] for row in value.tolist()])
    torch.testing.assert_close(distribution.log_prob(value).detach(), expected)
    (slope,) = torch.autograd.grad(distribution.log_prob(value).sum(), logits)
    counts = torch.tensor([(value == level).sum() for level in (-1, 0, 2)])
    torch.testing.assert_close(slope, counts - 20.0 * logits.detach().softmax(0))


def test_what_is_refused():
    for levels in [(1, -1), (0,), (0, 0, 1), (0, math.inf)]:
        with pytest.raises(ValueError, match="levels"):
            LowBitCategorical(levels, torch.zeros(len(levels)))
    with pytest.raises(
        ValueError, match=r"3 levels have logits of shape \(\.\.\., 3\); got \(4, 2\)"
    ):
        LowBitCategorical((-1, 0, 1), torch.zeros(4, 2))
    with pytest.raises(ValueError, match="finite logits"):
        LowBitCategorical((-1, 1), torch.tensor([-math.inf, 0.0]))
    q = LowBitCategorical((-1, 0, 1), torch.zeros(2, 3))
    with pytest.raises(ValueError, match="takes the levels"):
        q.log_prob(torch.tensor([0.0, 0.5]))
    with pytest.raises(ValueError, match="do not broadcast"):
        q.log_prob(torch.zeros(3))
    with pytest.raises(ValueError, match="KL is between distributions on the same levels"):
        kl_divergence(q, SignBernoulli(natural=torch.zeros(2)))
    with pytest.raises(ValueError, match="temperature to be a number above 0"):
        RelaxedLowBit(0.0, (-1, 1), torch.zeros(2))
    for bits in (0, 9, 1.5):
        with pytest.raises(ValueError, match="whole number from 1 to 8"):
            equal_levels(bits)
    assert equal_levels(2) == (-1.0, -1 / 3, 1 / 3, 1.0)


# The relaxation


def test_relaxed_signs_have_the_distribution_of_relaxed_signs():
    natural = torch.tensor([0.0, 0.8, -1.5])
    draws = RelaxedLowBit(0.5, (-1, 1), torch.stack([-natural, natural], -1)).rsample((20_000,))
    twin = RelaxedSignBernoulli(0.5, natural)
    assert_within_standard_errors(draws, twin.mean)
    assert_within_standard_errors((draws - twin.mean) ** 2, twin.variance)
    hotter = RelaxedSignBernoulli(0.8, natural)
    assert exceeds_standard_errors((draws - hotter.mean) ** 2, hotter.variance)


def test_cold_relaxed_draws_are_drawn_levels_and_the_gradient_is_autograds():
    logits = torch.tensor([[0.3, -0.4, 1.0]], requires_grad=True)
    cold = RelaxedLowBit(1e-6, (-1, 0, 1), logits).sample((8000,))
    for k, level in enumerate((-1.0, 0.0, 1.0)):
        share = torch.softmax(logits.detach(), -1)[0, k]
        assert_within_standard_errors((cold.round() == level).double()[:, 0], share)
    assert ((cold - cold.round()).abs() < 1e-6).double().mean() > 0.999
    torch.manual_seed(1)
    (slope,) = torch.autograd.grad(RelaxedLowBit(0.7, (-1, 0, 1), logits).rsample().sum(), logits)
    torch.manual_seed(1)
    gumbel = -torch.log(-torch.log(numerics.uniform_noise(logits.detach())))
    share = torch.softmax((logits + gumbel) / 0.7, -1)
    (twin,) = torch.autograd.grad((share @ torch.tensor([-1.0, 0.0, 1.0])).sum(), logits)
    torch.testing.assert_close(slope, twin)


def test_kl_of_a_relaxed_distribution_is_that_of_the_levels():
    q, p = torch.randn(5, 3), torch.randn(5, 3)
    expected = kl_divergence(LowBitCategorical((-1, 0, 1), q), LowBitCategorical((-1, 0, 1), p))
    got = kl_divergence(RelaxedLowBit(0.5, (-1, 0, 1), q), LowBitCategorical((-1, 0, 1), p))
    torch.testing.assert_close(got, expected)


def test_in_stock_pyro_with_enumeration():
    observed = torch.tensor([0.9, 1.1])

    def model():
        w = pyro.sample("w", LowBitCategorical((-1, 0, 1), torch.zeros(3)))
        with pyro.plate("data", 2):
            pyro.sample("y", pyro.distributions.Normal(w, 1.0), obs=observed)

    @config_enumerate
    def guide():
        logits = pyro.param("logits", torch.zeros(3))
        pyro.sample("w", LowBitCategorical((-1, 0, 1), logits))

    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.2}), TraceEnum_ELBO(max_plate_nesting=1))
    for _ in range(150):
        loss = svi.step()
    joint = torch.stack([
        pyro.distributions.Normal(w, 1.0).log_prob(observed).sum() for w in (-1.0, 0.0, 1.0)
    ]) - math.log(3)  # fmt: skip
    assert loss == pytest.approx(-joint.logsumexp(0).item(), abs=1e-3)
    torch.testing.assert_close(
        pyro.param("logits").detach().softmax(0), joint.softmax(0), atol=0.01, rtol=0
    )
