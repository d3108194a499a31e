"""What every distribution of the package promises, and what each one promises beyond that.

The loops run over ``bayesbin.distributions.__all__``: a distribution that is exported is under test.
"""

# A gradient is None until there is one, which the assertion at hand would tell.
# pyright: reportOptionalMemberAccess=false, reportArgumentType=false

from __future__ import annotations

import copy
import io
import math
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from oracles import all_states, gradient, state_probabilities
from pyro.distributions.testing import gof
from pyro.infer import SVI, Predictive, Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO
from pyro.optim import Adam  # pyright: ignore[reportAttributeAccessIssue] (made at import)
from stats import FAILURE_RATE, assert_within_standard_errors, exceeds_standard_errors
from torch import Tensor
from torch.distributions import kl_divergence

import bayesbin.distributions
from bayesbin.distributions import (
    RelaxedSignBernoulli,
    SignBernoulli,
    SignBernoulliStraightThrough,
    constraints,
)

# How to build a distribution of this package from the natural parameter of its signs.
CONSTRUCTORS = {
    "SignBernoulli": lambda natural: SignBernoulli(natural=natural),
    "SignBernoulliStraightThrough": lambda natural: SignBernoulliStraightThrough(natural=natural),
    "RelaxedSignBernoulli": lambda natural: RelaxedSignBernoulli(0.5, natural),
}
HARD = ["SignBernoulli", "SignBernoulliStraightThrough"]
SATURATED = [0.0, 0.5, -0.5, 3.0, -3.0, 8.5, -8.5, 10.0, -10.0, 20.0, 40.0, -40.0, 100.0, -100.0]


# Distributions on levels are built from logits, and have tests of their own in tests/distributions.
OF_LEVELS = {"LowBitCategorical", "RelaxedLowBit"}


def exported_distributions() -> list[str]:
    module = bayesbin.distributions
    return [
        name
        for name in module.__all__
        if name not in OF_LEVELS
        and isinstance(getattr(module, name), type)
        and issubclass(getattr(module, name), torch.distributions.Distribution)
    ]


LAWS = exported_distributions()


def test_every_exported_distribution_is_under_test():
    assert set(LAWS) == set(CONSTRUCTORS), "add a constructor for the new distribution"


@pytest.fixture(params=LAWS)
def distribution(request):
    return CONSTRUCTORS[request.param]


# Shapes


@pytest.mark.parametrize("batch", [(), (1,), (3,), (4, 3), (0,)])
@pytest.mark.parametrize("sample", [(), (2,), (5, 2), (0,)])
def test_shapes(distribution, batch, sample):
    q = distribution(torch.randn(batch))
    assert q.batch_shape == batch and q.event_shape == ()
    assert q.sample(sample).shape == sample + batch
    assert q.log_prob(q.sample(sample)).shape == sample + batch
    if q.has_rsample:
        assert q.rsample(sample).shape == sample + batch
    if 0 not in sample:  # torch's own Independent cannot sum over an empty sample
        event = q.to_event(len(batch))
        assert event.log_prob(event.sample(sample)).shape == sample
    masked = q.mask(torch.zeros(batch, dtype=torch.bool))
    assert not masked.log_prob(masked.sample(sample)).any()


def test_expand_is_the_distribution_of_the_expanded_parameter(distribution):
    natural = torch.randn(3)
    q = distribution(natural).expand((4, 3))
    assert type(q) is type(distribution(natural)) and q.batch_shape == (4, 3)
    value = q.sample()
    torch.testing.assert_close(
        q.log_prob(value), distribution(natural.expand(4, 3)).log_prob(value)
    )
    # Draws of an expanded distribution are independent along the new dimension.
    assert len(distribution(torch.zeros(16)).expand((9, 16)).sample().unique(dim=0)) > 1
    assert q.expand((2, 4, 3)).sample((5,)).shape == (5, 2, 4, 3)


def test_validation_that_was_switched_off_stays_off_in_expand():
    for q in (
        SignBernoulli(torch.zeros(2), validate_args=False),
        SignBernoulliStraightThrough(torch.zeros(2), validate_args=False),
        RelaxedSignBernoulli(0.5, torch.zeros(2), validate_args=False),
    ):
        q.expand((3, 2)).log_prob(torch.tensor([2.0, 0.0]))


