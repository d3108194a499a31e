"""Recipes: the parts they name, that each trains, and that each is the rule it was published as."""

# A gradient is None until there is one, which the assertion at hand would tell.
# pyright: reportOptionalMemberAccess=false, reportArgumentType=false, reportAttributeAccessIssue=false
# pyright: reportCallIssue=false

from __future__ import annotations

import ast
import copy
import functools
import json
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoGuideList
from pyro.nn import PyroModule
from torch import nn

import bayesbin as bb
from bayesbin.core import numerics
from bayesbin.core.names import RECIPES as NAMES
from bayesbin.data import Batches
from bayesbin.distributions import LowBitCategorical
from bayesbin.estimators import RELAX, StraightThrough
from bayesbin.guides import (
    AutoLowBit,
    AutoNestedSignBernoulli,
    AutoRelaxedSignBernoulli,
    AutoSignBernoulli,
    AutoSignDelta,
    PolicyNetwork,
)
from bayesbin.infer import TraceBinary_ELBO, fit
from bayesbin.nn import (
    Classifier,
    StateBatchNorm,
    mlp,
    resnet20,
    to_binary_,
    vgg_small,
)
from bayesbin.nn.binarizers import BinaryConnect, Signs
from bayesbin.optim import DEFAULTS, TrainingGroup
from bayesbin.recipes import METHODS, parse_settings, recipe, settings_of

X = torch.linspace(-2, 2, 240, dtype=torch.float64).reshape(60, 4).sin()
Y = (X[:, 0] > X[:, 2]).long() + (X[:, 1] > 0.3).long()
N = len(X)


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 12), nn.Tanh(), nn.Linear(12, 3))


def problem(name, **overrides):
    model = Classifier(to_binary_(network()), dataset_size=N)
    torch.manual_seed(1)
    return recipe(name, model, **overrides)


def test_every_name_is_a_method_with_a_source():
    assert len(NAMES) == 12
    for method in map(METHODS.__getitem__, NAMES):
        assert "arXiv" in method.source or "ICLR" in method.source
        assert method.note


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_trains_by_fit_alone(name):
    """The loss falls, the weights move, every parameter is trained, and predictions come out of it."""
    parts = problem(name, epochs=30)
    before = [p.detach().clone() for p in parts.guide.parameters()]
    data = Batches((X, Y), 20)
    result = fit(parts.model, parts.guide, data, progress=False, **parts.arguments())
    assert result.history[-1]["nll"] < 0.8 * result.history[0]["nll"]
    pairs = zip(before, parts.guide.parameters(), strict=True)
    assert any(not torch.equal(old, new) for old, new in pairs)
    posterior = parts.guide.posterior()
    log_probs = bb.Ensemble(parts.model, posterior, 8).predict(X).log_probs
    assert (log_probs.argmax(1) == Y).sum() > Y.bincount().max()  # than the commonest class alone


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_trains_with_its_parts_given_by_hand(name):
    """``fit`` with the three parts by hand, the signature of every other method."""
    parts = problem(name, epochs=2)
    result = fit(
        parts.model, parts.guide, Batches((X, Y), 20), estimator=parts.estimator, epochs=2,
        optimizers=parts.optimizers, schedulers=parts.schedules, progress=False,
    )  # fmt: skip
    assert result.steps == 6


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_continues_where_it_stopped(name, tmp_path):
    data = Batches((X, Y), 20)

    def trained(epochs, folder):
        parts = problem(name, epochs=4)
        arguments = parts.arguments() | {"epochs": epochs, "checkpoint_dir": folder}
        fit(parts.model, parts.guide, data, progress=False, **arguments)
        return parts.guide.state_dict()

    whole = trained(4, tmp_path / "whole")
    trained(2, tmp_path / "halves")
    halves = trained(4, tmp_path / "halves")
    assert all(torch.equal(whole[key], halves[key]) for key in whole)


@pytest.mark.slow
@pytest.mark.parametrize(("build", "activation"), [(resnet20, "sign"), (vgg_small, "relu")])
@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_trains_networks_for_colour_images(name, build, activation):
    """Narrow ones, on images whose class is their brightest channel."""
    torch.manual_seed(2)
    y = torch.arange(30) % 3
    x = torch.randn(30, 3, 8, 8) + 2.0 * nn.functional.one_hot(y, 3)[:, :, None, None]
    net = build((3, 8, 8), 3, width=2, activation=activation)
    parts = recipe(name, net, dataset_size=len(x), epochs=2)
    before = [p.detach().clone() for p in parts.guide.parameters()]
    data = Batches((x, y), 10)
    result = fit(parts.model, parts.guide, data, progress=False, **parts.arguments())
    assert all(torch.isfinite(torch.tensor(row["nll"])) for row in result.history)
    pairs = zip(before, parts.guide.parameters(), strict=True)
    assert sum(not torch.equal(old, new) for old, new in pairs) > len(before) / 2
    probs = bb.Ensemble(parts.model, parts.guide.posterior(), 2).calibrate(x).predict(x).probs
    assert probs.shape == (30, 3) and bool(probs.isfinite().all())


