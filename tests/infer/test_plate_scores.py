"""Signs in plates: estimators weigh each element by its own terms, without bias and with less noise."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from stats import assert_within_standard_errors, exceeds_standard_errors
from torch import Tensor, nn

from bayesbin.core import numerics
from bayesbin.distributions import LowBitCategorical, SignBernoulli
from bayesbin.estimators import (
    ARM,
    ARMS,
    REBAR,
    RELAX,
    BatchObjective,
    DisARM,
    Enumerate,
    Estimator,
    Learned,
    LocalExpectation,
    MovingAverage,
    ScoreFunction,
)
from bayesbin.estimators.base import Term
from bayesbin.estimators.site_distributions import all_states
from bayesbin.infer import TraceBinary_ELBO

X = torch.tensor([0.9, -1.3, 0.4, 1.7, -0.6, 0.2], dtype=torch.float64)
Y = torch.tensor([0.3, -0.8, 1.4, 0.1, 0.9, -1.2], dtype=torch.float64)


def sign(name: str, natural: Any, *shape: int, events: int = 0) -> Tensor:
    natural = torch.as_tensor(natural, dtype=torch.float64)
    natural = natural.expand(shape) if shape else natural
    return pyro.sample(name, SignBernoulli(natural=natural).to_event(events))


def normal(name: str, loc: Tensor, obs: Any, scale: float = 0.8) -> None:
    pyro.sample(name, dist.Normal(loc, scale), obs=torch.as_tensor(obs, dtype=torch.float64))


# The models: each with the shapes of its signs, and with the evaluations that LocalExpectation needs


def local() -> None:
    with pyro.plate("data", 5):
        z = sign("z", 0.3)
        normal("y", torch.tanh(X[:5] + 0.9 * z), Y[:5])


def local_vector() -> None:
    with pyro.plate("data", 3):
        z = sign("z", torch.tensor([0.2, -0.4]), 2, events=1)
        normal("y", z[..., 0] * X[:3] + 0.5 * z.prod(-1), Y[:3])


def local_and_global() -> None:
    w = sign("w", 0.1, 2, events=1)
    with pyro.plate("data", 4):
        z = sign("z", -0.2)
        normal("y", torch.exp(0.4 * w[0] * z) + w[1] * X[:4] * z, Y[:4])


def dependent_prior() -> None:
    w = sign("w", 0.4, 2, events=1)
    v = sign("v", 0.6 * w[0])
    with pyro.plate("data", 4):
        z = sign("z", 0.5 * w.sum() * X[:4] - 0.3 * v)
        normal("y", z * X[:4] + 0.4 * w[1] * v, Y[:4])


def nested() -> None:
    w = sign("w", 0.2)
    with pyro.plate("groups", 2, dim=-2):
        g = sign("g", 0.3 * w, 2, 1)
        normal("y_group", 0.8 * g, [[0.4], [-1.0]])
        with pyro.plate("data", 2, dim=-1):
            z = sign("z", 0.7 * g)
            normal("y", z * X[:4].reshape(2, 2) + torch.exp(0.3 * g) * w, Y[:4].reshape(2, 2))


def crossed() -> None:
    rows, columns = pyro.plate("rows", 2, dim=-2), pyro.plate("columns", 2, dim=-1)
    with rows:
        a = sign("a", 0.1, 2, 1)
    with columns:
        b = sign("b", -0.2)
    with rows, columns:
        c = sign("c", 0.3 * a)
        normal("y", a * b + 0.6 * torch.exp(0.5 * c) * X[:4].reshape(2, 2), Y[:4].reshape(2, 2))
    with rows:
        normal("y_row", torch.tanh(a + c.sum(-1, keepdim=True)), Y[:2, None])


def terms_outside() -> None:
    """What lies outside of the plate depends on all of its signs together."""
    with pyro.plate("data", 4):
        z = sign("z", 0.2)
        normal("y", z * X[:4], Y[:4])
    normal("total", z.sum().square(), 3.0, 2.0)


def outside_before() -> None:
    """Terms outside of the plate that come before its signs: they are still flipped together."""
    w = sign("w", 0.1)
    v = sign("v", 0.8 * w)
    normal("early", w * v, 0.4)
    with pyro.plate("data", 4):
        z = sign("z", 0.3 * v)
        normal("y", z * X[:4] * w, Y[:4])


def masks_and_weights() -> None:
    weights = torch.tensor([0.5, 2.0, 1.0, 3.0])
    with pyro.plate("data", 4), poutine.scale(scale=weights):
        with poutine.mask(mask=torch.tensor([True, True, False, True])):
            z = sign("z", 0.4)
        w = sign("w", 0.2 * z)
        with poutine.mask(mask=torch.tensor([True, False, True, True])):
            normal("y", z * X[:4] + 0.3 * w, Y[:4])


def sequential() -> None:
    w = sign("w", 0.2)
    for i in pyro.plate("data", 2):
        z = sign(f"z{i}", 0.4 * w)
        u = sign(f"u{i}", -0.1)
        normal(f"y{i}", z * X[i] + w * u, Y[i])


def markov() -> None:
    before = torch.tensor(0.5)
    for i in pyro.markov(range(3)):
        before = sign(f"z{i}", 0.6 * before)
        normal(f"y{i}", before * X[i], Y[i])


def three_of_twelve() -> Any:
    return pyro.plate("data", 12, subsample=torch.tensor([7, 2, 3]))


def batch_of_a_plate() -> None:
    """Two shapes of local signs, and a real scale of N / n: a minibatch by explicit indices."""
    with three_of_twelve():
        z = sign("z", 0.3)
        v = sign("v", 0.2 * z[:, None], 3, 2, events=1)
        normal("y", z * X[:3] + 0.4 * v.sum(-1) * z, Y[:3])


@dataclass(frozen=True)
class Case:
    model: Callable[[], None]
    shapes: Mapping[str, tuple[int, ...]]
    evaluations: int  # of LocalExpectation, per draw
    plate: Callable[[], Any] = nullcontext  # of the guide

    @property
    def natural(self) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(4)
        return {
            name: torch.empty(shape, dtype=torch.float64)
            .uniform_(-0.9, 0.9, generator=generator)
            .requires_grad_()
            for name, shape in self.shapes.items()
        }


STEPS = {f"{name}{i}": () for i in range(2) for name in "zu"}
CASES = {
    case.model.__name__: case
    for case in (
        Case(local, {"z": (5,)}, 2),
        Case(local_vector, {"z": (3, 2)}, 3),
        Case(local_and_global, {"w": (2,), "z": (4,)}, 4),
        Case(dependent_prior, {"w": (2,), "v": (), "z": (4,)}, 5),
        Case(nested, {"w": (), "g": (2, 1), "z": (2, 2)}, 4),
        Case(crossed, {"a": (2, 1), "b": (2,), "c": (2, 2)}, 6),
        Case(terms_outside, {"z": (4,)}, 5),
        Case(outside_before, {"w": (), "v": (), "z": (4,)}, 4),
        Case(masks_and_weights, {"z": (4,), "w": (4,)}, 3),
        Case(sequential, {"w": (), **STEPS}, 6),
        Case(markov, {f"z{i}": () for i in range(3)}, 4),
        Case(batch_of_a_plate, {"z": (3,), "v": (3, 2)}, 4, three_of_twelve),
    )
}  # fmt: skip
ESTIMATORS: dict[str, Callable[[], Estimator]] = {
    "no baseline": lambda: ScoreFunction(6, None),
    "leave-one-out": lambda: ScoreFunction(6),
    "moving average": lambda: ScoreFunction(6, MovingAverage()),
    "learned": lambda: ScoreFunction(6, Learned()),
    "ARM": lambda: ARM(3),
    "DisARM": lambda: DisARM(3),
    "ARMS": lambda: ARMS(6),
    "LocalExpectation": lambda: LocalExpectation(2),
}


def guide_of(case: Case, natural: Mapping[str, Tensor]) -> Callable[[], None]:
    """A guide that says nothing of plates, where it may: those of the model count."""

    def guide() -> None:
        with case.plate():
            for name, lam in natural.items():
                events = lam.dim() - (case.plate is not nullcontext)
                pyro.sample(name, SignBernoulli(natural=lam).to_event(events))

    return guide


class Tabulated(Estimator):
    """Keeps the terms that it is handed, at every state, as an objective that looks them up."""

    unbiased = True

    def forward(self, objective: Any, natural: Mapping[str, Tensor]) -> Tensor:
        self.states, _ = all_states(natural)
        self.shapes = {name: lam.shape for name, lam in natural.items()}
        with torch.no_grad():
            self.terms = list(objective.terms(self.states))
        self.plates = objective.plates
        return objective({name: values[:1] for name, values in self.states.items()}).mean()

    def objective(self, change: Callable[[Term], Term] = lambda term: term) -> BatchObjective:
        terms = [change(term) for term in self.terms]

        def look_up(values: Mapping[str, Sequence[Tensor]]) -> list[Term]:
            flat = torch.cat(
                [torch.stack(list(values[n])).reshape(len(values[n]), -1) for n in self.states], 1
            )
            powers = 2 ** torch.arange(flat.shape[1] - 1, -1, -1)
            index = ((flat > 0) * powers).sum(1)
            return [term._replace(values=term.values[index]) for term in terms]

        return BatchObjective(look_up, plates=self.plates)


@functools.cache
def tabulated(name: str) -> tuple[Tabulated, dict[str, Tensor]]:
    case = CASES[name]
    natural = case.natural
    probe = Tabulated()
    with pyro.validation_enabled(False):
        TraceBinary_ELBO(probe).terms(case.model, guide_of(case, natural))
    return probe, natural


def exact_loss(case: Case, natural: Mapping[str, Tensor]) -> Tensor:
    """E_q[log q - log p] by Pyro's own log-probabilities at every state; p masked where it is masked."""
    states, log_q = all_states(natural)
    total = torch.zeros(())
    for s in range(len(log_q)):
        values = {name: sequence[s] for name, sequence in states.items()}
        trace = poutine.trace(poutine.condition(case.model, values)).get_trace()
        total = total - log_q[s].exp() * trace.log_prob_sum()
    plain = poutine.trace(poutine.condition(case.model, {n: v[0] for n, v in states.items()}))
    for name, site in plain.get_trace().nodes.items():
        if name in natural:  # the negative entropy, scaled and masked as the site is
            lam = natural[name]
            entropy = numerics.kl_divergence(lam, torch.zeros_like(lam)) - torch.log(
                torch.tensor(2.0)
            )
            by_batch = (
                entropy.sum(tuple(range(-site["fn"].event_dim, 0)))
                if site["fn"].event_dim
                else entropy
            )
            if site["mask"] is not None:
                by_batch = torch.where(site["mask"], by_batch, 0.0)
            total = total + (by_batch * site["scale"]).sum()
    return total