def test_samples_lie_in_the_support_and_carry_the_dtype(distribution):
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        q = distribution(torch.tensor(SATURATED, dtype=dtype))
        value = q.sample((200,))
        assert value.dtype == dtype
        assert bool(q.support.check(value).all())
        # Where the other sign has probability below 1e-17 it is never drawn.
        for column, natural in enumerate(SATURATED):
            if abs(natural) >= 20:
                assert bool((value[:, column].sign() == math.copysign(1, natural)).all())


def test_samples_from_non_contiguous_parameters(distribution):
    natural = torch.randn(4, 6)
    torch.manual_seed(1)
    strided = distribution(natural.t()[::2]).sample()
    torch.manual_seed(1)
    assert torch.equal(strided, distribution(natural.t()[::2].contiguous()).sample())


def test_sampling_is_decided_by_the_seed(distribution):
    q = distribution(torch.zeros(20))
    draws = []
    for seed in (7, 7, 8):
        pyro.set_rng_seed(seed)
        draws.append(q.sample())
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


# Probabilities


@pytest.mark.parametrize("name", HARD)
def test_hard_draws_fit_their_probabilities(name):
    natural = torch.tensor([0.0, 0.5, -0.5, 1.5])
    value = CONSTRUCTORS[name](natural).sample((20_000,))
    assert set(value.unique().tolist()) == {-1.0, 1.0}
    assert_within_standard_errors(value, torch.tanh(natural))
    # All four at once, over the sixteen joint states.
    codes = ((value > 0) * torch.tensor([8, 4, 2, 1])).sum(1)
    counts = torch.bincount(codes, minlength=16).double()
    expected = len(value) * state_probabilities(natural)
    statistic = ((counts - expected) ** 2 / expected).sum()
    assert torch.special.gammaincc(torch.tensor(7.5), statistic / 2) > FAILURE_RATE


@pytest.mark.parametrize("temperature", [0.3, 0.7, 2.0])
@pytest.mark.parametrize("natural", [0.0, -0.8, 1.5])
def test_relaxed_draws_fit_their_density(temperature, natural):
    q = RelaxedSignBernoulli(temperature, torch.tensor([natural]))
    value = q.sample((20_000,))
    # On the real line, where the density has no pole: z = artanh(w), dw/dz = 1 - w^2.
    z = torch.atanh(value.clamp(-1 + 1e-15, 1 - 1e-15))
    density = (q.log_prob(value) + torch.log1p(-value * value)).exp()[:, 0]
    assert gof.auto_goodness_of_fit(z, density) > FAILURE_RATE


@pytest.mark.parametrize("name", HARD)
def test_hard_log_prob_is_normalised_at_every_parameter(name):
    q = CONSTRUCTORS[name](torch.tensor(SATURATED))
    both = torch.stack([q.log_prob(torch.full_like(q.natural, w)) for w in (-1.0, 1.0)])
    torch.testing.assert_close(both.logsumexp(0), torch.zeros(len(SATURATED)), atol=1e-14, rtol=0)
    torch.testing.assert_close(
        both[1, :7].exp(), 1 / (1 + torch.exp(-2 * q.natural[:7])), rtol=1e-12, atol=0
    )


@pytest.mark.parametrize("temperature", [0.3, 0.7, 2.0])
@pytest.mark.parametrize("natural", [0.0, -0.8, 3.0])
def test_relaxed_density_is_normalised(temperature, natural):
    # In z = artanh(w) the integrand is smooth, and up to 14 tanh(z) still differs from 1 by a few
    # hundred roundings. What lies beyond is the tail of a logistic distribution, known in closed form.
    q = RelaxedSignBernoulli(temperature, torch.tensor(natural))
    z = torch.linspace(-14, 14, 20_001)
    w = torch.tanh(z)
    inside = torch.trapezoid((q.log_prob(w) + torch.log1p(-w * w)).exp(), z).item()
    tails = sum(1 / (1 + math.exp(2 * (temperature * 14 + side * natural))) for side in (-1.0, 1.0))
    assert inside + tails == pytest.approx(1.0, rel=1e-3)


