"""What belongs together stays together: copies by value, checks by name, ensembles of the same draws."""

from __future__ import annotations

import copy

import pyro.distributions as dist
import pytest
import torch
from normalised_networks import normalised, posterior_of
from torch import nn

from bayesbin import BinaryPosterior, Ensemble
from bayesbin.distributions import Support
from bayesbin.guides import AutoNestedSignBernoulli, AutoSignBernoulli, AutoSignDelta
from bayesbin.guides.named import GUIDES
from bayesbin.nn import BinaryLinear, Classifier, Regressor, to_binary_
from bayesbin.posterior import RealPosterior


def network():
    torch.manual_seed(2)
    return to_binary_(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)))


def inputs(rows=5):
    return torch.randn(rows, 3, generator=torch.Generator().manual_seed(4))


def noise():
    return RealPosterior(torch.tensor(-1.0), torch.tensor(0.5), Support("positive"))


def test_it_holds_the_network_by_value():
    net, x = network(), inputs()
    q = posterior_of(net)
    ensemble = Ensemble(net, q, num_samples=3)
    before, digest = ensemble.outputs(x), ensemble.digest
    with torch.no_grad():
        net[0].bias.add_(1.0)
        net[2].weight_prior.add_(1.0)
    net[1] = nn.ReLU()
    q["0.weight"].natural.fill_(9.0)
    assert torch.equal(ensemble.outputs(x), before) and ensemble.digest == digest
    assert not torch.equal(Ensemble(net, q, num_samples=3).outputs(x), before)


def test_the_network_is_left_alone():
    net, x = network(), inputs()
    net.append(nn.Dropout(0.5)).train()
    before = copy.deepcopy(net.state_dict())
    ensemble = Ensemble(net, posterior_of(net), num_samples=3)
    assert torch.equal(ensemble.outputs(x), ensemble.outputs(x))  # dropout is off
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert all(m.training for m in net.modules()) and all(p.requires_grad for p in net.parameters())


def test_signs_of_the_network_itself_do_not_matter():
    net, x = network(), inputs()
    q = posterior_of(net)
    first = Ensemble(net, q, num_samples=3)
    net[0]._buffers["weight"].neg_()
    second = Ensemble(net, q, num_samples=3)
    assert first.digest == second.digest
    assert torch.equal(first.outputs(x), second.outputs(x))


# Errors


def sites(net):
    return {name: posterior_of(net)[name] for name in posterior_of(net)}


def test_a_site_that_is_missing_is_named():
    """Fault E.3: its signs would be the network's own."""
    net = network()
    given = sites(net)
    del given["2.weight"]
    with pytest.raises(ValueError, match=r"no site '2\.weight'.*it has .0\.weight"):
        Ensemble(net, BinaryPosterior(given))


def test_a_site_too_many_is_named():
    net = network()
    given = sites(net) | {"4.weight": torch.zeros(2, 2)}
    with pytest.raises(ValueError, match=r"has a site '4\.weight', but the network has no"):
        Ensemble(net, BinaryPosterior(given))


def test_another_shape_is_named():
    net = network()
    given = sites(net) | {"2.weight": torch.zeros(2, 1)}  # copy_ would broadcast it
    with pytest.raises(
        ValueError, match=r"'2\.weight' has shape \(2, 4\), the posterior's \(2, 1\)"
    ):
        Ensemble(net, BinaryPosterior(given))


def test_what_is_not_a_posterior_or_a_network_is_refused():
    net = network()
    model = Classifier(net, 9)
    with pytest.raises(ValueError, match=r"AutoSignBernoulli; call its posterior\(\)"):
        Ensemble(model, AutoSignBernoulli(model))
    with pytest.raises(ValueError, match="got dict"):
        Ensemble(model, {})
    with pytest.raises(ValueError, match="got str"):
        Ensemble("net", posterior_of(net))
    with pytest.raises(ValueError, match="no binary weights"):
        Ensemble(nn.Linear(3, 2), posterior_of(net))
    for bad in (0, -1, 2.0, True):
        with pytest.raises(ValueError, match="num_samples to be a whole number of at least 1"):
            Ensemble(net, posterior_of(net), bad)
    with pytest.raises(ValueError, match="seed"):
        Ensemble(net, posterior_of(net), 3, -1)


