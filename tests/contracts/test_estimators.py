"""What every gradient estimator promises, against enumeration.

The loops run over ``bayesbin.estimators.__all__``: an estimator that is exported is under test,
with its defaults unless ``CONSTRUCTORS`` says otherwise, and in the variants that ``VARIANTS`` adds.
"""

# A gradient is None until there is one, which the assertion at hand would tell.
# pyright: reportOptionalMemberAccess=false, reportArgumentType=false

from __future__ import annotations

import copy
import functools
import inspect
import pickle
from collections.abc import Callable, Mapping, Sequence

import oracles
import pytest
import torch
from stats import assert_within_standard_errors, exceeds_standard_errors
from torch import Tensor, nn

import bayesbin.estimators
from bayesbin.core import fused, numerics
from bayesbin.distributions import SignBernoulli
from bayesbin.estimators import (
    ARM,
    ARMS,
    REBAR,
    RELAX,
    Concrete,
    DisARM,
    Enumerate,
    Estimator,
    Learned,
    LeaveOneOut,
    LocalExpectation,
    LocalReparameterization,
    MovingAverage,
    ScoreFunction,
    StraightThrough,
)
from bayesbin.estimators.antithetic import _one_minus_correlation
from bayesbin.estimators.control_variate import coupling_gap

CONSTRUCTORS: dict[str, Callable[[], Estimator]] = {}  # name -> instance, where not the defaults


class OwnVariate(nn.Module):
    """A control variate of the relaxed signs themselves, for RELAX."""

    def forward(self, relaxed: Mapping[str, Tensor]) -> Tensor:
        return sum(draws.flatten(1).tanh().sum(1) for draws in relaxed.values())


VARIANTS: dict[str, Callable[[], Estimator]] = {
    "ScoreFunction, no baseline": lambda: ScoreFunction(num_samples=1, baseline=None),
    "ScoreFunction, moving average": lambda: ScoreFunction(1, MovingAverage()),
    "ScoreFunction, learned": lambda: ScoreFunction(1, Learned()),
    "DisARM, 3 pairs": lambda: DisARM(num_pairs=3),
    "ARM, 2 pairs": lambda: ARM(num_pairs=2),
    "ARMS, 2 draws": lambda: ARMS(2),
    "ARMS, 7 draws": lambda: ARMS(7),
    "LocalExpectation, 2 draws": lambda: LocalExpectation(num_samples=2),
    "REBAR, 3 draws": lambda: REBAR(num_samples=3),
    "REBAR, fixed": lambda: REBAR(temperature=1.0, eta=0.3, tune=False),
    "RELAX, 2 draws": lambda: RELAX(num_samples=2),
    "RELAX, own variate": lambda: RELAX(OwnVariate()),
}


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


EXPORTED = exported_estimators()
ESTIMATORS = EXPORTED | VARIANTS
UNBIASED = [name for name, build in ESTIMATORS.items() if build().unbiased]
BIASED = [name for name, build in ESTIMATORS.items() if not build().unbiased]

# Their gradient in one weight has no noise of weights it shares no term with, so that one call can
# serve many independent copies of a target.
LOCAL = (*BIASED, "LocalExpectation", "LocalExpectation, 2 draws")


# Targets: two sites, each entering one matrix product, so that every estimator can take them