def flat_gradient(loss: Tensor, natural: Mapping[str, Tensor]) -> Tensor:
    slopes = torch.autograd.grad(loss, list(natural.values()), materialize_grads=True)
    return torch.cat([slope.flatten() for slope in slopes])


@pytest.mark.parametrize("name", CASES)
def test_the_loss_is_the_sum_over_all_states(name):
    case = CASES[name]
    natural = case.natural
    with pyro.validation_enabled(False):
        loss = TraceBinary_ELBO(Enumerate()).differentiable_loss(
            case.model, guide_of(case, natural)
        )
        exact = exact_loss(case, natural)
    torch.testing.assert_close(loss, exact)
    torch.testing.assert_close(flat_gradient(loss, natural), flat_gradient(exact, natural))


def gradients(
    estimator: Estimator, objective: Any, natural: Mapping[str, Tensor], count: int = 40
) -> Tensor:
    return torch.stack(
        [flat_gradient(estimator(objective, natural), natural) for _ in range(count)]
    )


@pytest.mark.parametrize("name", CASES)
def test_every_estimator_of_scores_is_unbiased(name):
    probe, natural = tabulated(name)
    expected = flat_gradient(Enumerate()(probe.objective(), natural), natural)
    for build in ESTIMATORS.values():
        # One is added, so that a slope of 0 is compared with the rounding of the others.
        slopes = gradients(build(), probe.objective(), natural)
        assert_within_standard_errors(1.0 + slopes, 1.0 + expected)


