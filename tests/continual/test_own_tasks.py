"""A user's own tasks: labels over a sequence, heads that grow, streams by name, own models and guides."""

from __future__ import annotations

import copy
import importlib.metadata
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from problems import dataset
from pyro.infer.autoguide import AutoGuideList, AutoNormal
from torch import Tensor, nn

from bayesbin.continual import (
    ContinualLearner,
    ContinualResult,
    GrowingHead,
    MultiHead,
    OnlineEWC,
    StraightThroughLearner,
    Task,
    TaskSequence,
    continual_network,
    fine_tuning,
    learn,
    metrics,
    register,
    streams,
)
from bayesbin.distributions import SignBernoulli
from bayesbin.guides import (
    AutoLowBit,
    AutoNestedSignBernoulli,
    AutoSignBernoulli,
    AutoSignDelta,
)
from bayesbin.nn import BinaryLinear, Classifier, binary_sites, to_binary_

SMALL: dict[str, Any] = {"epochs": 1, "batch_size": 8, "num_samples": 2, "progress": False}


def part(labels: list[Any], size: int = 16, seed: int = 0) -> tuple[np.ndarray, list[Any]]:
    x = np.random.default_rng(seed).normal(size=(size, 4))
    return x, [labels[int(k)] for k in np.argmax(x[:, : len(labels)], axis=1)]


def task(name: str, labels: list[Any], head: int | None = None, **more: Any) -> Task:
    return Task(name, part(labels), part(labels, 8, seed=1), head=head, **more)


def net(outputs: int = 2, **settings: Any) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return continual_network(4, (8,), outputs, **settings)


def learner(network: nn.Module, make: Any = ContinualLearner, **settings: Any) -> Any:
    return make(Classifier(network, dataset_size=1), **{**SMALL, **settings})


# Labels


def test_labels_are_counted_over_the_tasks_of_one_output_layer() -> None:
    made = learner(net(3), epochs=15, lr=0.3, kl_weight=0.1)
    first = task("pets", ["cat", "dog"])
    data = part(["horse", "dog"], 64)
    second = Task("farm", data, data)
    made.observe(first)
    assert made.labels_of(first) == ("cat", "dog")
    with pytest.raises(ValueError, match="'farm' has 'horse' as well"):
        made.labels_of(second)
    assert np.isnan(made.evaluate([second])["accuracy"]).all()
    made.observe(second)
    assert made.labels_of(first) == made.labels_of(second) == ("cat", "dog", "horse")
    answers = made.predict_labels(second.test.x.numpy(), second)
    right = [second.labels[k] for k in second.test.y.tolist()]  # type: ignore[index]
    share = np.mean([a == b for a, b in zip(answers, right, strict=True)])
    assert share == made.evaluate([second])["accuracy"][0] > 0.6


def test_labels_of_each_head_are_its_own() -> None:
    made = learner(net(2, heads=1))
    stream = TaskSequence([task("pets", ["cat", "dog"]), task("farm", ["dog", "horse", "pig"])])
    result = learn(made, stream, progress=False)
    assert [made.labels_of(each) for each in stream] == [each.labels for each in stream]
    assert set(made.predict_labels(stream[1].test.x, stream[1])) <= {"dog", "horse", "pig"}
    back = ContinualResult.from_dict(json.loads(result.to_json()))
    assert back.labels == result.labels == (("cat", "dog"), ("dog", "horse", "pig"))


def test_whole_numbers_come_back_as_they_were() -> None:
    made = learner(net(3))
    made.observe(task("a", [7, 3]))
    made.observe(task("b", [9, 3]))
    assert made.labels_of(task("b", [9, 3])) == (3, 7, 9)
    flags = learner(net(2))
    flags.observe(task("f", [False, True]))
    assert set(flags.predict_labels(np.zeros((3, 4)), task("f", [False, True]))) <= {False, True}


def test_outputs_named_by_the_tasks_are_shared_by_place() -> None:
    made = learner(net(2))
    stream = TaskSequence([task("pets", ["cat", "dog"]), task("wild", ["fox", "wolf"])], "domain")
    learn(made, stream, progress=False)
    assert made.labels_of(stream[1]) == ("fox", "wolf")
    with pytest.raises(ValueError, match="all name their labels, or none"):
        other = learner(net(2))
        other.observe(task("pets", ["cat", "dog"]))
        other.observe(stream[1])


