"""Classifier and Regressor: what they declare, how they scale, what they refuse."""

from __future__ import annotations

import math

import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import nn

from bayesbin.distributions import SignBernoulli
from bayesbin.nn import BinaryLinear, Classifier, Regressor, to_binary_

N = 30


def classifier(dtype=torch.float64):
    net = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 3)).to(dtype)
    return Classifier(to_binary_(net, prior=0.3), dataset_size=N)


def observed(model, *args):
    """The log-likelihood of a run, and the signs it was run at."""
    trace = poutine.trace(model).get_trace(*args)
    trace.compute_log_prob()
    site = trace.nodes["y"]
    signs = {n: s["value"] for n, s in trace.nodes.items() if n.endswith("weight")}
    return site["log_prob_sum"], signs


@pytest.mark.parametrize("rows", [1, 5, N])
def test_the_classifier_scales_a_batch_to_the_data_set(rows):
    model = classifier()
    x, y = torch.randn(rows, 2), torch.arange(rows) % 3
    log_likelihood, signs = observed(model, x, y)
    logits = torch.func.functional_call(model.net, signs, (x,))
    expected = N / rows * torch.log_softmax(logits, -1)[range(rows), y].sum()
    torch.testing.assert_close(log_likelihood, expected)


@pytest.mark.parametrize("column", [True, False])
@pytest.mark.parametrize("rows", [1, 5, N])
def test_the_regressor_scales_a_batch_to_the_data_set(rows, column):
    net = BinaryLinear(2, 1) if column else nn.Sequential(BinaryLinear(2, 1), nn.Flatten(0))
    model = Regressor(net, dataset_size=N, noise=0.7)
    x, y = torch.randn(rows, 2), torch.randn(rows)
    log_likelihood, signs = observed(model, x, y)
    mean = torch.func.functional_call(net, signs, (x,)).flatten()
    torch.testing.assert_close(log_likelihood, N / rows * dist.Normal(mean, 0.7).log_prob(y).sum())


def test_sites_are_declared_without_data():
    trace = poutine.trace(classifier()).get_trace()
    sites = [name for name, node in trace.nodes.items() if node["type"] == "sample"]
    assert sites == ["0.weight", "2.weight"]
    distribution = trace.nodes["0.weight"]["fn"]
    assert distribution.event_shape == (4, 2) and distribution.batch_shape == ()
    assert isinstance(distribution.base_dist, SignBernoulli)
    assert bool((distribution.base_dist.natural == 0.3).all())


def test_noise_is_a_number_or_a_latent_site():
    net = BinaryLinear(2, 1)
    for noise, latent in ((0.5, False), (1, False), (None, True), (dist.HalfNormal(1.0), True)):
        trace = poutine.trace(Regressor(net, dataset_size=N, noise=noise)).get_trace()
        assert ("noise" in trace.nodes) == latent


def test_labels_and_targets_are_drawn_without_any():
    model = classifier()
    labels = model(torch.randn(7, 2))
    assert labels.shape == (7,) and bool(((labels >= 0) & (labels < 3)).all())
    assert Regressor(BinaryLinear(2, 1), dataset_size=N)(torch.randn(7, 2)).shape == (7,)
    assert classifier()() is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_dtypes(dtype):
    model = classifier(dtype)
    log_likelihood, _ = observed(model, torch.randn(4, 2, dtype=dtype), torch.tensor([0, 1, 2, 0]))
    assert log_likelihood.dtype == dtype and bool(log_likelihood.isfinite())


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.bool])
def test_whole_numbers_of_any_type_are_labels(dtype):
    y = torch.tensor([0, 1, 1]).to(dtype)
    assert observed(classifier(), torch.randn(3, 2), y)[0].isfinite()


def test_a_non_contiguous_batch():
    model = classifier()
    x, y = torch.randn(2, 6).t(), torch.arange(12)[::2] % 3
    torch.manual_seed(0)
    value, _ = observed(model, x, y)
    torch.manual_seed(0)
    torch.testing.assert_close(value, observed(model, x.contiguous(), y.contiguous())[0])


x5 = torch.zeros(5, 2, dtype=torch.float64)
y5 = torch.zeros(5, dtype=torch.long)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (torch.full((5, 2), math.nan), y5, "inputs contain NaN or infinity"),
        (torch.full((5, 2), -math.inf), y5, "inputs contain NaN or infinity"),
        (torch.zeros(0, 2), y5[:0], "at least one row; got"),
        (torch.tensor(1.0), y5, "at least one row; got"),
        ([["a", "b"]], y5[:1], "expected inputs as a tensor.*; got list of strings"),
        (x5, y5[:4], r"one target for each of the 5 inputs; got shape \(4,\)"),
        (x5, [0] * 4, r"one target for each of the 5 inputs; got shape \(4,\)"),
        (x5, y5.double(), "labels as whole numbers"),
        (x5, nn.functional.one_hot(y5, 3), r"of shape \(5, 3\).*argmax"),
        (x5, y5 - 1, r"labels in 0 \.\. 2, the network's classes; got -1"),
        (x5, y5 + 3, r"got 3 \.\. 3"),
        (x5[:1].expand(N + 1, 2), y5[:1].expand(N + 1), "batch of 31 is larger than dataset_size = 30"),
    ],
)  # fmt: skip
def test_batches_that_a_classifier_refuses(x, y, message):
    with pytest.raises(ValueError, match=message):
        classifier()(x, y)


def test_networks_whose_outputs_do_not_fit():
    with pytest.raises(ValueError, match=r"Expected logits of shape \(5, classes\)"):
        Classifier(nn.Sequential(BinaryLinear(2, 1), nn.Flatten(0)), dataset_size=N)(x5, y5)
    with pytest.raises(ValueError, match=r"targets of shape \(5, 3\).*of shape \(5,\)"):
        Regressor(BinaryLinear(2, 3), dataset_size=N)(x5, torch.zeros(5))


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (torch.zeros(5, 2), r"expected targets of shape \(5,\).*of shape \(5, 2\)"),
        (torch.full((5,), math.nan), "with NaN or infinity"),
        (torch.full((5,), math.inf), "with NaN or infinity"),
        (torch.zeros(4), "one target for each of the 5 inputs"),
    ],
)
def test_targets_that_a_regressor_refuses(y, message):
    with pytest.raises(ValueError, match=message):
        Regressor(BinaryLinear(2, 1), dataset_size=N)(x5, y.double())


@pytest.mark.parametrize("Likelihood", [Classifier, Regressor])
def test_construction(Likelihood):
    for size in (0, -1, 2.5, "100"):
        with pytest.raises(ValueError, match="dataset_size to be a whole number of at least 1"):
            Likelihood(BinaryLinear(2, 1), dataset_size=size)
    with pytest.raises(ValueError, match=r"network has no binary weights\. Convert it"):
        Likelihood(nn.Linear(2, 1), dataset_size=N)


@pytest.mark.parametrize("noise", [0.0, -1.0, math.nan])
def test_noise_is_positive(noise):
    with pytest.raises(ValueError, match=r"noise to be a .*number above 0"):
        Regressor(BinaryLinear(2, 1), dataset_size=N, noise=noise)