def test_relaxed_density_by_the_change_of_variables():
    # w = tanh((lambda + delta) / tau), delta = logit(u) / 2: p(w) = |du/dw|.
    natural, temperature = torch.tensor([0.4, -1.0]), 0.6
    u = torch.tensor([0.2, 0.9], requires_grad=True)
    w = torch.tanh((natural + torch.logit(u) / 2) / temperature)
    (slope,) = torch.autograd.grad(w.sum(), u)
    got = RelaxedSignBernoulli(temperature, natural).log_prob(w.detach())
    torch.testing.assert_close(got, -slope.log())


def test_relaxed_log_prob_at_draws_that_rounded_to_one_is_finite():
    q = RelaxedSignBernoulli(0.1, torch.tensor([40.0, -40.0, 100.0], dtype=torch.float32))
    value = q.sample((100,))
    assert bool((value.abs() == 1).any())
    assert bool(torch.isfinite(q.log_prob(value)).all())


def test_log_prob_broadcasts_and_extends_linearly_to_relaxed_signs():
    q = SignBernoulli(natural=torch.tensor([0.3, -2.0]))
    at = torch.linspace(-1, 1, 5)[:, None]
    both = q.log_prob(torch.tensor([[-1.0], [1.0]]))
    expected = both[0] + (at + 1) / 2 * (both[1] - both[0])
    torch.testing.assert_close(q.log_prob(at), expected)


@pytest.mark.parametrize("name", HARD)
def test_moments_entropy_and_kl_against_enumeration(name):
    natural, prior = torch.tensor([0.0, 0.5, -1.5, 3.0]), torch.tensor([0.3, 0.5, 2.0, -1.0])
    q, p = CONSTRUCTORS[name](natural), SignBernoulli(natural=prior)
    for j in range(4):
        mass, prior_mass = state_probabilities(natural[j]), state_probabilities(prior[j])
        w = all_states(1)[:, 0]
        mean = (mass * w).sum()
        torch.testing.assert_close(q.mean[j], mean)
        torch.testing.assert_close(q.variance[j], (mass * (w - mean) ** 2).sum())
        torch.testing.assert_close(q.entropy()[j], -(mass * mass.log()).sum())
        expected = (mass * (mass / prior_mass).log()).sum()
        torch.testing.assert_close(kl_divergence(q, p)[j], expected)
        torch.testing.assert_close(q.probs[j], mass[1])
    torch.testing.assert_close(q.logits, torch.logit(q.probs))
    torch.testing.assert_close(q.log_variance, q.variance.log())
    torch.testing.assert_close(q.stddev**2, q.variance)
    torch.testing.assert_close(q.log_partition, torch.log(2 * torch.cosh(natural)))
    assert q.mode.tolist() == [1.0, 1.0, -1.0, 1.0]


