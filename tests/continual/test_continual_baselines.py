"""Baselines: the metaplastic step, the penalty of EWC, and that all answer the same questions."""

from __future__ import annotations

import copy
import json
from typing import Any

import numpy as np
import pytest
import torch
from problems import dataset, learner, multi_head, network, tasks
from torch.nn import functional as F

from bayesbin import plots
from bayesbin.continual import (
    ContinualLearner,
    ContinualResult,
    MultiHead,
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
from bayesbin.core import networks
from bayesbin.data import Dataset
from bayesbin.nn import BinaryLinear, Classifier, Regressor, binary_sites
from bayesbin.runtime.predictions import ClassPrediction, NormalPrediction


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
    made = StraightThroughLearner(model(), epochs=1, batch_size=40, lr=1e-300, progress=False)
    made.observe(tasks(1)[0])
    data = dataset(0)
    signs = {n: p.detach().sign().requires_grad_() for n, p in made.latent.items()}
    out = networks.call(made.model.net, signs, data.x)
    loss = len(data.x) * F.cross_entropy(out, data.y)  # in nats over the data
    gradients = torch.autograd.grad(loss, list(signs.values()))
    for parameter, gradient in zip(made.latent.values(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_straight_through_predicts_with_the_signs() -> None:
    made = StraightThroughLearner(model(), epochs=3, progress=False)
    (task,) = tasks(1)
    made.observe(task)
    signs = {name: p.detach().sign() for name, p in made.latent.items()}
    x = task.test.x
    out = networks.call(made.model.net, signs, x)
    prediction = made.predict(x, task)
    assert isinstance(prediction, ClassPrediction)
    torch.testing.assert_close(prediction.probs, out.softmax(-1))
    assert made.reports[0].layers == () and np.isnan(made.reports[0].kl_bits)
    assert list(made.latent) == list(binary_sites(made.model.net))


def weights_of(made: OnlineEWC) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in made.weights().items()}


def test_ewc_learns_the_same_network_with_real_weights() -> None:
    made = OnlineEWC(model(multi_head(binary_heads=False)), progress=False)
    sites = binary_sites(made.net)
    named = dict(made.net.named_parameters())
    assert made.weights().keys() == sites.keys() | named.keys()
    (task,) = tasks(1, heads=True)
    made.observe(task)
    x = task.test.x
    plain = torch.nn.Sequential(
        torch.nn.Linear(6, 7, bias=False),
        torch.nn.LayerNorm(7, elementwise_affine=False),
        torch.nn.ReLU(),
        torch.nn.Linear(7, 3),
    )
    weights = weights_of(made)
    state = {
        "0.weight": weights["body.0.weight"],
        "3.weight": weights["heads.0.weight"],
        "3.bias": weights["heads.0.bias"],
    }
    plain.load_state_dict(state)
    prediction = made.predict(x, task)
    assert isinstance(prediction, ClassPrediction)
    torch.testing.assert_close(prediction.probs, plain(x).softmax(-1))


def test_ewc_penalty_against_finite_differences() -> None:
    made = OnlineEWC(model(), strength=2.5, epochs=1, progress=False)
    made.observe(tasks(1)[0])
    parameters = made.weights()
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
    made = OnlineEWC(model(), progress=False)
    x = dataset(0).x[:6]

    def outputs(weights: dict[str, torch.Tensor], inputs: torch.Tensor) -> torch.Tensor:
        return networks.call(made.net, made.guide.values_of(weights), inputs)

    weights = {name: w.requires_grad_() for name, w in weights_of(made).items()}
    probs = outputs(weights, x).softmax(-1).detach()
    labels = torch.multinomial(probs, 1, generator=torch.Generator().manual_seed(3))[:, 0]
    expected = {name: torch.zeros_like(w) for name, w in weights.items()}
    for one, label in zip(x, labels, strict=True):
        loss = F.cross_entropy(outputs(weights, one[None]), label[None])
        gradients = torch.autograd.grad(loss, list(weights.values()))
        for name, gradient in zip(expected, gradients, strict=True):
            expected[name] += gradient**2 / 6
    torch.testing.assert_close(made.fisher(x, seed=3), expected)


def test_ewc_is_online() -> None:
    first, second = tasks(2)
    made = OnlineEWC(model(), decay=0.5, epochs=1, progress=False)
    made.observe(first)
    after_first = {name: value.clone() for name, value in made.importance.items()}
    for name, value in weights_of(made).items():
        assert torch.equal(made.anchor[name], value)
    made.observe(second)
    for name, before in after_first.items():
        added = made.importance[name] - 0.5 * before
        assert bool((added >= -1e-12).all()) and bool((added > 0).any())
    # The stronger the penalty, the nearer the weights stay.
    moved = []
    for strength in (0.0, 1e3):
        each = OnlineEWC(model(), strength=strength, epochs=10, progress=False)
        each.observe(first)
        start = each.anchor
        each.observe(second)
        moved.append(sum((p - start[n]).square().sum().item() for n, p in each.anchor.items()))
    assert moved[1] < 0.3 * moved[0]


def model(net: Any = None) -> Classifier:
    return Classifier(network() if net is None else net, dataset_size=1)


KINDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "posterior": (ContinualLearner, {}),
    "fine": (fine_tuning, {}),
    "fixed": (fixed_prior, {}),
    "joint": (joint_training, {}),
    "ste": (StraightThroughLearner, {}),
    "metaplastic": (StraightThroughLearner, {"metaplasticity": 1.35}),
    "ewc": (OnlineEWC, {}),
}
NETWORKS: dict[str, Any] = {
    "one head": network,
    "real heads": lambda: network(heads=1),
    "binary heads": lambda: network(heads=1, binary_heads=True),
    "heads like the first": lambda: MultiHead(torch.nn.Identity(), [BinaryLinear(6, 3)]),
}


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("name", KINDS)
def test_every_learner_runs_through_the_same_protocol(name: str, kind: str) -> None:
    make, more = KINDS[name]
    made = make(
        model(NETWORKS[kind]()), epochs=1, batch_size=20, num_samples=2, seed=1,
        checkpoint_dir=None, progress=False, **more,
    )  # fmt: skip
    heads = kind != "one head"
    stream = tasks(2, heads=heads)
    result = learn(made, stream, forward=True, progress=False)
    missing = np.isnan(result.scores["nll"])
    assert missing.tolist() == [[False, heads], [False, False]]  # no head, no answer
    assert [report.dataset_size for report in result.reports] == [40, 40]
    assert result.to_dict()["average_accuracy"] == pytest.approx(result.R[1].mean())
    if kind == "one head":
        assert plots.plot_continual(result) is not None
    twin = copy.deepcopy(made)
    for score, row in made.evaluate(stream).items():
        assert np.array_equal(twin.evaluate(stream)[score], row)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("noise", [0.5, None], ids=["known noise", "noise to learn"])
def test_every_learner_learns_and_scores_regression(name: str, noise: float | None) -> None:
    make, more = KINDS[name]
    stream = [lines(index) for index in range(2)]
    net = continual_network(6, (7,), 1)
    made = make(
        Regressor(net, 1, noise), epochs=2, batch_size=20, num_samples=3, progress=False, **more
    )
    result = learn(made, stream, progress=False)
    assert result.score == "rmse" and set(result.scores) == {"rmse", "nll"}
    prediction = made.predict(stream[0].test.x.numpy(), stream[0])
    assert isinstance(prediction, NormalPrediction)
    error = (prediction.mean - stream[0].test.y).square().mean().sqrt().item()
    assert result.R[1, 0] == pytest.approx(error)
    back = ContinualResult.from_dict(json.loads(result.to_json()))
    assert np.array_equal(back.R, result.R, equal_nan=True) and back.metrics() == pytest.approx(
        result.metrics(), nan_ok=True
    )
    assert back.metrics()["backward_transfer"] == pytest.approx(result.R[0, 0] - result.R[1, 0])


def lines(index: int) -> Task:
    generator = torch.Generator().manual_seed(index)
    x = torch.randn(40, 6, generator=generator)
    y = x[:, 0] + 0.1 * torch.randn(40, generator=generator)
    return Task(f"line {index}", (x[:30], y[:30]), (x[30:], y[30:]))


def test_regression_gets_better_by_learning() -> None:
    task = lines(0)
    for name in ("posterior", "ste"):
        make, more = KINDS[name]
        torch.manual_seed(0)
        net = continual_network(6, (16,), 1)
        made = make(Regressor(net, 1), epochs=40, batch_size=30, progress=False, lr=0.1, **more)
        before = made.evaluate([task])["rmse"][0]
        made.observe(task)
        assert made.evaluate([task])["rmse"][0] < 0.7 * before


@pytest.mark.parametrize("kind", ["per-task", "calibrated", "batch"])
@pytest.mark.parametrize("name", ["ste", "ewc"])
def test_baselines_with_batch_normalisation(name: str, kind: str) -> None:
    make, _ = KINDS[name]
    made = make(model(network(normalization=kind)), epochs=1, progress=False, normalization=kind)
    result = learn(made, tasks(2), progress=False)
    assert np.isfinite(result.scores["nll"][1]).all()


@pytest.mark.parametrize(
    ("make", "keywords", "message"),
    [
        (StraightThroughLearner, {"kl_weight": 0.5}, "got kl_weight, which it has no use for"),
        (OnlineEWC, {"kl_weight": 0.5}, "got kl_weight, which it has no use for"),
        (OnlineEWC, {"recipe": "bop"}, "got recipe, which it has no use for"),
        (OnlineEWC, {"metaplasticity": 1.0}, "settings of OnlineEWC, lr, .*; got metapl"),
        (OnlineEWC, {"decay": 2.0}, "decay to be a number of at least 0 and at most 1; got 2"),
        (StraightThroughLearner, {"metaplasticity": -1.0}, "metaplasticity"),
        (fine_tuning, {"kl_weight": 0.5}, "no kl_weight with .*NoPrior.*no KL term"),
        (fine_tuning, {"prior_policy": "exact"}, "fine_tuning without prior_policy"),
        (joint_training, {"joint": False}, "joint_training without joint"),
        (ContinualLearner, {"settings": {"kl_weight": 0.5}}, "an argument of its own"),
        (ContinualLearner, {"lr": 0.1, "settings": {"lr": 0.2}}, "each setting once; got lr"),
        (ContinualLearner, {"lrr": 0.1}, "has the settings .*; got lrr"),
        (ContinualLearner, {"recipe": "adamw"}, "expected recipe|the recipe to be one of|recipe"),
        (ContinualLearner, {"recipe": "ste"}, "a guide with a posterior for ExactPrior"),
        (ContinualLearner, {"kl_weight": -1.0}, "kl_weight to be a number of at least 0"),
        (ContinualLearner, {"prior_policy": 3}, "prior_policy to be one of"),
    ],
)
def test_what_has_no_meaning_is_refused_by_name(make: Any, keywords: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(model(), progress=False, **keywords)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize(
    "wrong",
    [{"epochs": 0}, {"epochs": 1.5}, {"batch_size": True}, {"seed": -1}, {"num_samples": -1},
     {"progress": 3}, {"normalization": "running"}],
    ids=str,
)  # fmt: skip
def test_every_learner_checks_the_same_keywords(name: str, wrong: dict[str, Any]) -> None:
    make, more = KINDS[name]
    with pytest.raises(ValueError, match=f"expected {next(iter(wrong))} to be"):
        make(model(), **{**more, **wrong})


@pytest.mark.parametrize("name", KINDS)
def test_numbers_of_numpy_and_torch_are_numbers(name: str) -> None:
    make, more = KINDS[name]
    made = make(model(), epochs=np.int64(2), batch_size=torch.tensor(16), seed=np.uint8(3),
                num_samples=np.int32(2), progress=np.bool_(False), **more)  # fmt: skip
    assert (made.epochs, made.batch_size, made.seed, made.num_samples) == (2, 16, 3, 2)


@pytest.mark.parametrize("name", KINDS)
def test_a_network_alone_is_refused(name: str) -> None:
    make, more = KINDS[name]
    with pytest.raises(ValueError, match="expected a model, such as Classifier"):
        make(network(), **more)


@pytest.mark.parametrize("recipe", ["bayesbin", "bayesbinn", "lr-net", "snapquant"])
def test_recipes_of_posteriors_learn_tasks(recipe: str) -> None:
    made = ContinualLearner(model(), recipe=recipe, epochs=1, num_samples=2, progress=False)
    first, second = tasks(2)
    made.observe(first)
    kept = made.posterior
    made.observe(second)
    assert made.reports[1].kl_bits > 0 and kept.keys() == made.posterior.keys()
    tuned = fine_tuning(model(), recipe="bop", epochs=1, progress=False)
    assert learn(tuned, tasks(2), progress=False).R.shape == (2, 2)


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
        weight = {} if policy == "none" else {"kl_weight": 0.3}
        made = learner(net, prior_policy=policy, epochs=40, batch_size=40, **weight)
        result = learn(made, stream, progress=False)
        assert result.R.diagonal().min() > 0.7  # each task was learned in its time
        old[policy] = {name: matrix[-1, :2].mean() for name, matrix in result.scores.items()}
    assert old["exact"]["accuracy"] > old["fixed"]["accuracy"] + 0.2
    # Without a KL lambda grows until it is hard to move, which remembers too, but not what it knew.
    assert old["exact"]["accuracy"] > old["none"]["accuracy"] + 0.05
    assert old["exact"]["nll"] < min(old["none"]["nll"], old["fixed"]["nll"]) - 0.2
