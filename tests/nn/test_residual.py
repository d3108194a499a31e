"""Residual blocks: the sum, what may stand in them, and that everything else finds what is inside."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from bayesbin import BinaryPosterior
from bayesbin.ensemble import Ensemble
from bayesbin.estimators import LocalReparameterization, ScoreFunction
from bayesbin.guides import AutoSignBernoulli
from bayesbin.infer import TraceBinary_ELBO
from bayesbin.nn import (
    Classifier,
    Residual,
    StateBatchNorm,
    binary_sites,
    to_binary_,
    to_state_batch_norm_,
)


def network() -> nn.Module:
    inner = Residual(nn.Sequential(nn.Linear(5, 5), nn.BatchNorm1d(5), nn.ReLU()))
    outer = Residual(nn.Sequential(nn.Linear(4, 5), inner), nn.Linear(4, 5, bias=False))
    return nn.Sequential(outer, nn.ReLU(), nn.Linear(5, 3))


def test_it_is_a_sum():
    x, body, shortcut = torch.randn(7, 4), nn.Linear(4, 4), nn.Linear(4, 4)
    torch.testing.assert_close(Residual(body)(x), body(x) + x)
    torch.testing.assert_close(Residual(body, shortcut)(x), body(x) + shortcut(x))
    block = Residual(Residual(body), shortcut)
    torch.testing.assert_close(block(x), body(x) + x + shortcut(x))
    assert torch.equal(copy.deepcopy(block)(x), block(x))
    assert list(block.state_dict()) == [
        "body.body.weight", "body.body.bias", "shortcut.weight", "shortcut.bias"
    ]  # fmt: skip


def test_gradients_go_both_ways():
    x = torch.randn(3, 4, requires_grad=True)
    body, shortcut = nn.Linear(4, 4), nn.Linear(4, 4)
    Residual(body, shortcut)(x).sum().backward()
    torch.testing.assert_close(x.grad, (body.weight + shortcut.weight).sum(0).expand(3, 4).detach())


def test_outputs_of_other_shapes_are_not_broadcast():
    with pytest.raises(ValueError, match=r"body's is \(3, 4\), that of its inputs \(3, 1\)"):
        Residual(nn.Linear(1, 4))(torch.randn(3, 1))
    with pytest.raises(ValueError, match=r"that of its shortcut \(3, 1\)"):
        Residual(nn.Linear(4, 4), nn.Linear(4, 1))(torch.randn(3, 4))


def test_a_part_that_changes_the_inputs_is_refused():
    """It would change what the other part gets."""
    changing = nn.Sequential(nn.Sequential(nn.ReLU(inplace=True)), nn.Linear(4, 4))
    for parts in ((changing,), (nn.Linear(4, 4), changing)):
        with pytest.raises(ValueError, match=r"begins with ReLU\(inplace=True\)"):
            Residual(*parts)
    Residual(nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True)))


def test_conversion_finds_what_is_inside():
    net = to_binary_(network())
    assert list(binary_sites(net)) == [
        "0.body.0.weight", "0.body.1.body.0.weight", "0.shortcut.weight", "2.weight"
    ]  # fmt: skip
    inner = net.get_submodule("0.body.1.body.1")
    assert not isinstance(inner, StateBatchNorm)
    assert isinstance(to_state_batch_norm_(net).get_submodule("0.body.1.body.1"), StateBatchNorm)


def test_statistics_are_those_of_each_draw():
    net, x = to_state_batch_norm_(to_binary_(network())), torch.randn(40, 4)
    posterior = BinaryPosterior({s: torch.randn(v.shape) for s, v in binary_sites(net).items()})
    ensemble = Ensemble(net, posterior, 3, seed=1).calibrate(x)
    for index in range(3):
        drawn = ensemble.network(index)
        inputs = drawn.get_submodule("0.body.1.body.0")(drawn.get_submodule("0.body.0")(x))
        found = ensemble.statistics.values[index]
        torch.testing.assert_close(found["0.body.1.body.1.running_mean"], inputs.mean(0).detach())


@pytest.mark.parametrize("estimator", [LocalReparameterization(), ScoreFunction(3)], ids=repr)
def test_it_trains(estimator):
    model = Classifier(to_binary_(network()), dataset_size=30)
    guide = AutoSignBernoulli(model)
    loss = TraceBinary_ELBO(estimator)(model, guide)(torch.randn(30, 4), torch.arange(30) % 3)
    loss.backward()
    for natural in guide.natural_parameters():
        assert natural.grad is not None and bool((natural.grad != 0).any())