def test_a_plain_network_is_converted_in_place_and_gets_its_size():
    net = network()
    parts = recipe("bop", net, dataset_size=N)
    assert parts.model.net is net and parts.model.dataset_size == N
    assert list(bb.nn.binary_sites(net)) == ["0.weight", "2.weight"]
    assert recipe("ste", net, dataset_size=N).model.net is net  # binary already: left as it is
    model = Classifier(net, dataset_size=N)
    assert recipe("ste", model).model is model


def test_a_pyro_model_without_a_network_is_as_good():
    def model(x, y=None):
        distribution = bb.SignBernoulli(natural=torch.zeros(4)).to_event(1)
        w = pyro.sample("w", distribution)
        with pyro.plate("data", N, subsample_size=len(x)):
            return pyro.sample("y", dist.Normal(x @ w, 0.5), obs=y)

    parts = recipe("bayesbin", model, dataset_size=N, epochs=1, args=(X, X[:, 0]))
    data = Batches((X, X[:, 0]), 20)
    parts.fit(data, progress=False)
    assert parts.model is model and list(parts.guide.posterior()) == ["w"]
    with pytest.raises(ValueError, match="pass dataset_size="):
        recipe("bayesbin", model)


# Settings

OVERRIDES = [
    *((name, {}) for name in NAMES),
    ("bayesbin", {"guide": "nested", "sharing": ["filter", "weight"], "momentum": 0.5}),
    ("bayesbin", {"guide": "random-effects", "estimator": "straight-through", "num_samples": 2}),
    ("bayesbin", {"estimator": "concrete", "temperature": 0.3, "kl_weight": 0.0}),
    ("bayesbin", {"estimator": "disarm", "num_samples": 4, "optimizer": "adam", "lr": 0.2}),
    ("bayesbin", {"estimator": "relax", "optimizer": "sgd", "init_scale": 1.0, "real_lr": 1e-3}),
    ("bayesbin", {"estimator": "expected-weight"}),
    ("bayesbinn", {"settings": "published"}),
    ("bayesbinn", {"settings": "published", "momentum": 0.99, "temperature": 1e-8}),
    ("bayesbinn", {"start": "signs", "steps": "natural", "init_scale": 3.0, "lr": 1e-3}),
    ("bop", {"settings": "published"}),
    ("bop2", {"settings": "published", "gamma": 0.02}),
    ("bop", {"gamma_every": 2}),
    ("snapquant", {"sharing": ["layer", "filter"]}),
    ("slb", {"levels": [-1, 0, 1], "hold": [0.0, 0.5]}),
    ("ternaryconnect", {"stochastic": False}),
    ("ste", {"clip": 0.05}),
    ("recu", {"quantile": "empirical"}),
]


def trained(parts):
    data = Batches((X, Y), 20)
    parts.fit(data, progress=False)
    state = [*parts.guide.state_dict().values(), *parts.model.state_dict().values()]
    return [value.clone() for value in state]


@functools.cache
def _trained_once(key):
    name, overrides = json.loads(key)
    return trained(problem(name, **overrides))


def trained_once(name, **overrides):
    """The same from the last time, where it was asked for before."""
    return _trained_once(json.dumps([name, overrides], sort_keys=True))


@pytest.mark.parametrize("name, overrides", OVERRIDES)
def test_the_settings_of_a_recipe_build_it_again(name, overrides):
    """Through JSON, and to the bit: what is trained from the record is what was trained."""
    first = problem(name, epochs=2, **overrides)
    settings = json.loads(json.dumps(first.settings))
    assert settings == first.settings == settings_of(name, **overrides)
    assert first.given == tuple(overrides)
    assert {k: settings[k] for k in overrides} == overrides
    again = problem(first.name, epochs=first.epochs, **settings)
    assert again.settings == first.settings and again.kl_weight == first.kl_weight
    assert repr(again.estimator) == repr(first.estimator)
    assert all(map(torch.equal, trained(first), trained(again)))


@pytest.mark.parametrize("name", NAMES)
def test_each_setting_reaches_the_training(name):
    """One after another, another value: of an optimizer, a schedule, the guide, the estimator or the loss."""
    others = {
        "quantile": "empirical", "levels": [-1.0, 0.0, 1.0], "hold": [0.0, 0.3], "stochastic": False,
        "fan_in_scaling": False, "sharing": ["filter"], "num_samples": 2, "clip": 0.05, "tau": 0.6,
        "start": "signs", "steps": "natural", "guide": "nested", "estimator": "straight-through",
        "optimizer": "adam", "schedule": "constant", "gamma_every": 2, "last_tau": 0.6,
    }  # fmt: skip
    needed = {"temperature": {"estimator": "concrete"}, "sharing": {"guide": "nested"}}
    start = {"bop": {"gamma": 0.1, "last_gamma": 0.05, "threshold": 1e-4}}.get(name, {})
    for key, default in settings_of(name).items():
        if key == "settings":
            continue
        base = start | (needed.get(key, {}) if name == "bayesbin" else {})
        if key == "gamma_every":
            base.pop("last_gamma")
        value = (
            others[key] if key in others else 10.0 if key == "kl_weight" else (default or 0.6) / 2
        )
        runs = [
            trained_once(name, epochs=4, **base),
            trained(problem(name, epochs=4, **base | {key: value})),
        ]
        assert not all(a.shape == b.shape and torch.equal(a, b)
                       for a, b in zip(*runs, strict=False)), key  # fmt: skip


