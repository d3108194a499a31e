"""Heads by task: only the task's own is trained, counted and used; and networks and normalisation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from problems import dataset, learner, multi_head, naturals, network, same, tasks
from torch import nn

from bayesbin.continual import MultiHead, SplitClasses, Task, continual_network, joint_training
from bayesbin.continual.normalization import Normalization
from bayesbin.continual.task_model import TaskModel
from bayesbin.core.names import NORMALIZATIONS
from bayesbin.data import digits
from bayesbin.estimators import LocalReparameterization
from bayesbin.guides import AutoSignBernoulli
from bayesbin.infer import TraceBinary_ELBO
from bayesbin.nn import Classifier, Scale, binary_sites


def state_of_heads(made: Any) -> list[dict[str, torch.Tensor]]:
    """All that belongs to each head: real parameters, and natural parameters of binary ones."""
    heads = []
    for index, head in enumerate(made.net.heads):
        state = {name: value.clone() for name, value in head.state_dict().items()}
        for name in made.guide.sites:
            if name.startswith(f"heads.{index}."):
                state[name] = made.guide.natural_of(name).detach().clone()
        heads.append(state)
    return heads


def unchanged(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("binary_heads", [False, True])
def test_other_heads_stay_as_they_are(binary_heads: bool) -> None:
    made = learner(multi_head(binary_heads=binary_heads, learn_scale=binary_heads))
    before = state_of_heads(made)
    for index, task in enumerate(tasks(3, heads=True)):
        made.observe(task)
        after = state_of_heads(made)
        for other in range(3):
            assert unchanged(before[other], after[other]) == (other != index)
        before = after


def test_sites_of_other_heads_are_not_in_the_kl() -> None:
    made = learner(multi_head(binary_heads=True))
    data = dataset(0)
    elbo = TraceBinary_ELBO(LocalReparameterization())
    model = TaskModel(made.model, {}, {})
    model.dataset_size = 40
    kl = made.guide.posterior().kl()
    own = sum(value for name, value in kl.items() if name.startswith(("body.", "heads.1.")))
    terms = elbo.terms(model, made.guide, data.x[:2], data.y[:2], 1)
    torch.testing.assert_close(terms.kl, own)
    assert sum(kl.values()) > own + 1e-3  # what it would be with all of them


def test_predictions_are_those_of_the_head() -> None:
    made = learner(multi_head())
    stream = tasks(3, heads=True)
    for task in stream:
        made.observe(task)
    x = stream[0].test.x
    for task in stream:
        assert made.net is not None and isinstance(made.net, MultiHead)
        alone = nn.Sequential(made.net.body, made.net.heads[task.head or 0])
        posterior = {name.removeprefix("body."): q for name, q in made.posterior.items()}
        signs = [made.posterior.signs(i, seed=0) for i in range(4)]
        probs = torch.stack(
            [
                torch.func.functional_call(
                    alone, {f"0.{k.removeprefix('body.')}": v for k, v in draw.items()}, (x,)
                ).softmax(-1)
                for draw in signs
            ]
        ).mean(0)
        torch.testing.assert_close(made.predict(x, task).probs, probs)
        assert list(posterior) == ["0.weight"]


def test_tasks_and_networks_have_to_fit() -> None:
    with pytest.raises(ValueError, match="a task with a head, for a network of 3; got 'task 0'"):
        learner(multi_head()).observe(tasks(1)[0])
    with pytest.raises(ValueError, match="a MultiHead network for 'task 0'"):
        learner().observe(tasks(1, heads=True)[0])
    with pytest.raises(ValueError, match="heads in their order; 'a' asks for head 4"):
        learner(multi_head()).observe(Task("a", dataset(0), dataset(0), head=4))
    with pytest.raises(ValueError, match=r"a head in 0 \.\. 2, got 3"):
        multi_head().select(3)
    with pytest.raises(ValueError, match="at least one head"):
        MultiHead(nn.Identity(), [])


def test_joint_training_mixes_heads() -> None:
    made = learner(multi_head(), prior_policy="fixed", joint=True)
    stream = tasks(2, heads=True)
    reports = [made.observe(task) for task in stream]
    steps = [3, 6]  # batches of 16 of 40 data
    assert [report.dataset_size for report in reports] == [40, 40]
    assert made.model.dataset_size == 80
    assert len(made._past) == 2 and steps[1] == 2 * steps[0]


def test_joint_training_is_training_on_all_at_once_from_the_start() -> None:
    first, second = tasks(2)
    made = learner(prior_policy="fixed", joint=True)
    made.observe(first)
    made.observe(second)
    # The same seed is that of the second task: what came before it leaves no trace.
    alone = learner(prior_policy="fixed", joint=True)
    alone.observe(Task("nothing", None, first.test))
    alone._past = [first]
    alone.observe(second)
    assert same(naturals(made), naturals(alone))
    model = Classifier(network(), dataset_size=1)
    assert joint_training(model, AutoSignBernoulli(model)).joint


def test_split_digits_are_learned_without_forgetting() -> None:
    torch.set_default_dtype(torch.float32)
    stream = SplitClasses(digits())
    net = continual_network(64, (32,), 2, heads=5)
    made = learner(net, epochs=4, batch_size=32, num_samples=8)
    for task in stream:
        made.observe(task)
    accuracy = made.evaluate(stream[:])["accuracy"]
    assert accuracy.mean() > 0.93 and accuracy.min() > 0.8


# Networks and normalisation


def test_networks() -> None:
    net = continual_network(6, (5, 4), 3)
    assert not list(net.parameters())
    assert [tuple(s.shape) for s in binary_sites(net).values()] == [(5, 6), (4, 5), (3, 4)]
    assert isinstance(net, nn.Sequential)
    assert net[-1].scale == pytest.approx(3.0 / 2.0)
    learned = continual_network(6, (5,), 3, learn_scale=True)
    assert isinstance(learned, nn.Sequential) and isinstance(learned[-1], Scale)
    for settings in ({"hidden": ()}, {"normalization": "x"}, {"activation": "x"}, {"heads": 0}):
        with pytest.raises(ValueError, match="got"):
            continual_network(6, **settings)
    with pytest.raises(ValueError, match="output_scale to be a number above 0; got 0"):
        continual_network(6, output_scale=0)


def test_normalization_has_to_fit_the_network() -> None:
    for kind in NORMALIZATIONS:
        net = network(normalization=kind)
        assert Normalization(kind, net).kind == kind
        other = "batch" if kind == "layer" else "layer"
        with pytest.raises(ValueError, match="a normalization that fits"):
            Normalization(other, net)
    with pytest.raises(ValueError, match="normalization to be one of layer, "):
        Normalization("running", network())


@pytest.mark.parametrize("kind", ["per-task", "calibrated", "batch"])
def test_where_statistics_come_from(kind: str) -> None:
    made = learner(network(normalization=kind), normalization=kind)
    stream = tasks(2)
    assert made.net is not None
    sources: dict[str, Any] = {}
    for task in stream:
        made.observe(task)
        assert task.train is not None
        sources[task.name] = made.ensemble(task).calibrate(task.train.x).statistics
    x = stream[0].test.x[:7]
    last = made.ensemble(stream[0])
    expected = {
        "per-task": sources["task 0"],
        "calibrated": sources["task 1"],
        "batch": made.ensemble(stream[0]).calibrate(x).statistics,
    }
    for name, statistics in expected.items():
        probs = last.with_statistics(statistics, foreign=True).predict(x).probs
        same_as = torch.allclose(made.predict(x, stream[0]).probs, probs, atol=1e-5)
        assert same_as == (name == kind)
    with pytest.raises(ValueError, match="another network, posterior or seed"):
        last.with_statistics(sources["task 0"])  # the posterior has gone on since
    unseen = Task("unseen", None, stream[0].test)
    if kind == "per-task":  # a task not learned yet: those of the last one
        probs = last.with_statistics(sources["task 1"]).predict(x).probs
        torch.testing.assert_close(made.predict(x, unseen).probs, probs, atol=1e-5, rtol=1e-5)