def test_a_regressor_needs_its_noise():
    net = to_binary_(nn.Linear(3, 1))
    with pytest.raises(ValueError, match=r"no real-valued site 'noise'"):
        Ensemble(Regressor(net, 9), posterior_of(net))


def test_real_sites_of_another_model_are_refused():
    net = network()
    q = BinaryPosterior(sites(net), {"noise": noise()})
    with pytest.raises(ValueError, match="'noise', which is none of Classifier's"):
        Ensemble(Classifier(net, 9), q)
    assert Ensemble(net, q).kind == "outputs"  # the network's outputs are what they are


@pytest.mark.parametrize(
    ("head", "words"),
    [
        ("class", "Did you mean 'classes'"),
        ({"kind": "normal"}, "exactly kind, noise .*got kind"),
        ({"kind": "classes", "noise": 1.0}, "exactly kind .*got kind, noise"),
        ({"kind": "normal", "noise": 0.0}, "above 0"),
        ({"kind": "normal", "noise": {"site": "s"}}, "no real-valued site 's'"),
        (3, "expected head"),
    ],
)
def test_heads_that_are_refused(head, words):
    net = network()
    with pytest.raises(ValueError, match=words):
        Ensemble(net, posterior_of(net), head=head)


# Posteriors of every guide


@pytest.mark.parametrize("name", [*GUIDES.names(), "delta"])
def test_posteriors_of_every_guide(name):
    net, x = network(), inputs()
    model = Classifier(net, 9, hyperprior=dist.Normal(0.0, 1.0) if name != "delta" else None)
    guide = AutoSignDelta(model) if name == "delta" else GUIDES[name](model)
    q = guide.posterior()
    ensemble = Ensemble(model, q, num_samples=4, seed=2)
    wanted = [q.sample_network(net, draw, 2)(x).detach() for draw in range(4)]
    torch.testing.assert_close(ensemble.outputs(x), torch.stack(wanted))
    torch.testing.assert_close(ensemble.mode.outputs(x)[0], q.mode_network(net)(x).detach())


def test_a_regressor_with_random_effects():
    net, x = to_binary_(nn.Linear(3, 1)), inputs()
    model = Regressor(net, 9)
    q = AutoNestedSignBernoulli(model, ("filter", "weight"), "random-effects").posterior()
    found = Ensemble(model, q, num_samples=4).predict(x)
    stds = torch.stack([q.sample_real("noise", draw) for draw in range(4)])
    torch.testing.assert_close(
        found.aleatoric_variance, stds.square().mean().expand(5).to(found.mean)
    )


# Other ensembles of the same draws


@pytest.fixture
def ensemble():
    net = normalised()
    return Ensemble(Classifier(net, 9), posterior_of(net), num_samples=5, seed=3).calibrate(
        inputs(30)
    )


def test_a_draw_is_an_ordinary_network(ensemble):
    x = inputs()
    outputs = ensemble.outputs(x)
    for draw in range(5):
        net = ensemble.network(draw)
        assert not net.training and type(net) is nn.Sequential
        torch.testing.assert_close(net(x), outputs[draw])
    net = ensemble.network(0)
    with torch.no_grad():
        net[0].bias.add_(1.0)
    assert torch.equal(ensemble.outputs(x), outputs)
    for bad in (5, -1):
        with pytest.raises(ValueError, match=r"from 0 to 4; got 5|at least 0; got -1"):
            ensemble.network(bad)


