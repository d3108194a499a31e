"""Conversion of torch networks in place."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bayesbin.core import networks
from bayesbin.distributions import SignBernoulli
from bayesbin.guides import AutoSignBernoulli
from bayesbin.nn import (
    BinaryConv1d,
    BinaryConv2d,
    BinaryLinear,
    Classifier,
    binary_sites,
    to_binary_,
)
from bayesbin.posterior import BinaryPosterior


def assert_converted_exactly(net, original, sites, scale=None):
    """Named weights became the signs of the original ones; everything else stayed."""
    assert list(binary_sites(net)) == sites
    kept = {name: p for name, p in original.named_parameters() if name not in sites}
    now = {name: p for name, p in net.named_parameters() if p.requires_grad}
    assert now.keys() == kept.keys()
    assert all(torch.equal(now[name], kept[name]) for name in kept)
    for site in sites:
        weight = original.get_parameter(site)
        assert torch.equal(binary_sites(net)[site].signs, torch.where(weight >= 0, 1.0, -1.0))


def test_sequential():
    net = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 2, bias=False))
    original = copy.deepcopy(net)
    assert to_binary_(net) is net
    assert_converted_exactly(net, original, ["0.weight", "3.weight"])
    assert type(net[0]) is BinaryLinear and type(net[1]) is nn.BatchNorm1d
    x = torch.randn(5, 4)
    hidden = F.linear(x, torch.where(original[0].weight >= 0, 0.5, -0.5), original[0].bias)
    torch.testing.assert_close(net[0](x), hidden)


class Nested(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv1d(2, 4, 3)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU()) for _ in range(2))
        self.head = nn.ModuleDict({"out": nn.Linear(4, 2)})


def test_nested_modules_and_lists():
    net = Nested()
    original = copy.deepcopy(net)
    to_binary_(net)
    sites = ["stem.weight", "blocks.0.0.weight", "blocks.1.0.weight", "head.out.weight"]
    assert_converted_exactly(net, original, sites)
    assert type(net.stem) is BinaryConv1d and type(net.blocks[1][0]) is BinaryConv2d
    # 1 / sqrt(6) = .41 and 1 / 3: the powers of two nearest to these
    assert net.stem.scale == 0.5 and net.blocks[0][0].scale == 0.25


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_root_layer_in_place(dtype):
    layer = nn.Linear(4, 3, dtype=dtype)
    original = copy.deepcopy(layer)
    assert to_binary_(layer, scale=2.0) is layer and isinstance(layer, BinaryLinear)
    assert (
        layer.weight.dtype
        == layer.prior.dtype
        == binary_sites(layer)["weight"].signs.dtype
        == dtype
    )
    assert_converted_exactly(layer, original, ["weight"])
    x = torch.randn(2, 4, dtype=dtype)
    signs = binary_sites(layer)["weight"].signs
    assert torch.equal(layer.weight, 2.0 * signs)
    assert torch.equal(layer(x), F.linear(2 * x, signs, layer.bias))


def test_a_zero_weight_becomes_plus_one():
    layer = nn.Linear(3, 1)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.0, -0.0, -1e-300]]))
    assert to_binary_(layer, scale=1.0).weight.tolist() == [[1.0, 1.0, -1.0]]


def test_where_selects():
    net = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    seen = []

    def where(name, owner):
        seen.append((name, type(owner)))
        return name == "1.weight"

    original = copy.deepcopy(net)
    to_binary_(net, where)
    assert_converted_exactly(net, original, ["1.weight"])
    assert type(net[0]) is nn.Linear
    assert ("0.bias", nn.Linear) in seen


def test_a_weight_of_attention():
    """Any module's parameter can be a site."""
    attention = nn.MultiheadAttention(4, 2, batch_first=True)
    original = copy.deepcopy(attention)
    to_binary_(attention, lambda name, owner: name == "in_proj_weight", scale=0.4)
    signs = torch.where(original.in_proj_weight >= 0, 1.0, -1.0)
    site = binary_sites(attention)["in_proj_weight"]
    assert torch.equal(site.signs, signs) and site.shape == (12, 4)
    torch.testing.assert_close(attention.in_proj_weight, 0.4 * signs)
    assert "in_proj_weight" not in dict(attention.named_parameters())
    with torch.no_grad():
        original.in_proj_weight.copy_(0.4 * signs)
    x = torch.randn(2, 3, 4)
    for training in (True, False):
        attention.train(training), original.train(training)
        torch.testing.assert_close(attention(x, x, x)[0], original(x, x, x)[0])
    # Other signs enter by value, for one call or in a copy.
    with torch.no_grad():
        original.in_proj_weight.copy_(-0.4 * signs)
    flipped = networks.copy_with(attention, {"in_proj_weight": -signs})
    torch.testing.assert_close(flipped(x, x, x)[0], original(x, x, x)[0])
    assert torch.equal(binary_sites(attention)["in_proj_weight"].signs, signs)


