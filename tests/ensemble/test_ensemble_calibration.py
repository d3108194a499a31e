"""Statistics of batch normalisation for each draw, against networks run by hand over the whole batch."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from normalised_networks import NETWORKS, Images, normalised, posterior_of
from torch import nn
from torch.nn import functional as F

from bayesbin import Ensemble
from bayesbin.core import networks
from bayesbin.ensemble import calibration
from bayesbin.nn import Classifier, StateBatchNorm, to_binary_


def data(shape, rows=50, seed=3):
    return torch.randn(rows, *shape, generator=torch.Generator().manual_seed(seed))


def in_training(net, q, draw, x):
    """Outputs of a draw whose normalisation layers use the statistics of the batch, as in training."""
    net = copy.deepcopy(net).train()
    networks.write_(net, q.signs(draw))
    with torch.no_grad():
        return net(x)


@pytest.mark.parametrize("name", NETWORKS)
def test_by_one_batch_the_outputs_are_nearly_those_of_training(name):
    """They differ by the unbiased variance alone, which makes activations smaller by 1 / (2 n)."""
    make, shape = NETWORKS[name]
    net, x = make(), data(shape, 400)
    q = posterior_of(net)
    outputs = Ensemble(net, q, num_samples=3).calibrate(x).outputs(x)
    wanted = torch.stack([in_training(net, q, draw, x) for draw in range(3)])
    torch.testing.assert_close(outputs, wanted, rtol=0.02, atol=0.02)
    other = Ensemble(net, q, num_samples=3).calibrate(x + 3.0).outputs(x)
    assert not torch.allclose(other, wanted, rtol=0.05, atol=0.05)


def direct(net, signs, x):
    """Both layers' input statistics at one weight state, by hand over the full batch."""

    def linear(layer, h, name):
        return (h * layer.scale) @ signs[name].t() + layer.bias

    a = linear(net[0], x, "0.weight")
    hidden = torch.tanh((a - a.mean(0)) / (a.var(0, correction=0) + 1e-5).sqrt())
    b = linear(net[3], hidden, "3.weight")
    return {
        "1.running_mean": a.mean(0), "1.running_var": a.var(0),
        "4.running_mean": b.mean(0), "4.running_var": b.var(0),
    }  # fmt: skip


@pytest.mark.parametrize("norm", [nn.BatchNorm1d, StateBatchNorm])
def test_statistics_of_each_draw_and_of_the_mode(norm):
    net, x = normalised(norm), data((3,))
    q = posterior_of(net)
    ensemble = Ensemble(net, q, num_samples=3, seed=7).calibrate(x)
    assert list(ensemble.statistics.values) == [0, 1, 2, None]
    for draw, found in ensemble.statistics.values.items():
        wanted = direct(net, q.signs(draw, seed=7), x)
        assert found.keys() == wanted.keys()
        for name, value in wanted.items():
            torch.testing.assert_close(found[name], value.detach())
    means = [found["1.running_mean"] for found in ensemble.statistics.values.values()]
    assert all(not torch.allclose(a, b) for i, a in enumerate(means) for b in means[:i])


def test_images_are_normalised_by_channel():
    net, x = to_binary_(Images()), data((2, 5, 5))
    q = posterior_of(net)
    found = Ensemble(net, q, num_samples=2).calibrate(x).statistics.values
    before = F.batch_norm(x, None, None, training=True)
    for draw, values in found.items():
        torch.testing.assert_close(values["before.running_mean"], x.mean((0, 2, 3)))
        torch.testing.assert_close(
            values["before.running_var"], x.transpose(0, 1).flatten(1).var(1)
        )
        first = F.conv2d(before, net.first.scale * q.signs(draw)["first.weight"], padding=1)
        torch.testing.assert_close(values["norm.running_mean"], first.mean((0, 2, 3)))
        torch.testing.assert_close(
            values["norm.running_var"], first.transpose(0, 1).flatten(1).var(1)
        )