TWINS: dict[str, tuple[str, Callable[[Term], Term]]] = {
    "weighs by the wrong datum": (
        "local",
        lambda term: term._replace(values=term.values.roll(1, -1)),
    ),
    "leaves out what lies outside of the plate": (
        "terms_outside",
        lambda term: term if term.plates else term._replace(values=0.0 * term.values),
    ),
    "flips together what has to be flipped alone": (
        "terms_outside",
        lambda term: term._replace(after=frozenset(("z",) if term.plates else ())),
    ),
    "takes one datum for the terms of global signs": (
        "local_and_global",
        lambda term: term._replace(values=term.values * torch.tensor([1.0, 0.0, 0.0, 0.0])),
    ),
    "takes the other plate of two": (
        "batch_of_a_plate",
        lambda term: term._replace(values=term.values.roll(1, 1)),
    ),
    "leaves out terms of the prior": (
        "dependent_prior",
        lambda term: term._replace(after=term.after and term.after - {"w"}),
    ),
}


@pytest.mark.parametrize("twin", TWINS)
def test_a_biased_twin_is_found_out(twin):
    name, change = TWINS[twin]
    probe, natural = tabulated(name)
    expected = flat_gradient(Enumerate()(probe.objective(), natural), natural)
    for build in (lambda: DisARM(3), lambda: ScoreFunction(6), lambda: LocalExpectation(2)):
        assert exceeds_standard_errors(
            gradients(build(), probe.objective(change), natural), expected
        )


