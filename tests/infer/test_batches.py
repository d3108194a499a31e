"""What training takes as data: arrays of every kind, and batches of one under batch normalisation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from bayesbin import AutoSignBernoulli, fit
from bayesbin.data import Batches, Dataset, two_moons
from bayesbin.estimators import StraightThrough
from bayesbin.infer.batches import SINGLE
from bayesbin.nn import Classifier, Regressor, mlp, to_binary_

X = np.arange(10.0).reshape(5, 2) / 10
Y = np.array([0, 1, 1, 0, 1])


def network(*, normalize=False, dtype=torch.float64):
    torch.manual_seed(3)
    return to_binary_(mlp(2, [4], 2, normalize=normalize)).to(dtype)


def trained(data, net=None, likelihood=Classifier, **options):
    """The loss of the only epoch."""
    model = likelihood(network() if net is None else net, 5)
    options = {"epochs": 1, "kl_weight": 0.1, "estimator": StraightThrough()} | options
    return fit(model, AutoSignBernoulli(model), data, progress=False, **options).history[0]["loss"]


@pytest.mark.parametrize(
    "batch",
    [
        (torch.tensor(X), torch.tensor(Y)),
        (X, Y),
        [X, Y],
        (X, Y.astype(np.uint8)),
        (X, Y.astype(bool)),
        {"x": X, "y": Y},
        (X.tolist(), Y.tolist()),
        (np.asfortranarray(X), Y.astype(">i4")),
    ],
    ids=["tensors", "arrays", "list", "uint8 labels", "bool labels", "dict", "lists", "big-endian"],
)
def test_batches_of_every_kind_train_alike(batch):
    expected = trained([(torch.tensor(X), torch.tensor(Y))])
    assert trained([batch]) == expected
    assert trained([batch], validation=[(X, Y)]) == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("given", [np.float32, np.float64, np.float16])
def test_floating_point_inputs_get_the_type_of_the_network(dtype, given):
    x = (X * 8).astype(given) / given(8)
    found = trained([(x, Y)], network(dtype=dtype))
    expected = trained([(torch.tensor(x).to(dtype), torch.tensor(Y))], network(dtype=dtype))
    assert found == expected


def test_regression_targets_of_every_kind():
    def loss(y):
        torch.manual_seed(3)
        net = to_binary_(mlp(2, [4], 1, normalize=False)).float()
        likelihood = lambda net, size: Regressor(net, size, noise=np.float32(0.5))
        return trained([(X, y)], net, likelihood)

    expected = loss(torch.tensor(Y, dtype=torch.float32))
    for y in (Y, Y.astype(np.float64), Y.astype(np.float32), Y.tolist(), torch.tensor(Y)):
        assert loss(y) == expected


@pytest.mark.parametrize("whole", [int, np.int64, np.uint8, np.array, torch.tensor])
@pytest.mark.parametrize("real", [float, np.float64, np.float32, np.array, torch.tensor])
def test_settings_may_be_numbers_of_every_kind(whole, real):
    found = trained(
        Batches((X, Y), batch_size=whole(5), shuffle=False),
        kl_weight=real(0.25),
        epochs=whole(1),
        num_particles=whole(1),
        seed=whole(4),
        validate_every=whole(1),
        dataset_size=whole(5),
    )
    assert found == trained(Batches((X, Y), 5, shuffle=False), kl_weight=0.25, seed=4)


@pytest.mark.parametrize(
    "name", ["epochs", "num_particles", "seed", "validate_every", "dataset_size"]
)
@pytest.mark.parametrize("value", [True, "3", 2.0, float("nan"), -1, np.array([1])], ids=repr)
def test_settings_that_are_no_whole_numbers_are_refused(name, value):
    with pytest.raises(ValueError, match=r"expected|dataset_size"):
        trained([(X, Y)], **{name: value})


@pytest.mark.parametrize(
    ("data", "remedy"),
    [
        (two_moons(), "Batches"),
        (TensorDataset(torch.tensor(X), torch.tensor(Y)), "DataLoader"),
        ((X, Y), r"\[\(x, y\)\]"),
        ((torch.tensor(X), torch.tensor(Y)), r"\[\(x, y\)\]"),
        (X, r"\[\(x, y\)\]"),
        (torch.tensor(X), r"\[\(x, y\)\]"),
        (None, "DataLoader"),
        ({"x": X}, r"\[\(x, y\)\]"),
        (iter([(X, Y)]), "one-shot"),
        ((batch for batch in [(X, Y)]), "one-shot"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_what_is_no_iterable_of_batches_is_refused_with_a_remedy(data, remedy):
    with pytest.raises(TypeError, match=rf"^expected .*{remedy}.*\.$"):
        trained(data)


class Custom:
    """A loader whose batches no one knows before they come."""

    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)


def single(kind, size=5, batch_size=2):
    x, y = torch.tensor(X[:size]), torch.tensor(Y[:size])
    batches = Batches((x, y), batch_size, shuffle=False)
    return {
        "Batches": lambda: batches,
        "list": lambda: list(batches),
        "dicts": lambda: [{"x": x, "y": y} for x, y in batches],
        "arrays": lambda: [(x.numpy(), y.numpy()) for x, y in batches],
        "DataLoader": lambda: DataLoader(TensorDataset(x, y), batch_size),
        "shuffled": lambda: DataLoader(TensorDataset(x, y), batch_size, shuffle=True),
        "custom": lambda: Custom(list(batches)),
    }[kind]()


KINDS = ["Batches", "list", "dicts", "arrays", "DataLoader", "shuffled", "custom"]


def steps(data, net):
    """(training steps done, the error that ended them), and nothing is left behind."""
    model = Classifier(net, 5)
    guide = AutoSignBernoulli(model)
    before = [p.detach().clone() for p in guide.parameters()]
    error, count = None, 0
    try:
        count = fit(model, guide, data, epochs=1, progress=False, estimator=StraightThrough()).steps
    except ValueError as caught:
        error = str(caught)
        count = int(not all(map(torch.equal, before, guide.parameters())))  # 0, or some
    assert not any(module._forward_pre_hooks for module in net.modules())
    return count, error


@pytest.mark.parametrize("kind", KINDS)
def test_a_last_batch_of_one_under_batch_normalisation(kind):
    expected = {
        "Batches": (2, None),  # the last example joins the batch before
        "custom": (1, SINGLE),  # when it comes, and in our words
    }.get(kind, (0, SINGLE))  # in the first step, before anything was learned
    assert steps(single(kind), network(normalize=True)) == expected
    assert steps(single(kind, size=4), network(normalize=True)) == (2, None)


@pytest.mark.parametrize("kind", KINDS)
def test_batches_of_one_where_nothing_normalises_by_the_batch(kind):
    assert steps(single(kind), network()) == (3, None)
    layers = nn.Sequential(nn.Linear(2, 4), nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, 2)).double()
    assert steps(single(kind), to_binary_(layers)) == (3, None)


@pytest.mark.parametrize("kind", KINDS)
def test_images_have_a_variance_each(kind):
    """A single image has as many values per channel as pixels."""
    layers = nn.Sequential(
        nn.Unflatten(1, (1, 1, 2)),
        nn.Conv2d(1, 3, 1),
        nn.BatchNorm2d(3),
        nn.Flatten(),
        nn.Linear(6, 2),
    )
    count, error = steps(single(kind), to_binary_(layers.double()))
    assert error is None and count == (2 if kind == "Batches" else 3)


def test_nothing_but_batches_of_one():
    for kind in ("Batches", "DataLoader", "list"):
        assert steps(single(kind, batch_size=1), network(normalize=True)) == (0, SINGLE)
    assert steps(single("Batches", size=1), network(normalize=True)) == (0, SINGLE)


def test_drop_last_leaves_it_out():
    data = Batches((X, Y), 2, drop_last=True)
    assert steps(data, network(normalize=True)) == (2, None)
    loader = DataLoader(TensorDataset(torch.tensor(X), torch.tensor(Y)), 2, drop_last=True)
    assert steps(loader, network(normalize=True)) == (2, None)


def test_a_data_set_of_arrays_is_one_of_tensors():
    data = Dataset(X, Y, "ten", 2)
    assert trained(Batches(data, 5, shuffle=False)) == trained([(X, Y)])