class Target:
    """f over two sites "a" and "b", without any symmetry that could hide a sign error.

    A site's values have shape (size, copies), and f is the sum over the copies.
    """

    def __init__(self, sizes: tuple[int, int], *, curved: bool) -> None:
        generator = torch.Generator().manual_seed(11)
        self.sizes, self.curved = dict(zip("ab", sizes, strict=True)), curved
        self.maps = {
            name: 0.8 * torch.randn(2, n, generator=generator) for name, n in self.sizes.items()
        }

    def of_values(self, values: Mapping[str, Tensor]) -> Tensor:
        h0, h1 = (self.maps["a"] @ values["a"]).unbind(-2)
        g0, g1 = (self.maps["b"] @ values["b"]).unbind(-2)
        if self.curved:
            first = torch.exp(0.7 * h0) + torch.sin(1.5 * h1 + 0.6)
            return (first + torch.exp(-0.7 * g0) + 2.0 * torch.tanh(g1 + 0.7)).sum(-1)
        # Linear in each weight: products only of sums that share no weight.
        return (h0 * g0 + 0.7 * h1 - 0.4 * g1 + 0.2).sum(-1)

    def objective(self, values: Mapping[str, Sequence[Tensor]]) -> Tensor:
        if all(type(value) is Tensor for value in values["a"]):
            return self.of_values({name: torch.stack(list(values[name])) for name in "ab"})
        # Values that stand for something else, such as a weight's moments.
        draws = zip(values["a"], values["b"], strict=True)
        return torch.stack([self.of_values({"a": a, "b": b}) for a, b in draws])

    def of_state(self, state: Tensor) -> Tensor:
        a, b = state[:, None].split(list(self.sizes.values()))
        return self.of_values({"a": a, "b": b})

    def natural(self, flat: Tensor, copies: int = 1) -> dict[str, Tensor]:
        pieces = flat[:, None].split(list(self.sizes.values()))
        return {
            name: piece.repeat(1, copies).requires_grad_()
            for name, piece in zip(self.sizes, pieces, strict=True)
        }


@functools.cache
def table(sizes: tuple[int, int], curved: bool) -> Tensor:
    with torch.random.fork_rng():
        return oracles.table(Target(sizes, curved=curved).of_state, sum(sizes))


def enumerated(target: Target, natural: Tensor) -> tuple[Tensor, Tensor]:
    """E_q[f] and its gradient in lambda, from sums over all states."""
    values = table(tuple(target.sizes.values()), target.curved)
    slopes = oracles.gradient_in_mean(values, natural) / torch.cosh(natural) ** 2
    return (oracles.state_probabilities(natural) * values).sum(), slopes


def start(kind: str, size: int) -> Tensor:
    """Natural parameters: all 0, moderate, or with saturated ones among moderate ones."""
    moderate = torch.linspace(-0.8, 0.85, size)
    if kind == "zero":
        return torch.zeros(size)
    if kind == "saturated":
        saturated = torch.tensor([-8.5, 10.0, -40.0, 8.5, -10.0, 40.0])
        moderate[1::2] = saturated[: len(moderate[1::2])]
    return moderate


def draws_per_call(estimator: Estimator) -> int:
    return getattr(estimator, "num_samples", 1) * 2 * getattr(estimator, "num_pairs", 0.5)


