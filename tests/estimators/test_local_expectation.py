"""LocalExpectation, PseudoReward and GumbelRao: by hand at the same draw, and in the mean."""

# A gradient is None until there is one, which the assertion at hand would tell.
# pyright: reportOptionalMemberAccess=false, reportArgumentType=false

from __future__ import annotations

import math
from collections.abc import Callable

import oracles
import pytest
import torch
from stats import assert_within_standard_errors, exceeds_standard_errors
from torch import Tensor
from torch.nn.functional import softplus

from bayesbin.core import fused
from bayesbin.distributions import SignBernoulli
from bayesbin.estimators import (
    Estimator,
    GumbelRao,
    LocalExpectation,
    PseudoReward,
    StraightThrough,
    exact,
)

NATURAL = torch.tensor([0.0, 0.4, -0.7, 1.0], dtype=torch.float64)
MAP = torch.tensor([0.9, -0.6, 0.5, 0.8], dtype=torch.float64)


def curved(w: Tensor) -> Tensor:
    return torch.exp(0.6 * (w @ MAP)) + w[..., 0] * w[..., 1]


def gradient(
    estimator: Estimator, f: Callable[[Tensor], Tensor], natural: Tensor = NATURAL
) -> Tensor:
    lam = natural.clone().requires_grad_()
    surrogate = estimator(lambda values: f(torch.stack(list(values["w"]))), {"w": lam})
    return torch.autograd.grad(surrogate, lam)[0]


def draw(natural: Tensor, seed: int) -> Tensor:
    torch.manual_seed(seed)
    return SignBernoulli(natural=natural).sample()


# LocalExpectation


def test_the_local_expectation_by_hand_at_the_same_draw():
    for seed in range(4):
        w = draw(NATURAL, seed)
        plus, minus = w.repeat(4, 1).fill_diagonal_(1.0), w.repeat(4, 1).fill_diagonal_(-1.0)
        expected = (curved(plus) - curved(minus)) / 2.0 / torch.cosh(NATURAL) ** 2
        torch.manual_seed(seed)
        torch.testing.assert_close(gradient(LocalExpectation(), curved), expected)


@pytest.mark.parametrize("natural", [0.0, 0.5, -3.0, 8.5, -40.0])
def test_one_weight_has_the_exact_gradient_at_every_draw(natural):
    lam = torch.tensor([natural])
    f = lambda w: torch.exp(0.8 * w[..., 0]) - 0.3 * w[..., 0]
    expected = oracles.gradient_in_mean(oracles.table(f, 1), lam)
    for _ in range(6):
        slope = gradient(LocalExpectation(), f, lam)
        torch.testing.assert_close(fused.over_fisher(slope, lam), expected, rtol=1e-12, atol=0)


def test_weights_that_share_no_term_add_no_noise_to_one_another():
    natural = torch.tensor([0.3, -8.5, 10.0, -1.0])
    f = lambda w: (torch.exp(w * MAP) + MAP * w).sum(-1)
    slopes = torch.stack([gradient(LocalExpectation(), f, natural) for _ in range(10)])
    expected = oracles.gradient(f, natural)
    torch.testing.assert_close(slopes, expected.expand(10, 4), rtol=1e-10, atol=0)
    # Adding a product makes the gradient random, though not in the weights outside it.
    g = lambda w: f(w) + 2.0 * w[..., 0] * w[..., 3]
    spread = torch.stack([gradient(LocalExpectation(), g, natural) for _ in range(30)]).std(0)
    assert bool((spread[[0, 3]] > 0.1).all()) and bool((spread[[1, 2]] < 1e-14).all())


def test_sites_of_any_shape_flip_weight_by_weight(monkeypatch):
    natural = {"a": torch.randn(2, 3).requires_grad_(), "b": torch.randn(5).requires_grad_()}
    maps = torch.randn(11)
    seen = []

    def objective(values):
        seen.append(len(values["a"]))
        draws = zip(values["a"], values["b"], strict=True)
        return torch.stack([torch.sin(torch.cat([a.flatten(), b]) @ maps) for a, b in draws])

    slopes = []
    for at_once in (256, 4):
        monkeypatch.setattr(exact, "_FLIPS_AT_ONCE", at_once)
        torch.manual_seed(2)
        surrogate = LocalExpectation(num_samples=2)(objective, natural)
        slopes.append(torch.autograd.grad(surrogate, list(natural.values())))
    assert seen == [2, 6, 5, 6, 5, 2, 4, 2, 4, 1, 4, 2, 4, 1]
    for one, other in zip(*slopes, strict=True):
        torch.testing.assert_close(one, other)


