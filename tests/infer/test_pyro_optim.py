"""pyro.optim over the package's guides: names, options, schedulers, and what is saved and loaded."""

from __future__ import annotations

import copy
import importlib
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoGuideList, AutoNormal
from torch import Tensor, nn

from bayesbin.distributions import SignBernoulli
from bayesbin.estimators import Enumerate, LocalReparameterization
from bayesbin.guides import (
    AutoLowBit,
    AutoNestedSignBernoulli,
    AutoRelaxedSignBernoulli,
    AutoSignBernoulli,
    AutoSignDelta,
    with_effects,
)
from bayesbin.infer import TraceBinary_ELBO
from bayesbin.nn import Classifier, to_binary_

optim: Any = importlib.import_module("pyro.optim")  # which makes its optimizers when it is imported
X = torch.linspace(-1.0, 1.0, 20, dtype=torch.float64).reshape(10, 2)
Y = torch.arange(10) % 2


def random_effects(model: Any) -> Any:
    return AutoNestedSignBernoulli(model, ("filter", "weight"), "random-effects")


GUIDES: dict[str, Callable[[Any], Any]] = {
    "mean field": AutoSignBernoulli,
    "nested": AutoNestedSignBernoulli,
    "random effects": random_effects,
    "levels": AutoLowBit,
    "points": AutoSignDelta,
    "relaxed": AutoRelaxedSignBernoulli,
}
every_guide = pytest.mark.parametrize("make", GUIDES.values(), ids=list(GUIDES))


def classifier() -> Classifier:
    net = to_binary_(nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2)))
    return Classifier(net, dataset_size=20)


def training(model: Any, guide: Any, optimizer: Any, loss: str) -> SVI:
    if loss == "ours":
        return SVI(model, guide, optimizer, TraceBinary_ELBO(LocalReparameterization()))
    stock = TraceMeanField_ELBO() if guide.draws == "relaxed" else Trace_ELBO()
    return SVI(with_effects(model, guide), guide, optimizer, stock)


def values(*modules: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for module in modules for p in module.parameters()]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a, b, strict=True))


@every_guide
@pytest.mark.parametrize(
    ("loss", "local"), [("ours", False), ("stock", False), ("ours", True)]
)  # Pyro's SVI in local mode takes no nn.Parameter of a model
def test_every_parameter_has_a_name(make: Any, loss: str, local: bool) -> None:
    asked = []

    def options(name: str) -> dict[str, float]:
        asked.append(name)
        return {"lr": 0.0 if "bias" in name else 0.1}

    with pyro.settings.context(module_local_params=local):
        model = classifier()
        guide = make(model)
        optimizer = optim.Adam(options)
        before, kept = values(guide), values(model)
        training(model, guide, optimizer, loss).step(X, Y)
    names = {f"{type(guide).__name__}.{name}" for name, _ in guide.named_parameters()}
    assert set(optimizer.get_state()) == names | {"net$$$0.bias", "net$$$2.bias"}
    assert set(asked) == names | {"net.0.bias", "net.2.bias"}  # names as nn.Module has them
    assert same(kept, values(model))
    assert not any(torch.equal(p, q) for p, q in zip(before, values(guide), strict=True))


@pytest.mark.parametrize("kind", ["mean field", "random effects", "levels"])
@pytest.mark.parametrize(
    ("loss", "way"), [("ours", "state dict"), ("stock", "state dict"), ("ours", "store")]
)  # a store that is loaded has parameters of a network that stock losses train in place of its own
def test_save_and_load_continue_to_the_bit(kind: str, loss: str, way: str, tmp_path: Path) -> None:
    """6 + 6 steps are 12; a twin whose optimizer starts anew is elsewhere."""
    optimizer_file, store_file = str(tmp_path / "optimizer"), str(tmp_path / "store")

    def begin() -> tuple[Any, Any, Any, SVI]:
        torch.manual_seed(0)
        model = classifier()
        guide = GUIDES[kind](model)
        optimizer = optim.ClippedAdam({"lr": 0.1, "lrd": 0.9})
        return model, guide, optimizer, training(model, guide, optimizer, loss)

    def steps(svi: SVI, first: int) -> None:
        for k in range(first, first + 6):
            torch.manual_seed(k)
            svi.step(X, Y)

    model, guide, optimizer, svi = begin()
    steps(svi, 0)
    optimizer.save(optimizer_file)
    pyro.get_param_store().save(store_file)
    kept = copy.deepcopy((model.state_dict(), guide.state_dict()))
    steps(svi, 6)
    whole = values(guide, model)
    for continued in (True, False):
        pyro.clear_param_store()
        other, twin, fresh, again = begin()
        other.load_state_dict(kept[0])
        if way == "store":
            pyro.get_param_store().load(store_file)
            assert torch.equal(twin.median()["0.weight"], twin.posterior().mode()["0.weight"])
            assert same(values(twin), list(kept[1].values()))
        else:
            twin.load_state_dict(kept[1])
        if continued:
            fresh.load(optimizer_file)
        steps(again, 6)
        counts = {s["state"][0]["step"] for s in fresh.get_state().values()}
        assert counts == ({12} if continued else {6})
        assert same(values(twin, other), whole) is continued


