"""What every gradient estimator promises, against enumeration.

The loops run over ``bayesbin.estimators.__all__``: an estimator that is exported is under test,
with its defaults unless ``CONSTRUCTORS`` says otherwise.
"""

# A gradient is None until there is one, which the assertion at hand would tell.
# pyright: reportOptionalMemberAccess=false, reportArgumentType=false

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Callable, Mapping, Sequence

import oracles
import pytest
import torch
from stats import assert_within_standard_errors, exceeds_standard_errors
from torch import Tensor

import bayesbin.estimators
from bayesbin import _fused, _numerics
from bayesbin.distributions import SignBernoulli
from bayesbin.estimators import (
    Concrete,
    Enumerate,
    Estimator,
    LocalReparameterization,
    StraightThrough,
)

CONSTRUCTORS: dict[str, Callable[[], Estimator]] = {}  # name -> instance, where not the defaults


def exported_estimators() -> dict[str, Callable[[], Estimator]]:
    module = bayesbin.estimators
    classes = {name: getattr(module, name) for name in module.__all__}
    return {
        name: CONSTRUCTORS.get(name, value)
        for name, value in classes.items()
        if isinstance(value, type)
        and issubclass(value, Estimator)
        and not inspect.isabstract(value)
    }


ESTIMATORS = exported_estimators()
UNBIASED = [name for name, build in ESTIMATORS.items() if build().unbiased]
BIASED = [name for name, build in ESTIMATORS.items() if not build().unbiased]


# Targets: two sites, each entering one matrix product, so that every estimator can take them


class Target:
    """f over two sites "a" and "b", without any symmetry that could hide a sign error."""

    def __init__(self, sizes: tuple[int, int], *, curved: bool) -> None:
        generator = torch.Generator().manual_seed(11)
        self.sizes, self.curved = dict(zip("ab", sizes, strict=True)), curved
        self.maps = {
            name: 0.8 * torch.randn(2, n, generator=generator) for name, n in self.sizes.items()
        }

    def of_values(self, values: Mapping[str, Tensor]) -> Tensor:
        h, g = (self.maps[name] @ values[name] for name in "ab")
        if self.curved:
            return torch.exp(0.9 * h).sum() + torch.sin(g[0] + 0.3) + 0.5 * (g[1] - 0.4) ** 2
        # Linear in each weight: products only of sums that share no weight.
        return h[0] * g[0] + 0.7 * h[1] - 0.4 * g[1] + 0.2

    def objective(self, values: Mapping[str, Sequence[Tensor]]) -> Tensor:
        count = len(values["a"])
        return torch.stack(
            [self.of_values({name: values[name][s] for name in "ab"}) for s in range(count)]
        )

    def of_state(self, state: Tensor) -> Tensor:
        a, b = state.split(list(self.sizes.values()))
        return self.of_values({"a": a, "b": b})

    def natural(self, flat: Tensor) -> dict[str, Tensor]:
        pieces = flat.split(list(self.sizes.values()))
        return {
            name: piece.clone().requires_grad_()
            for name, piece in zip(self.sizes, pieces, strict=True)
        }


def start(kind: str, size: int) -> Tensor:
    """Natural parameters: all 0, moderate, or with saturated ones among moderate ones."""
    moderate = torch.linspace(-1.1, 1.3, size)
    if kind == "zero":
        return torch.zeros(size)
    if kind == "saturated":
        for j, value in enumerate((-8.5, 10.0, -40.0, 8.5, -10.0, 40.0)[: size - 2]):
            moderate[j] = value
    return moderate


def gradient_draws(
    estimator: Estimator, target: Target, natural: Tensor, repeats: int = 1200
) -> tuple[Tensor, Tensor]:
    """Surrogates (n,) and their gradients (n, D) in lambda; a dozen where nothing is random."""
    leaves = target.natural(natural)
    values, slopes = [], []
    for _ in range(repeats):
        surrogate = estimator(target.objective, leaves)
        slope = torch.autograd.grad(surrogate, list(leaves.values()))
        values.append(surrogate.detach())
        slopes.append(torch.cat(slope))
        if len(slopes) == 12 and all(torch.equal(slopes[0], slope) for slope in slopes):
            break
    return torch.stack(values), torch.stack(slopes)