def test_moments_follow_the_natural_parameter():
    # A distribution kept across optimizer steps must answer from neither an old value nor a freed graph.
    natural = torch.tensor([0.5], requires_grad=True)
    q = SignBernoulli(natural=natural)
    for _ in range(2):
        q.mean.sum().backward()
        q.variance.sum().backward()
    with torch.no_grad():
        natural.fill_(-1.0)
    torch.testing.assert_close(q.mean, torch.tanh(natural))
    torch.testing.assert_close(q.variance, 1 - torch.tanh(natural) ** 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_kl_and_entropy_are_finite_with_their_gradients_at_every_pair(dtype):
    grid = torch.tensor(SATURATED, dtype=dtype)
    natural = grid[:, None].expand(-1, len(grid)).clone().requires_grad_()
    prior = grid.expand(len(grid), -1).clone().requires_grad_()
    q, p = SignBernoulli(natural=natural), SignBernoulli(natural=prior)
    for value in (kl_divergence(q, p), q.entropy(), q.log_prob(q.sample())):
        slopes = torch.autograd.grad(value.sum(), (natural, prior), allow_unused=True)
        for result in (value, *slopes):
            assert result is None or bool(torch.isfinite(result).all())
    assert bool((kl_divergence(q, p) >= 0).all())
    # (100 - -100) * 1: the cost of being certain of the wrong sign, in nats.
    surprise = kl_divergence(SignBernoulli(natural=grid[-1]), SignBernoulli(natural=-grid[-1]))
    assert surprise.item() == pytest.approx(200.0, rel=2 * torch.finfo(dtype).eps)
    assert surprise.dtype == dtype


def test_kl_of_every_pair_of_distributions_is_that_of_the_signs():
    natural, prior = torch.randn(3), torch.randn(3)
    expected = kl_divergence(SignBernoulli(natural=natural), SignBernoulli(natural=prior))
    for build in CONSTRUCTORS.values():
        for target in (SignBernoulli(natural=prior), SignBernoulliStraightThrough(natural=prior)):
            torch.testing.assert_close(kl_divergence(build(natural), target), expected)
    relaxed = RelaxedSignBernoulli(0.5, natural), RelaxedSignBernoulli(0.2, prior)
    torch.testing.assert_close(kl_divergence(*relaxed), expected)
    event = [SignBernoulli(natural=x).to_event(1) for x in (natural, prior)]
    torch.testing.assert_close(kl_divergence(*event), expected.sum())
    wide = kl_divergence(SignBernoulli(natural=natural), SignBernoulli(natural=torch.zeros(2, 1)))
    assert wide.shape == (2, 3)


def test_enumerate_support():
    q = SignBernoulli(natural=torch.randn(3, 2))
    assert q.has_enumerate_support
    assert q.enumerate_support(expand=False).shape == (2, 1, 1)
    values = q.enumerate_support()
    assert values.shape == (2, 3, 2) and values.dtype == q.natural.dtype
    assert values[:, 0, 0].tolist() == [-1.0, 1.0]
    torch.testing.assert_close(q.log_prob(values).logsumexp(0), torch.zeros(3, 2))
    assert q.expand((4, 3, 2)).enumerate_support().shape == (2, 4, 3, 2)


def test_it_is_a_bernoulli_on_two_b_minus_one():
    natural = torch.randn(6)
    q, bernoulli = SignBernoulli(natural=natural), dist.Bernoulli(logits=2 * natural)
    bits = bernoulli.sample((4,))
    torch.testing.assert_close(q.log_prob(2 * bits - 1), bernoulli.log_prob(bits))
    torch.testing.assert_close(q.mean, 2 * bernoulli.mean - 1)
    torch.testing.assert_close(q.variance, 4 * bernoulli.variance)
    torch.testing.assert_close(q.entropy(), bernoulli.entropy())
    torch.testing.assert_close(
        kl_divergence(q, SignBernoulli(natural=-natural)),
        kl_divergence(bernoulli, dist.Bernoulli(logits=-2 * natural)),
    )


# Reparameterised draws


def test_sign_bernoulli_has_no_rsample():
    q = SignBernoulli(natural=torch.zeros(2))
    assert not q.has_rsample
    with pytest.raises(NotImplementedError):
        q.rsample()


def test_straight_through_draws_are_hard_and_carry_the_gradient_of_the_mean():
    natural = torch.tensor([0.0, 0.5, -3.0, 10.0], requires_grad=True)
    q = SignBernoulliStraightThrough(natural=natural)
    draws = q.rsample((5,))
    assert bool((draws.abs() == 1).all())
    upstream = torch.randn(5, 4)
    (slope,) = torch.autograd.grad((draws * upstream).sum(), natural)
    expected = upstream.sum(0) / torch.cosh(natural.detach()) ** 2
    torch.testing.assert_close(slope, expected, rtol=1e-12, atol=0)
    assert not q.sample().requires_grad and not q.has_enumerate_support


def test_relaxed_gradient_for_the_same_noise():
    natural = torch.tensor([0.0, 0.5, -3.0], requires_grad=True)
    temperature = torch.tensor(0.4, requires_grad=True)
    torch.manual_seed(2)
    draws = RelaxedSignBernoulli(temperature, natural).rsample((5,))
    torch.manual_seed(2)
    delta = torch.logit(torch.rand(5, 3)) / 2
    plain = torch.tanh((natural + delta) / temperature)
    torch.testing.assert_close(draws, plain)
    upstream = torch.randn(5, 3)
    got = torch.autograd.grad((draws * upstream).sum(), (natural, temperature))
    expected = torch.autograd.grad((plain * upstream).sum(), (natural, temperature))
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_relaxed_draws_tend_to_the_hard_draws_of_the_same_noise():
    natural = torch.randn(1000)
    torch.manual_seed(4)
    hard = SignBernoulli(natural=natural).sample()
    torch.manual_seed(4)
    relaxed = RelaxedSignBernoulli(1e-4, natural).sample()
    assert torch.equal(relaxed.sign(), hard)
    assert (relaxed - hard).abs().median() == 0
    assert RelaxedSignBernoulli(0.5, natural).mode.tolist() == natural.sign().tolist()


def test_relaxed_temperature_broadcasts():
    q = RelaxedSignBernoulli(torch.tensor([0.1, 0.5, 1.0]), torch.zeros(()))
    assert q.batch_shape == (3,) and q.rsample().shape == (3,)
    assert q.log_prob(q.sample()).shape == (3,)
    column = RelaxedSignBernoulli(torch.tensor([[0.1], [0.5]]), torch.zeros(3))
    assert column.expand((4, 2, 3)).rsample().shape == (4, 2, 3)


# Construction


def test_the_four_parameterisations_agree():
    natural = torch.tensor([0.0, 0.3, -2.0])
    for given in (
        {"logits": 2 * natural},
        {"probs": torch.sigmoid(2 * natural)},
        {"mean": torch.tanh(natural)},
    ):
        torch.testing.assert_close(SignBernoulli(**given).natural, natural)
    assert SignBernoulli(natural=1).natural.dtype == torch.get_default_dtype()
    assert SignBernoulli(0.5).natural.item() == 0.5
    natural = torch.randn(2, requires_grad=True)
    SignBernoulli(logits=2 * natural).mean.sum().backward()
    torch.testing.assert_close(natural.grad, 1 - torch.tanh(natural.detach()) ** 2)


@pytest.mark.parametrize("name", HARD)
@pytest.mark.parametrize(
    "given, message",
    [
        ({}, "exactly one of natural, logits, probs and mean; got none"),
        ({"natural": 0.0, "probs": 0.5}, "exactly one of .*; got natural, probs"),
        ({"logits": 0.0, "mean": 0.5}, "exactly one of .*; got logits, mean"),
        ({"natural": math.nan}, "finite values for natural; got nan"),
        ({"natural": -math.inf}, r"finite values for natural; got -inf.*natural=\+-40"),
        ({"logits": math.inf}, "finite values for logits; got inf"),
        ({"probs": 0.0}, "strictly between 0 and 1 for probs; got 0 "),
        ({"probs": 1.0}, "strictly between 0 and 1 for probs; got 1 "),
        ({"probs": -0.1}, "strictly between 0 and 1 for probs; got -0.1"),
        ({"probs": math.nan}, "strictly between 0 and 1 for probs; got nan"),
        ({"mean": 1.0}, "strictly between -1 and 1 for mean; got 1 "),
        ({"mean": -1.5}, "strictly between -1 and 1 for mean; got -1.5"),
        (
            {"natural": torch.zeros(2, dtype=torch.float16)},
            "natural is float16.*pass float32",
        ),
        ({"probs": torch.full((2,), 0.5, dtype=torch.float16)}, "probs is float16"),
    ],
)
def test_bad_parameters_are_refused(name, given, message):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        getattr(bayesbin.distributions, name)(**given)


def test_the_error_counts_the_values_and_shows_the_first_bad_one():
    with pytest.raises(ValueError, match="got inf among 4 values"):
        SignBernoulli(natural=torch.tensor([0.0, math.inf, math.nan, 1.0]))


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, torch.tensor([0.5, 0.0])])
def test_a_temperature_is_positive(temperature):
    with pytest.raises(ValueError, match=r"RelaxedSignBernoulli is positive.*For hard draws"):
        RelaxedSignBernoulli(temperature, torch.zeros(2))