def test_programs_and_torch_find_the_same(monkeypatch):
    net, x = to_binary_(Images()), data((2, 5, 5))
    q = posterior_of(net)
    one = Ensemble(net, q, num_samples=20).calibrate(x).statistics.values

    def refuse(*_):
        raise ValueError("not compiled")

    monkeypatch.setattr(calibration, "raw_program", refuse)
    other = Ensemble(net, q, num_samples=20).calibrate(x).statistics.values
    assert one.keys() == other.keys()
    for draw, values in one.items():
        assert values.keys() == other[draw].keys()
        for name, value in values.items():
            torch.testing.assert_close(value, other[draw][name])


def test_many_rows_go_in_blocks_of_equal_size(monkeypatch):
    net, x = normalised(), data((3,), 2001)
    q = posterior_of(net)
    found = Ensemble(net, q, num_samples=2).calibrate(x).statistics.values
    for draw in range(2):  # the first layer's do not depend on the blocks
        wanted = direct(net, q.signs(draw), x)
        for name in ("1.running_mean", "1.running_var"):
            torch.testing.assert_close(found[draw][name], wanted[name].detach())
        for name in ("4.running_mean", "4.running_var"):
            torch.testing.assert_close(
                found[draw][name], wanted[name].detach(), rtol=0.02, atol=0.02
            )
    batches = [(part, None) for part in x.split(100)]  # the last has one row
    again = Ensemble(net, q, num_samples=2).calibrate(batches).statistics.values
    assert all(torch.equal(again[0][name], value) for name, value in found[0].items())


def test_large_means_lose_no_digits():
    torch.set_default_dtype(torch.float32)
    net = to_binary_(nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2)))
    x = data((2,), 3000).float() + 1000.0
    found = Ensemble(net, posterior_of(net), num_samples=1).calibrate(x).statistics.values[0]
    wanted = x.double().var(0)
    torch.testing.assert_close(found["0.running_var"].double(), wanted, rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("name", NETWORKS)
def test_batch_normalisation_has_to_be_settled_first(name):
    make, shape = NETWORKS[name]
    net, x = make(), data(shape, 4)
    ensemble = Ensemble(Classifier(net, 9), posterior_of(net), num_samples=2)
    for ask in (ensemble.predict, ensemble.outputs, ensemble.log_probs, ensemble.mode.predict):
        with pytest.raises(RuntimeError, match=r"calibrate\(training inputs\)"):
            ask(x)
    with pytest.raises(RuntimeError, match="calibrate"):
        ensemble.evaluate(x, torch.zeros(4, dtype=torch.long))


def test_running_statistics_are_kept_when_asked():
    net, x = normalised(), data((3,))
    net.train()(data((3,), 100))
    q = posterior_of(net)
    ensemble = Ensemble(net, q, num_samples=2).calibrate(None)
    wanted = [networks.copy_with(net, q.signs(draw))(x).detach() for draw in range(2)]
    torch.testing.assert_close(ensemble.outputs(x), torch.stack(wanted))


@pytest.mark.parametrize("name", ["state batch norm", "without running statistics"])
def test_there_may_be_none_to_keep(name):
    net = NETWORKS[name][0]()
    with pytest.raises(RuntimeError, match=r"no running statistics.*calibrate\(x\)"):
        Ensemble(net, posterior_of(net), num_samples=2).calibrate(None)


def test_a_network_without_batch_normalisation_has_nothing_to_settle():
    net = to_binary_(nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2)))
    ensemble, x = Ensemble(net, posterior_of(net), num_samples=2), data((3,))
    before = ensemble.outputs(x)
    assert torch.equal(ensemble.calibrate(x).outputs(x), before)
    assert torch.equal(ensemble.calibrate(None).outputs(x), before)