def seen(natural: Tensor, slopes: Tensor) -> Tensor:
    """The weights whose gradient these draws can judge.

    A sign of probability below 50 / n hardly occurs among n draws, and the standard error of what
    it contributes cannot be read from them. Where nothing is random every weight is judged.
    """
    rarer = torch.sigmoid(-2.0 * natural.abs())
    return (len(slopes) * rarer > 50) | bool((slopes == slopes[0]).all())


SIZES = [(1, 2), (3, 5)]
STARTS = ["zero", "moderate", "saturated"]


@pytest.mark.parametrize("kind", STARTS)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("name", UNBIASED)
def test_an_unbiased_estimator_meets_enumeration(name, sizes, kind):
    target = Target(sizes, curved=True)
    natural = start(kind, sum(sizes))
    values, slopes = gradient_draws(ESTIMATORS[name](), target, natural)
    judged = seen(natural, slopes)
    exact = oracles.gradient(target.of_state, natural)
    assert bool(torch.isfinite(slopes).all()) and bool(judged.any())
    # Divided by Fisher, so that the gradient of a saturated weight counts as much as any other.
    fisher = 1.0 / torch.cosh(natural) ** 2
    assert_within_standard_errors((slopes / fisher)[:, judged], (exact / fisher)[judged])
    assert_within_standard_errors(values, oracles.expectation(target.of_state, natural))


@pytest.mark.parametrize("kind", ["zero", "moderate"])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("name", BIASED)
def test_a_biased_estimator_misses_enumeration_on_a_curved_target(name, sizes, kind):
    target = Target(sizes, curved=True)
    natural = start(kind, sum(sizes))
    _, slopes = gradient_draws(ESTIMATORS[name](), target, natural)
    assert exceeds_standard_errors(slopes, oracles.gradient(target.of_state, natural))


@pytest.mark.parametrize("name", ESTIMATORS)
def test_saturated_parameters_give_finite_gradients_in_every_dtype(name):
    target = Target((2, 2), curved=False)
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        target.maps = {key: value.to(dtype) for key, value in target.maps.items()}
        values, slopes = gradient_draws(
            ESTIMATORS[name](),
            target,
            torch.tensor([0.0, -8.5, 10.0, -40.0], dtype=dtype),
            repeats=3,
        )
        assert values.dtype == slopes.dtype == dtype
        assert bool(torch.isfinite(values).all()) and bool(torch.isfinite(slopes).all())


# Twins of the oracle with a known mistake: the tests above must be able to fail


class SignFlipped(Enumerate):
    """The right value with the gradient's sign turned round."""

    def forward(self, objective, natural):
        surrogate = super().forward(objective, natural)
        return 2.0 * surrogate.detach() - surrogate


class TwiceTooLarge(Enumerate):
    """The right value with twice the gradient."""

    def forward(self, objective, natural):
        surrogate = super().forward(objective, natural)
        return 2.0 * surrogate - surrogate.detach()


class ForgetsOneSite(Enumerate):
    """Takes the second site's draws for independent of its parameter."""

    def forward(self, objective, natural):
        return super().forward(
            objective, {"a": natural["a"], "b": natural["b"].detach()}
        ) + 0.0 * sum(lam.sum() for lam in natural.values())


@pytest.mark.parametrize("kind", STARTS)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("twin", [SignFlipped, TwiceTooLarge, ForgetsOneSite])
def test_a_wrong_twin_of_the_oracle_fails_the_same_comparison(twin, sizes, kind):
    target = Target(sizes, curved=True)
    natural = start(kind, sum(sizes))
    values, slopes = gradient_draws(twin(), target, natural)
    exact = oracles.gradient(target.of_state, natural)
    assert_within_standard_errors(values, oracles.expectation(target.of_state, natural))
    assert exceeds_standard_errors(slopes, exact)
    with pytest.raises(AssertionError, match="standard errors"):
        assert_within_standard_errors(slopes, exact)


