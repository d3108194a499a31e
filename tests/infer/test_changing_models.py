"""One ELBO for models that change between calls: nothing found out about a model outlives its call."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import oracles
import pyro
import pytest
import torch
from pyro import poutine
from torch import Tensor, nn

from bayesbin.distributions import SignBernoulli
from bayesbin.estimators import Enumerate, ScoreFunction
from bayesbin.infer import TraceBinary_ELBO

W, V = torch.tensor([0.4, -0.6], dtype=torch.float64), torch.tensor([0.5, -0.2, 0.7]).double()
COUPLING = torch.tensor([0.8, -1.1, 0.5], dtype=torch.float64)


def sample(dependent: bool, batch: Tensor | None = None) -> None:
    w = pyro.sample("w", SignBernoulli(natural=torch.tensor([0.2, -0.3])).to_event(1))
    natural = COUPLING * w.sum() if dependent else 0.3 * COUPLING
    v = pyro.sample("v", SignBernoulli(natural=natural).to_event(1))
    pyro.factor("y", torch.sin(w[0] + (1.0 + dependent) * v[0]) + 0.5 * v[1] * v[2] * w[1])


class Flag:
    """A model with a switch, also as a method."""

    def __init__(self, dependent: bool) -> None:
        self.dependent = dependent

    def __call__(self, batch: Tensor) -> None:
        sample(self.dependent)

    def method(self, batch: Tensor) -> None:
        sample(self.dependent)


@dataclass
class Unhashable:
    dependent: bool

    def __call__(self, batch: Tensor) -> None:
        sample(self.dependent)


class Module(nn.Module):
    """Its prior depends on signs in training mode."""

    def forward(self, batch: Tensor) -> None:
        sample(self.training)


Call = tuple[bool, Any, Tensor]  # whether the prior depends on signs, the model, the batch
SHORT, LONG = torch.zeros(2), torch.ones(3)


def two_objects() -> Iterator[Call]:
    models = [Flag(True), Flag(False)]
    for model in (*models, *models):
        yield model.dependent, model, SHORT


def bound_methods() -> Iterator[Call]:
    models = [Flag(False), Flag(True)]
    for model in (*models, *models):
        yield model.dependent, model.method, SHORT


def a_flag_that_changes() -> Iterator[Call]:
    model = Flag(True)
    for model.dependent in (False, True, False):
        yield model.dependent, model, SHORT


def an_object_without_a_hash() -> Iterator[Call]:
    for dependent in (False, True, False):
        yield dependent, Unhashable(dependent), SHORT


def a_closure() -> Iterator[Call]:
    dependent = False

    def model(batch: Tensor) -> None:
        sample(dependent)

    for dependent in (True, False, True):
        yield dependent, model, SHORT


def a_mode() -> Iterator[Call]:
    model = Module()
    for mode in (True, False, True):
        yield mode, model.train(mode), SHORT


def partials() -> Iterator[Call]:
    for dependent in (False, True, False):
        yield dependent, functools.partial(sample, dependent), SHORT


def one_partial() -> Iterator[Call]:
    flags = {"dependent": False}
    model = functools.partial(lambda flags, batch: sample(flags["dependent"]), flags)
    for flags["dependent"] in (False, True, False):
        yield flags["dependent"], model, SHORT


def a_branch_on_the_shape() -> Iterator[Call]:
    def model(batch: Tensor) -> None:
        sample(len(batch) > 2)

    for batch in (SHORT, LONG, SHORT):
        yield len(batch) > 2, model, batch


def a_branch_on_the_content() -> Iterator[Call]:
    def model(batch: Tensor) -> None:
        sample(bool(batch.sum() > 1))

    for batch in (LONG, torch.zeros(3), LONG):
        yield bool(batch.sum() > 1), model, batch


def written_in_other_ways() -> Iterator[Call]:
    """The dependence goes through a branch, a Python number, numpy, or a tensor that is written into."""

    def branch(batch: Tensor, w: Tensor) -> Tensor:
        return COUPLING if w.sum() > 1 else -COUPLING if w.sum() < -1 else 0.0 * COUPLING

    def number(batch: Tensor, w: Tensor) -> Tensor:
        return COUPLING * (w.sum().item() / 2.0)

    def array(batch: Tensor, w: Tensor) -> Tensor:
        return COUPLING * float(w.detach().numpy().sum() / 2.0)

    def written(batch: Tensor, w: Tensor) -> Tensor:
        target = torch.zeros(1, 3)
        row = target[0]
        target[:] = w.sum() / 2.0
        return COUPLING * row

    def list_of_numbers(batch: Tensor, w: Tensor) -> Tensor:
        return COUPLING * (sum(w.tolist()) / 2.0)

    for way in (branch, number, array, written, list_of_numbers):

        def model(batch: Tensor, way: Any = way) -> None:
            w = pyro.sample("w", SignBernoulli(natural=torch.tensor([0.2, -0.3])).to_event(1))
            v = pyro.sample("v", SignBernoulli(natural=2.0 * way(batch, w)).to_event(1))
            pyro.factor("y", torch.sin(w[0] + 2.0 * v[0]) + 0.5 * v[1] * v[2] * w[1])

        yield True, model, SHORT


def a_mask() -> Iterator[Call]:
    """The prior is the same for all draws, but whether it counts is not."""

    def model(batch: Tensor) -> None:
        w = pyro.sample("w", SignBernoulli(natural=torch.tensor([0.2, -0.3])).to_event(1))
        mask: Any = w[0] > 0
        with poutine.mask(mask=mask):
            v = pyro.sample("v", SignBernoulli(natural=0.3 * COUPLING).to_event(1))
        pyro.factor("y", torch.sin(w[0] + v[0]) + 0.5 * v[1] * v[2] * w[1])

    yield True, model, SHORT


TABLE: tuple[Callable[[], Iterator[Call]], ...] = (
    two_objects,
    bound_methods,
    a_flag_that_changes,
    an_object_without_a_hash,
    a_closure,
    a_mode,
    partials,
    one_partial,
    a_branch_on_the_shape,
    a_branch_on_the_content,
    written_in_other_ways,
    a_mask,
)


def guide_of(natural: list[Tensor]) -> Callable[[Tensor], None]:
    def guide(batch: Tensor) -> None:
        for name, lam in zip("wv", natural, strict=True):
            pyro.sample(name, SignBernoulli(natural=lam).to_event(1))

    return guide


def exact(model: Any, batch: Tensor, masked: bool) -> tuple[float, Tensor]:
    """The loss and its gradient, by Pyro's log-probabilities at every state."""

    def cost(state: Tensor) -> Tensor:
        values = {"w": state[:2], "v": state[2:]}
        trace = poutine.trace(poutine.condition(model, values)).get_trace(batch)
        log_q = SignBernoulli(natural=W).log_prob(values["w"]).sum()
        if not masked or state[0] > 0:
            log_q = log_q + SignBernoulli(natural=V).log_prob(values["v"]).sum()
        return log_q - trace.log_prob_sum()

    natural = torch.cat([W, V])
    # E_q[d log q / d lambda] = 0, so that the gradient is that of E_q[cost] at fixed log q.
    return oracles.expectation(cost, natural), oracles.gradient(cost, natural)


