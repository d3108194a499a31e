"""Prior policies and boundaries against their formulas, and that a prior is a copy."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from problems import dataset, learner, naturals, same, tasks

from bayesbin.continual import ContinualLearner, Task
from bayesbin.continual.priors import (
    AtTaskEnd,
    CappedPrior,
    Continuous,
    EveryNSteps,
    ExactPrior,
    FixedPrior,
    LeakyPrior,
    NoPrior,
    PriorPolicy,
    RelaxedPrior,
    named_prior_policy,
)
from bayesbin.continual.task_model import TaskModel
from bayesbin.core.names import PRIOR_POLICIES
from bayesbin.estimators import LocalReparameterization
from bayesbin.infer import TraceBinary_ELBO
from bayesbin.optim import BayesianLearningRule

PREVIOUS = {"w": torch.tensor([-4.0, 0.5, 2.0])}
INITIAL = {"w": torch.tensor([1.0, 0.0, 0.0])}


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (ExactPrior(), [-4.0, 0.5, 2.0]),
        (NoPrior(), [-4.0, 0.5, 2.0]),
        (FixedPrior(), [1.0, 0.0, 0.0]),
        (RelaxedPrior(0.5), [-1.5, 0.25, 1.0]),
        (CappedPrior(1.0), [-1.0, 0.5, 1.0]),
        (LeakyPrior(4.0), [-2.75, 0.375, 1.5]),
    ],
)
def test_formulas_by_value(policy: PriorPolicy, expected: list[float]) -> None:
    previous = {"w": PREVIOUS["w"].clone()}
    initial = {"w": INITIAL["w"].clone()}
    prior = policy.prior(previous, initial)["w"]
    assert prior.tolist() == expected
    previous["w"].add_(1.0)
    initial["w"].add_(1.0)
    assert prior.tolist() == expected  # whatever becomes of the originals


def test_names() -> None:
    settings: dict[str, Any] = {"relax": {"gamma": 0.5}, "cap": {"cap": 2.0}, "leak": {"window": 9}}
    made = {name: named_prior_policy(name, **settings.get(name, {})) for name in PRIOR_POLICIES}
    assert made["relax"] == RelaxedPrior(0.5) and made["cap"] == CappedPrior(2.0)
    assert made["leak"] == LeakyPrior(9) and made["none"] == NoPrior()
    for name, wrong in (("relax", {}), ("exact", {"gamma": 0.5}), ("cap", {"window": 3.0})):
        with pytest.raises(ValueError, match=f"the prior policy '{name}' takes"):
            named_prior_policy(name, **wrong)
    with pytest.raises(ValueError, match="expected prior_policy to be one of exact"):
        named_prior_policy("other")


@pytest.mark.parametrize(
    "make",
    [
        lambda: RelaxedPrior(1.5),
        lambda: RelaxedPrior(math.nan),
        lambda: CappedPrior(0.0),
        lambda: LeakyPrior(1.0),
        lambda: EveryNSteps(0),
    ],
)
def test_refuses(make: Any) -> None:
    with pytest.raises(ValueError, match="got"):
        make()


def kl_after_a_step(alias: bool) -> float:
    """The KL to the snapshot after the guide has moved in place; 0 if the snapshot is an alias."""
    made = learner()
    signs = {name: made.guide.natural_of(name) for name in made.guide.sites}
    model = TaskModel(made.model, signs, {})
    if alias:
        for i, natural in enumerate(signs.values()):
            model.register_buffer(f"natural_{i}", natural.detach())
    with torch.no_grad():
        for parameter in made.guide.natural_parameters():
            parameter.add_(0.5)
    elbo = TraceBinary_ELBO(LocalReparameterization())
    data = dataset(0)
    return elbo.terms(model, made.guide, data.x[:1], data.y[:1]).kl.item()


def test_training_in_place_cannot_move_the_prior() -> None:
    assert abs(kl_after_a_step(alias=True)) < 1e-12  # the mistake that this is about
    assert kl_after_a_step(alias=False) > 1.0


def test_the_prior_of_a_task_is_the_posterior_of_the_last(monkeypatch: Any) -> None:
    seen: list[dict[str, torch.Tensor]] = []
    real = TaskModel.__init__

    def spy(self: Any, model: Any, signs: Any, reals: Any) -> None:
        real(self, model, signs, reals)
        seen.append({name: buffer for name, buffer in self.priors().items()})

    monkeypatch.setattr(TaskModel, "__init__", spy)
    made = learner()
    first, second = tasks(2)
    made.observe(first)
    after = naturals(made)
    made.observe(second)
    assert seen[0] == {}  # the model's own
    assert same(list(seen[1].values()), after)
    assert not same(naturals(made), after)


def test_zero_data_and_zero_information_leave_the_posterior_unchanged() -> None:
    made = learner()
    first, second = tasks(2)
    made.observe(first)
    before = naturals(made)
    report = made.observe(second.exam())
    assert same(naturals(made), before)
    assert (report.dataset_size, report.history, report.kl_bits) == (0, [], 0.0)
    assert report.layers and report.entropy_bits > 0

    # Inputs of 0 say nothing about the weights, and steps of the optimizer are taken.
    data = dataset(1)
    silent = Task("silent", type(data)(0.0 * data.x, data.y, "silent", 3), data)
    report = made.observe(silent)
    assert same(naturals(made), before) and len(report.history) == 2
    assert abs(report.kl_bits) < 1e-9
    forgetful = learner(prior_policy="fixed")
    forgetful.observe(first)
    before = naturals(forgetful)
    forgetful.observe(silent)
    assert not same(naturals(forgetful), before)


def test_no_prior_has_no_kl_term() -> None:
    made = learner(prior_policy="none")
    for task in tasks(2):
        report = made.observe(task)
        assert all(row["kl_weight"] == 0.0 for row in report.history)


def test_a_leaking_posterior_leaks_between_steps() -> None:
    # Without information in the data all that happens is the leak: (1 - 1/N_w) per step, from the
    # initial state, towards the model's prior of 0.
    data = dataset(0)
    silent = Task("silent", type(data)(0.0 * data.x, data.y, "silent", 3), data)
    made = learner(prior_policy=LeakyPrior(10.0), optimizers=still)
    assert made.boundary == Continuous()
    before = naturals(made)
    made.observe(silent)
    for now, start in zip(naturals(made), before, strict=True):
        torch.testing.assert_close(now, start * 0.9 ** (2 * math.ceil(40 / 16)))


def still(guide: Any, model: Any, dataset_size: int) -> list[Any]:
    """Steps that do not move anything: in the first, the KL pulls towards the model's prior."""
    return [BayesianLearningRule(guide.natural_parameters(), lr=0.0)]