@pytest.mark.parametrize(
    "name, overrides, message",
    [
        ("bayes", {}, "recipe to be one of bayesbin, .*got 'bayes'"),
        ("bop", {"lr": 1.0}, "'bop' has the settings settings, threshold,.*; got lr"),
        ("bop", {"kl_weight": 0.03}, "'bop' has the settings .*; got kl_weight"),
        ("ste", {"settings": "published"}, "'ste' has the settings lr, clip.*; got settings"),
        ("bop", {"settings": "theirs"}, "settings to be one of ours, published; got 'theirs'"),
        ("bop", {"gamma_every": 3, "last_gamma": 1e-5}, "leave out one"),
        ("bop", {"gamma": 0.0}, "gamma to be a number above 0 and at most 1; got 0"),
        ("bop", {"gamma": None}, "setting 'gamma' cannot be None; leave it out for 0.0001"),
        ("bop", {"epochs": 0}, "epochs to be a whole number of at least 1; got 0"),
        ("bop", {"epochs": 2.0}, "epochs to be a whole number of at least 1; got 2.0"),
        ("bop", {"dataset_size": 7}, "got dataset_size=7 and model.dataset_size=60"),
        ("bop2", {"sigma": 1.5}, "sigma to be a number above 0 and at most 1"),
        ("slb", {"levels": "many"}, "levels to be numbers, one or several; got 'many'"),
        ("slb", {"hold": [0.5, 1.5]}, "each of hold to be a number of at least 0 and at most 1"),
        ("slb", {"hold": [0.5]}, "hold to be 2 numbers"),
        ("recu", {"tau": 0.4}, "tau to be a number above 0.5 and below 1; got 0.4"),
        ("ternaryconnect", {"stochastic": 1}, "stochastic to be True or False; got 1"),
        ("snapquant", {"sharing": ["filter", "filter"]}, "sharing to be some of .*at most once"),
        ("snapquant", {"sharing": ["filters"]}, "each of sharing .* Did you mean 'filter'"),
        ("bayesbin", {"lr": "0.1"}, "lr to be a number above 0; got '0.1'"),
        ("bayesbin", {"lr": float("nan")}, "lr to be a finite number above 0; got nan"),
        ("bayesbin", {"lr": True}, "lr to be a number above 0; got True"),
        ("bayesbin", {"guide": "nest"}, "guide to be one of mean-field, .*Did you mean 'nested'"),
        ("bayesbin", {"guide": lambda x: None}, "known once it runs: train it with bayesbin.fit"),
        ("bayesbin", {"guide": None}, "'guide' is None, which stands for one that was given as an"),
        (
            "bayesbin",
            {"estimator": None},
            "'estimator' is None, which stands for one that was given",
        ),
        (
            "bayesbin",
            {"estimator": 3},
            "expected the recipe 'bayesbin' to build .*Estimator; got 3",
        ),
        ("bayesbin", {"sharing": ["filter"]}, "guide 'mean-field' has no setting sharing"),
        ("bayesbin", {"guide": "random-effects", "sharing": ["weight"]}, "those of layer, filter"),
        ("bayesbin", {"temperature": 0.5}, "'flipout-where-shared' has no setting temperature"),
        (
            "bayesbin",
            {"estimator": "enumerate", "num_samples": 2},
            "'enumerate' has no setting num_",
        ),
        ("bayesbin", {"estimator": "disarm", "num_samples": 3}, "draws in pairs: an even number"),
        ("bayesbin", {"optimizer": "adam", "momentum": 0.9}, "'adam' has no setting momentum"),
        ("bayesbin", {"momentum": 1.0}, "momentum to be a number of at least 0 and below 1; got 1"),
        ("bayesbin", {"kl_weight": -0.1}, "kl_weight to be a number of at least 0; got -0.1"),
        (
            "bayesbin",
            {"num_samples": 1.5},
            "num_samples to be a whole number of at least 1; got 1.5",
        ),
        ("bayesbinn", {"settings": "published", "num_samples": 5}, "draw nothing in float32"),
        ("bayesbinn", {"settings": "published", "temperature": 1e-3}, "at most 1e-8"),
        ("bayesbinn", {"settings": "published", "steps": "relative"}, "have steps='natural'"),
        (
            "lr-net",
            {"pretrained": {"0.bias": torch.zeros(3)}},
            "Expected weights of two dimensions",
        ),
    ],
)
def test_what_a_recipe_refuses(name, overrides, message):
    with pytest.raises(ValueError, match=message):
        problem(name, **overrides)


def test_published_settings_have_the_uniform_prior():
    net = to_binary_(network(), prior=0.5)
    with pytest.raises(ValueError, match=r"have the uniform prior; .* of net.0.weight, net.2.w"):
        recipe("bayesbinn", net, dataset_size=N, settings="published")


