"""Predictions run through a compiled program: the same bits however asked for; or torch, and a reason."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from normalised_networks import NETWORKS, Images, normalised, posterior_of
from torch import nn

import bayesbin as bb
from bayesbin import BinaryPosterior, Ensemble
from bayesbin.distributions import LowBitCategorical
from bayesbin.ensemble import programs
from bayesbin.nn import Classifier, Regressor, Sign, binary_sites, to_binary_
from bayesbin.posterior import LowBitPosterior


def data(shape, rows=40, seed=3):
    return torch.randn(rows, *shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def single(monkeypatch):
    """Networks in float32, as users have them."""
    torch.set_default_dtype(torch.float32)


def in_torch(ensemble, x):
    """What the ensemble's networks put out one by one in torch."""
    with torch.no_grad():
        return torch.stack([ensemble.network(k)(x) for k in range(ensemble.num_samples)])


class Skip(nn.Sequential):
    """A container that computes other than its class says (fault C.1)."""

    def forward(self, x):
        return x + super().forward(x)


def skipping():
    return to_binary_(nn.Sequential(Skip(nn.Linear(3, 3), nn.Tanh()), nn.Linear(3, 2)))


def hooked():
    net = to_binary_(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)))
    net[0].register_forward_hook(lambda module, inputs, output: 2.0 * output + 0.5)
    return net


def signed():
    layers = nn.Sequential(
        Sign(), nn.Linear(9, 16, bias=False), nn.BatchNorm1d(16), Sign(), nn.Linear(16, 3)
    )
    return to_binary_(layers)