def test_relaxed_refuses_bad_natural_parameters():
    with pytest.raises(ValueError, match="finite values for natural; got nan"):
        RelaxedSignBernoulli(0.5, torch.tensor(math.nan))


@pytest.mark.parametrize("name", HARD)
@pytest.mark.parametrize(
    "value, message",
    [
        (torch.tensor([1.0, 2.0]), r"outside \[-1, 1\] or NaN.*2 \* b - 1"),
        (torch.tensor([1.0, math.nan]), r"outside \[-1, 1\] or NaN"),
        (torch.ones(3), r"shape \(3,\) do not broadcast against the batch shape \(2,\)"),
        (1.0, "takes a tensor of signs; got float"),
    ],
)
def test_bad_values_are_refused(name, value, message):
    q = CONSTRUCTORS[name](torch.zeros(2))
    with pytest.raises(ValueError, match=message):
        q.log_prob(value)


def test_relaxed_refuses_values_outside_its_support():
    with pytest.raises(ValueError, match="support"):
        RelaxedSignBernoulli(0.5, torch.zeros(2)).log_prob(torch.tensor([0.0, 1.5]))


def test_supports():
    values = torch.tensor([-1.0, -0.5, 0.0, 1.0, 1.5, math.nan])
    assert constraints.signs.check(values).tolist() == [True, False, False, True, False, False]
    inside = [True, True, True, True, False, False]
    assert constraints.relaxed_signs.check(values).tolist() == inside
    assert constraints.signs.is_discrete and not constraints.relaxed_signs.is_discrete