def test_numbers_of_all_kinds_are_settings():
    for number in (np.float32(0.25), np.float64(0.25), torch.tensor(0.25), np.array(0.25)):
        assert settings_of("bayesbin", kl_weight=number)["kl_weight"] == 0.25
    for count in (np.int64(2), torch.tensor(2), np.uint8(2)):
        assert settings_of("bayesbin", num_samples=count)["num_samples"] == 2
    assert settings_of("slb", levels=np.array([-1, 0, 1]))["levels"] == [-1.0, 0.0, 1.0]
    assert json.dumps(settings_of("slb", hold=(np.float64(0.1), torch.tensor(0.5))))


@pytest.mark.parametrize(
    "name, texts, found",
    [
        ("bayesbin", [], {}),
        ("bayesbin", ["lr=0.2", "guide=nested"], {"lr": 0.2, "guide": "nested"}),
        ("bayesbin", [" lr = .2 ", "kl-weight=1"], {"lr": 0.2, "kl_weight": 1.0}),
        ("bayesbin", ["guide=nested", "sharing=weight,filter"],
         {"guide": "nested", "sharing": ["filter", "weight"]}),
        ("bayesbin", ["guide=nested", "sharing=filter"], {"guide": "nested", "sharing": ["filter"]}),
        ("bayesbin", ["num_samples=3", "momentum=0"], {"num_samples": 3, "momentum": 0.0}),
        ("slb", ["levels=-1,0,1", "hold=[0.1, 0.5]"],
         {"levels": [-1.0, 0.0, 1.0], "hold": [0.1, 0.5]}),
        ("ternaryconnect", ["stochastic=false"], {"stochastic": False}),
        ("ste", ["clip=none", "lr=1e-3"], {"clip": None, "lr": 1e-3}),
        ("bayesbinn", ["settings=published"], {"settings": "published"}),
    ],
)  # fmt: skip
def test_settings_as_texts(name, texts, found):
    assert parse_settings(name, texts) == found
    recipe(name, Classifier(to_binary_(network()), dataset_size=N), **found)


@pytest.mark.parametrize(
    "name, texts, message",
    [
        ("bayesbin", ["lr"], "a setting as name=value, such as lr=0.1; got 'lr'"),
        ("bayesbin", ["=0.1"], "name=value"),
        ("bayesbin", ["lr=0.1", "lr=0.2"], "lr is given twice"),
        ("bayesbin", ["lr=fast"], "lr to be a number above 0; got 'fast'"),
        ("bayesbin", ["lr="], "lr to be a number above 0; got ''"),
        ("bayesbin", ["lr=0.1,0.2"], "lr to be a number above 0"),
        ("bayesbin", ["lr=nan"], "lr to be a finite number above 0; got nan"),
        ("bayesbin", ["num_samples=2.5"], "num_samples to be a whole number"),
        ("bayesbin", ["learning_rate=1"], "has the settings guide, .*; got learning_rate"),
        ("bayesbin", ["init=net"], "has the settings guide, .*; got init"),
        ("bayesbin", ["sharing=filter"], "guide 'mean-field' has no setting sharing"),
        ("bop", ["kl_weight=0.03"], "got kl_weight"),
        ("bops", [], "recipe to be one of .*Did you mean 'bop'"),
    ],
)
def test_texts_that_are_no_settings(name, texts, message):
    with pytest.raises(ValueError, match=message):
        parse_settings(name, texts)


def test_what_is_no_setting_is_recorded_by_a_digest():
    pretrained = network(5)
    parts = problem("lr-net", pretrained=pretrained, lr=0.2)
    assert parts.given == ("pretrained", "lr") and "pretrained" not in parts.settings
    assert parts.objects["pretrained"].startswith("Sequential sha256:")
    same, other = problem("lr-net", pretrained=network(5)), problem("lr-net", pretrained=network(6))
    assert same.objects == parts.objects != other.objects
    posterior = parts.guide.posterior()
    started = problem("bayesbin", init=posterior)
    assert started.objects["init"] == f"BinaryPosterior sha256:{posterior.digest[:16]}"
    assert torch.equal(started.guide.natural_of("0.weight"), parts.guide.natural_of("0.weight"))