def test_more_labels_than_outputs_are_refused() -> None:
    made = learner(net(2))
    made.observe(task("pets", ["cat", "dog"]))
    with pytest.raises(
        ValueError, match="for each of the 3 labels known after 'farm'; got 2 outputs"
    ):
        made.observe(task("farm", ["dog", "horse"]))


def test_numbers_need_a_regressor_and_labels_a_classifier() -> None:
    x, _ = part(["a", "b"])
    with pytest.raises(ValueError, match="a likelihood of numbers, such as a Regressor, for 'r'"):
        learner(net(2)).observe(Task("r", (x, x[:, 0]), (x, x[:, 0])))


# Heads


@pytest.mark.parametrize("make", [ContinualLearner, fine_tuning, StraightThroughLearner, OnlineEWC])
@pytest.mark.parametrize("binary", [False, True])
def test_heads_grow_resume_and_copy(make: Any, binary: bool, tmp_path: Path) -> None:
    stream = TaskSequence(
        [task("a", ["u", "v"]), task("b", ["u", "v", "w"]), task("c", ["w", "z"])]
    )

    def fresh(folder: Path | None) -> Any:
        return learner(net(2, heads=1, binary_heads=binary), make, checkpoint_dir=folder)

    whole = fresh(None)
    result = learn(whole, stream, progress=False)
    assert len(whole.net.heads) == 3 and whole.net.grown == (3, 2)
    assert whole.predict(stream[1].test.x, stream[1]).probs.shape == (8, 3)
    half = fresh(tmp_path)
    for each in stream[:2]:
        half.observe(each)
    again = fresh(tmp_path)
    torch.manual_seed(99)
    resumed = learn(again, stream, progress=False)
    for name, matrix in result.scores.items():
        assert np.array_equal(resumed.scores[name], matrix, equal_nan=True)
    twin = copy.deepcopy(half)
    for one in (half, twin):
        one.observe(stream[2])
    for name, row in half.evaluate(stream).items():
        assert np.array_equal(twin.evaluate(stream)[name], row)
        assert np.array_equal(row, result.scores[name][2])


def test_a_new_binary_head_has_the_prior_of_the_model_and_leaves_the_others() -> None:
    made = learner(net(2, heads=1, binary_heads=True, prior=0.7))
    made.observe(task("a", ["u", "v"], head=0))
    kept = {site: q.natural.clone() for site, q in made.posterior.items()}
    seen: dict[str, Tensor] = {}
    run = made._training.run

    def spy(model: Any, guide: Any, task_model: Any, *args: Any, **kwargs: Any) -> Any:
        seen.update(task_model(guide).priors())
        return run(model, guide, task_model, *args, **kwargs)

    object.__setattr__(made._training, "run", spy)
    report = made.observe(task("b", ["u", "v", "w"], head=1))
    new = "heads.1.0.weight"
    assert torch.equal(seen[new], torch.full((3, 8), 0.7)) and new in made.posterior
    assert torch.equal(made.posterior["heads.0.0.weight"].natural, kept["heads.0.0.weight"])
    assert not torch.equal(made.posterior["body.0.weight"].natural, kept["body.0.weight"])
    assert {row.site for row in report.layers} >= {new}
    assert next(row.kl_bits for row in report.layers if row.site == new) > 0


def test_a_head_is_a_function_of_the_seed_and_its_number() -> None:
    first, second = (net(2, heads=1, binary_heads=True) for _ in range(2))
    assert isinstance(first, MultiHead) and isinstance(second, MultiHead)
    before = torch.get_rng_state()
    first.grow_(3, seed=5)
    assert torch.equal(before, torch.get_rng_state())
    second.grow_(3, seed=5)
    other = copy.deepcopy(second)
    other.grow_(3, seed=5)
    signs = [binary_sites(n)["heads.1.0.weight"].signs for n in (first, second, other)]
    assert torch.equal(signs[0], signs[1]) and torch.equal(signs[0], signs[2])