# The signature


@pytest.mark.parametrize("name", ESTIMATORS)
def test_values_come_in_joint_draws_of_each_sites_shape(name):
    natural = {
        "a": torch.zeros(3, 2, requires_grad=True),
        "b": torch.zeros(1, requires_grad=True),
    }
    seen_shapes = []

    def objective(values):
        assert list(values) == ["a", "b"] and len(values["a"]) == len(values["b"]) > 0
        for a, b in zip(values["a"], values["b"], strict=True):
            seen_shapes.append((tuple(a.shape), tuple(b.shape)))
        results = [
            (torch.ones(2, 3) @ a).sum() + (torch.ones(2, 1) @ b).sum()
            for a, b in zip(values["a"], values["b"], strict=True)
        ]
        return torch.stack(results)

    surrogate = ESTIMATORS[name]()(objective, natural)
    assert surrogate.shape == () and surrogate.requires_grad
    surrogate.backward()
    assert all(lam.grad.shape == lam.shape for lam in natural.values())
    assert set(seen_shapes) == {((3, 2), (1,))}


@pytest.mark.parametrize("name", ESTIMATORS)
def test_the_gradient_reaches_whatever_produced_the_natural_parameters(name):
    target = Target((1, 2), curved=False)
    base = torch.tensor(0.4, requires_grad=True)
    offsets = torch.tensor([0.1, -0.2, 0.3])
    torch.manual_seed(5)
    flat = (base + offsets).split([1, 2])
    ESTIMATORS[name]()(target.objective, dict(zip("ab", flat, strict=True))).backward()
    torch.manual_seed(5)
    leaves = target.natural(0.4 + offsets)
    ESTIMATORS[name]()(target.objective, leaves).backward()
    torch.testing.assert_close(base.grad, sum(leaf.grad.sum() for leaf in leaves.values()))


@pytest.mark.parametrize("name", ESTIMATORS)
def test_other_parameters_get_their_gradient_through_the_objective(name):
    target = Target((1, 2), curved=False)
    scale = torch.tensor(1.5, requires_grad=True)
    torch.manual_seed(6)
    value = ESTIMATORS[name]()(target.objective, target.natural(torch.zeros(3)))
    torch.manual_seed(6)
    scaled = ESTIMATORS[name]()(
        lambda values: scale * target.objective(values), target.natural(torch.zeros(3))
    )
    (slope,) = torch.autograd.grad(scaled, scale)
    torch.testing.assert_close(slope, value.detach())


@pytest.mark.parametrize("name", ESTIMATORS)
def test_an_estimator_is_a_module_that_can_be_copied_and_printed(name):
    estimator = ESTIMATORS[name]()
    assert isinstance(estimator.unbiased, bool)
    assert repr(estimator).startswith(type(estimator).__name__)
    target = Target((1, 2), curved=True)
    results = []
    for one in (estimator, copy.deepcopy(estimator), pickle.loads(pickle.dumps(estimator))):
        torch.manual_seed(3)
        results.append(one(target.objective, target.natural(torch.zeros(3))).item())
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize("build", [StraightThrough, LocalReparameterization, Concrete])
def test_more_draws_average_and_do_not_repeat(build):
    target = Target((1, 2), curved=False)
    natural = start("moderate", 3)
    single = gradient_draws(build(), target, natural, repeats=800)[1]
    many = gradient_draws(build(num_samples=16), target, natural, repeats=100)[1]
    # The variance is a sixteenth, up to the spread of a variance of a hundred draws, 14 %.
    assert 8 < single.var(0).sum() / many.var(0).sum() < 32
    assert_within_standard_errors(many - single.mean(0), torch.zeros(3), k=6)