def test_flips_are_evaluated_without_a_graph():
    modes = []

    def objective(values):
        modes.append(torch.is_grad_enabled())
        return curved(torch.stack(list(values["w"])))

    LocalExpectation(num_samples=2)(objective, {"w": NATURAL.clone().requires_grad_()})
    assert modes == [True, False, False]


def test_too_many_weights_are_refused_in_a_sentence():
    natural = {"w": torch.zeros(5), "v": torch.zeros(2, 2)}
    with pytest.raises(
        ValueError, match=r"at most 8 weights; the guide has 9\. Use DisARM or StraightThrough, or"
    ):
        LocalExpectation(max_weights=8)(lambda values: torch.zeros(1), natural)
    count = lambda values: torch.zeros(len(values["w"]))
    assert LocalExpectation(max_weights=9)(count, natural).item() == 0.0
    with pytest.raises(ValueError, match="max_weights to be a whole number of at least 1"):
        LocalExpectation(max_weights=0)
    assert repr(LocalExpectation(2)) == "LocalExpectation(num_samples=2, max_weights=2000)"


# PseudoReward


@pytest.mark.parametrize("scale", [1.0, 0.3, 4.0])
def test_the_pseudo_reward_by_hand_at_the_same_draw(scale):
    natural = torch.tensor([0.0, 0.4, -0.7, 3.0])
    for seed in range(4):
        w = draw(natural, seed).requires_grad_()
        (slope,) = torch.autograd.grad(curved(w), w)
        reward = scale * w.detach() * slope
        torch.manual_seed(seed)
        got = gradient(PseudoReward(scale), curved, natural)
        torch.testing.assert_close(got, reward * (w.detach() - torch.tanh(natural)))


@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_the_pseudo_reward_has_the_mean_of_scaled_straight_through_on_a_linear_function(scale):
    copies = 4000
    natural = NATURAL.repeat(copies, 1)
    linear = lambda w: (w @ MAP).sum(-1)
    draws = gradient(PseudoReward(scale), linear, natural)
    through = gradient(StraightThrough(), linear, natural)
    torch.testing.assert_close(through[0], MAP / torch.cosh(NATURAL) ** 2)
    assert_within_standard_errors(draws, scale * through[0])
    assert exceeds_standard_errors(draws, 1.2 * scale * through[0])
    assert repr(PseudoReward(scale)) == f"PseudoReward(scale={scale:g}, num_samples=1)"


def test_the_pseudo_reward_is_exact_for_quadratics_and_straight_through_is_not():
    copies = 4000
    natural = NATURAL.repeat(copies, 1)
    bowl = torch.tensor([1.0, 0.5, -2.0, 1.5])

    def quadratic(w: Tensor) -> Tensor:
        return (w @ MAP + (w.square() * bowl).sum(-1) + w[..., 0] * w[..., 2]).sum(-1)

    expected = oracles.gradient(quadratic, NATURAL)
    assert_within_standard_errors(gradient(PseudoReward(), quadratic, natural), expected)
    assert exceeds_standard_errors(gradient(StraightThrough(), quadratic, natural), expected)
    cubic = lambda w: w.pow(3).sum((-1, -2)) if w.dim() > 1 else w.pow(3).sum()
    draws = gradient(PseudoReward(), cubic, natural)
    assert exceeds_standard_errors(draws, oracles.gradient(cubic, NATURAL))


