"""ARM, DisARM and ARMS: what they share, what each integrates out, and the copula of their draws."""

# A gradient is None until there is one, which the assertion at hand would tell.
# pyright: reportOptionalMemberAccess=false, reportArgumentType=false

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import oracles
import pytest
import torch
from stats import assert_within_standard_errors, exceeds_standard_errors
from torch import Tensor

from bayesbin.core import numerics
from bayesbin.estimators import ARM, ARMS, DisARM, Estimator, ScoreFunction
from bayesbin.estimators.antithetic import _antithetic_signs, _one_minus_correlation

LAMBDAS = [0.0, 0.2, -0.6, 1.5, -4.0]


@pytest.fixture
def noise(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[Tensor]], None]:
    """Sets the uniforms that the estimators draw next."""

    def set_to(sequence: list[Tensor]) -> None:
        left: Iterator[Tensor] = iter(sequence)
        monkeypatch.setattr(numerics, "uniform_noise", lambda like: next(left).expand(like.shape))

    return set_to


def of_table(table: Tensor) -> Callable[[Tensor], Tensor]:
    """The function of three signs with these eight values."""
    return lambda w: table[((w > 0).long() * torch.tensor([4, 2, 1])).sum(-1)]


def gradient(estimator: Estimator, f: Callable[[Tensor], Tensor], natural: Tensor) -> Tensor:
    lam = natural.clone().requires_grad_()
    surrogate = estimator(lambda values: f(torch.stack(list(values["w"]))), {"w": lam})
    return torch.autograd.grad(surrogate, lam)[0]


def pieces(natural: Tensor) -> list[tuple[float, float]]:
    """The intervals of u within which neither w nor its mirror image changes."""
    low = torch.sigmoid(-2.0 * natural.abs()).item()
    return [(0.0, low), (low, 1.0 - low), (1.0 - low, 1.0)]