@pytest.mark.parametrize("name", CASES)
def test_local_expectation_flips_the_elements_of_a_plate_together(name):
    probe, natural = tabulated(name)
    objective = probe.objective()
    evaluations = 0

    def counted(values: Any) -> Any:
        nonlocal evaluations
        evaluations += len(next(iter(values.values())))
        return objective.evaluate(values)

    LocalExpectation()(BatchObjective(counted, plates=objective.plates), natural)
    assert evaluations == CASES[name].evaluations


# Through the ELBO


def minibatch(index: Tensor) -> Callable[[], None]:
    def model() -> None:
        w = sign("w", 0.2)
        with pyro.plate("data", 4, subsample=index):
            z = sign("z", 0.6 * w * X[index])
            normal("y", torch.exp(0.4 * z * w) + z * X[index], Y[index])

    return model


def test_the_average_over_all_minibatches_is_the_gradient_of_the_whole():
    """Of the exact expectation to rounding, and of DisARM's and a baseline's mean to standard errors."""
    w, z = torch.tensor(0.3, requires_grad=True), torch.tensor([0.4, -0.7, 0.2, 0.9])
    z.requires_grad_()
    batches = [torch.tensor(pair) for pair in itertools.combinations(range(4), 2)]

    def gradient(estimator: Estimator, index: Tensor) -> Tensor:
        def guide() -> None:
            pyro.sample("w", SignBernoulli(natural=w))
            with pyro.plate("data", 4, subsample=index):
                pyro.sample("z", SignBernoulli(natural=z[index]))

        loss = TraceBinary_ELBO(estimator).differentiable_loss(minibatch(index), guide)
        return flat_gradient(loss, {"w": w, "z": z})

    exact = gradient(Enumerate(), torch.arange(4))
    average = torch.stack([gradient(Enumerate(), index) for index in batches]).mean(0)
    torch.testing.assert_close(average, exact)
    disarm, moving = DisARM(2), ScoreFunction(4, MovingAverage())
    for estimator in (disarm, moving):
        found = [
            torch.stack([gradient(estimator, index) for index in batches]).mean(0) for _ in range(8)
        ]
        assert_within_standard_errors(torch.stack(found), exact)


