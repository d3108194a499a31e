"""Normalisation statistics per weight state, against direct computation."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from bayesbin.nn import (
    BinaryLinear,
    StateBatchNorm,
    Statistics,
    recalibrate,
    to_binary_,
    to_state_batch_norm_,
)
from bayesbin.posterior import BinaryPosterior
from bayesbin.predict import predict


def network(norm=StateBatchNorm):
    net = nn.Sequential(
        nn.Linear(3, 6), norm(6), nn.Tanh(), nn.Linear(6, 4), norm(4), nn.Linear(4, 2)
    )
    return to_binary_(net)


def posterior():
    torch.manual_seed(1)
    return BinaryPosterior(
        {f"{i}.weight": torch.randn(shape) for i, shape in ((0, (6, 3)), (3, (4, 6)), (5, (2, 4)))}
    )


def direct(net, signs, x):
    """Both layers' input statistics at one weight state, by hand over the full batch."""

    def linear(layer, h, name):
        return (h * layer.scale) @ signs[name].t() + layer.bias

    a = linear(net[0], x, "0.weight")
    b = linear(
        net[3], torch.tanh((a - a.mean(0)) / (a.var(0, correction=0) + 1e-5).sqrt()), "3.weight"
    )
    return {
        "1.running_mean": a.mean(0), "1.running_var": a.var(0),
        "4.running_mean": b.mean(0), "4.running_var": b.var(0),
    }  # fmt: skip


@pytest.mark.parametrize("norm", [StateBatchNorm, nn.BatchNorm1d])
def test_recalibrate_is_exact_for_each_state(norm):
    net, q = network(norm), posterior()
    x = torch.randn(50, 3)
    statistics = recalibrate(net, q, x, num_samples=3, seed=7)
    assert isinstance(statistics, Statistics) and len(statistics.draws) == 3
    states = [(statistics.mode, q.signs())]
    states += [(statistics.of_draw(s, 7), q.signs(s, seed=7)) for s in range(3)]
    for found, signs in states:
        expected = direct(net, signs, x)
        assert found.keys() == expected.keys()
        for name in expected:
            torch.testing.assert_close(found[name], expected[name])
    means = [found["1.running_mean"] for found, _ in states]
    assert all(not torch.allclose(a, b) for i, a in enumerate(means) for b in means[:i])


def test_recalibrate_leaves_the_network_untouched():
    net, q = network(nn.BatchNorm1d), posterior()
    net.train()
    before = copy.deepcopy(net.state_dict())
    recalibrate(net, q, torch.randn(20, 3), num_samples=2)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert all(module.training for module in net.modules())
    assert not any(module._forward_pre_hooks for module in net.modules())


def test_first_layer_statistics_do_not_depend_on_the_batching():
    net, q = network(), posterior()
    x = torch.randn(23, 3)
    whole = recalibrate(net, q, x, num_samples=1)
    pairs = [(part, None) for part in x.split(5)]
    for batches in (pairs, x.split(10), [list(pair) for pair in pairs]):
        parts = recalibrate(net, q, batches, num_samples=1)
        for name in ("1.running_mean", "1.running_var"):
            torch.testing.assert_close(parts.mode[name], whole.mode[name])


def test_one_row_more_than_a_batch_is_no_batch_of_one():
    assert len(recalibrate(network(), posterior(), torch.randn(1001, 3), num_samples=1).draws) == 1


def test_convolutions_are_normalised_over_positions():
    net = to_binary_(
        nn.Sequential(nn.Conv2d(1, 3, 2), StateBatchNorm(3), nn.Flatten(), nn.LazyLinear(2)),
        lambda n, o: n == "0.weight",
    )
    x = torch.randn(8, 1, 4, 4)
    net(x)
    q = BinaryPosterior({"0.weight": torch.randn(3, 1, 2, 2)})
    found = recalibrate(net, q, x, num_samples=0).mode
    a = q.mode_network(net)[0](x).transpose(0, 1).flatten(1)
    torch.testing.assert_close(found["1.running_mean"], a.mean(1))
    torch.testing.assert_close(found["1.running_var"], a.var(1))


def test_statistics_enter_prediction_and_networks():
    net, q = network(), posterior()
    x = torch.randn(40, 3)
    statistics = recalibrate(net, q, x, num_samples=2, seed=3)
    drawn = q.sample_network(net, 1, seed=3, statistics=statistics)
    torch.testing.assert_close(
        drawn[1].running_mean, direct(net, q.signs(1, seed=3), x)["1.running_mean"]
    )
    mode = q.mode_network(net, statistics)
    torch.testing.assert_close(
        predict(net, q, x, num_samples=0, statistics=statistics).log_probs,
        torch.log_softmax(mode(x), -1),
    )
    batch_statistics = copy.deepcopy(mode).train()(x)
    # Evaluation divides by the unbiased variance, training by the biased one: 1/40 apart.
    torch.testing.assert_close(mode(x), batch_statistics.detach(), atol=0.1, rtol=0.1)


def test_without_statistics_evaluation_is_an_error():
    net, q = network(), posterior()
    x = torch.randn(5, 3)
    assert net.train()(x).isfinite().all()
    with pytest.raises(RuntimeError, match="no statistics for the current weights"):
        net.eval()(x)
    with pytest.raises(RuntimeError, match="no statistics for the current weights"):
        predict(net, q, x)


def test_training_accumulates_nothing():
    norm = StateBatchNorm(3)
    x = torch.randn(6, 3)
    torch.testing.assert_close(norm(x), nn.BatchNorm1d(3)(x))
    assert norm.running_mean.isnan().all() and norm.num_batches_tracked == 0


def test_statistics_of_other_draws_are_an_error():
    statistics = recalibrate(network(), posterior(), torch.randn(10, 3), num_samples=2, seed=4)
    for index, seed in ((2, 4), (0, 5), (-1, 4)):
        with pytest.raises(
            ValueError, match=rf"draws 0\.\.1 of seed 4; asked for draw {index} of seed {seed}"
        ):
            statistics.of_draw(index, seed)


def test_no_data():
    with pytest.raises(ValueError, match="recalibrate needs data; got no batch"):
        recalibrate(network(), posterior(), [])
    with pytest.raises(ValueError, match="at least 0; got -1"):
        recalibrate(network(), posterior(), torch.randn(4, 3), num_samples=-1)


def test_a_layer_without_running_statistics_needs_none():
    net = to_binary_(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2, track_running_stats=False)))
    q = BinaryPosterior({"0.weight": torch.randn(2, 3)})
    x = torch.randn(10, 3)
    statistics = recalibrate(net, q, x, num_samples=1)
    assert statistics.mode == {}
    assert predict(net, q, x, num_samples=1, statistics=statistics).probs.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_dtypes(dtype):
    net, q = network().to(dtype), posterior().to(dtype)
    x = torch.randn(16, 3, dtype=dtype)
    statistics = recalibrate(net, q, x, num_samples=1)
    assert {value.dtype for value in statistics.mode.values()} == {dtype}
    assert predict(net, q, x, num_samples=1, statistics=statistics).probs.isfinite().all()


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