def mirrored(natural: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    threshold = torch.sigmoid(-2.0 * natural)
    one = torch.where(uniform >= threshold, 1.0, -1.0)
    return one, torch.where(1.0 - uniform >= threshold, 1.0, -1.0)


def direction(build: type, natural: Tensor, uniform: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """What the difference f(w) - f(w') of a pair is multiplied by, for one pair or many at once."""
    return build().gradient(natural, torch.ones(1), [uniform], [one], [other])


# Exact in expectation over the noise


@pytest.mark.parametrize("build", [ARM, DisARM])
@pytest.mark.parametrize("natural", LAMBDAS)
def test_over_all_noise_of_one_weight_the_gradient_is_exact(build, natural, noise):
    lam = torch.tensor([natural])
    total = torch.zeros(1)
    for low, high in pieces(lam):
        # The estimate is linear in u within a piece, so that its midpoint has the mean.
        noise([torch.tensor([(low + high) / 2.0])])
        total += (high - low) * gradient(build(), lambda w: (1.7 * w + 0.4).sum(-1), lam)
    torch.testing.assert_close(total, 1.7 / torch.cosh(lam) ** 2)


def exact_moments(
    build: type, f: Callable[[Tensor], Tensor], natural: Tensor
) -> tuple[Tensor, ...]:
    """Mean and variance of an estimator, from the pieces of the cube of noise."""
    mean, square = torch.zeros(len(natural)), torch.zeros(len(natural))
    for cell in itertools.product(*(pieces(lam) for lam in natural)):
        low, high = torch.tensor(cell).T
        volume = (high - low).prod()
        middle = (low + high) / 2.0
        one, other = mirrored(natural, middle)
        directions = [direction(build, natural, u, one, other) for u in (low, middle, high)]
        difference = f(one) - f(other)
        # Simpson's rule, exact for the square of what is linear in u.
        mean += volume * difference * directions[1]
        first, second, third = (d.square() for d in directions)
        square += volume * difference**2 * (first + 4.0 * second + third) / 6.0
    return mean, square - mean**2


@pytest.mark.parametrize("scale", [0.0, 0.3, 1.0, 3.0])
def test_disarm_never_has_more_variance_than_arm(scale):
    for seed in range(6):
        generator = torch.Generator().manual_seed(seed)
        f = of_table(torch.randn(8, generator=generator))
        natural = scale * torch.randn(3, generator=generator)
        arm_mean, arm = exact_moments(ARM, f, natural)
        mean, variance = exact_moments(DisARM, f, natural)
        exact = oracles.gradient(f, natural)
        torch.testing.assert_close(arm_mean, exact, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(mean, exact, rtol=1e-9, atol=1e-12)
        assert bool((variance <= arm * (1 + 1e-12)).all()) and bool((variance < 0.99 * arm).any())


def test_the_exact_moments_are_those_of_the_estimators():
    f, natural = of_table(torch.randn(8)), torch.tensor([0.1, -0.5, 0.8])
    for build in (ARM, DisARM):
        mean, variance = exact_moments(build, f, natural)
        draws = torch.stack([gradient(build(), f, natural) for _ in range(1500)])
        assert_within_standard_errors(draws, mean)
        assert_within_standard_errors((draws - mean) ** 2, variance)
        assert exceeds_standard_errors((draws - mean) ** 2, 0.5 * variance)


def test_disarm_is_the_conditional_expectation_of_arm_given_the_pair():
    natural = torch.tensor([0.1, -0.5, 0.8])
    f, uniform = of_table(torch.randn(8)), torch.rand(200_000, 3)
    one, other = mirrored(natural, uniform)
    difference = (f(one) - f(other))[:, None]
    arm = difference * direction(ARM, natural, uniform, one, other)
    disarm = difference * direction(DisARM, natural, uniform, one, other)
    pairs = torch.cat([one, other], 1)
    seen = 0
    for pair in pairs.unique(dim=0):
        among = (pairs == pair).all(1)
        if among.sum() > 100:
            seen += 1
            assert_within_standard_errors((arm - disarm)[among], torch.zeros(3))
    assert seen > 15
    assert bool((arm.var(0) > 1.05 * disarm.var(0)).all())


@pytest.mark.parametrize("build", [ARM, DisARM])
def test_a_call_is_the_mean_over_its_pairs_at_the_same_noise(build, noise):
    natural, uniform = torch.tensor([0.1, -0.5, 0.8]), torch.rand(5, 3)
    f = of_table(torch.randn(8))
    noise(list(uniform))
    got = gradient(build(num_pairs=5), f, natural)
    one, other = mirrored(natural, uniform)
    difference = (f(one) - f(other))[:, None]
    expected = difference * direction(build, natural, uniform, one, other)
    torch.testing.assert_close(got, expected.mean(0))


@pytest.mark.parametrize("build", [ARM, DisARM])
def test_the_value_is_the_mean_over_all_draws(build):
    seen = []

    def objective(values):
        seen.append(torch.stack(list(values["w"])))
        return seen[-1] @ torch.tensor([1.0, 2.0, -3.0])

    value = build(num_pairs=4)(objective, {"w": torch.tensor([0.1, -0.5, 0.8])})
    assert seen[0].shape == (8, 3)
    torch.testing.assert_close(value, (seen[0] @ torch.tensor([1.0, 2.0, -3.0])).mean())


@pytest.mark.parametrize("build", [ARM, DisARM])
def test_the_draws_of_a_pair_are_mirror_images_at_lambda_0(build):
    seen = []

    def objective(values):
        seen.append(torch.stack(list(values["w"])))
        return seen[-1].prod(1)

    build(num_pairs=3)(objective, {"w": torch.zeros(50, requires_grad=True)})
    one, other = seen[0].chunk(2)
    assert torch.equal(one, -other) and 0.2 < (one > 0).double().mean() < 0.8


def test_where_lambda_saturates_both_draws_show_the_likelier_sign():
    natural = torch.tensor([20.0, -20.0, 40.0, -40.0])
    for build in (ARM, DisARM, ARMS):
        draws = []
        estimator = build()
        slope = gradient(estimator, lambda w, draws=draws: draws.append(w) or w.sum(1), natural)
        assert torch.equal(draws[0], natural.sign().expand_as(draws[0]))
        assert not slope.any()


def test_an_even_function_gives_no_gradient_at_lambda_0():
    even = lambda w: w[:, 0] * w[:, 1] + 3.0 * w[:, 1] * w[:, 2]
    for build in (ARM, DisARM, lambda: ARMS(2)):
        assert not gradient(build(), even, torch.zeros(3)).any()


def test_adding_a_constant_changes_nothing():
    f, natural = of_table(torch.randn(8)), torch.tensor([0.1, -0.5, 0.8])
    for build in (ARM, DisARM, ARMS):
        slopes = []
        for constant in (0.0, 1000.0):
            torch.manual_seed(3)
            slopes.append(gradient(build(), lambda w, c=constant: f(w) + c, natural))
        torch.testing.assert_close(*slopes, rtol=1e-9, atol=1e-10)


# ARMS


def test_two_antithetic_draws_are_disarm_at_the_same_noise(noise):
    natural = torch.tensor([0.0, 0.1, -0.5, 0.8, -2.0])
    f = lambda w: torch.exp(0.4 * w @ torch.tensor([1.0, -0.5, 0.8, 0.3, 0.6]))
    for _ in range(20):
        uniform = torch.rand(2, 5)
        noise(list(uniform))
        got = gradient(ARMS(2), f, natural)
        share = uniform[0].log() / uniform.log().sum(0)
        # The rarer sign sits in the upper tail of the shares: below the threshold of u if it is -1.
        noise([torch.where(natural >= 0, 1.0 - share, share)])
        torch.testing.assert_close(got, gradient(DisARM(), f, natural))


def test_two_antithetic_draws_have_the_moments_of_disarm():
    f, natural = of_table(torch.randn(8)), torch.tensor([0.1, -0.5, 0.8])
    mean, variance = exact_moments(DisARM, f, natural)
    draws = torch.stack([gradient(ARMS(2), f, natural) for _ in range(1200)])
    assert_within_standard_errors(draws, mean)
    assert_within_standard_errors((draws - mean) ** 2, variance)


@pytest.mark.parametrize("count", [2, 3, 4, 8])
@pytest.mark.parametrize("natural", [0.0, 0.3, -0.7, 1.2])
def test_antithetic_draws_have_the_marginals_and_the_correlation_they_claim(count, natural):
    lam = torch.full((40_000,), natural)
    signs = _antithetic_signs(lam, count)
    assert signs.shape == (count, 40_000) and bool((signs.abs() == 1).all())
    mean, fisher = torch.tanh(lam[0]), 1.0 / torch.cosh(lam[0]) ** 2
    assert_within_standard_errors(signs.T, mean.expand(count))
    claimed = 1.0 - _one_minus_correlation(lam[0], count).item()
    assert claimed < 0
    centred = (signs - mean) / fisher.sqrt()
    for i, j in itertools.combinations(range(count), 2):
        assert_within_standard_errors(centred[i] * centred[j], claimed)
    assert exceeds_standard_errors(centred[0] * centred[1], 0.0)


@pytest.mark.parametrize("count", [2, 3, 4, 8])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_where_lambda_saturates_draws_are_finite_and_no_longer_correlated(count, dtype):
    natural = torch.tensor([8.5, -8.5, 10.0, -40.0, 40.0, 100.0], dtype=dtype)
    signs = _antithetic_signs(natural, count)
    assert signs.dtype == dtype and bool((signs.abs() == 1).all())
    torch.testing.assert_close(
        _one_minus_correlation(natural, count).double(), torch.ones(6), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("count", [2, 3, 4, 8])
def test_the_correlation_is_continuous_and_even_in_lambda(count):
    natural = torch.linspace(-4.0, 4.0, 4001)
    scale = _one_minus_correlation(natural, count)
    assert bool((scale >= 1.0).all()) and bool((scale <= 1.0 + 1.0 / (count - 1) + 1e-12).all())
    torch.testing.assert_close(scale, scale.flip(0))
    assert scale.diff().abs().max() < 0.01


def test_two_draws_never_show_the_rarer_sign_together():
    natural = torch.full((20_000,), 0.4)
    signs = _antithetic_signs(natural, 2)
    assert not ((signs == -1).all(0)).any()
    # Independent draws would, and three antithetic ones sometimes do not either.
    assert ((_antithetic_signs(natural, 8)[:2] == -1).all(0)).any()


def test_antithetic_draws_beat_as_many_independent_ones():
    f, natural = of_table(torch.randn(8)), torch.tensor([0.1, -0.5, 0.8])
    spread = {}
    for estimator in (ARMS(4), ScoreFunction(4)):
        draws = torch.stack([gradient(estimator, f, natural) for _ in range(800)])
        spread[type(estimator)] = draws.var(0).sum()
    assert spread[ARMS] < 0.8 * spread[ScoreFunction]


# Errors and names


@pytest.mark.parametrize("build", [ARM, DisARM])
@pytest.mark.parametrize("count", [0, -2, 1.0, True])
def test_the_number_of_pairs_is_a_whole_number(build, count):
    with pytest.raises(ValueError, match="num_pairs to be a whole number of at least 1; got"):
        build(num_pairs=count)


@pytest.mark.parametrize("count", [1, 0, 2.0])
def test_arms_takes_two_draws_or_more(count):
    with pytest.raises(ValueError, match="num_samples to be a whole number of at least 2; got"):
        ARMS(count)


def test_they_print_their_number_of_draws():
    assert repr(ARM()) == "ARM(num_pairs=1)" and repr(DisARM(3)) == "DisARM(num_pairs=3)"
    assert repr(ARMS(5)) == "ARMS(num_samples=5)"