def loss_and_gradient(elbo: TraceBinary_ELBO, model: Any, batch: Tensor) -> tuple[Tensor, Tensor]:
    natural = [lam.clone().requires_grad_() for lam in (W, V)]
    torch.manual_seed(3)
    loss = elbo.differentiable_loss(model, guide_of(natural), batch)
    return loss.detach(), torch.cat(torch.autograd.grad(loss, natural))


@pytest.mark.parametrize("calls", TABLE)
def test_value_and_gradient_are_those_of_the_model_as_it_is_now(calls):
    elbo, sampler = TraceBinary_ELBO(Enumerate()), TraceBinary_ELBO(ScoreFunction(5))
    for dependent, model, batch in calls():
        loss, gradient = loss_and_gradient(elbo, model, batch)
        value, slope = exact(model, batch, calls is a_mask)
        torch.testing.assert_close(loss.item(), value)
        torch.testing.assert_close(gradient, slope)
        kl = elbo.terms(model, guide_of([W, V]), batch).kl.item()
        kl_of_w = oracles.kl(W, torch.tensor([0.2, -0.3]))
        kl_of_v = 0.0 if dependent else oracles.kl(V, 0.3 * COUPLING)
        assert kl == pytest.approx(kl_of_w + kl_of_v)  # what depends is averaged, and nothing else
        mine = loss_and_gradient(sampler, model, batch)
        fresh = loss_and_gradient(TraceBinary_ELBO(ScoreFunction(5)), model, batch)
        assert all(torch.equal(a, b) for a, b in zip(mine, fresh, strict=True))


def test_a_guide_that_changes_its_mind_is_refused_from_then_on():
    flags: dict[str, bool | None] = {"dependent": False}

    def guide(batch: Tensor) -> None:
        w = pyro.sample("w", SignBernoulli(natural=W).to_event(1))
        natural = V * w.prod() if flags["dependent"] else V
        if flags["dependent"] is None and w.sum() > 0:
            natural = -V
        pyro.sample("v", SignBernoulli(natural=natural).to_event(1))

    elbo = TraceBinary_ELBO(Enumerate())
    model = Flag(True)
    for dependent in (False, True, False, None):
        flags["dependent"] = dependent
        if dependent is False:
            assert elbo.terms(model, guide, SHORT).loss.isfinite()
        else:
            with pytest.raises(ValueError, match=r"guide's distribution at \['v'\] depends on the"):
                elbo.terms(model, guide, SHORT)


def test_the_modes_of_torch_that_a_model_enters_are_left_as_they_were():
    def model(batch: Tensor) -> None:
        with torch.device("cpu"):
            w = pyro.sample("w", SignBernoulli(natural=torch.tensor([0.2, -0.3])).to_event(1))
            v = pyro.sample("v", SignBernoulli(natural=COUPLING * w.sum()).to_event(1))
        assert torch.overrides._get_current_function_mode() is not torch.device("cpu")
        pyro.factor("y", w.sum() * v[0])

    elbo = TraceBinary_ELBO(Enumerate())
    loss = elbo.differentiable_loss(model, guide_of([W, V]), SHORT)
    assert torch._C._len_torch_function_stack() == 0
    assert loss.item() == pytest.approx(exact(model, SHORT, False)[0])

    def broken(batch: Tensor) -> None:
        pyro.sample("w", SignBernoulli(natural=torch.tensor([0.2, -0.3])).to_event(1))
        raise RuntimeError("of its own")

    with pytest.raises(RuntimeError, match="of its own"):
        elbo.differentiable_loss(broken, guide_of([W, V]), SHORT)
    assert torch._C._len_torch_function_stack() == 0