CASES = {
    **NETWORKS,
    "skip": (skipping, (3,)),
    "hook": (hooked, (3,)),
    "signs": (signed, (9,)),
    "convolutions": (
        lambda: to_binary_(bb.nn.conv_net((1, 12, 12), (3, 4), (8,), 5, kernel_size=3)),
        (1, 12, 12),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_programs_compute_what_the_network_computes(name, single):
    make, shape = CASES[name]
    torch.manual_seed(5)
    net, x = make(), data(shape)
    ensemble = Ensemble(Classifier(net, 9), posterior_of(net), num_samples=6).calibrate(x)
    torch.testing.assert_close(ensemble.outputs(x), in_torch(ensemble, x), rtol=1e-4, atol=1e-5)
    assert ensemble.compiled, str(ensemble.compiled)


@pytest.mark.parametrize("name", ["signs", "images", "convolutions"])
def test_the_same_bits_for_any_batch_and_number_of_threads(name, single):
    make, shape = CASES[name]
    torch.manual_seed(5)
    net, x = make(), data(shape, 33)
    ensemble = Ensemble(Classifier(net, 9), posterior_of(net), num_samples=6).calibrate(x)
    whole, outputs = ensemble.predict(x), ensemble.outputs(x)
    for size in (1, 5, 32):
        parts = [ensemble.predict(part) for part in x.split(size)]
        for quantity in ("log_probs", "expected_entropy", "probs_std", "mutual_information"):
            joined = torch.cat([getattr(part, quantity) for part in parts])
            assert torch.equal(joined, getattr(whole, quantity)), (size, quantity)
        assert torch.equal(torch.cat([ensemble.outputs(p) for p in x.split(size)], 1), outputs)
    for threads in (1, 3):
        predictor = ensemble.compile(threads=threads)
        assert np.array_equal(predictor.predict(x.numpy()).log_probs, whole.log_probs.numpy())
    slow = ensemble.compile(backend="numpy").predict(x.numpy())
    assert np.array_equal(slow.log_probs, whole.log_probs.numpy())


def test_a_network_is_exported_once_for_a_shape(monkeypatch):
    calls = []
    export = programs.export_program
    monkeypatch.setattr(
        programs, "export_program", lambda *args, **named: calls.append(1) or export(*args, **named)
    )
    net, x = to_binary_(Images()), data((2, 5, 5))
    ensemble = Ensemble(Classifier(net, 9), posterior_of(net), num_samples=3).calibrate(x)
    ensemble.evaluate(x, torch.zeros(40, dtype=torch.long))
    ensemble.select([1]).predict(x)
    ensemble.compile()
    Ensemble.join([ensemble, ensemble.mode]).predict(x)
    assert len(calls) == 1
    ensemble.predict(data((2, 6, 6)))
    assert len(calls) == 2


class Sorted(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)

    def forward(self, x):
        hidden = self.norm(self.first(x))
        if hidden.mean() > 100.0:  # a decision that depends on values
            hidden = hidden * 2.0
        return self.last(hidden.sort(-1).values)


def test_what_does_not_compile_predicts_in_torch_and_says_so():
    net, x = to_binary_(Sorted()), data((3,))
    ensemble = Ensemble(Classifier(net, 9), posterior_of(net), num_samples=3)
    with pytest.raises(RuntimeError, match="calibrate"):
        ensemble.predict(x)
    ensemble.calibrate(x)
    torch.testing.assert_close(ensemble.outputs(x), in_torch(ensemble, x))
    torch.testing.assert_close(ensemble.predict(x).probs, in_torch(ensemble, x).softmax(-1).mean(0))
    assert not ensemble.compiled and "depends on values" in str(ensemble.compiled)
    assert "test_programs.py" in str(ensemble.compiled)
    with pytest.raises(ValueError, match="depends on values"):
        ensemble.compile()
    assert ensemble.evaluate(x, torch.zeros(40, dtype=torch.long))["num_samples"] == 3


def test_the_shape_of_inputs_is_seen_given_or_guessed():
    net = to_binary_(nn.Sequential(nn.Flatten(), nn.Linear(6, 2)))
    flat = Ensemble(net, posterior_of(net), num_samples=2)
    assert flat.compiled  # the first layer with numbers is linear
    assert flat.compile().outputs(np.zeros((3, 6))).shape == (2, 3, 2)
    images = to_binary_(Images(norm=lambda size, **_: nn.Identity()))
    ensemble = Ensemble(images, posterior_of(images), num_samples=2).calibrate(None)
    assert not ensemble.compiled and "shape of inputs is not known" in str(ensemble.compiled)
    with pytest.raises(ValueError, match="input_shape"):
        ensemble.compile()
    predictor = ensemble.compile(input_shape=(2, 7, 7))
    assert predictor.outputs(np.zeros((3, 2, 7, 7))).shape == (2, 3, 3)
    ensemble.predict(data((2, 5, 5)))
    assert ensemble.compiled
    x = data((2, 5, 5), 4).numpy()
    np.testing.assert_array_equal(ensemble.compile().outputs(x), ensemble.outputs(x))
    for bad, words in (
        (dict(precision="half"), "precision"),
        (dict(backend="cpu"), "backend"),
        (dict(threads=0), "threads"),
        (dict(input_shape=(2, 0)), "input_shape"),
    ):
        with pytest.raises(ValueError, match=words):
            ensemble.compile(**bad)


def test_an_ensemble_that_is_not_calibrated_does_not_compile_to_a_predictor():
    net = normalised()
    with pytest.raises(RuntimeError, match="calibrate"):
        Ensemble(net, posterior_of(net), num_samples=2).compile()


LOAD = """
import sys, numpy, bayesbin as bb
predictor = bb.load(sys.argv[1])
assert "torch" not in sys.modules and "pyro" not in sys.modules
numpy.save(sys.argv[3], predictor.predict(numpy.load(sys.argv[2])).log_probs)
"""


@pytest.mark.filterwarnings("ignore")
def test_a_shipped_file_predicts_the_same_bits_without_torch(tmp_path, single):
    net, x = to_binary_(Images()), data((2, 5, 5))
    ensemble = Ensemble(Classifier(net, 9), posterior_of(net), num_samples=4).calibrate(x)
    paths = [str(tmp_path / name) for name in ("model.bbn", "x.npy", "log_probs.npy")]
    ensemble.compile().save(paths[0], contents="draws")
    np.save(paths[1], x.numpy())
    subprocess.run([sys.executable, "-W", "ignore", "-c", LOAD, *paths], check=True)
    np.testing.assert_array_equal(np.load(paths[2]), ensemble.predict(x).log_probs.numpy())


@pytest.mark.filterwarnings("ignore")
def test_a_chosen_network_ships_itself(tmp_path):
    """Fault E.4: it was the mode."""
    net, x = normalised(), data((3,))
    ensemble = Ensemble(Classifier(net, 9), posterior_of(net), num_samples=10).calibrate(x)
    ensemble.select(draws=[8]).compile().save(tmp_path / "chosen.bbn")
    found = bb.load(tmp_path / "chosen.bbn").predict(x.numpy()).probs
    wanted = ensemble.network(8)(x).detach().softmax(-1).numpy()
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    assert not np.allclose(found, ensemble.mode.predict(x.numpy()).probs, atol=1e-3)


def test_joined_networks_compile_to_one_program():
    nets = []
    for seed in range(3):
        net = to_binary_(Images())
        with torch.no_grad():
            net.last.bias.add_(float(seed))
        nets.append(net)
    x = data((2, 5, 5))
    parts = [
        Ensemble(Classifier(net, 9), posterior_of(net, seed=k), num_samples=k + 1).calibrate(x)
        for k, net in enumerate(nets)
    ]
    joined = Ensemble.join([*parts, parts[2].mode])
    assert torch.equal(
        joined.outputs(x), torch.cat([*[p.outputs(x) for p in parts], parts[2].mode.outputs(x)])
    )
    assert joined.compiled and joined.compile().program.num_draws == 7
    torch.testing.assert_close(joined.outputs(x), in_torch(joined, x))


def test_joined_networks_whose_code_differs_predict_in_torch():
    x = data((3,))
    parts = []
    for activation in (nn.Tanh(), nn.ReLU()):
        torch.manual_seed(1)
        net = to_binary_(nn.Sequential(nn.Linear(3, 4), activation, nn.Linear(4, 2)))
        parts.append(Ensemble(net, posterior_of(net), num_samples=2))
    joined = Ensemble.join(parts)
    torch.testing.assert_close(joined.outputs(x), torch.cat([p.outputs(x) for p in parts]))
    assert not joined.compiled and "differ" in str(joined.compiled)


def test_weights_of_a_few_levels_compile(single):
    net, x = to_binary_(Images()), data((2, 5, 5))
    q = LowBitPosterior(
        {
            name: LowBitCategorical((-1.0, 0.0, 1.0), torch.randn(*site.shape, 3))
            for name, site in binary_sites(net).items()
        }
    )
    ensemble = Ensemble(net, q, num_samples=3).calibrate(x)
    torch.testing.assert_close(ensemble.outputs(x), in_torch(ensemble, x), rtol=1e-4, atol=1e-5)
    assert ensemble.compiled


@pytest.mark.filterwarnings("ignore:to_binary_ left")
def test_tokens_are_inputs_too(single):
    net = to_binary_(nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(12, 2)))
    x = torch.arange(27).reshape(9, 3) % 9
    ensemble = Ensemble(
        Regressor(net, 9, noise=0.1), posterior_of(net), num_samples=3, head="outputs"
    )
    torch.testing.assert_close(ensemble.outputs(x), in_torch(ensemble, x))
    assert ensemble.compiled


def test_counts_of_draws_are_those_of_the_program():
    net, x = normalised(), data((3,))
    ensemble = Ensemble(net, posterior_of(net), num_samples=3).calibrate(x)
    assert ensemble.compile().num_samples == 3 and ensemble.mode.compile().num_samples == 1
    assert ensemble.mode.select([0, 0]).compile().num_samples == 2


@pytest.mark.parametrize("how", ["forward", "hook"])
def test_functions_that_refer_to_the_network_compute_with_the_drawn_weights(how, single):
    """Fault C.2: what a user puts over a forward, or into a hook, knows the network itself."""
    torch.manual_seed(3)
    net, x = to_binary_(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))), data((3,))
    if how == "forward":
        before = net.forward
        net.forward = lambda x: 2.0 * before(x) + net[2](net[0](x).relu())
    else:
        net[0].register_forward_hook(lambda module, inputs, out: out + net[0].weight.sum())
    q = posterior_of(net)
    ensemble = Ensemble(net, q, num_samples=4)
    wanted = []
    for draw in range(4):
        weights = {
            name: q.signs(draw)[name] * site.scale for name, site in binary_sites(net).items()
        }
        first, last = weights["0.weight"], weights["2.weight"]
        hidden = x @ first.T + net[0].bias
        if how == "forward":
            plain = torch.tanh(hidden) @ last.T + net[2].bias
            wanted.append(2.0 * plain + hidden.relu() @ last.T + net[2].bias)
        else:
            wanted.append(torch.tanh(hidden + first.sum()) @ last.T + net[2].bias)
    wanted = torch.stack(wanted).detach()
    assert ensemble.compiled is not None
    torch.testing.assert_close(ensemble.outputs(x), wanted, rtol=1e-5, atol=1e-5)
    assert ensemble.compiled
    torch.testing.assert_close(in_torch(ensemble, x), wanted, rtol=1e-5, atol=1e-5)


def test_a_shape_that_a_network_does_not_take_is_refused_in_a_sentence():
    net = to_binary_(
        nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(12, 2)), where=nn.Linear
    )
    posterior = BinaryPosterior({"2.weight": torch.randn(2, 12)})
    ensemble = Ensemble(net, posterior, 2)
    with pytest.raises(ValueError, match=r"does not take inputs of the shape .* with predict\(x\)"):
        ensemble.compile(input_shape=(3,))
    ensemble.predict(torch.zeros(4, 3, dtype=torch.int64))
    assert ensemble.compile().predict(np.zeros((4, 3), np.int64)).mean.shape == (4, 2)