def test_boundaries_within_a_task(monkeypatch: Any) -> None:
    moved: list[int] = []
    real = TaskModel.set_priors_

    def spy(self: Any, signs: Any) -> None:
        moved.append(int(self.steps))
        real(self, signs)
        for name, buffer in self.priors().items():
            assert torch.equal(buffer, made.guide.natural_of(name))
            assert buffer.data_ptr() != made.guide.natural_of(name).data_ptr()

    monkeypatch.setattr(TaskModel, "set_priors_", spy)
    made = learner(boundary=EveryNSteps(2))
    made.observe(tasks(1)[0])
    assert moved == [2, 4, 6]
    moved.clear()
    made = learner(boundary=Continuous())
    report = made.observe(tasks(1)[0])
    assert moved == [1, 2, 3, 4, 5, 6]
    kl = [row["kl"] for row in report.history]
    assert kl[0] > 1e-6 and abs(kl[1]) < 1e-12  # after the first step, each starts at its prior
    moved.clear()
    learner(boundary=AtTaskEnd()).observe(tasks(1)[0])
    assert moved == []


def test_likelihood_between_boundaries_counts_the_data_between_them() -> None:
    made = learner()
    data = dataset(0)
    model = TaskModel(made.model, {}, {})
    model.dataset_size = 40
    elbo = TraceBinary_ELBO(LocalReparameterization())

    def nll(size: int) -> float:
        torch.manual_seed(1)
        return elbo.terms(model, made.guide, data.x[:size], data.y[:size]).negative_log_likelihood

    per_datum = nll(10) / 40
    model.per_step = 3
    torch.testing.assert_close(nll(10) / 30, per_datum)


def test_refuses_what_does_not_fit() -> None:
    import pyro.distributions as dist
    from problems import network

    from bayesbin.guides import AutoNestedSignBernoulli, AutoSignBernoulli
    from bayesbin.nn import Classifier

    model = Classifier(network(), dataset_size=1)
    effects = AutoNestedSignBernoulli(model, ("filter", "weight"), "random-effects")
    with pytest.raises(ValueError, match="a guide without random effects"):
        ContinualLearner(model, effects)
    shared = AutoNestedSignBernoulli(model, ("filter", "weight"), "shared")
    with pytest.raises(ValueError, match="a mean-field guide for LeakyPrior"):
        ContinualLearner(model, shared, prior_policy=LeakyPrior(5.0))
    with pytest.raises(ValueError, match="prior_policy='fixed' with joint=True"):
        learner(joint=True)
    learned = Classifier(network(), 1, hyperprior=dist.Normal(0.0, 1.0))
    with pytest.raises(ValueError, match="a model without hyperprior"):
        ContinualLearner(learned, AutoSignBernoulli(learned))
    with pytest.raises(ValueError, match="num_samples to be a whole number of at least 0"):
        learner(num_samples=-1)


def test_a_nested_guide_learns_tasks_too() -> None:
    from problems import network

    from bayesbin.guides import AutoNestedSignBernoulli
    from bayesbin.nn import Classifier

    model = Classifier(network(), dataset_size=1)
    guide = AutoNestedSignBernoulli(model, ("filter", "weight"), "shared")
    made = ContinualLearner(model, guide, epochs=1, batch_size=16, progress=False)
    reports = [made.observe(task) for task in tasks(2)]
    assert reports[1].kl_bits > 0