def test_attention_and_layers_in_one_model():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
            self.head = nn.Linear(4, 3)

        def forward(self, x):
            return self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))

    net = to_binary_(Net(), lambda name, owner: name.endswith("weight"))
    sites = ["attention.in_proj_weight", "attention.out_proj.weight", "head.weight"]
    assert sorted(binary_sites(net)) == sorted(sites)
    model = Classifier(net, dataset_size=10)
    guide = AutoSignBernoulli(model)
    posterior = guide.posterior()
    drawn = posterior.sample_network(net, 0)
    x = torch.randn(5, 3, 4)
    torch.testing.assert_close(drawn(x), networks.call(net.eval(), posterior.signs(0), x))
    assert set(copy.deepcopy(net).state_dict()) == set(net.state_dict())


def test_a_module_in_two_places_is_one_site():
    shared = nn.Linear(3, 3)
    net = nn.Sequential(shared, nn.Tanh(), shared)
    to_binary_(net)
    assert list(binary_sites(net)) == ["0.weight"]
    assert net[0] is net[2]


def test_nothing_chosen():
    with pytest.raises(
        ValueError, match=r"accepted none of this network's parameters \(weight, bias\)"
    ):
        to_binary_(nn.Linear(2, 2), lambda name, owner: False)
    with pytest.raises(ValueError, match=r"parameters \(none\)"):
        to_binary_(nn.ReLU())
    with pytest.raises(ValueError, match="found no parameter to convert"):
        to_binary_(nn.Sequential(nn.BatchNorm1d(3)))


def test_twice():
    net = to_binary_(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))
    with pytest.raises(ValueError, match=r"already binary: 0\.weight, 1\.weight"):
        to_binary_(net)
    with pytest.raises(
        ValueError, match=r"0\.weight is binary already; to_binary_ converts a network once"
    ):
        to_binary_(net, lambda name, owner: name.endswith("weight"))
    # Building up a network in two conversions of different weights is fine.
    half = to_binary_(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), lambda n, o: n == "0.weight")
    assert list(binary_sites(to_binary_(half))) == ["0.weight", "1.weight"]


# Priors


def priors_of(net):
    return {name: site.prior.expand(site.shape) for name, site in binary_sites(net).items()}


def two_layers():
    return nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))


def test_prior_as_a_number_a_mapping_a_posterior_or_a_function():
    first, second = torch.linspace(-1, 1, 6).view(3, 2), torch.tensor(0.7)
    expected = {"0.weight": first, "1.weight": second.expand(2, 3)}
    full = {"0.weight": first, "1.weight": second.expand(2, 3).clone()}
    for prior in (
        {"0.weight": first, "1.weight": 0.7},
        {"0.weight": SignBernoulli(natural=first), "1.weight": second},
        BinaryPosterior(full),
        lambda name, weight: full[name] if name == "0.weight" else 0.7,
    ):
        found = priors_of(to_binary_(two_layers(), prior=prior))
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    for prior in (0.3, torch.tensor(0.3)):
        assert all(
            bool((p == 0.3).all())
            for p in priors_of(to_binary_(two_layers(), prior=prior)).values()
        )
    net = two_layers()
    pulls = priors_of(to_binary_(net, prior=lambda name, weight: 0.5 * weight.sign()))
    assert all(torch.equal(p, 0.5 * binary_sites(net)[name].signs) for name, p in pulls.items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prior": {"0.weight": 0.0}}, r"The prior has no entry for 1\.weight"),
        ({"prior": {"0.weight": 0.0, "1.weight": torch.zeros(3)}}, r"got shape \(3,\)"),
        ({"prior": lambda name, weight: math.nan}, "finite"),
        ({"scale": 0.0}, "positive number"),
    ],
)
def test_a_conversion_that_fails_leaves_the_network_as_it_was(options, message):
    net = two_layers()
    x = torch.randn(4, 2)
    before, state = net(x), {k: v.clone() for k, v in net.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        to_binary_(net, **options)
    assert type(net[0]) is nn.Linear and type(net[1]) is nn.Linear
    assert net.state_dict().keys() == state.keys()
    assert torch.equal(net(x), before)
    to_binary_(net)


# Weights by value


def test_values_of_another_shape_or_name_are_errors():
    net = to_binary_(nn.Linear(4, 3))
    with pytest.raises(ValueError, match=r"'weight' has shape \(3, 4\), the posterior's \(4,\)"):
        networks.copy_with(net, {"weight": torch.ones(4)})
    with pytest.raises(KeyError, match=r"no weight named '7\.weight'"):
        networks.copy_with(net, {"7.weight": torch.ones(3, 4)})


def test_a_call_with_values_leaves_the_network_untouched_even_if_it_fails():
    net = to_binary_(two_layers())
    before = {name: site.signs.clone() for name, site in binary_sites(net).items()}
    flipped = {name: -signs for name, signs in before.items()}
    x = torch.randn(4, 2)
    expected = networks.copy_with(net, flipped)(x)
    torch.testing.assert_close(networks.call(net, flipped, x), expected)
    with pytest.raises(RuntimeError):
        networks.call(net, flipped, torch.randn(4, 5))
    assert all(torch.equal(site.signs, before[name]) for name, site in binary_sites(net).items())