# Copies and words


def test_copies(distribution):
    q = distribution(torch.tensor([0.5, -1.0]))
    buffer = io.BytesIO()
    torch.save(q, buffer)
    buffer.seek(0)
    for copied in (
        copy.deepcopy(q),
        pickle.loads(pickle.dumps(q)),
        torch.load(buffer, weights_only=False),
        pickle.loads(pickle.dumps(q.to_event(1))).base_dist,
    ):
        assert type(copied) is type(q) and torch.equal(copied.natural, q.natural)
        value = q.sample()
        assert torch.equal(copied.log_prob(value), q.log_prob(value))


def test_repr_names_the_distribution(distribution):
    name = type(distribution(torch.zeros(2))).__name__
    assert repr(distribution(torch.zeros(2, 3))) == f"{name}(batch_shape=(2, 3))"
    assert repr(distribution(torch.zeros(()))).startswith(name)


# Stock Pyro inference


X = torch.tensor([[0.5, -1.0, 0.3], [1.2, 0.4, -0.7]], dtype=torch.float64)
Y = torch.tensor([0.8, -0.3], dtype=torch.float64)
PRIOR = torch.tensor([0.2, -0.4, 0.0], dtype=torch.float64)
START = torch.tensor([0.3, -0.6, 0.1], dtype=torch.float64)


def regression():
    w = pyro.sample("w", SignBernoulli(natural=PRIOR).to_event(1))
    with pyro.plate("data", 2):
        pyro.sample("y", dist.Normal(torch.tanh(X @ w), 0.7), obs=Y)


def log_likelihood(w: Tensor) -> Tensor:
    return dist.Normal(torch.tanh(X @ w), 0.7).log_prob(Y).sum()


def exact_gradient() -> Tensor:
    """Of the negative ELBO in lambda: the likelihood by enumeration, the KL by its formula."""
    fisher = 1 / torch.cosh(START) ** 2
    return -gradient(log_likelihood, START) + (START - PRIOR) * fisher


def gradients_of(elbo, build, repeats: int) -> Tensor:
    """Draws of the gradient of a stock loss in the natural parameter, one per row."""
    natural = START.clone().requires_grad_()

    def guide():
        pyro.sample("w", build(natural).to_event(1))

    rows = []
    for _ in range(repeats):
        loss = elbo.differentiable_loss(regression, guide)
        rows.append(torch.autograd.grad(loss, natural)[0])
    return torch.stack(rows)


def test_stock_trace_elbo_uses_the_score_function_and_is_unbiased():
    draws = gradients_of(Trace_ELBO(), CONSTRUCTORS["SignBernoulli"], 600)
    assert_within_standard_errors(draws, exact_gradient())
    assert exceeds_standard_errors(draws, -exact_gradient())