@pytest.mark.parametrize("build", [StraightThrough, LocalReparameterization, Concrete])
@pytest.mark.parametrize("count", [0, -1, 1.5, "many"])
def test_the_number_of_draws_is_a_whole_number(build, count):
    with pytest.raises(ValueError, match="num_samples is a whole number of at least 1; got"):
        build(num_samples=count)


# Enumerate


def test_enumerate_is_exact_in_value_and_gradient():
    for sizes in SIZES:
        for kind in STARTS:
            target = Target(sizes, curved=True)
            natural = start(kind, sum(sizes))
            values, slopes = gradient_draws(Enumerate(), target, natural)
            expected = oracles.expectation(target.of_state, natural)
            assert values[0].item() == pytest.approx(expected, rel=1e-13)
            exact = oracles.gradient(target.of_state, natural)
            torch.testing.assert_close(slopes[0], exact, rtol=1e-10, atol=1e-300)


def test_enumerate_refuses_more_weights_than_it_can_sum_over():
    natural = {"w": torch.zeros(5), "v": torch.zeros(2, 2)}
    with pytest.raises(ValueError, match=r"at most 8 weights; the guide has 9\. Use a sampling"):
        Enumerate(max_weights=8)(lambda values: torch.zeros(512), natural)
    assert Enumerate(max_weights=9)(lambda values: torch.ones(512), natural) == pytest.approx(1.0)


# Concrete and StraightThrough


def one_weight_each(natural: float, count: int, function: Callable[[Tensor], Tensor]):
    """Independent copies of one weight: one call gives ``count`` draws of its gradient in mu."""
    lam = torch.full((count,), natural, requires_grad=True)

    def objective(values):
        return torch.stack([function(w).sum() for w in values["w"]])

    def draws(estimator: Estimator) -> Tensor:
        (slope,) = torch.autograd.grad(estimator(objective, {"w": lam}), lam)
        return slope * torch.cosh(lam.detach()) ** 2

    return draws


@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0, 2.0])
def test_concrete_over_fisher_is_the_published_scale_times_the_slope(temperature):
    natural = torch.tensor([0.0, 0.5, -3.0, 8.5, -10.0, 20.0], requires_grad=True)

    def f(w):
        return torch.exp(0.8 * w).sum() - (w**3).sum()

    torch.manual_seed(8)
    surrogate = Concrete(temperature)(
        lambda values: torch.stack([f(w) for w in values["w"]]), {"w": natural}
    )
    (slope,) = torch.autograd.grad(surrogate, natural)
    torch.manual_seed(8)
    delta = torch.logit(torch.rand(6)) / 2
    lam = natural.detach()
    relaxed = torch.tanh((lam + delta) / temperature)
    # s = sech^2((lambda + delta) / tau) / (tau sech^2(lambda)), the ratio formed in log space.
    scale = (
        _numerics.log_variance((lam + delta) / temperature) - _numerics.log_variance(lam)
    ).exp() / temperature
    g = 0.8 * torch.exp(0.8 * relaxed) - 3 * relaxed**2
    torch.testing.assert_close(_fused.over_fisher(slope, lam), scale * g, rtol=1e-9, atol=1e-200)
    torch.testing.assert_close(surrogate.detach(), f(relaxed))


def test_at_small_temperature_concrete_draws_are_the_hard_draws_of_the_same_noise():
    natural = torch.linspace(-3, 3, 2000)
    drawn = []

    def objective(values):
        drawn.append(values["w"][0].detach())
        return drawn[-1].sum()[None]

    for estimator in (StraightThrough(), Concrete(1e-4), Concrete(0.5)):
        torch.manual_seed(9)
        estimator(objective, {"w": natural})
    torch.manual_seed(9)
    hard = SignBernoulli(natural=natural).sample()
    assert torch.equal(drawn[0], hard)
    assert torch.equal(drawn[1].sign(), hard) and (drawn[1] - hard).abs().quantile(0.9) == 0
    assert torch.equal(drawn[2].sign(), hard) and (drawn[2] - hard).abs().median() > 1e-3