@pytest.mark.parametrize("build", [lambda: REBAR(tune=False), lambda: REBAR(), lambda: RELAX()])
def test_the_control_variates_are_unbiased_for_signs_in_plates(build):
    case = CASES["local_and_global"]
    natural = case.natural
    guide, estimator = guide_of(case, natural), build()
    exact = TraceBinary_ELBO(Enumerate()).differentiable_loss(case.model, guide)
    expected = flat_gradient(exact, natural)
    elbo = TraceBinary_ELBO(estimator)
    slopes = [
        flat_gradient(elbo.differentiable_loss(case.model, guide), natural) for _ in range(60)
    ]
    assert_within_standard_errors(torch.stack(slopes), expected)
    if isinstance(estimator, REBAR):  # a control variate of its own datum
        elbo = TraceBinary_ELBO(Whole(estimator))
        whole = [
            flat_gradient(elbo.differentiable_loss(case.model, guide), natural) for _ in range(60)
        ]
        assert torch.stack(slopes).var(0).sum() < torch.stack(whole).var(0).sum()


def test_weights_of_a_few_levels_in_a_plate():
    """Each datum has a weight of three levels; the score function is the only one that takes them."""
    levels = (-1.0, 0.0, 1.0)
    logits = torch.tensor([[0.2, -0.4, 0.1], [0.5, 0.3, -0.6], [0.0, 0.9, 0.2]])
    logits.requires_grad_()

    def model() -> None:
        with pyro.plate("data", 3):
            z = pyro.sample("z", LowBitCategorical(levels, torch.zeros(3, 3)))
            normal("y", z * X[:3] + z.square(), Y[:3])

    def guide() -> None:
        with pyro.plate("data", 3):
            pyro.sample("z", LowBitCategorical(levels, logits))

    def gradient(estimator: Estimator) -> Tensor:
        loss = TraceBinary_ELBO(estimator).differentiable_loss(model, guide)
        return torch.autograd.grad(loss, logits)[0]

    exact = gradient(Enumerate())
    by_plate = torch.stack([gradient(ScoreFunction(8)) for _ in range(50)])
    whole = torch.stack([gradient(Whole(ScoreFunction(8))) for _ in range(50)])
    assert_within_standard_errors(by_plate, exact)
    assert by_plate.var(0).sum() < 0.7 * whole.var(0).sum()


class Whole(Estimator):
    """Another estimator, told nothing of terms and plates."""

    unbiased = True
    low_bit = True

    def __init__(self, estimator: Estimator) -> None:
        super().__init__()
        self.estimator = estimator

    def forward(self, objective: Any, natural: Mapping[str, Any]) -> Tensor:
        return self.estimator(lambda values: objective(values), natural)


def test_the_noise_is_at_most_that_of_pyros_own_loss():
    """A sigmoid belief network of 60 data with a sign each, at two draws."""
    generator = torch.Generator().manual_seed(0)
    weight = 1.2 * torch.randn(6, generator=generator)
    x = torch.bernoulli(torch.full((60, 6), 0.5), generator=generator)
    natural = (0.5 * torch.randn(60, generator=generator)).requires_grad_()

    def model() -> None:
        with pyro.plate("data", 60):
            z = pyro.sample("z", SignBernoulli(natural=torch.zeros(60)))
            pyro.sample("x", dist.Bernoulli(logits=z[:, None] * weight).to_event(1), obs=x)

    def guide() -> None:
        with pyro.plate("data", 60):
            pyro.sample("z", SignBernoulli(natural=natural))

    def deviation(loss: Any) -> float:
        slopes = [
            torch.autograd.grad(loss.differentiable_loss(model, guide), natural)[0]
            for _ in range(40)
        ]
        return float(torch.stack(slopes).var(0).sum().sqrt())

    stock = deviation(Trace_ELBO(num_particles=2))
    for estimator in (
        ScoreFunction(2),
        ScoreFunction(2, MovingAverage()),
        ARM(),
        DisARM(),
        ARMS(2),
    ):
        assert deviation(TraceBinary_ELBO(estimator)) < 1.2 * stock
    assert deviation(TraceBinary_ELBO(LocalExpectation())) < 1e-10
    assert deviation(TraceBinary_ELBO(Whole(DisARM()))) > 1.2 * stock


# What baselines keep


