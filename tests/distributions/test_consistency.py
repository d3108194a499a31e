"""Every distribution of the package is one distribution: what it says of itself is true of its own draws."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from stats import assert_within_standard_errors, exceeds_standard_errors
from torch import Tensor
from torch.distributions import kl_divergence

from bayesbin.distributions import (
    LowBitCategorical,
    RelaxedLowBit,
    RelaxedSignBernoulli,
    SignBernoulli,
    SignBernoulliStraightThrough,
    Support,
    unconstrained_normal,
)

# From x, shape (..., 3), a distribution of batch shape x.shape[:-1].
Make = Callable[[Tensor], Any]
TABLE: dict[str, Make] = {
    "signs": lambda x: SignBernoulli(natural=x[..., 0]),
    "straight-through": lambda x: SignBernoulliStraightThrough(natural=x[..., 0]),
    "ternary": lambda x: LowBitCategorical((-1, 0, 1), x),
    "uneven levels": lambda x: LowBitCategorical((-1, 0.25, 3), x),
    "relaxed signs": lambda x: RelaxedSignBernoulli(0.6, x[..., 0]),
    "hot relaxed signs": lambda x: RelaxedSignBernoulli(2.0, x[..., 0]),
    "relaxed ternary": lambda x: RelaxedLowBit(0.5, (-1, 0, 1), x),
    "relaxed uneven levels": lambda x: RelaxedLowBit(1.0, (-1, 0.25, 3), x),
    "hot relaxed levels": lambda x: RelaxedLowBit(3.0, (-1, 0, 1), x),
    "cold relaxed levels": lambda x: RelaxedLowBit(0.01, (-1, 0, 1), x),
    "relaxed two levels": lambda x: RelaxedLowBit(0.7, (-0.5, 2), x[..., :2]),
    "normal": lambda x: unconstrained_normal(x[..., 0], x[..., 1].exp(), Support("real")),
    "positive": lambda x: unconstrained_normal(x[..., 0], 0.5 + 0 * x[..., 1], Support("positive")),
    "interval": lambda x: unconstrained_normal(
        x[..., 0], x[..., 1].exp(), Support("interval", (-1.0, 2.0))
    ),
}
X = torch.tensor([[0.3, -1.0, 0.8], [-1.4, 0.6, 0.1]], dtype=torch.float64)
DISCRETE = ["signs", "straight-through", "ternary", "uneven levels"]
RELAXED = [name for name in TABLE if "relaxed" in name]
WITH_MOMENTS = [*DISCRETE, *RELAXED, "normal"]  # the transformed ones have no closed moments
NO_DENSITY = [name for name in RELAXED if "levels" in name or "ternary" in name]
NO_DENSITY.remove("relaxed two levels")


@pytest.mark.parametrize("name", WITH_MOMENTS)
def test_mean_and_variance_are_those_of_the_draws(name):
    q = TABLE[name](X)
    draws = q.sample((20_000,))
    assert_within_standard_errors(draws, q.mean)
    assert_within_standard_errors((draws - q.mean) ** 2, q.variance)
    # Those of the discrete distribution are not.
    if name in RELAXED and "cold" not in name:
        other = q.signs if hasattr(q, "signs") else q.categorical
        assert exceeds_standard_errors((draws - q.mean) ** 2, other.variance)


@pytest.mark.parametrize("temperature", [1e-6, 0.05, 0.5, 0.99, 1.0, 3.0])
@pytest.mark.parametrize("natural", [0.0, 0.7, -3.0, 8.0])
def test_moments_of_two_relaxed_levels_are_those_of_relaxed_signs(temperature, natural):
    lam = torch.tensor(natural)
    twin = RelaxedSignBernoulli(temperature, lam)
    q = RelaxedLowBit(temperature, (-1, 3), torch.stack([-lam, lam]))
    coarse = (
        1e-2 if temperature < 0.01 else 1e-8
    )  # the quadrature of the twin misses so steep a step
    torch.testing.assert_close(q.mean, 1 + 2 * twin.mean, rtol=0, atol=coarse)
    torch.testing.assert_close(q.variance, 4 * twin.variance, rtol=0, atol=coarse)
    if temperature > 0.1:
        torch.testing.assert_close(q.entropy(), twin.entropy() + math.log(2))
        torch.testing.assert_close(
            q.log_prob(torch.tensor(0.2)), twin.log_prob(torch.tensor(-0.4)) - math.log(2)
        )


def test_moments_of_relaxed_levels_by_quadrature_over_the_simplex():
    # (s_1, s_2, s_3) by three uniform numbers on a grid of midpoints: independent of the formula.
    tau, levels, logits = 0.8, (-1.0, 0.0, 2.0), torch.tensor([0.5, -0.3, 0.1])
    grid = (torch.arange(160) + 0.5) / 160
    gumbel = -torch.log(-torch.log(grid))
    u = torch.cartesian_prod(gumbel, gumbel, gumbel)
    w = torch.softmax((logits + u) / tau, -1) @ torch.tensor(levels)
    q = RelaxedLowBit(tau, levels, logits)
    assert q.mean.item() == pytest.approx(w.mean().item(), abs=2e-3)
    assert q.variance.item() == pytest.approx(w.var().item(), abs=2e-3)
    assert q.categorical.variance.item() != pytest.approx(w.var().item(), abs=0.1)


def test_moments_of_relaxed_levels_carry_gradients():
    logits = X.clone().requires_grad_()
    for moment in ("mean", "variance"):
        assert torch.autograd.gradcheck(
            lambda a, moment=moment: getattr(RelaxedLowBit(0.7, (-1, 0, 1), a), moment), logits
        )


@pytest.mark.parametrize("name", DISCRETE)
def test_masses_add_up_to_one_and_entropy_is_their_mean(name):
    q = TABLE[name](X)
    support = q.enumerate_support() if q.has_enumerate_support else torch.tensor([[-1.0], [1.0]])
    log_p = q.log_prob(support)
    torch.testing.assert_close(log_p.logsumexp(0), torch.zeros(2))
    torch.testing.assert_close(q.entropy(), -(log_p.exp() * log_p).sum(0))
    prior = TABLE["signs" if name in DISCRETE[:2] else name](X.flip(0))
    kl = (log_p.exp() * (log_p - prior.log_prob(support))).sum(0)
    torch.testing.assert_close(kl_divergence(q, prior), kl)


@pytest.mark.parametrize(
    "name", ["relaxed signs", "hot relaxed signs", "relaxed two levels", "positive", "interval"]
)
def test_densities_integrate_to_the_shares_of_the_draws(name):
    q = TABLE[name](X)
    low, high = {
        "relaxed two levels": (-0.5, 2.0),
        "positive": (0.0, 30.0),
        "interval": (-1.0, 2.0),
    }.get(name, (-1.0, 1.0))
    cut = low + 0.4 * (min(high, 3.0) - low)
    # Towards the ends the densities may have poles: nodes crowd there.
    z = torch.linspace(-18, 18, 4001)[:, None]
    at = low + (high - low) * torch.sigmoid(z)
    mass = q.log_prob(at).exp() * (high - low) * torch.sigmoid(z) * torch.sigmoid(-z)
    total = torch.trapezoid(mass, z, dim=0)
    below = torch.trapezoid(torch.where(at <= cut, mass, 0.0), z, dim=0)
    torch.testing.assert_close(total, torch.ones(2), atol=2e-3, rtol=0)
    draws = q.sample((20_000,))
    error = (((draws <= cut).double()).mean(0) - below).abs()
    assert bool((error < 5 * (0.25 / 20_000) ** 0.5 + 5e-3).all())


@pytest.mark.parametrize("name", NO_DENSITY)
def test_a_density_without_a_closed_form_is_refused(name):
    q = TABLE[name](X)
    for call in (lambda: q.log_prob(q.sample()), q.entropy):
        with pytest.raises(NotImplementedError, match="known for two levels, and there are 3"):
            call()
    assert not q.has_enumerate_support
    with pytest.raises(NotImplementedError):
        q.enumerate_support()


@pytest.mark.parametrize("name", TABLE)
@pytest.mark.parametrize("batch", [(), (4,), (2, 1), (0,)], ids=str)
def test_shapes_expand_events_masks_and_copies(name, batch):
    q = TABLE[name](torch.randn(*batch, 3))
    assert q.batch_shape == batch and q.event_shape == ()
    wide = q.expand((5, *batch))
    assert wide.sample((6,)).shape == (6, 5, *batch)
    for each in (q, wide, copy.deepcopy(q), pickle.loads(pickle.dumps(q))):
        value = each.sample()
        assert bool(each.support.check(value).all())
        if name in WITH_MOMENTS:
            assert each.mean.shape == each.variance.shape == each.batch_shape
            torch.testing.assert_close(each.mean, q.mean.expand(each.batch_shape))
        if name in NO_DENSITY:
            continue
        assert each.log_prob(value).shape == each.batch_shape
        assert each.to_event(len(each.batch_shape)).log_prob(value).shape == ()
        assert not each.mask(False).log_prob(value).any()
        torch.testing.assert_close(each.log_prob(value), q.log_prob(value))


@pytest.mark.parametrize("name", [n for n in TABLE if n not in ("normal", "positive", "interval")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_extremes_are_finite_in_the_type_of_the_parameters(name, dtype):
    big = torch.tensor([0.0, 8.5, -20.0, 40.0, 1e4, -1e4], dtype=dtype)
    x = torch.cartesian_prod(big, big, big)
    q = TABLE[name](x)
    value = q.rsample() if q.has_rsample else q.sample()
    assert value.dtype == dtype and bool(q.support.check(value).all())
    found = [q.mean, q.variance]
    if name not in NO_DENSITY:
        found += [q.log_prob(value)]
    for result in found:
        assert result.dtype == dtype and bool(torch.isfinite(result).all())
    assert bool((q.variance >= 0).all())


@pytest.mark.parametrize("name", TABLE)
def test_values_are_validated_unless_that_is_switched_off(name):
    q = TABLE[name](X)
    if name in NO_DENSITY or name == "normal":
        return
    outside = torch.tensor([-50.0, 0.5])
    if name in ("positive", "interval"):  # a guide's own distribution, which is not validated
        return
    with pytest.raises(ValueError):
        q.log_prob(outside)
    assert bool(q.expand((3, 2)).log_prob(q.sample()).isfinite().all())


def test_kl_of_relaxed_distributions_is_that_of_the_discrete_ones():
    q, p = RelaxedLowBit(0.5, (-1, 1), X[:, :2]), RelaxedLowBit(0.8, (-1, 1), X[:, 1:])
    expected = kl_divergence(q.categorical, p.categorical)
    sign = SignBernoulli(natural=0.5 * (X[:, 2] - X[:, 1]))
    for prior in (p, p.categorical, sign):
        torch.testing.assert_close(kl_divergence(q, prior), expected)


def test_refusals_of_relaxed_levels_name_the_class():
    with pytest.raises(ValueError, match="RelaxedLowBit expected finite logits"):
        RelaxedLowBit(0.5, (-1, 1), torch.tensor([0.0, math.nan]))
    RelaxedLowBit(0.5, (-1, 1), torch.tensor([0.0, math.nan]), validate_args=False)
    with pytest.raises(ValueError, match="support"):
        RelaxedLowBit(0.5, (-1, 1), torch.zeros(2)).log_prob(torch.tensor(1.5))