@pytest.mark.parametrize("loss", ["ours", "stock"])
def test_guides_of_one_name_keep_their_own_state(loss: str) -> None:
    """Two of a class in one process, and what each saves is its own, before and after the other ran."""
    pairs = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        model = classifier()
        guide, optimizer = AutoSignBernoulli(model), optim.Adam({"lr": 0.1})
        pairs.append((model, guide, optimizer, training(model, guide, optimizer, loss)))
    if loss == "stock":  # Pyro shares the parameters of two models in its global mode
        model, (_, guide, optimizer, _) = pairs[0][0], pairs[1]
        pairs[1] = (model, guide, optimizer, training(model, guide, optimizer, loss))
    for turn in (0, 1, 0):
        if turn == 1:
            pyro.clear_param_store()
        before = [values(guide) for _, guide, _, _ in pairs]
        pairs[turn][3].step(X, Y)
        moved = [not same(b, values(pair[1])) for b, pair in zip(before, pairs, strict=True)]
        assert moved == [turn == 0, turn == 1]
    for _, guide, optimizer, _ in pairs:
        assert set(optimizer.get_state()) >= {
            f"AutoSignBernoulli.{name}" for name, _ in guide.named_parameters()
        }
    held = pyro.get_param_store()["AutoSignBernoulli.natural.0.weight"]
    assert torch.equal(held, pairs[0][1].natural_of("0.weight"))
    pickle.dumps(pairs[0][1])


def test_a_store_of_another_guide_is_refused(tmp_path: Path) -> None:
    def model(units: int = 2) -> None:
        w = pyro.sample("w", SignBernoulli(natural=torch.zeros(units)).to_event(1))
        pyro.factor("data", w.sum())

    guide = AutoSignBernoulli(model)
    training(model, guide, optim.Adam({"lr": 0.1}), "stock").step()
    pyro.get_param_store().save(str(tmp_path / "store"))
    pyro.clear_param_store()
    other = AutoSignBernoulli(model, args=(3,))
    pyro.get_param_store().load(str(tmp_path / "store"))
    with pytest.raises(ValueError, match=r"'AutoSignBernoulli.natural.w' of shape \(2,\)"):
        other.posterior()


SCHEDULERS: dict[str, Any] = {
    "exponential": lambda: optim.ExponentialLR(
        {"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.1}, "gamma": 0.5}
    ),
    "step": lambda: optim.StepLR(
        {"optimizer": torch.optim.SGD, "optim_args": {"lr": 0.1}, "step_size": 1, "gamma": 0.5}
    ),
    "plateau": lambda: optim.ReduceLROnPlateau(
        {"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.1}, "factor": 0.5, "patience": 0}
    ),
    "options by name": lambda: optim.ExponentialLR(
        {
            "optimizer": torch.optim.Adam,
            "optim_args": lambda name: {"lr": 0.1},
            "gamma": 0.5,
        }
    ),
}


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_schedulers(kind: str) -> None:
    model = classifier()
    guide, scheduler = AutoNestedSignBernoulli(model), SCHEDULERS[kind]()
    svi = training(model, guide, scheduler, "ours")
    for _ in range(3):
        svi.step(X, Y)
        scheduler.step(*([1.0] if kind == "plateau" else []))
    states = scheduler.get_state()
    assert len(states) == len(values(guide, model)) and None not in states
    factor = 0.25 if kind == "plateau" else 0.125  # the first loss is the best until then
    for state in states.values():
        assert state["optimizer"]["param_groups"][0]["lr"] == pytest.approx(0.1 * factor)


def test_options_by_module_and_parameter_and_clipping() -> None:
    """The two-argument form, as Pyro's own guides have it, and gradients clipped by name."""
    asked: list[tuple[str, str]] = []

    def options(module: str, parameter: str) -> dict[str, float]:
        asked.append((module, parameter))
        return {"lr": 1.0}

    model = classifier()
    guide = AutoSignBernoulli(model)
    optimizer = optim.PyroOptim(
        torch.optim.SGD, options, lambda module, parameter: {"clip_value": 1e-3}
    )
    before = values(guide, model)
    training(model, guide, optimizer, "ours").step(X, Y)
    assert {("net", "0.bias"), ("net", "2.bias")} < set(asked)
    steps = [(p - q).abs().max() for p, q in zip(before, values(guide, model), strict=True)]
    assert all(0 < step <= 1e-3 + 1e-12 for step in steps)


@pytest.mark.parametrize("local", [False, True])
def test_lists_of_guides(local: bool) -> None:
    """Two guides of ours and one of Pyro's; each parameter has a name that no other has."""

    def model() -> None:
        w = pyro.sample("w", SignBernoulli(natural=torch.zeros(2)).to_event(1))
        v = pyro.sample("v", SignBernoulli(natural=torch.zeros(3)).to_event(1))
        z = pyro.sample("z", dist.Normal(torch.tensor(0.3), 1.0))
        pyro.factor("data", z * w.sum() + v.sum())

    with pyro.settings.context(module_local_params=local):
        guide = AutoGuideList(model)
        for site in ("w", "v"):
            guide.append(AutoSignBernoulli(poutine.block(model, expose=[site])))
        guide.append(AutoNormal(poutine.block(model, expose=["z"])))
        optimizer = optim.Adam({"lr": 0.1})
        SVI(model, guide, optimizer, TraceBinary_ELBO(Enumerate())).step()
    names = {"0.natural.w", "1.natural.v", "2.locs.z", "2.scales.z"}
    assert set(optimizer.get_state()) == {f"AutoGuideList.{name}" for name in names}