def test_stock_trace_enum_elbo_is_exact_over_a_plate_of_weights():
    natural = START.clone().requires_grad_()

    def model():
        with pyro.plate("weights", 3):
            w = pyro.sample("w", SignBernoulli(natural=PRIOR))
            pyro.sample(
                "y", dist.Normal(torch.exp(0.5 * w), 0.7), obs=torch.tensor([0.8, -0.3, 0.4])
            )

    def guide():
        with pyro.plate("weights", 3):
            pyro.sample("w", SignBernoulli(natural=natural), infer={"enumerate": "parallel"})

    def target(w: Tensor) -> Tensor:
        return dist.Normal(torch.exp(0.5 * w), 0.7).log_prob(torch.tensor([0.8, -0.3, 0.4])).sum()

    loss = TraceEnum_ELBO(max_plate_nesting=1).differentiable_loss(model, guide)
    (slope,) = torch.autograd.grad(loss, natural)
    expected = -gradient(target, START) + (START - PRIOR) / torch.cosh(START) ** 2
    torch.testing.assert_close(slope, expected)


@pytest.mark.parametrize("name", ["SignBernoulliStraightThrough", "RelaxedSignBernoulli"])
def test_stock_trace_mean_field_elbo_uses_the_closed_form_kl(name):
    elbo = TraceMeanField_ELBO()
    build = CONSTRUCTORS[name]
    torch.manual_seed(5)
    got = gradients_of(elbo, build, 1)[0]
    # The same draw by hand: the likelihood along the path, the KL of the discrete distributions.
    natural = START.clone().requires_grad_()
    torch.manual_seed(5)
    by_hand = (
        -log_likelihood(build(natural).rsample())
        + kl_divergence(SignBernoulli(natural=natural), SignBernoulli(natural=PRIOR)).sum()
    )
    torch.testing.assert_close(got, torch.autograd.grad(by_hand, natural)[0])


@pytest.mark.parametrize("name", LAWS)
def test_every_distribution_trains_with_stock_svi_and_predicts(name):
    build = CONSTRUCTORS[name]

    def guide():
        natural = pyro.param("natural", torch.zeros(3))
        pyro.sample("w", build(natural).to_event(1))

    elbo = Trace_ELBO() if name == "SignBernoulli" else TraceMeanField_ELBO()
    svi = SVI(regression, guide, Adam({"lr": 0.05}), elbo)
    losses = [svi.step() for _ in range(5)]
    assert all(math.isfinite(loss) for loss in losses)
    assert bool(pyro.param("natural").any())

    def model():
        w = pyro.sample("w", SignBernoulli(natural=PRIOR).to_event(1))
        pyro.sample("y", dist.Normal(X @ w, 0.7).to_event(1))

    draws = Predictive(model, guide=guide, num_samples=8)()
    assert draws["y"].shape == (8, 2)
    prior = Predictive(model, num_samples=8)()
    assert prior["w"].shape == (8, 3) and bool((prior["w"].abs() == 1).all())


def test_predictive_in_parallel():
    def model():
        with pyro.plate("weights", 4):
            return pyro.sample("w", SignBernoulli(natural=torch.tensor([0.0, 1.0, -1.0, 40.0])))

    draws = Predictive(model, num_samples=4000, parallel=True)()["w"]
    assert draws.shape == (4000, 4)
    assert_within_standard_errors(draws, torch.tanh(torch.tensor([0.0, 1.0, -1.0, 40.0])))


def test_masked_and_scaled_sites_count_as_asked():
    mask = torch.tensor([True, False, True])

    def model():
        with pyro.poutine.scale(scale=2.0), pyro.plate("weights", 3):
            pyro.sample("w", SignBernoulli(natural=PRIOR).mask(mask), obs=torch.ones(3))

    trace = pyro.poutine.trace(model).get_trace()
    expected = 2.0 * SignBernoulli(natural=PRIOR).log_prob(torch.ones(3))[mask].sum()
    torch.testing.assert_close(trace.log_prob_sum(), expected)