def test_a_moving_average_is_kept_for_each_element_of_a_whole_plate_and_goes_round():
    probe, natural = tabulated("local_and_global")
    estimator = ScoreFunction(3, MovingAverage())
    gradients(estimator, probe.objective(), natural, 4)
    state = estimator.state_dict()
    assert state["baseline.by_site.z.mean_sum"].shape == (4,)
    assert state["baseline.by_site.w.mean_sum"].shape == ()
    again = ScoreFunction(3, MovingAverage())
    again.load_state_dict(state)
    torch.manual_seed(5)
    first = gradients(estimator, probe.objective(), natural, 1)
    torch.manual_seed(5)
    assert torch.equal(gradients(again, probe.objective(), natural, 1), first)
    probe, natural = tabulated("batch_of_a_plate")  # which datum is in a batch is not known
    estimator = ScoreFunction(3, MovingAverage())
    gradients(estimator, probe.objective(), natural, 2)
    assert estimator.state_dict()["baseline.by_site.z.mean_sum"].shape == ()


@pytest.mark.parametrize("shape", [(), (4,), (3,)])
def test_a_learned_baseline_of_the_batch_may_return_a_number_for_each_datum(shape):
    class OfTheBatch(nn.Module):
        def forward(self) -> Tensor:
            return torch.linspace(-1.0, 1.0, 4)[: shape[0]] if shape else torch.tensor(0.3)

    case = CASES["local_and_global"]
    natural = case.natural
    elbo = TraceBinary_ELBO(ScoreFunction(6, Learned(OfTheBatch())))
    guide = guide_of(case, natural)
    if shape == (3,):
        with pytest.raises(ValueError, match="returns one number per batch, or one for each"):
            elbo.differentiable_loss(case.model, guide)
        return
    exact = TraceBinary_ELBO(Enumerate()).differentiable_loss(case.model, guide)
    slopes = [
        flat_gradient(elbo.differentiable_loss(case.model, guide), natural) for _ in range(60)
    ]
    assert_within_standard_errors(torch.stack(slopes), flat_gradient(exact, natural))


class Shorter(dist.Normal):
    """A distribution whose log-probabilities are not of its batch shape."""

    def log_prob(self, value: Tensor) -> Tensor:
        return super().log_prob(value)[:3]


def test_a_term_of_another_size_than_its_plate_is_refused():
    def model() -> None:
        with pyro.plate("data", 5):
            sign("z", 0.3)
            pyro.sample("y", Shorter(torch.zeros(5), 1.0), obs=Y[:5])

    case = CASES["local"]
    with pytest.raises(
        ValueError, match="term of 'y' has 3 elements along the plate 'data' of size 5"
    ):
        TraceBinary_ELBO(DisARM()).terms(model, guide_of(case, case.natural))


# In sixteen bits


AUTOCAST: dict[str, Callable[[], Estimator]] = {
    "LocalExpectation": lambda: LocalExpectation(2),
    "DisARM": lambda: DisARM(8),
    "leave-one-out": lambda: ScoreFunction(8),
    "REBAR": lambda: REBAR(num_samples=4),
    "Enumerate": Enumerate,
}


@pytest.mark.parametrize("name", AUTOCAST)
def test_under_autocast_the_loss_is_float32_and_its_gradient_that_of_the_rounded_network(name):
    """5,000 data: in bfloat16 the sum would be off by tens of nats, and differences of it by more."""
    torch.set_default_dtype(torch.float32)
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(5000, 4, generator=generator), torch.randn(5000, generator=generator)
    natural = torch.tensor([0.3, -0.5, 0.2, 0.8], requires_grad=True)

    def model() -> None:
        w = pyro.sample("w", SignBernoulli(natural=torch.zeros(4)).to_event(1))
        with pyro.plate("data", 5000):
            pyro.sample("y", dist.Normal(0.2 * (x @ w[:, None])[:, 0], 1.0), obs=y)

    def guide() -> None:
        pyro.sample("w", SignBernoulli(natural=natural).to_event(1))

    found = []
    for enabled in (False, True):
        torch.manual_seed(2)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            loss = TraceBinary_ELBO(AUTOCAST[name]()).differentiable_loss(model, guide)
        assert loss.dtype == torch.float32
        found.append((loss.item(), torch.autograd.grad(loss, natural)[0]))
    (plain, slope), (rounded, rounded_slope) = found
    assert rounded == pytest.approx(plain, rel=2e-4)
    assert (rounded_slope - slope).norm() < 0.02 * slope.norm()
