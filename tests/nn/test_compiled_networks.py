"""torch.compile and data parallelism leave the names of sites, and what a model computes, as they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import bayesbin as bb
from bayesbin.core import networks
from bayesbin.core.copies import copy_network
from bayesbin.estimators import DisARM, LocalReparameterization, StraightThrough
from bayesbin.guides import AutoSignBernoulli
from bayesbin.infer import TraceBinary_ELBO
from bayesbin.nn import Classifier, binary_sites, conversion, to_binary_

X = torch.linspace(-1.0, 1.0, 12, dtype=torch.float64).reshape(6, 2)
Y = torch.arange(6) % 2


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body: nn.Module = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Tanh())
        self.head: nn.Module = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x))


def compiled(module: nn.Module) -> Any:
    return torch.compile(module, backend="eager")


def before_conversion() -> Any:
    return to_binary_(compiled(Network()))


def after_conversion() -> Any:
    return compiled(to_binary_(Network()))


def a_submodule_before() -> Any:
    net = Network()
    net.body = compiled(net.body)
    return to_binary_(net)


def a_submodule_after() -> Any:
    net = to_binary_(Network())
    net.head, net.body = compiled(net.head), compiled(net.body)
    return net


def in_place() -> Any:
    net = to_binary_(Network())
    net.compile(backend="eager")
    return net


def twice() -> Any:
    net = a_submodule_after()
    return compiled(net)


def parallel() -> Any:
    net = to_binary_(Network())
    net.body = nn.DataParallel(net.body)
    return nn.DataParallel(net)


WAYS: list[Callable[[], Any]] = [
    before_conversion, after_conversion, a_submodule_before, a_submodule_after, in_place, twice, parallel,
]  # fmt: skip


def plain() -> Any:
    torch.manual_seed(0)
    return to_binary_(Network())


@pytest.mark.parametrize("way", WAYS)
def test_names_and_numbers_are_those_of_the_plain_network(
    way: Callable[[], Any], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    net, other = way(), plain()
    names = ["body.0.weight", "head.weight"]
    if way is not parallel:
        for sign in (1.0, -1.0):
            values = {name: sign * site.signs for name, site in binary_sites(other).items()}
            with torch.no_grad():
                outputs = [networks.call(each, values, X) for each in (net, other)]
            torch.testing.assert_close(*outputs)
    assert list(binary_sites(net)) == names == list(binary_sites(other))
    assert conversion(net).binary == conversion(other).binary
    assert conversion(net).real == conversion(other).real
    for a, b in zip(binary_sites(net).values(), binary_sites(other).values(), strict=True):
        assert torch.equal(a.signs, b.signs) and a.scale == b.scale
    found = []
    for each in (net, other):
        torch.manual_seed(1)
        model = Classifier(each, dataset_size=20)
        guide = AutoSignBernoulli(model)
        assert list(guide.sites) == names
        losses = []
        for estimator in (LocalReparameterization(), StraightThrough(), DisARM()):
            torch.manual_seed(2)
            losses.append(TraceBinary_ELBO(estimator, num_particles=2)(model, guide)(X, Y).item())
        bb.fit(model, guide, [(X, Y)], epochs=2, validation=[(X, Y)], progress=False)
        found.append((losses, guide.posterior(), model))
    (losses, posterior, model), (expected, plains, twin) = found
    torch.testing.assert_close(losses, expected)
    for name in names:
        torch.testing.assert_close(posterior[name].natural, plains[name].natural)
    # What the plain network learned is loaded into this one, and an ensemble too.
    plains.save(tmp_path / "posterior")
    loaded = bb.posterior.load_posterior(tmp_path / "posterior")
    probs = []
    for each in (model, twin):
        ensemble = bb.Ensemble(each, loaded, num_samples=4).calibrate(X)
        probs.append(ensemble.predict(X).probs)
    torch.testing.assert_close(torch.as_tensor(probs[0]), torch.as_tensor(probs[1]))
    bb.Ensemble(twin, loaded, num_samples=4).calibrate(X).save(tmp_path / "ensemble")
    again = bb.Ensemble.load(tmp_path / "ensemble", model)
    torch.testing.assert_close(torch.as_tensor(again.predict(X).probs), torch.as_tensor(probs[1]))


@pytest.mark.parametrize("first", ["guide", "compile"])
def test_a_model_that_is_compiled(first: str) -> None:
    found = []
    for wrap in (compiled, lambda module: module):
        torch.manual_seed(0)
        model = Classifier(to_binary_(Network()), dataset_size=20)
        if first == "guide":
            guide = AutoSignBernoulli(model)
            model = wrap(model)
        else:
            model = wrap(model)
            guide = AutoSignBernoulli(model)
        assert list(guide.sites) == ["body.0.weight", "head.weight"]
        bb.fit(model, guide, [(X, Y)], epochs=2, validation=[(X, Y)], progress=False)
        ensemble = bb.Ensemble(model, guide.posterior(), num_samples=4).calibrate(X)
        found.append(torch.as_tensor(ensemble.predict(X).probs))
    torch.testing.assert_close(*found)


def test_a_layer_of_the_users_own_that_is_called_module_keeps_its_name() -> None:
    net = nn.Sequential()
    net.module = nn.Linear(2, 2)
    to_binary_(net)
    assert list(binary_sites(net)) == ["module.weight"]
    signs = {"module.weight": -binary_sites(net)["module.weight"].signs}
    torch.testing.assert_close(
        networks.call(net, signs, X) - net.module.bias, net.module.bias - net(X)
    )


def test_a_copy_is_plain() -> None:
    net = twice()
    copied = copy_network(net)
    assert [type(part).__name__ for part in copied.modules()][:2] == ["Network", "Sequential"]
    torch.testing.assert_close(copied.eval()(X), net.eval()(X))
    with pytest.raises(KeyError, match=r"no weight named '_orig_mod.head.weight'"):
        networks.call(net, {"_orig_mod.head.weight": torch.ones(2, 4)}, X)