def gradient_draws(
    estimator: Estimator,
    target: Target,
    natural: Tensor,
    repeats: int | None = None,
    copies: int = 1,
) -> tuple[Tensor, Tensor]:
    """Surrogates (n,) and their gradients (n copies, D) in lambda; a dozen calls where nothing is
    random. Without a number of repeats 600 draws in at most 300 calls, or 200 draws that cost most."""
    costly = isinstance(estimator, REBAR | RELAX)
    per_call = int(draws_per_call(estimator))
    repeats = repeats or (200 // per_call if costly else min(300, 600 // per_call))
    leaves = target.natural(natural, copies)
    values, slopes = [], []
    for _ in range(repeats):
        surrogate = estimator(target.objective, leaves)
        slope = torch.cat(torch.autograd.grad(surrogate, list(leaves.values())))
        values.append(surrogate.detach() / copies)
        slopes.append(slope.T)
        if len(slopes) == 12 and all(torch.equal(slopes[0], slope) for slope in slopes):
            break
    return torch.stack(values), torch.cat(slopes)


def draws_of(
    name: str, target: Target, natural: Tensor, *, learning: bool = True
) -> tuple[Tensor, Tensor]:
    """What an estimator under test gives: many copies per call where they do not disturb each other.

    Without learning it leaves out a second derivative, which is no part of the gradient in lambda.
    """
    many = {"repeats": 20, "copies": 100} if name in LOCAL else {}
    estimator = ESTIMATORS[name]().requires_grad_(learning)
    return gradient_draws(estimator, target, natural, **many)


def seen(natural: Tensor, slopes: Tensor, per_slope: float = 1) -> Tensor:
    """The weights whose gradient these draws can judge.

    A sign that is expected less than 30 times among the draws may hardly occur, and the standard error
    of what it contributes cannot be read from them. Where nothing is random every weight is judged.
    """
    rarer = torch.sigmoid(-2.0 * natural.abs())
    return (len(slopes) * per_slope * rarer > 30) | bool((slopes == slopes[0]).all())


def shown(natural: Tensor, slopes: Tensor) -> Tensor:
    """The natural parameters without the signs, of probability 1e-7 and less, that no draw shows."""
    if bool((slopes == slopes[0]).all()):
        return natural
    return torch.where(natural.abs() > 8.0, 40.0 * natural.sign(), natural)


SIZES = [(1, 2), (3, 5), (5, 7)]
STARTS = ["zero", "moderate", "saturated"]
# Every estimator at one start per size; the exported ones at every other size and start among the slow tests.
CASES = [
    pytest.param(
        name, sizes, kind, id=f"{name}-{sizes}-{kind}", marks=[] if i == j else [pytest.mark.slow]
    )
    for name in UNBIASED
    for i, sizes in enumerate(SIZES)
    for j, kind in enumerate(STARTS)
    if name in EXPORTED or i == j
]


@pytest.mark.parametrize(("name", "sizes", "kind"), CASES)
def test_an_unbiased_estimator_meets_enumeration(name, sizes, kind):
    target = Target(sizes, curved=True)
    natural = start(kind, sum(sizes))
    learning = SIZES.index(sizes) == STARTS.index(kind)
    values, slopes = draws_of(name, target, natural, learning=learning)
    judged = seen(natural, slopes, draws_per_call(ESTIMATORS[name]()))
    expected, exact = enumerated(target, shown(natural, slopes))
    assert bool(torch.isfinite(slopes).all()) and bool(judged.any())
    # Divided by Fisher, so that the gradient of a saturated weight counts as much as any other.
    fisher = 1.0 / torch.cosh(natural) ** 2
    slopes, exact = (slopes / fisher)[:, judged], (exact / fisher)[judged]
    assert_within_standard_errors(slopes, exact)
    assert exceeds_standard_errors(slopes, -exact)
    assert_within_standard_errors(values, expected)


@pytest.mark.parametrize("kind", ["zero", "moderate"])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("name", BIASED)
def test_a_biased_estimator_misses_enumeration_on_a_curved_target(name, sizes, kind):
    target = Target(sizes, curved=True)
    natural = start(kind, sum(sizes))
    _, slopes = draws_of(name, target, natural)
    assert exceeds_standard_errors(slopes, enumerated(target, natural)[1])


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
    expected, exact = enumerated(target, natural)
    assert_within_standard_errors(values, expected)
    assert exceeds_standard_errors(slopes, exact)
    with pytest.raises(AssertionError, match="standard errors"):
        assert_within_standard_errors(slopes, exact)


# Twins of the sampling estimators, each with a slip that is easily made


class TakesThePairForIndependent(DisARM):
    """Without the factor that says how often a pair shows the difference."""

    def gradient(self, natural, *pairs):
        return super().gradient(natural, *pairs) / torch.sigmoid(2.0 * natural.abs())


class ForgetsTheChainRule(ARM):
    """The published gradient in the log-odds, for that in half of them."""

    def gradient(self, natural, *pairs):
        return 0.5 * super().gradient(natural, *pairs)


class TakesTheDrawsForIndependent(ARMS):
    """Without 1 / (1 - rho), as if the draws were those of the leave-one-out estimator."""

    def forward(self, objective, natural):
        twin = {}
        for name, lam in natural.items():
            scale = _one_minus_correlation(lam.detach(), self.num_samples)
            twin[name] = scale * lam + (1.0 - scale) * lam.detach()
        return super().forward(objective, twin)


class ForgetsTheCorrection(REBAR):
    """Subtracts the control variate and does not add back what its score has as its mean."""

    def _gradients(self, natural, signs, shifted, rest, slopes):
        return super()._gradients(
            natural, signs, shifted, rest, tuple(torch.zeros_like(slope) for slope in slopes)
        )


class CouplesTheWrongNoise(RELAX):
    """Takes the second relaxed draw for one that does not depend on lambda."""

    def _gradients(self, natural, signs, shifted, rest, slopes):
        flat = iter(slopes)
        twin = [
            next(flat) / coupling_gap(natural[name], z) for name in natural for z in shifted[name]
        ]
        return super()._gradients(natural, signs, shifted, rest, tuple(twin))


class IncludesItsOwnDraw(LeaveOneOut):
    """The mean over all draws, which shrinks the gradient by (S - 1) / S."""

    def forward(self, results, objective):
        return results.mean(), None


class LooksAhead(MovingAverage):
    """An average that the present draw has already entered."""

    def forward(self, results, objective):
        self.moments.update(results)
        return self.moments.mean().to(results), None


class ForgetsFisher(LocalExpectation):
    """The gradient in the mean, for that in lambda."""

    def forward(self, objective, natural):
        twin = {}
        for name, lam in natural.items():
            scale = torch.cosh(lam.detach()) ** 2
            twin[name] = scale * lam + (1.0 - scale) * lam.detach()
        return super().forward(objective, twin)


TWINS: dict[str, tuple[Callable[[], Estimator], tuple[int, int], str]] = {
    "DisARM": (TakesThePairForIndependent, (3, 5), "zero"),
    "DisARM at 0": (TakesThePairForIndependent, (1, 2), "zero"),
    "ARM": (ForgetsTheChainRule, (3, 5), "zero"),
    "ARMS": (lambda: TakesTheDrawsForIndependent(3), (1, 2), "zero"),
    "ARMS, a pair": (lambda: TakesTheDrawsForIndependent(2), (3, 5), "zero"),
    "REBAR": (ForgetsTheCorrection, (3, 5), "moderate"),
    "RELAX": (lambda: CouplesTheWrongNoise(temperature=2.0, tune=False), (1, 2), "moderate"),
    "LeaveOneOut": (lambda: ScoreFunction(4, IncludesItsOwnDraw()), (1, 2), "zero"),
    "LeaveOneOut, two": (lambda: ScoreFunction(2, IncludesItsOwnDraw()), (3, 5), "moderate"),
    "MovingAverage": (lambda: ScoreFunction(1, LooksAhead(0.5)), (3, 5), "zero"),
    "LocalExpectation": (ForgetsFisher, (3, 5), "moderate"),
}


@pytest.mark.parametrize("name", TWINS)
def test_a_wrong_twin_of_a_sampling_estimator_fails_the_same_comparison(name):
    build, sizes, kind = TWINS[name]
    target = Target(sizes, curved=True)
    natural = start(kind, sum(sizes))
    values, slopes = gradient_draws(build(), target, natural)
    expected, exact = enumerated(target, natural)
    judged = seen(natural, slopes, draws_per_call(build()))
    assert_within_standard_errors(values, expected)
    with pytest.raises(AssertionError, match="standard errors"):
        assert_within_standard_errors(slopes[:, judged], exact[judged])


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
    flat = (base + offsets)[:, None].split([1, 2])
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


def counts_of_draws() -> dict[str, tuple[str, int]]:
    """What an exported estimator calls its number of draws, and the least that it takes."""
    found = {}
    for name, build in EXPORTED.items():
        for argument in ("num_samples", "num_pairs"):
            if argument in inspect.signature(build).parameters:
                found[name] = (argument, 2 if name == "ARMS" else 1)
    return found


COUNTS = counts_of_draws()


@pytest.mark.parametrize("name", COUNTS)
def test_more_draws_average_and_do_not_repeat(name):
    target = Target((1, 2), curved=False)
    natural = start("moderate", 3)
    argument, least = COUNTS[name]
    # A baseline made of the other draws is a better one with more of them.
    options: dict[str, object] = {"ScoreFunction": {"baseline": None}}.get(name, {})
    if name in ("REBAR", "RELAX"):
        options = {"tune": False}  # half the cost
    build = functools.partial(EXPORTED[name], **options)
    calls, copies = (20, 30) if name in LOCAL else (400, 1)
    single = gradient_draws(build(**{argument: least}), target, natural, calls, copies)[1]
    many = gradient_draws(build(**{argument: 4 * least}), target, natural, calls // 2, copies)[1]
    # A quarter of the variance, up to the spread of a variance of 200 draws; antithetic draws gain
    # more than that.
    ratio = single.var(0).sum() / many.var(0).sum()
    assert 2 < ratio < (40 if name == "ARMS" else 8)
    assert_within_standard_errors(many - single.mean(0), torch.zeros(3), k=8)


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("count", [0, -1, 1.5, "many", True])
def test_the_number_of_draws_is_a_whole_number(name, count):
    argument, least = COUNTS[name]
    with pytest.raises(
        ValueError, match=f"{argument} to be a whole number of at least {least}; got {count!r}"
    ):
        EXPORTED[name](**{argument: count})


# Enumerate


def test_enumerate_is_exact_in_value_and_gradient():
    for sizes in SIZES:
        for kind in STARTS:
            target = Target(sizes, curved=True)
            natural = start(kind, sum(sizes))
            values, slopes = gradient_draws(Enumerate(), target, natural)
            expected, exact = enumerated(target, natural)
            assert values[0].item() == pytest.approx(expected.item(), rel=1e-12)
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
        numerics.log_variance((lam + delta) / temperature) - numerics.log_variance(lam)
    ).exp() / temperature
    g = 0.8 * torch.exp(0.8 * relaxed) - 3 * relaxed**2
    torch.testing.assert_close(fused.over_fisher(slope, lam), scale * g, rtol=1e-9, atol=1e-200)
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
    _, exact = enumerated(target, natural)
    many = {"repeats": 20, "copies": 100}
    through = gradient_draws(StraightThrough(), target, natural, **many)[1]
    concrete = gradient_draws(Concrete(0.02), target, natural, **many)[1]
    local = gradient_draws(LocalReparameterization(), target, natural, **many)[1]
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
    torch.testing.assert_close(fused.over_fisher(slope, natural), expected, rtol=1e-12, atol=0)


def test_straight_through_without_noise_takes_the_sign_of_lambda():
    natural = torch.tensor([0.0, -0.0, 1e-9, -1e-9, 3.0, -40.0], requires_grad=True)
    taken = []

    def objective(values):
        taken.extend(values["w"])
        return torch.stack([(w**3).sum() for w in values["w"]])

    estimator = StraightThrough(noise=False)
    (slope,) = torch.autograd.grad(estimator(objective, {"w": natural}), natural)
    assert len(taken) == 1 and taken[0].tolist() == [1.0, 1.0, 1.0, -1.0, 1.0, -1.0]
    torch.testing.assert_close(fused.over_fisher(slope, natural), torch.full((6,), 3.0))
    assert repr(estimator) == "StraightThrough(num_samples=1, noise=False)"


@pytest.mark.parametrize("temperature", [0.0, -0.5, float("nan")])
def test_a_concrete_temperature_is_positive(temperature):
    with pytest.raises(
        ValueError, match=r"expected temperature to be a (finite )?number above 0; got"
    ):
        Concrete(temperature)


def test_straight_through_without_noise_has_one_value():
    with pytest.raises(ValueError, match=r"noise=False\) has one value"):
        StraightThrough(num_samples=4, noise=False)
