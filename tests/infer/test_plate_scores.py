"""Signs in plates: estimators weigh each element by its own terms, without bias and with less noise."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from stats import assert_within_standard_errors, exceeds_standard_errors
from torch import Tensor

from bayesbin.core import numerics
from bayesbin.distributions import SignBernoulli
from bayesbin.estimators import (
    ARM,
    ARMS,
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


def batch_of_a_plate() -> None:
    """Two shapes of local signs, and a real scale of N / n: a minibatch by explicit indices."""
    with pyro.plate("data", 12, subsample=torch.tensor([7, 2, 3])):
        z = sign("z", 0.3)
        v = sign("v", 0.2 * z[:, None], 3, 2, events=1)
        normal("y", z * X[:3] + 0.4 * v.sum(-1) * z, Y[:3])


@dataclass(frozen=True)
class Case:
    model: Callable[[], None]
    shapes: Mapping[str, tuple[int, ...]]
    evaluations: int  # of LocalExpectation, per draw

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
        Case(batch_of_a_plate, {"z": (3,), "v": (3, 2)}, 4),
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
    """A guide that says nothing of plates: those of the model count."""

    def guide() -> None:
        for name, lam in natural.items():
            pyro.sample(name, SignBernoulli(natural=lam).to_event(lam.dim()))

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
