"""Baselines: the metaplastic step, the penalty of EWC, and that all answer the same questions."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from problems import dataset, learner, multi_head, network, tasks
from torch.nn import functional as F

from bayesbin.continual import (
    OnlineEWC,
    StraightThroughLearner,
    Task,
    continual_network,
    fine_tuning,
    fixed_prior,
    joint_training,
    learn,
)
from bayesbin.continual.baselines import MetaplasticAdam
from bayesbin.data import Dataset
from bayesbin.guides import AutoSignBernoulli
from bayesbin.nn import Classifier, binary_sites


def quadratic(parameter: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return (parameter - target).square().sum()


def test_without_metaplasticity_it_is_adam() -> None:
    start, target = torch.randn(20), torch.randn(20)
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    optimizers = MetaplasticAdam([ours], lr=0.1), torch.optim.Adam([theirs], lr=0.1)
    for _ in range(10):
        for parameter, optimizer in zip((ours, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            quadratic(parameter, target).backward()
            optimizer.step()
    torch.testing.assert_close(ours, theirs)


def test_metaplastic_step_against_its_formula() -> None:
    strength, lr = 1.3, 0.01
    start = torch.tensor([2.0, -2.0, 0.5, -0.5, 1.0, -1.0])
    latent = torch.nn.Parameter(start.clone())
    optimizer = MetaplasticAdam([latent], lr=lr, metaplasticity=strength)
    mean = square = torch.zeros(6)
    expected = start.clone()
    for step in range(1, 5):
        gradient = torch.tensor([1.0, -2.0, 3.0, 1.0, -1.0, 2.0]) * step
        latent.grad = gradient
        optimizer.step()
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.999 * square + 0.001 * gradient**2
        update = lr * (mean / (1 - 0.9**step)) / ((square / (1 - 0.999**step)).sqrt() + 1e-8)
        down = torch.sign(expected) * mean > 0
        expected = expected - torch.where(
            down, update * (1 - torch.tanh(strength * expected.abs()) ** 2), update
        )
    torch.testing.assert_close(latent.data, expected)
    moved = (latent.data - start).abs()
    assert moved[0] < 0.2 * moved[4]  # undoing a firm weight is slow, strengthening one is not


def test_closures_and_states_work_as_in_torch() -> None:
    latent = torch.nn.Parameter(torch.randn(4))
    optimizer = MetaplasticAdam([latent], lr=0.1, metaplasticity=1.0)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = quadratic(latent, torch.ones(4))
        loss.backward()
        return loss

    first, second = optimizer.step(closure).item(), optimizer.step(closure).item()
    assert second < first
    second_latent = torch.nn.Parameter(latent.detach().clone())
    other = MetaplasticAdam([second_latent], lr=0.1, metaplasticity=1.0)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for parameter, each in ((latent, optimizer), (second_latent, other)):
        parameter.grad = torch.ones(4)
        each.step()
    assert torch.equal(latent, second_latent)
    for wrong in ({"lr": -1.0}, {"metaplasticity": -1.0}, {"betas": (1.0, 0.9)}, {"eps": 0.0}):
        with pytest.raises(ValueError, match="got"):
            MetaplasticAdam([latent], **wrong)


def test_the_gradient_reaches_latents_through_the_sign() -> None:
    made = StraightThroughLearner(network(), epochs=1, batch_size=40, lr=0.0, progress=False)
    made.observe(tasks(1)[0])
    data = dataset(0)
    signs = {n: p.detach().sign().requires_grad_() for n, p in made.latent.items()}
    out = torch.func.functional_call(made.network, signs, (data.x,))
    gradients = torch.autograd.grad(F.cross_entropy(out, data.y), list(signs.values()))
    for parameter, gradient in zip(made.latent.values(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)
    with pytest.raises(ValueError, match="a network with binary weights"):
        StraightThroughLearner(network(binary=False))


def test_straight_through_predicts_with_the_signs() -> None:
    made = StraightThroughLearner(network(), epochs=3, progress=False)
    (task,) = tasks(1)
    made.observe(task)
    signs = {name: p.detach().sign() for name, p in made.latent.items()}
    x = task.test.x
    out = torch.func.functional_call(made.network, signs, (x,))
    torch.testing.assert_close(made.predict(x, task).probs, out.softmax(-1))
    assert made.reports[0].layers == () and np.isnan(made.reports[0].kl_bits)
    assert list(made.latent) == list(binary_sites(made.network))


def test_ewc_penalty_against_finite_differences() -> None:
    made = OnlineEWC(network(binary=False), strength=2.5, epochs=1, progress=False)
    made.observe(tasks(1)[0])
    parameters = dict(made.network.named_parameters())
    assert made.penalty().item() == 0.0
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.add_(0.3 * torch.randn_like(parameter))
    gradients = torch.autograd.grad(made.penalty(), list(parameters.values()))
    step = 1e-5
    for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True):
        for index in range(0, parameter.numel(), 5):
            flat = parameter.data.view(-1)
            flat[index] += step
            above = made.penalty().item()
            flat[index] -= 2 * step
            below = made.penalty().item()
            flat[index] += step
            slope = (above - below) / (2 * step)
            assert gradient.flatten()[index].item() == pytest.approx(slope, rel=1e-5, abs=1e-7), (
                name
            )


def test_ewc_fisher_is_the_mean_square_of_single_gradients() -> None:
    made = OnlineEWC(network(binary=False), progress=False)
    x = dataset(0).x[:6]
    probs = made.network(x).softmax(-1).detach()
    labels = torch.multinomial(probs, 1, generator=torch.Generator().manual_seed(3))[:, 0]
    expected = {name: torch.zeros_like(p) for name, p in made.network.named_parameters()}
    for one, label in zip(x, labels, strict=True):
        loss = F.cross_entropy(made.network(one[None]), label[None])
        gradients = torch.autograd.grad(loss, list(made.network.parameters()))
        for name, gradient in zip(expected, gradients, strict=True):
            expected[name] += gradient**2 / 6
    torch.testing.assert_close(made.fisher(x, seed=3), expected)


def test_ewc_is_online() -> None:
    first, second = tasks(2)
    made = OnlineEWC(network(binary=False), decay=0.5, epochs=1, progress=False)
    made.observe(first)
    after_first = {name: value.clone() for name, value in made.importance.items()}
    anchor = {name: p.detach().clone() for name, p in made.network.named_parameters()}
    for name, value in anchor.items():
        assert torch.equal(made.anchor[name], value)
    made.observe(second)
    for name, before in after_first.items():
        added = made.importance[name] - 0.5 * before
        assert bool((added >= -1e-12).all()) and bool((added > 0).any())
    # The stronger the penalty, the nearer the weights stay.
    far, near = (
        OnlineEWC(network(binary=False), strength=s, epochs=5, progress=False) for s in (0.0, 1e3)
    )
    for each in (far, near):
        each.observe(first)
        start = {name: p.clone() for name, p in each.anchor.items()}
        each.observe(second)
        each.moved = sum((p - start[n]).square().sum() for n, p in each.anchor.items())  # type: ignore
    assert near.moved < 0.3 * far.moved  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="a network of real weights"):
        OnlineEWC(network())
    with pytest.raises(ValueError, match=r"decay in \[0, 1\].*2\.0"):
        OnlineEWC(network(binary=False), decay=2.0)


def variational(kind: Any, net: Any) -> Any:
    model = Classifier(net, dataset_size=1)
    return kind(model, AutoSignBernoulli(model), epochs=1, num_samples=2, progress=False)


@pytest.mark.parametrize("heads", [False, True])
@pytest.mark.parametrize("name", ["fine", "fixed", "joint", "ste", "metaplastic", "ewc"])
def test_every_baseline_runs_through_the_same_protocol(name: str, heads: bool) -> None:
    def net(**settings: Any) -> Any:
        return multi_head(**settings) if heads else network(**settings)

    settings: dict[str, Any] = {"epochs": 1, "progress": False}
    made = {
        "fine": lambda: variational(fine_tuning, net()),
        "fixed": lambda: variational(fixed_prior, net()),
        "joint": lambda: variational(joint_training, net()),
        "ste": lambda: StraightThroughLearner(net(), **settings),
        "metaplastic": lambda: StraightThroughLearner(net(), metaplasticity=1.35, **settings),
        "ewc": lambda: OnlineEWC(net(binary=False), **settings),
    }[name]()
    result = learn(made, tasks(2, heads=heads), forward=True, progress=False)
    assert result.R.shape == (2, 2) and np.isfinite(result.scores["nll"]).all()
    assert [report.dataset_size for report in result.reports] == [40, 40]
    assert result.to_dict()["average_accuracy"] == pytest.approx(result.R[1].mean())


@pytest.mark.parametrize("kind", ["per-task", "recalibrated", "batch"])
@pytest.mark.parametrize("name", ["ste", "ewc"])
def test_baselines_with_batch_normalisation(name: str, kind: str) -> None:
    settings: dict[str, Any] = {"epochs": 1, "progress": False, "normalization": kind}
    net = network(normalization=kind, binary=name == "ste")
    made = StraightThroughLearner(net, **settings) if name == "ste" else OnlineEWC(net, **settings)
    result = learn(made, tasks(2), progress=False)
    assert np.isfinite(result.scores["nll"][1]).all()


def clusters(index: int) -> Task:
    """Four classes around points of their own: tasks that do not contradict each other."""
    generator = torch.Generator().manual_seed(index)
    centers = torch.randn(4, 16, generator=generator)

    def part(size: int) -> Dataset:
        y = torch.arange(size) % 4
        return Dataset(centers[y] + torch.randn(size, 16, generator=generator), y, "clusters", 4)

    return Task(f"clusters {index}", part(80), part(200))


def test_the_posterior_as_prior_remembers_what_others_forget() -> None:
    stream = [clusters(index) for index in range(3)]
    old: dict[str, dict[str, float]] = {}
    for policy in ("exact", "fixed", "none"):
        with torch.random.fork_rng():
            torch.manual_seed(5)
            net = continual_network(16, (64,), 4)
        made = learner(net, prior_policy=policy, epochs=40, batch_size=40, kl_weight=0.3)
        result = learn(made, stream, progress=False)
        assert result.R.diagonal().min() > 0.7  # each task was learned in its time
        old[policy] = {name: matrix[-1, :2].mean() for name, matrix in result.scores.items()}
    assert old["exact"]["accuracy"] > old["fixed"]["accuracy"] + 0.2
    # Without a KL lambda grows until it is hard to move, which remembers too, but not what it knew.
    assert old["exact"]["accuracy"] > old["none"]["accuracy"] + 0.05
    assert old["exact"]["nll"] < min(old["none"]["nll"], old["fixed"]["nll"]) - 0.2