def test_concrete_meets_enumeration_on_a_curved_target_where_straight_through_does_not():
    def f(w):
        return torch.exp(0.8 * w)

    natural = 0.5
    exact = oracles.gradient_in_mean(
        oracles.table(lambda w: f(w).sum(), 1), torch.tensor([natural])
    )
    assert exact.item() == pytest.approx(0.888, abs=5e-4)
    draws = one_weight_each(natural, 1_000_000, f)
    concrete, through = draws(Concrete(0.01)), draws(StraightThrough())
    assert_within_standard_errors(concrete, exact.item())
    assert exceeds_standard_errors(through, exact.item())
    # Its own mean is E[df/dw] at hard draws, which is another number.
    slope = oracles.expectation(lambda w: 0.8 * f(w).sum(), torch.tensor([natural]))
    assert slope == pytest.approx(1.398, abs=5e-4)
    assert_within_standard_errors(through, slope)
    # And at a temperature that is not small, Concrete misses too.
    assert exceeds_standard_errors(draws(Concrete(1.0)), exact.item())


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_on_a_multilinear_target_the_pathwise_estimators_agree_with_enumeration(sizes):
    target = Target(sizes, curved=False)
    natural = start("moderate", sum(sizes))
    exact = oracles.gradient(target.of_state, natural)
    through = gradient_draws(StraightThrough(), target, natural)[1]
    concrete = gradient_draws(Concrete(0.02), target, natural)[1]
    local = gradient_draws(LocalReparameterization(), target, natural)[1]
    for slopes in (through, concrete, local):
        assert_within_standard_errors(slopes, exact)
        assert exceeds_standard_errors(slopes, -exact)
    # The scale has mean 1 but variance of the order of 1 / tau.
    assert concrete.var(0).sum() > 3 * through.var(0).sum()


def test_straight_through_for_the_same_draw_by_hand():
    natural = torch.tensor([0.0, 0.5, -3.0, 8.5, -40.0], requires_grad=True)
    torch.manual_seed(2)
    surrogate = StraightThrough()(
        lambda values: torch.stack([torch.exp(0.8 * w).sum() for w in values["w"]]), {"w": natural}
    )
    (slope,) = torch.autograd.grad(surrogate, natural)
    torch.manual_seed(2)
    w = SignBernoulli(natural=natural.detach()).sample()
    torch.testing.assert_close(surrogate.detach(), torch.exp(0.8 * w).sum())
    expected = 0.8 * torch.exp(0.8 * w)
    torch.testing.assert_close(_fused.over_fisher(slope, natural), expected, rtol=1e-12, atol=0)


def test_straight_through_without_noise_takes_the_sign_of_lambda():
    natural = torch.tensor([0.0, -0.0, 1e-9, -1e-9, 3.0, -40.0], requires_grad=True)
    taken = []

    def objective(values):
        taken.extend(values["w"])
        return torch.stack([(w**3).sum() for w in values["w"]])

    estimator = StraightThrough(noise=False)
    (slope,) = torch.autograd.grad(estimator(objective, {"w": natural}), natural)
    assert len(taken) == 1 and taken[0].tolist() == [1.0, 1.0, 1.0, -1.0, 1.0, -1.0]
    torch.testing.assert_close(_fused.over_fisher(slope, natural), torch.full((6,), 3.0))
    assert repr(estimator) == "StraightThrough(num_samples=1, noise=False)"


@pytest.mark.parametrize("temperature", [0.0, -0.5, float("nan")])
def test_a_concrete_temperature_is_positive(temperature):
    with pytest.raises(
        ValueError, match=r"temperature is positive and finite; got .*StraightThrough"
    ):
        Concrete(temperature)


def test_straight_through_without_noise_has_one_value():
    with pytest.raises(ValueError, match=r"noise=False\) has one value"):
        StraightThrough(num_samples=4, noise=False)