def test_heads_like_the_first_are_drawn_anew() -> None:
    body = to_binary_(nn.Sequential(nn.Linear(4, 8), nn.Tanh()))
    head = nn.Sequential(BinaryLinear(8, 5, bias=False), nn.LayerNorm(5), nn.Linear(5, 2))
    grown = MultiHead(body, [head])
    start = copy.deepcopy(head)
    with torch.no_grad():
        head[1].weight.fill_(3.0)
    grown.grow_(2, seed=1)
    new = grown.heads[1]
    assert isinstance(new, nn.Sequential)
    assert torch.equal(new[1].weight, torch.ones(5))  # as before training
    assert not torch.equal(new[2].weight, start[2].weight)
    signs = binary_sites(grown)["heads.1.0.weight"].signs
    assert set(signs.unique().tolist()) == {-1.0, 1.0}
    assert not torch.equal(signs, binary_sites(grown)["heads.0.0.weight"].signs)
    made = learner(grown)
    made.observe(task("a", ["u", "v"], head=0))
    with pytest.raises(ValueError, match="for each of the 3 labels known after 'b'; got 2 outputs"):
        made.observe(task("b", ["u", "v", "w"], head=2))


def test_heads_from_none() -> None:
    body = to_binary_(nn.Sequential(nn.Linear(4, 8), nn.Tanh()))
    empty = MultiHead(body, make_head=lambda n: nn.Linear(8, n))
    made = learner(empty)
    learn(made, TaskSequence([task("a", ["u", "v"]), task("b", ["u", "v", "w"])]), progress=False)
    assert [head.out_features for head in empty.heads] == [2, 3]  # type: ignore[union-attr]
    for wrong in (3, "linear"):
        with pytest.raises(ValueError, match="expected make_head to be a function"):
            MultiHead(body, make_head=wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("make", [ContinualLearner, StraightThroughLearner, OnlineEWC])
def test_one_head_grows_with_the_classes(make: Any, tmp_path: Path) -> None:
    stream = [task("a", ["u", "v"]), task("b", ["v", "w"]), task("c", ["x", "y", "u"])]

    def fresh(folder: Path | None) -> Any:
        return learner(net(2, growing=True), make, checkpoint_dir=folder)

    made = fresh(tmp_path)
    result = learn(made, stream, progress=False)
    assert isinstance(made.net, GrowingHead) and made.net.num_outputs == 5
    assert made.labels_of(stream[0]) == ("u", "v", "w", "x", "y")
    again = fresh(tmp_path)
    assert np.array_equal(learn(again, stream, progress=False).R, result.R, equal_nan=True)
    assert again.predict(stream[0].test.x, stream[0]).probs.shape == (8, 5)


def test_old_outputs_keep_their_posterior_as_prior() -> None:
    made = learner(net(2, growing=True))
    made.observe(task("a", ["u", "v"]))
    kept = made.posterior["heads.0.0.weight"].natural.clone()
    silent = Task("b", (np.zeros((16, 4)), ["w", "v"] * 8), part(["v", "w"]))
    made.observe(silent)  # inputs of 0 say nothing about the weights
    torch.testing.assert_close(made.posterior["heads.0.0.weight"].natural, kept)


def test_networks_that_grow_are_refused_where_they_make_no_sense() -> None:
    with pytest.raises(ValueError, match="heads by task or one that grows"):
        continual_network(4, (8,), 2, heads=1, growing=True)
    with pytest.raises(ValueError, match="num_outputs to be a whole number of at least 1"):
        GrowingHead(nn.Identity(), lambda n: nn.Linear(4, n), num_outputs=0)


# Sequences and streams by name


def test_scenarios_of_a_users_tasks() -> None:
    tasks = [task("pets", ["cat", "dog"]), task("farm", ["dog", "horse"])]
    for scenario, outputs, labels in (
        ("task", 2, ("dog", "horse")),
        ("domain", 2, ("dog", "horse")),
        ("class", 3, ("cat", "dog", "horse")),
    ):
        stream = TaskSequence(tasks, scenario)
        assert (stream.num_outputs, stream[1].labels, len(stream)) == (outputs, labels, 2)
        assert [each.name for each in stream[0:]] == ["pets", "farm"] and stream[-1] is stream[1]
        heads = None if scenario != "task" else 1
        made = learner(net(outputs, heads=heads))
        result = learn(made, stream, forward=True, progress=False)
        assert metrics.average_accuracy(result) == result.metrics()["average_accuracy"]
        assert metrics.forgetting(result, "max_past") == metrics.forgetting(result.R, "max_past")


@pytest.mark.parametrize(
    ("tasks", "scenario", "message"),
    [
        ([], "task", "at least one task"),
        ([task("a", ["u", "v"])], "other", "scenario to be one of"),
        ([task("a", ["u", "v"]), task("a", ["u", "v"])], "task", "different names; got a twice"),
        ([task("a", ["u", "v"]), task("b", ["u", "v", "w"])], "domain", "same number of labels"),
        ([3], "task", r"as a Task, or as \(name, training set, test set\)"),
        ([("a", part(["u", "v"]))], "task", "as a Task, or as"),
        (
            [task("a", ["u", "v"]), Task("b", dataset(0), dataset(1))], "task",
            "inputs of one shape",
        ),
        (
            [task("a", ["u", "v"]), Task("b", (np.ones((3, 4)), [0.5] * 3), (np.ones((3, 4)), [0.5] * 3))],
            "task", "but not of both",
        ),
    ],
)  # fmt: skip
def test_sequences_refuse(tasks: Any, scenario: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TaskSequence(tasks, scenario)


@pytest.fixture
def registry() -> Any:
    before = dict(streams._REGISTRY._registered)
    yield streams._REGISTRY
    streams._REGISTRY._registered.clear()
    streams._REGISTRY._registered.update(before)


def test_streams_are_found_by_name(registry: Any, monkeypatch: Any) -> None:
    made = TaskSequence([task("pets", ["cat", "dog"])])
    register("pets", lambda: made)
    assert streams.make_stream("pets") is made and "pets" in streams.names()
    with pytest.raises(ValueError, match="The name 'pets' is taken"):
        register("pets", lambda: made)
    register("several", lambda count: [task(f"t{i}", ["a", "b"]) for i in range(count)])
    assert len(streams.make_stream("several", 3)) == 3
    with pytest.raises(ValueError, match="as many tasks as its length"):
        streams.make_stream("several", count=0)
    point = importlib.metadata.EntryPoint("plugged", "plugin:make", "bayesbin.streams")
    monkeypatch.setattr(importlib.metadata.EntryPoint, "load", lambda self: lambda: made)
    monkeypatch.setattr(type(registry), "_entry_points", lambda self: {"plugged": [point]})
    assert streams.make_stream("plugged") is made


class Shuffled(list):  # type: ignore[type-arg]
    def __iter__(self) -> Any:
        return iter(
            [task("a", ["u", "v"]), Task("b", part(["u", "v"], seed=self.pop()), part(["u", "v"]))]
        )

    def __len__(self) -> int:
        return 2


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("a name", "to be a function"),
        (lambda: iter([task("a", ["u", "v"])]), "a sequence of tasks, with a length"),
        (lambda: [1, 2], "to give bayesbin.continual.Task; got int"),
        (lambda: [], "at least one; got 0 tasks"),
        (lambda: 3, "a sequence of tasks"),
        (lambda: Shuffled([1, 2, 3, 4]), "got others the second time"),
    ],
)
def test_the_contract_of_a_stream_is_checked(registry: Any, factory: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        register("mine", factory)
    assert "mine" not in streams.names()


# Models, networks and guides of a user's own


class Own(nn.Module):
    """A network with a skip, a recurrent layer and dropout, that no kernel knows."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 6)
        self.recurrent = nn.GRU(6, 6, batch_first=True)
        self.dropout = nn.Dropout(0.1)
        self.last = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.first(x))
        return self.last(self.dropout(hidden + self.recurrent(hidden[:, None])[0][:, 0]))


@pytest.mark.parametrize("make", [ContinualLearner, StraightThroughLearner])
def test_a_network_of_ones_own_learns_tasks(make: Any) -> None:
    torch.manual_seed(0)
    own = to_binary_(Own(), where=lambda name, owner: "bias" not in name)
    more = {"estimator": "straight-through"} if make is ContinualLearner else {}
    made = learner(own, make, **more)
    result = learn(made, [task("a", ["u", "v"]), task("b", ["v", "w"])], progress=False)
    assert np.isfinite(result.R[1]).all()


def model(x: Tensor, y: Tensor) -> None:
    w = pyro.sample("w", SignBernoulli(natural=torch.zeros(4)).to_event(1))
    bias = pyro.sample("bias", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 16, subsample=torch.arange(len(x))):
        pyro.sample("y", dist.Bernoulli(logits=x @ w + bias), obs=y.to(x))


def guides() -> dict[str, tuple[Any, str]]:
    data = task("a", ["u", "v"]).train
    assert data is not None
    args = data.x, data.y

    def several() -> Any:
        guide = AutoGuideList(model)
        guide.append(AutoSignBernoulli(pyro.poutine.block(model, hide=["bias"]), args=args))
        guide.append(AutoNormal(pyro.poutine.block(model, expose=["bias"])))
        return guide

    return {
        "mean field": (AutoSignBernoulli(model, args=args), ""),
        "nested": (AutoNestedSignBernoulli(model, ("weight",), "shared", args=args), ""),
        "several": (several(), "a guide over binary weights.*got AutoGuideList"),
        "normal": (AutoNormal(model), "a guide over binary weights.*got AutoNormal"),
        "function": (lambda x, y: None, "a guide over binary weights"),
        "levels": (AutoLowBit(model, args=args), "weights of other levels|over signs"),
        "point": (AutoSignDelta(model, args=args), "a guide with a posterior"),
    }


@pytest.mark.parametrize(
    "kind", ["mean field", "nested", "several", "normal", "function", "levels", "point"]
)
def test_guides_of_a_model_of_ones_own(kind: str) -> None:
    guide, message = guides()[kind]
    if message:
        with pytest.raises(ValueError, match=message):
            ContinualLearner(model, guide, **SMALL)
        return
    made = ContinualLearner(model, guide, **SMALL)
    for name in ("a", "b"):
        report = made.observe(task(name, ["u", "v"]))
    assert report.kl_bits >= 0 and "bias" in made.posterior.real
    with pytest.raises(ValueError, match="to be scored; got function, which can only be trained"):
        made.evaluate([task("a", ["u", "v"])])


def test_a_guide_of_ones_own_grows_with_the_heads() -> None:
    classifier = Classifier(net(2, heads=1, binary_heads=True), dataset_size=1)
    guide = AutoSignBernoulli(classifier)
    made = ContinualLearner(classifier, guide, **SMALL)
    learn(made, TaskSequence([task("a", ["u", "v"]), task("b", ["u", "v", "w"])]), progress=False)
    assert made.guide is guide and guide.natural_of("heads.1.0.weight").shape == (3, 8)
    assert len(list(guide.natural_parameters())) == 3


def test_inputs_of_another_type_are_converted() -> None:
    torch.set_default_dtype(torch.float32)
    made = learner(net(2))
    torch.set_default_dtype(torch.float64)
    own = task("a", ["u", "v"])
    assert own.test.x.dtype == torch.float64
    made.observe(own)
    x = own.test.x
    found = [made.predict(values, own).probs for values in (x, x.numpy(), x.tolist(), x.float())]
    assert all(torch.equal(found[0], other) for other in found)
    for wrong in (3.0, "text", None, [[1.0], [1.0, 2.0]]):
        with pytest.raises(ValueError, match="expected inputs"):
            made.predict(wrong, own)


def test_a_last_batch_of_one_under_batch_normalisation() -> None:
    def made(batch_size: int) -> Any:
        network = net(2, normalization="per-task")
        return learner(network, normalization="per-task", batch_size=batch_size)

    data = part(["u", "v"], 17)
    joined = made(8)
    joined.observe(Task("a", data, data))
    assert len(joined.reports[0].history) == 1
    with pytest.raises(ValueError, match="batch"):
        made(1).observe(Task("a", data, data))