def test_where_lambda_saturates_the_likelier_sign_has_next_to_no_reward():
    natural = torch.tensor([10.0, -10.0, 40.0, -40.0])
    slope = gradient(PseudoReward(), lambda w: w @ MAP, natural)
    expected = 2.0 * MAP * torch.sigmoid(-2.0 * natural.abs())
    torch.testing.assert_close(slope, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("scale", [0.0, -1.0, math.inf, math.nan])
def test_the_scale_of_a_reward_is_positive(scale):
    with pytest.raises(ValueError, match=r"scale to be a .*number above 0; got"):
        PseudoReward(scale)


# GumbelRao


def conditional_slope(natural: float, sign: float, temperature: float) -> tuple[float, float]:
    """Mean and variance of sech^2(z / tau) / tau given the sign of z, by quadrature."""
    points = 200_000
    v = (torch.arange(points) + 0.5) / points
    z = 0.5 * sign * softplus(torch.logit(v) + softplus(torch.tensor(2.0 * sign * natural)))
    slopes = 1.0 / torch.cosh(z / temperature).square() / temperature
    return slopes.mean().item(), slopes.var().item()


def slopes_of_copies(estimator: GumbelRao, natural: float, count: int) -> tuple[Tensor, Tensor]:
    """Signs and their slopes dw/d lambda, of independent weights of one lambda."""
    drawn = []

    def objective(w: Tensor) -> Tensor:
        drawn.append(w[0].detach())
        return w.sum(-1)

    return gradient(estimator, objective, torch.full((count,), natural)), drawn[0]


@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("natural", [0.0, 0.4, -1.1])
def test_more_inner_noise_converges_to_the_conditional_expectation_of_the_slope(
    natural, temperature
):
    variances = {}
    for num_inner in (1, 10, 100):
        estimator = GumbelRao(temperature, num_inner)
        slopes, signs = slopes_of_copies(estimator, natural, 6000)
        for sign in (1.0, -1.0):
            mean, variance = conditional_slope(natural, sign, temperature)
            given = slopes[signs == sign]
            assert_within_standard_errors(given, mean)
            assert_within_standard_errors((given - mean) ** 2, variance / num_inner)
        variances[num_inner] = slopes.var()
    # What is left is the variance between the two signs.
    assert variances[100] < variances[10] < variances[1]


def test_one_inner_draw_has_the_mean_of_ten():
    one = slopes_of_copies(GumbelRao(num_inner=1), 0.6, 20_000)[0]
    ten = slopes_of_copies(GumbelRao(num_inner=10), 0.6, 20_000)[0]
    assert_within_standard_errors(one - ten, 0.0)
    assert exceeds_standard_errors(one - 1.2 * ten, 0.0)
    assert ten.var() < 0.3 * one.var()


def test_one_inner_draw_is_the_slope_of_a_relaxed_draw():
    natural, temperature, count = 0.6, 0.5, 20_000
    slopes, signs = slopes_of_copies(GumbelRao(temperature, num_inner=1), natural, count)
    z = natural + 0.5 * torch.logit(torch.rand(count))
    relaxed = 1.0 / torch.cosh(z / temperature).square() / temperature
    for power in (1, 2):
        assert_within_standard_errors(slopes**power - relaxed**power, 0.0)
        assert_within_standard_errors(slopes**power * signs - relaxed**power * z.sign(), 0.0)


def test_the_objective_is_seen_at_hard_signs_and_differentiated_there():
    seen = []

    def f(w: Tensor) -> Tensor:
        seen.append(w[0].detach())
        return curved(w)

    torch.manual_seed(3)
    slope = gradient(GumbelRao(), f)
    assert bool((seen[0].abs() == 1).all())
    torch.manual_seed(3)
    plain = gradient(GumbelRao(), lambda w: w.sum(-1))  # the slopes of the same noise
    w = seen[0].clone().requires_grad_()
    torch.testing.assert_close(slope, plain * torch.autograd.grad(curved(w), w)[0])


def test_the_mean_of_the_slope_is_fisher_only_at_a_small_temperature():
    fisher = 1.0 / math.cosh(0.6) ** 2
    small = slopes_of_copies(GumbelRao(0.02, num_inner=50), 0.6, 20_000)[0]
    large = slopes_of_copies(GumbelRao(1.0, num_inner=50), 0.6, 20_000)[0]
    assert_within_standard_errors(small, fisher)
    assert exceeds_standard_errors(large, fisher)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_gumbel_rao_where_lambda_saturates(dtype):
    natural = torch.tensor([0.0, 8.5, -40.0, 40.0], dtype=dtype)
    slope = gradient(GumbelRao(0.1, num_samples=3), lambda w: w.sum(-1), natural)
    assert slope.dtype == dtype and bool(torch.isfinite(slope).all())


def test_gumbel_rao_refuses_what_is_not_positive():
    for temperature in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match=r"temperature to be a .*number above 0; got"):
            GumbelRao(temperature)
    with pytest.raises(ValueError, match="num_inner to be a whole number of at least 1; got 0"):
        GumbelRao(num_inner=0)
    assert repr(GumbelRao(0.3)) == "GumbelRao(temperature=0.3, num_inner=10, num_samples=1)"