def test_some_draws(ensemble):
    x = inputs()
    outputs = ensemble.outputs(x)
    chosen = ensemble.select(draws=[3, 0, 3])
    assert chosen.num_samples == len(chosen) == 3
    assert torch.equal(chosen.outputs(x), outputs[[3, 0, 3]])
    assert torch.equal(ensemble.select(draws=2).outputs(x), outputs[2:3])
    assert torch.equal(chosen.select([1]).outputs(x), outputs[:1])
    assert torch.equal(chosen.mode.outputs(x), ensemble.mode.outputs(x))
    for bad, words in (([], "one or several"), ([5], "0 to 4"), ([-1], "at least 0")):
        with pytest.raises(ValueError, match=words):
            ensemble.select(bad)


def test_the_mode(ensemble):
    x = inputs()
    mode = ensemble.mode
    assert mode.num_samples == 1 and mode.mode.digest == mode.digest
    member = ensemble._members[0]
    found = {**member.statistics.values[None]}
    wanted = Ensemble(normalised(), posterior_of(normalised()), 1).calibrate(inputs(30))
    for name, value in wanted.statistics.values[None].items():
        torch.testing.assert_close(found[name], value)
    torch.testing.assert_close(mode.network(0)(x), mode.outputs(x)[0])


def test_several_posteriors_as_one_ensemble(ensemble):
    x = inputs()
    other_net = normalised()
    with torch.no_grad():
        other_net[0].bias.add_(1.0)
    other = Ensemble(Classifier(other_net, 9), posterior_of(other_net, seed=8), num_samples=2)
    with pytest.raises(ValueError, match="all calibrated, or none"):
        Ensemble.join([ensemble, other])
    other.calibrate(inputs(30))
    joined = Ensemble.join([ensemble, other, ensemble.select([1])])
    assert joined.num_samples == 8
    parts = [ensemble.outputs(x), other.outputs(x), ensemble.outputs(x)[1:2]]
    assert torch.equal(joined.outputs(x), torch.cat(parts))
    probs = torch.cat(parts).softmax(-1).mean(0)
    torch.testing.assert_close(joined.predict(x).probs, probs)
    assert torch.equal(joined.select([6, 2]).outputs(x), torch.cat(parts)[[6, 2]])
    assert joined.mode.num_samples == 2  # of two posteriors
    torch.testing.assert_close(joined.network(5)(x), parts[1][0])
    again = joined.calibrate(inputs(30))
    torch.testing.assert_close(again.outputs(x), torch.cat(parts))
    with pytest.raises(ValueError, match="of each part"):
        _ = joined.statistics


def test_joined_regressors_have_their_own_noise():
    net, x = to_binary_(nn.Linear(3, 1)), inputs()
    few = Ensemble(Regressor(net, 9, noise=0.1), posterior_of(net), num_samples=1)
    many = Ensemble(Regressor(net, 9, noise=0.2), posterior_of(net, seed=5), num_samples=3)
    found = Ensemble.join([few, many]).predict(x)
    torch.testing.assert_close(found.aleatoric_variance, torch.full((5,), (0.01 + 0.12) / 4))


def test_only_one_architecture_joins(ensemble):
    net = network()
    plain = Ensemble(net, posterior_of(net), num_samples=1)
    with pytest.raises(ValueError, match="one architecture"):
        Ensemble.join([ensemble, plain])
    classes = Ensemble(Classifier(net, 9), posterior_of(net), num_samples=1)
    with pytest.raises(ValueError, match="'head' to be classes; got outputs"):
        Ensemble.join([classes, plain])
    double = Ensemble(copy.deepcopy(net).float(), posterior_of(net), num_samples=1)
    with pytest.raises(ValueError, match=r"to be float64 of shape .* got float32"):
        Ensemble.join([plain, double])
    for bad in ([], [3], "ab"):
        with pytest.raises(ValueError, match="a list of ensembles"):
            Ensemble.join(bad)


def test_it_says_what_it_is(ensemble):
    assert repr(ensemble) == "Ensemble(5 draws, 50 weights, classes)"
    assert "2 parts" in repr(Ensemble.join([ensemble, ensemble]))
    assert ensemble.calibrated and ensemble.kind == "classes"
    other = Ensemble(BinaryLinear(2, 1), BinaryPosterior({"weight": torch.zeros(1, 2)}))
    assert other.num_samples == 32 and not other.calibrated