def test_a_guide_and_an_estimator_may_be_given_themselves():
    model = Classifier(to_binary_(network()), dataset_size=N)
    guide, estimator = AutoLowBit(model), RELAX()
    parts = recipe("bayesbin", model, guide=guide, estimator=StraightThrough(num_samples=3))
    assert parts.guide is guide and parts.estimator.num_samples == 3
    for name in ("guide", "sharing", "estimator", "temperature", "num_samples", "init_scale"):
        assert parts.settings[name] is None
    assert parts.given == ("guide", "estimator") and set(parts.objects) == {"guide", "estimator"}
    with pytest.raises(ValueError, match="'guide' is None, which stands for one that was given"):
        recipe("bayesbin", model, **parts.settings)
    again = recipe("bayesbin", model, **parts.settings | {"guide": guide, "estimator": estimator})
    assert again.estimator is estimator and again.settings == parts.settings
    for overrides, message in (
        ({"guide": guide, "sharing": ["filter"]}, "'given as an object' has no setting sharing"),
        ({"guide": guide, "init_scale": 1.0}, "has its start already; leave out init_scale"),
        (
            {"estimator": estimator, "num_samples": 2},
            "'given as an object' has no setting num_samp",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            recipe("bayesbin", model, **overrides)


def test_fit_of_a_recipe_is_fit_with_its_arguments():
    first, second = problem("bayesbin", epochs=2), problem("bayesbin", epochs=2)
    data = Batches((X, Y), 20)
    first.fit(data, progress=False, seed=3)
    fit(second.model, second.guide, data, progress=False, seed=3, **second.arguments())
    pairs = zip(first.guide.parameters(), second.guide.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    with pytest.raises(ValueError, match="recipe decides epochs, kl_weight; give it to recipe"):
        first.fit(data, epochs=3, kl_weight=1.0)


def test_a_network_alone_has_no_size():
    with pytest.raises(ValueError, match="network and dataset_size="):
        recipe("bop", network())


def test_overrides_reach_the_parts():
    parts = problem("recu", lr=0.3, real_lr=0.5, tau=0.7, epochs=5)
    sgd, adam = parts.optimizers
    assert sgd.param_groups[0]["lr"] == pytest.approx(0.3 / N)
    assert sgd.param_groups[0]["weight_decay"] == pytest.approx(5e-4 * N)
    assert adam.param_groups[0]["lr"] == 0.5 and parts.guide.binarizer.tau == pytest.approx(0.7)
    assert parts.settings["tau"] == 0.7 and parts.settings["momentum"] == 0.9


def test_schedules_end_where_training_does():
    expected = {"recu": ("tau", 0.99), "slb": ("sharpness", 100.0)}
    for name, (number, end) in expected.items():
        parts = problem(name, epochs=4)
        for _ in range(4):
            parts.schedules[-1].step()
        assert getattr(parts.guide.binarizer, number) == pytest.approx(end)
    published = {"threshold": 1e-5, "last_threshold": 1e-8, "last_gamma": 1e-5, "sigma": 1e-7}
    parts = problem("bop2", epochs=4, **published)
    for _ in range(4):
        for schedule in parts.schedules[-3:]:
            schedule.step()
    (group,) = parts.optimizers[0].param_groups
    found = [group[name] for name in ("threshold", "gamma", "sigma")]
    assert found == pytest.approx([1e-8, 1e-5, 1e-2])


def test_lr_net_starts_at_a_pretrained_network():
    pretrained = network(5)
    parts = problem("lr-net", pretrained=pretrained)
    weight = pretrained[0].weight.detach()
    mean = torch.tanh(parts.guide.natural_of("0.weight").detach())
    inside = (weight / weight.std()).abs() < 0.89
    torch.testing.assert_close(mean[inside], (weight / weight.std())[inside])


# One place that makes optimizers: fit without optimizers is the default recipe


class OwnGuide(PyroModule):
    """A guide written by hand, with natural parameters of its own and no training_groups."""

    def __init__(self, model):
        super().__init__()
        self.first = nn.Parameter(0.1 * torch.randn(12, 4))
        self.second = nn.Parameter(0.1 * torch.randn(3, 12))

    def forward(self, *args, **kwargs):
        signs = bb.SignBernoulli(natural=self.first).to_event(2)
        pyro.sample("0.weight", signs)
        pyro.sample("2.weight", bb.SignBernoulli(natural=self.second).to_event(2))


class GroupedGuide(OwnGuide):
    def training_groups(self):
        yield TrainingGroup((self.first,), "natural-gradient", "natural")
        yield TrainingGroup((self.second,))


def by_hand(part):
    """An AutoGuideList of our guide and Pyro's."""

    def make(model):
        both = AutoGuideList(model)
        both.append(part(poutine.block(model, expose=["0.weight", "2.weight"])))
        return both

    return make


GUIDES = {
    "mean-field": AutoSignBernoulli,
    "nested": AutoNestedSignBernoulli,
    "compact": lambda model: AutoNestedSignBernoulli(model, ("layer", "filter")),
    "random-effects": lambda model: AutoNestedSignBernoulli(model, kind="random-effects"),
    "combined": lambda model: AutoNestedSignBernoulli(model, combine=PolicyNetwork(4)),
    "low-bit": AutoLowBit,
    "relaxed": AutoRelaxedSignBernoulli,
    "latents": lambda model: AutoSignDelta(model, binarizer=BinaryConnect()),
    "a list": by_hand(AutoSignBernoulli),
    "a list of low bits": by_hand(AutoLowBit),
    "by hand": OwnGuide,
    "by hand, with groups": GroupedGuide,
}


@pytest.mark.parametrize("kind", GUIDES)
def test_fit_without_optimizers_is_the_default_recipe(kind):
    """Bit for bit, whatever the guide; and every parameter of the guide moves."""
    if kind == "relaxed":  # is drawn by its own rsample
        pytest.skip("not a guide for TraceBinary_ELBO")
    states, histories = [], []
    for with_recipe in (True, False):
        model = Classifier(to_binary_(network()), dataset_size=N)
        torch.manual_seed(1)
        guide = GUIDES[kind](model)
        before = [p.detach().clone() for p in guide.parameters()]
        data, options = Batches((X, Y), 20), {"progress": False, "seed": 4}
        if with_recipe:
            result = recipe("bayesbin", model, guide=guide, epochs=3).fit(data, **options)
        else:
            result = fit(model, guide, data, epochs=3, **options)
        pairs = zip(before, guide.parameters(), strict=True)
        assert not any(torch.equal(old, new) for old, new in pairs)
        states.append([*guide.state_dict().values(), *model.state_dict().values()])
        histories.append(
            [{k: v for k, v in row.items() if k != "seconds"} for row in result.history]
        )
    assert all(map(torch.equal, *states)) and histories[0] == histories[1]
    row = histories[0][0]
    assert row["kl_weight"] == DEFAULTS["kl_weight"] and row["lr"][-1] == DEFAULTS["real_lr"]
    lambdas = kind in ("latents", "by hand", "combined")
    assert len(row["lr"]) == (1 if lambdas else 2) and (lambdas or row["lr"][0] == DEFAULTS["lr"])


@pytest.mark.parametrize("name", ["mean-field", "nested", "random-effects"])
def test_the_guides_of_the_default_recipe_by_name(name):
    """The recipe's own guide, and the same guide given to fit."""
    parts = problem("bayesbin", guide=name, epochs=2)
    trained(parts)
    model = Classifier(to_binary_(network()), dataset_size=N)
    torch.manual_seed(1)
    guide = GUIDES[name](model)
    fit(model, guide, Batches((X, Y), 20), epochs=2, progress=False)
    pairs = zip(parts.guide.parameters(), guide.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_fit_trains_what_functions_declare(tmp_path):
    """A model and a guide that are functions: their pyro.param move, resume, and are found once."""
    x, truth = torch.randn(N, 4), torch.tensor([1.0, -1.0, 1.0, 1.0])
    y = 0.5 * (x @ truth) + 0.1 * torch.randn(N)

    def model(x, y=None):
        w = pyro.sample("w", bb.SignBernoulli(natural=torch.zeros(4)).to_event(1))
        scale = pyro.param("scale", torch.tensor(0.1), constraint=dist.constraints.positive)
        with pyro.plate("data", N, subsample_size=len(x)):
            pyro.sample("y", dist.Normal(scale * (x @ w), 0.3), obs=y)

    def guide(x, y=None):
        natural = pyro.param("natural", torch.full((4,), 0.01))
        pyro.sample("w", bb.SignBernoulli(natural=natural).to_event(1))

    def run(folder):
        pyro.clear_param_store()
        state = torch.get_rng_state()
        data = Batches((x, y), 20)
        fit(model, guide, data, epochs=60, dataset_size=N, checkpoint_dir=folder, progress=False)
        assert torch.equal(state, torch.get_rng_state())
        return {k: v.detach().clone() for k, v in pyro.get_param_store().items()}

    found = run(tmp_path)
    assert found["scale"] > 0.15 and bool((found["natural"] * truth > 0.1).all())
    again = run(tmp_path)  # from the checkpoint of the last epoch
    assert all(torch.equal(found[name], again[name]) for name in found)
    with pytest.raises(ValueError, match=r"known once it runs: train it with bayesbin.fit"):
        recipe("bayesbin", model, guide=guide, dataset_size=N)


def test_signs_have_no_default_rule():
    model = Classifier(to_binary_(network()), dataset_size=N)
    guide = AutoSignDelta(model, binarizer=Signs())
    with pytest.raises(ValueError, match=r'signs that have to be flipped.*recipe\("bop", model\)'):
        fit(model, guide, Batches((X, Y), 20), epochs=1)


def test_parameters_that_are_held_fixed_stay():
    for make in (AutoSignBernoulli, AutoNestedSignBernoulli, AutoLowBit):
        model = Classifier(to_binary_(network()), dataset_size=N)
        guide = make(model)
        fixed = next(guide.parameters()).requires_grad_(False)
        before = fixed.clone()
        recipe("bayesbin", model, guide=guide, epochs=2).fit(Batches((X, Y), 20), progress=False)
        assert torch.equal(before, fixed)


def test_groups_that_break_the_contract_are_refused():
    with pytest.raises(ValueError, match="rule to be one of natural-gradient, adam, flips; got"):
        TrainingGroup((), "newton")
    with pytest.raises(
        ValueError, match=r"of parameters \(leaf tensors\); got int in the group of r"
    ):
        TrainingGroup((3,))

    class Wrong(OwnGuide):
        def training_groups(self):
            yield {"params": [self.first]}

    model = Classifier(to_binary_(network()), dataset_size=N)
    with pytest.raises(
        TypeError, match=r"Wrong.training_groups\(\) to yield .*TrainingGroup; got d"
    ):
        fit(model, Wrong(model), Batches((X, Y), 20), epochs=1)


def test_no_other_place_makes_optimizers():
    """Optimizers and schedules are made in optim/ and recipes/, for whatever trains binary weights."""
    makers = {
        "Adam",
        "SGD",
        "AdamW",
        "BayesianLearningRule",
        "CosineAnnealingLR",
        "Bop",
        "SecondOrderBop",
    }
    root = Path(bb.__file__).parent
    # Baselines of sequences of tasks train networks of real weights; the leak is a rule of its own.
    elsewhere = ("optim", "recipes", "continual", "experiments/continual_learners.py")
    for path in sorted(root.rglob("*.py")):
        if str(path.relative_to(root)).startswith(elsewhere):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            called = node.func if isinstance(node, ast.Call) else None
            name = getattr(called, "id", getattr(called, "attr", None))
            assert name not in makers, f"{path.name} makes {name}; take it from a recipe"


# The rules, each against a few lines of torch, step for step


def steps(parts, number=25):
    """Steps on the full batch: loss, backward, every optimizer."""
    elbo = TraceBinary_ELBO(parts.estimator, kl_weight=parts.kl_weight)(parts.model, parts.guide)
    for _ in range(number):
        for optimizer in parts.optimizers:
            optimizer.zero_grad()
        elbo(X, Y).backward()
        for optimizer in parts.optimizers:
            optimizer.step()
        yield


class Twin:
    """The network of ``problem`` on weights given by value, with real parameters under Adam."""

    def __init__(self, parts):
        self.latents = [p.detach().clone() for p in parts.guide.latents()]
        self.biases = [nn.Parameter(parts.model.net[i].bias.detach().clone()) for i in (0, 2)]
        self.adam = torch.optim.Adam(self.biases, lr=parts.settings["real_lr"])

    def gradients(self, weights):
        """Of the loss in nats over the data set, at these weights; steps the biases."""
        weights = [w.detach().requires_grad_() for w in weights]
        h = torch.tanh(X @ weights[0].T / 2.0 + self.biases[0])
        logits = h @ weights[1].T / 4.0 + self.biases[1]
        self.adam.zero_grad()
        (N * nn.functional.cross_entropy(logits, Y)).backward()
        self.adam.step()
        return [w.grad for w in weights]


def same(parts, twin):
    for ours, theirs in zip(parts.guide.latents(), twin.latents, strict=True):
        torch.testing.assert_close(ours.detach(), theirs, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name, clip", [("ste", None), ("binaryconnect", 1.0)])
def test_straight_through_with_adam(name, clip):
    parts = problem(name, lr=0.1)
    twin = Twin(parts)
    latents = [nn.Parameter(v) for v in twin.latents]
    adam = torch.optim.Adam(latents, lr=0.1)
    for _ in steps(parts):
        gradients = twin.gradients([numerics.sign_of(v.detach()) for v in latents])
        for v, g in zip(latents, gradients, strict=True):
            v.grad = g
        adam.step()
        if clip:
            for v in latents:
                v.data.clamp_(-clip, clip)
        twin.latents = [v.detach() for v in latents]
        same(parts, twin)
    assert (max(v.abs().max() for v in twin.latents) == 1.0) == (clip is not None)


def test_ste_is_binaryconnect_until_a_latent_is_clipped():
    """The same rule: the two part at the first latent beyond 1, and not before."""
    a, b = problem("ste", lr=0.1), problem("binaryconnect", lr=0.1)
    parted = []
    for _ in zip(steps(a), steps(b), strict=True):
        within = max(v.detach().abs().max() for v in a.guide.latents()) <= 1.0
        pairs = zip(a.guide.latents(), b.guide.latents(), strict=True)
        equal = all(torch.equal(p, q) for p, q in pairs)
        assert equal or not within
        parted.append(not equal)
    assert parted[-1] and not parted[0]


def test_bop():
    parts = problem("bop", threshold=1e-3, gamma=0.05)
    twin = Twin(parts)
    averages = [torch.zeros_like(v) for v in twin.latents]
    flips = 0
    for _ in steps(parts):
        gradients = twin.gradients(twin.latents)
        for k, (w, g) in enumerate(zip(twin.latents, gradients, strict=True)):
            averages[k] = 0.95 * averages[k] + 0.05 * g
            flip = w * averages[k] > 1e-3 * N / w.shape[1] ** 0.5
            flips += int(flip.sum())
            twin.latents[k] = torch.where(flip, -w, w)
        same(parts, twin)
    assert flips > 10


def test_second_order_bop_does_not_know_the_size_of_the_loss():
    """The ratio is free of units: twice the data, each seen twice, is the same sequence of signs."""
    a = problem("bop2", sigma=1e-3)
    doubled = Classifier(to_binary_(network()), dataset_size=2 * N)
    torch.manual_seed(1)
    b = recipe("bop2", doubled, sigma=1e-3)
    for _ in zip(steps(a, 15), steps(b, 15), strict=True):
        for p, q in zip(a.guide.latents(), b.guide.latents(), strict=True):
            assert torch.equal(p, q)


@pytest.mark.parametrize("momentum, temperature", [(0.0, 1e-10), (0.9, 1e-10), (0.5, 1e-8)])
def test_published_bayesbinn_is_what_its_authors_code_computes_in_float32(momentum, temperature):
    """Against the authors' update in a few lines, with its epsilons and its noise: s is 1 / tau."""
    torch.set_default_dtype(torch.float32)
    torch.manual_seed(0)
    net = to_binary_(
        nn.Sequential(nn.Linear(4, 12), nn.BatchNorm1d(12), nn.Tanh(), nn.Linear(12, 3))
    )
    parts = recipe(
        "bayesbinn", net, dataset_size=N, settings="published", lr=0.05, momentum=momentum,
        temperature=temperature,
    )  # fmt: skip
    twin = copy.deepcopy(parts.model.net)
    lambdas = [p.detach().clone() for p in parts.guide.latents()]
    assert all(torch.equal(v.abs(), torch.full_like(v, 10.0)) for v in lambdas)
    averages = [torch.zeros_like(v) for v in lambdas]
    adam = torch.optim.Adam(twin.parameters(), lr=parts.settings["real_lr"])
    elbo = TraceBinary_ELBO(parts.estimator, kl_weight=parts.kl_weight)(parts.model, parts.guide)
    x, turned = X.float(), 0
    for step in range(1, 13):
        for optimizer in parts.optimizers:
            optimizer.zero_grad()
        elbo(x, Y).backward()
        for optimizer in parts.optimizers:
            optimizer.step()
        noise = [torch.rand_like(v) for v in lambdas]
        drawn = [
            torch.tanh((0.5 * torch.log(u / (1 - u)) + v) / temperature)
            for u, v in zip(noise, lambdas, strict=True)
        ]
        weights = [w.clone().requires_grad_() for w in drawn]
        adam.zero_grad()
        names = ("0.weight", "3.weight")
        outputs = torch.func.functional_call(twin, dict(zip(names, weights, strict=True)), (x,))
        nn.functional.cross_entropy(outputs, Y).mul(N).backward()
        adam.step()
        for k, (w, mean) in enumerate(zip(drawn, map(torch.tanh, lambdas), strict=True)):
            s = (1 - w * w + 1e-10) / temperature / (1 - mean * mean + 1e-10)
            assert torch.equal(w, numerics.sign_of(lambdas[k]))
            direction = s * weights[k].grad + lambdas[k]
            averages[k] = momentum * averages[k] + (1 - momentum) * direction
            new = lambdas[k] - 0.05 * averages[k] / (1 - momentum**step)
            turned += int((new * lambdas[k] < 0).sum())
            lambdas[k] = new
        for ours, theirs in zip(parts.guide.latents(), lambdas, strict=True):
            close = {"rtol": 1e-3, "atol": 1e-3 * float(theirs.abs().max())}
            torch.testing.assert_close(ours.detach(), theirs, **close)
        # From the same state in each step: a sum of three signs may be 0, and then rounding decides.
        lambdas = [p.detach().clone() for p in parts.guide.latents()]
        twin.load_state_dict(parts.model.net.state_dict())
    assert turned > 20
    posterior = parts.guide.posterior()
    assert torch.equal(posterior.signs(0)["0.weight"], posterior.signs(1)["0.weight"])


def test_slb_trains_the_expected_level_of_the_sharpened_distribution():
    parts = problem("slb", sharpness=3.0)
    weights = parts.guide()["0.weight"]
    logits = parts.guide.natural_of("0.weight").detach()
    expected = LowBitCategorical((-1.0, 1.0), 3.0 * logits).mean
    torch.testing.assert_close(weights, expected)
    assert torch.equal(parts.guide.posterior()["0.weight"].mode.abs(), torch.ones(12, 4))
    parts.guide.binarizer.sharpness = 1e9  # of two levels it is tanh, and the sign at infinity
    hard = parts.guide.binarizer.hard(logits)
    torch.testing.assert_close(parts.guide()["0.weight"].detach(), hard)


def test_slb_with_two_levels_is_the_mean_field_network_of_mean_weights():
    """softmax over two logits is a sigmoid: w = tanh(T lambda) with lambda half the difference."""
    parts = problem("slb", sharpness=2.0)
    logits = parts.guide.natural_of("0.weight").detach()
    natural = 0.5 * (logits[..., 1] - logits[..., 0])
    torch.testing.assert_close(parts.guide()["0.weight"].detach(), torch.tanh(2.0 * natural))


def test_the_mode_before_the_last_sharpness_needs_statistics_of_its_own():
    """State batch normalisation: running statistics are those of the soft weights, not of the hard."""
    torch.manual_seed(0)
    parts = recipe("slb", mlp(4, [16], 3), dataset_size=N, epochs=3, hold=(0.9, 1.0))
    fit(parts.model, parts.guide, Batches((X, Y), 20), progress=False, **parts.arguments())
    net, posterior = parts.model.net, parts.guide.posterior()
    assert not any(isinstance(m, StateBatchNorm) for m in net.modules())
    own = bb.Ensemble(parts.model, posterior, 1).calibrate(X).mode.network(0)
    apart = (posterior.mode_network(net)(X) - own(X)).abs().max()
    assert apart > 0.1


def test_posteriors_draw_and_points_do_not():
    for name in NAMES:
        parts = problem(name)
        posterior = parts.guide.posterior()
        one, two = (posterior.signs(k)["0.weight"] for k in (0, 1))
        assert torch.equal(one, two) == isinstance(parts.guide, AutoSignDelta)
