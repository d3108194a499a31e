"""Batch normalisation that keeps no running statistics."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bayesbin.nn import BinaryLinear, StateBatchNorm, to_binary_, to_state_batch_norm_


def network(norm=StateBatchNorm):
    net = nn.Sequential(
        nn.Linear(3, 6), norm(6), nn.Tanh(), nn.Linear(6, 4), norm(4), nn.Linear(4, 2)
    )
    return to_binary_(net)


def test_without_statistics_evaluation_is_an_error():
    net = network()
    x = torch.randn(5, 3)
    assert net.train()(x).isfinite().all()
    with pytest.raises(RuntimeError, match="no statistics for the current weights"):
        net.eval()(x)


def test_training_accumulates_nothing():
    norm = StateBatchNorm(3)
    x = torch.randn(6, 3)
    torch.testing.assert_close(norm(x), nn.BatchNorm1d(3)(x))
    assert norm.running_mean.isnan().all() and norm.num_batches_tracked == 0


def test_shape_errors():
    with pytest.raises(ValueError, match=r"takes \(B, C, ...\); got shape \(3,\)"):
        StateBatchNorm(3)(torch.randn(3))


def test_swapping_keeps_the_affine_parameters():
    shared = nn.BatchNorm1d(3)
    net = nn.Sequential(
        BinaryLinear(2, 3), shared, nn.Sequential(nn.BatchNorm2d(4, affine=False)), shared
    ).float()
    weight = shared.weight
    assert to_state_batch_norm_(net) is net
    assert isinstance(net[1], StateBatchNorm) and isinstance(net[2][0], StateBatchNorm)
    assert net[1] is net[3] and net[1].weight is weight
    assert net[2][0].weight is None and net[1].running_mean.dtype == torch.float32
    with pytest.raises(ValueError, match="found no BatchNorm layer"):
        to_state_batch_norm_(net)
