"""Recipes: the parts they name, that each trains, and that each is the rule it was published as."""

# A gradient is None until there is one, which the assertion at hand would tell.
# pyright: reportOptionalMemberAccess=false, reportArgumentType=false, reportAttributeAccessIssue=false
# pyright: reportCallIssue=false

from __future__ import annotations

import pytest
import torch
from torch import nn

import bayesbin as bb
from bayesbin.core import numerics
from bayesbin.core.names import RECIPES as NAMES
from bayesbin.data import Batches
from bayesbin.distributions import LowBitCategorical
from bayesbin.guides import AutoSignDelta
from bayesbin.infer import TraceBinary_ELBO, fit
from bayesbin.nn import (
    Classifier,
    StateBatchNorm,
    mlp,
    recalibrate,
    resnet20,
    to_binary_,
    vgg_small,
)
from bayesbin.recipes import METHODS, recipe

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
    log_probs = bb.predict.predict(parts.model.net, posterior, X, 8).log_probs
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
    net, posterior = parts.model.net.eval(), parts.guide.posterior()
    statistics = recalibrate(net, posterior, x, 2, 0)
    probs = bb.predict.predict(net, posterior, x, 2, statistics=statistics).probs
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
    import pyro
    import pyro.distributions as dist

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


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("bayes",), "recipe to be one of bayesbin, bayesbinn, lr-net"),
        (("bop", {"lr": 1.0}), "'bop' has the settings .*threshold.*; got lr"),
        (("bop", {"epochs": 0}), "epochs to be a whole number"),
        (("bop", {"dataset_size": 7}), "got dataset_size=7 and model.dataset_size=60"),
    ],
)
def test_what_a_recipe_refuses(arguments, message):
    name, overrides = arguments[0], arguments[1] if len(arguments) > 1 else {}
    with pytest.raises(ValueError, match=message):
        problem(name, **overrides)


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
        logits = h @ weights[1].T / 12**0.5 + self.biases[1]
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
    own = recalibrate(net, posterior, X, 1)
    assert not any(isinstance(m, StateBatchNorm) for m in net.modules())
    apart = (posterior.mode_network(net)(X) - posterior.mode_network(net, own)(X)).abs().max()
    assert apart > 0.1


def test_posteriors_draw_and_points_do_not():
    for name in NAMES:
        parts = problem(name)
        posterior = parts.guide.posterior()
        one, two = (posterior.signs(k)["0.weight"] for k in (0, 1))
        assert torch.equal(one, two) == isinstance(parts.guide, AutoSignDelta)