def test_running_statistics_of_single_inputs_are_kept_or_refused():
    net = to_binary_(
        nn.Sequential(
            nn.Conv1d(2, 3, 1), nn.InstanceNorm1d(3, track_running_stats=True), nn.Conv1d(3, 2, 1)
        )
    )
    net.train()(data((2, 4)))
    x, ensemble = data((2, 4)), Ensemble(net, posterior_of(net), num_samples=2)
    with pytest.raises(RuntimeError, match="calibrate"):
        ensemble.predict(x)
    with pytest.raises(ValueError, match=r"instance normalisation.*calibrate\(None\)"):
        ensemble.calibrate(x)
    wanted = networks.copy_with(net, posterior_of(net).signs(1))(x)
    torch.testing.assert_close(ensemble.calibrate(None).outputs(x)[1], wanted.detach())


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_data_that_are_not_finite_are_refused(bad):
    net, x = normalised(), data((3,))
    x[3, 1] = bad
    with pytest.raises(ValueError, match="NaN or infinity"):
        Ensemble(net, posterior_of(net), num_samples=2).calibrate(x)


def test_one_row_has_no_variance():
    net = normalised()
    with pytest.raises(ValueError, match="several rows"):
        Ensemble(net, posterior_of(net), num_samples=2).calibrate(data((3,), 1))


def test_the_network_is_left_alone():
    net, x = normalised(), data((3,))
    net.train()
    before = copy.deepcopy(net.state_dict())
    Ensemble(net, posterior_of(net), num_samples=2).calibrate(x).predict(x)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert all(module.training for module in net.modules())


def test_statistics_serve_another_ensemble_of_the_same_draws_alone():
    """Fault E.1: those of another posterior were accepted."""
    net, x = normalised(), data((3,))
    q = posterior_of(net)
    ensemble = Ensemble(net, q, num_samples=4, seed=1).calibrate(x)
    again = Ensemble(net, q, num_samples=3, seed=1, statistics=ensemble.statistics)
    assert torch.equal(again.outputs(x), ensemble.outputs(x)[:3])
    others = {
        "another network, posterior or seed": [
            dict(model=net, posterior=posterior_of(net, seed=2), seed=1),
            dict(model=net, posterior=q, seed=2),
            dict(model=normalised(nn.BatchNorm1d).requires_grad_(False), posterior=q, seed=1),
        ],
        "of draw 4": [dict(model=net, posterior=q, seed=1, num_samples=5)],
    }
    with torch.no_grad():
        others["another network, posterior or seed"][2]["model"][0].bias.add_(1.0)
    for words, cases in others.items():
        for case in cases:
            with pytest.raises(ValueError, match=words):
                Ensemble(**{"num_samples": 3, **case}, statistics=ensemble.statistics)


def test_a_bar_shows_when_asked(capsys, monkeypatch):
    monkeypatch.setattr(calibration, "_SLOW", 0.0)
    net, x = normalised(), data((3,))
    ensemble = Ensemble(net, posterior_of(net), num_samples=2)
    ensemble.calibrate(x, progress=False)
    assert "Calibrating" not in capsys.readouterr().err
    ensemble.calibrate(x, progress=True)
    assert "Calibrating" in capsys.readouterr().err


def test_calibration_takes_arrays_and_data_sets():
    net, x = normalised(), data((3,))
    q = posterior_of(net)
    wanted = Ensemble(net, q, num_samples=2).calibrate(x).outputs(x)
    for form in (x.numpy(), torch.utils.data.TensorDataset(x, x), x.tolist()):
        found = Ensemble(net, q, num_samples=2).calibrate(form).outputs(x)
        np.testing.assert_array_equal(found.numpy(), wanted.numpy())


def test_functional_normalisation_is_found_as_soon_as_inputs_are_known():
    net = NETWORKS["functional"][0]()
    ensemble = Ensemble(net, posterior_of(net), num_samples=2)
    with pytest.raises(RuntimeError, match=r"'mean' first.*calibrate"):
        ensemble.compile(input_shape=(3,))
    with pytest.raises(RuntimeError, match="'mean' first"):
        ensemble.network(0)
