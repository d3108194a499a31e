"""Random effects: the bound, the correlation they give the weights, and the joint posterior."""

from __future__ import annotations

import copy
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from oracles import all_states, log_evidence, state_probabilities, table
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoDelta, AutoGuideList
from stats import assert_within_standard_errors
from torch import Tensor, nn

from bayesbin.distributions import SignBernoulli, Support
from bayesbin.ensemble import Ensemble
from bayesbin.estimators import Enumerate, LocalReparameterization, StraightThrough
from bayesbin.guides import AutoNestedSignBernoulli, PolicyNetwork, with_effects
from bayesbin.infer import TraceBinary_ELBO, fit
from bayesbin.nn import BinaryLinear, Classifier, Regressor
from bayesbin.posterior import BinaryPosterior, RealPosterior

PRIOR = torch.tensor([0.3, -0.2, 0.1])
KIND = "random-effects"


def log_likelihood(w: Tensor) -> Tensor:
    """A function of three signs that no sum of single ones can express."""
    return 0.8 * w[..., 0] * w[..., 1] - 0.5 * w[..., 2] + 0.4 * w.prod(-1)


def model() -> None:
    w = pyro.sample("w", SignBernoulli(natural=PRIOR).to_event(1))
    pyro.factor("data", log_likelihood(w))


def example_guide(sharing=("layer", "weight")) -> AutoNestedSignBernoulli:
    guide = AutoNestedSignBernoulli(model, sharing, KIND, effect_scale=0.9)
    with torch.no_grad():
        guide.get_parameter("loc.w.layer").fill_(0.4)
        guide.get_parameter("log_scale.w.layer").fill_(math.log(0.7))
        if "weight" in sharing:
            guide.get_parameter("offset.w.weight").copy_(torch.tensor([0.5, -0.3, 0.2]))
    return guide


def quadrature(num_nodes: int = 60) -> tuple[Tensor, Tensor]:
    """Nodes and weights for a standard normal number."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(num_nodes)
    return torch.tensor(nodes), torch.tensor(weights / weights.sum())


def exact_bound(loc: Tensor, log_scale: Tensor, offset: Tensor) -> Tensor:
    """The loss by enumeration of the signs and quadrature over the effect, from its definition."""
    states, likelihood = all_states(3), table(log_likelihood, 3)
    log_prior = state_probabilities(PRIOR).log()
    total = torch.zeros(())
    for node, weight in zip(*quadrature(), strict=True):
        natural = loc + log_scale.exp() * node + offset
        log_q = (-torch.nn.functional.softplus(-2.0 * natural * states)).sum(1)
        total = total + weight * (log_q.exp() * (log_q - log_prior - likelihood)).sum()
    q, p = dist.Normal(loc, log_scale.exp()), dist.Normal(0.0, 0.9)
    return total + torch.distributions.kl_divergence(q, p).sum()


def exact_of(guide: AutoNestedSignBernoulli) -> Tensor:
    parameters = dict(guide.named_parameters())
    offset = parameters.get("offset.w.weight", torch.zeros(3))
    return exact_bound(parameters["loc.w.layer"], parameters["log_scale.w.layer"], offset)


# The bound


@pytest.mark.parametrize("sharing", [("layer", "weight"), ("layer",)], ids=str)
def test_the_loss_and_its_gradient_meet_enumeration_and_quadrature(sharing):
    guide = example_guide(sharing)
    elbo = TraceBinary_ELBO(Enumerate())
    expected = exact_of(guide)
    slopes = torch.autograd.grad(expected, list(guide.parameters()))
    losses, gradients = [], []
    for _ in range(400):
        loss = elbo.differentiable_loss(model, guide)
        gradients.append(torch.autograd.grad(loss, list(guide.parameters())))
        losses.append(loss.detach())
    assert_within_standard_errors(torch.stack(losses), expected.detach())
    for one, slope in zip(zip(*gradients, strict=True), slopes, strict=True):
        assert_within_standard_errors(torch.stack(one), slope)
    # Twins: the effects at their location, or the KL of the effects left out, are other numbers.
    at_location = exact_bound(torch.tensor([0.4]), torch.tensor([-20.0]), torch.zeros(3))
    assert abs(at_location - expected) > 0.05
    kl = torch.distributions.kl_divergence(dist.Normal(0.4, 0.7), dist.Normal(0.0, 0.9))
    with pytest.raises(AssertionError):
        assert_within_standard_errors(torch.stack(losses), (expected - kl).detach())


def test_it_bounds_the_evidence_of_the_model_as_it_was_given():
    guide = example_guide()
    evidence = log_evidence(log_likelihood, PRIOR)
    optimizer = torch.optim.Adam(guide.parameters(), lr=0.1)
    for _ in range(100):
        optimizer.zero_grad()
        loss = exact_of(guide)
        loss.backward()
        assert loss.item() > -evidence
        optimizer.step()
    assert loss.item() < -evidence + 1.0


def test_hard_draws_and_a_loss_of_pyros_own_estimate_the_same_bound():
    guide = example_guide()
    expected = exact_of(guide).detach()
    elbo = TraceBinary_ELBO(StraightThrough())
    hard = torch.tensor([elbo.loss(model, guide) for _ in range(400)])
    assert_within_standard_errors(hard, expected)
    stock, whole = Trace_ELBO(), with_effects(model, guide)
    pyros = torch.tensor([stock.loss(whole, guide) for _ in range(400)])
    assert_within_standard_errors(pyros, expected)


def test_the_model_with_its_effects_is_made_once():
    guide = example_guide()
    whole = with_effects(model, guide)
    assert whole is not model and with_effects(whole, guide) is whole
    assert with_effects(model, AutoNestedSignBernoulli(model)) is model
    assert with_effects(model, lambda: None) is model


# The joint distribution of the weights


def wide_posterior() -> BinaryPosterior:
    """Two filters of three weights, with effects of the layer and of each filter."""
    real = {
        "w.layer": RealPosterior(torch.tensor([[0.2]]), torch.tensor([[0.5]]), Support("real")),
        "w.filter": RealPosterior(
            torch.tensor([[0.3], [-0.6]]), torch.tensor([[1.2], [0.8]]), Support("real")
        ),
    }
    fixed = torch.tensor([[0.0, 0.4, -0.3], [0.1, 0.0, 0.5]])
    return BinaryPosterior({"w": fixed}, real, {"w": ("w.layer", "w.filter")})


def predicted(posterior: BinaryPosterior, first: tuple[int, int], second: tuple[int, int]) -> float:
    """E[w w'] by quadrature over the effect of the layer and those of the filters."""
    layer, filters = posterior.real["w.layer"], posterior.real["w.filter"]
    fixed = torch.tensor([[0.0, 0.4, -0.3], [0.1, 0.0, 0.5]])
    nodes, weights = quadrature(40)

    def mean(place: tuple[int, int], shared: Tensor, own: Tensor) -> Tensor:
        row = place[0]
        effect = filters.loc[row, 0] + filters.scale[row, 0] * own
        return torch.tanh(fixed[place] + layer.loc[0, 0] + layer.scale[0, 0] * shared + effect)

    shared, own = torch.meshgrid(nodes, nodes, indexing="ij")
    one, other = mean(first, shared, own), mean(second, shared, own)
    if first[0] == second[0]:
        return (weights[:, None] * weights * one * other).sum().item()
    return (weights * (one @ weights) * (other @ weights)).sum().item()


PAIRS = [((0, 0), (0, 1)), ((0, 1), (0, 2)), ((1, 0), (1, 2)), ((0, 0), (1, 0)), ((0, 2), (1, 1))]


def drawn(posterior: BinaryPosterior, seed: int) -> Tensor:
    return torch.stack([posterior.signs(i, seed=seed)["w"] for i in range(3000)])


@pytest.fixture(scope="module")
def draws() -> Tensor:
    return drawn(wide_posterior(), 1)


@pytest.fixture(scope="module")
def independent_draws() -> Tensor:
    """A twin's, which draws each weight from its marginal distribution."""
    return drawn(BinaryPosterior({"w": wide_posterior()["w"]}), 1)


@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_drawn_weights_show_the_predicted_correlation(pair, draws, independent_draws):
    posterior = wide_posterior()
    products = draws[:, *pair[0]] * draws[:, *pair[1]]
    expected = torch.tensor(predicted(posterior, *pair))
    assert_within_standard_errors(products, expected)
    alone = independent_draws[:, *pair[0]] * independent_draws[:, *pair[1]]
    if pair[0][0] == pair[1][0]:
        with pytest.raises(AssertionError):
            assert_within_standard_errors(alone, expected)


def test_the_mapping_answers_with_the_marginal_distributions(draws):
    posterior = wide_posterior()
    assert_within_standard_errors(draws, posterior["w"].mean)
    assert torch.equal(posterior.signs()["w"], posterior["w"].mode)
    nodes, weights = quadrature(80)
    scale = torch.tensor([[1.3], [0.89**0.5]])  # sqrt(.5^2 + 1.2^2), sqrt(.5^2 + .8^2)
    mean = torch.tensor([[0.5, 0.9, 0.2], [-0.3, -0.4, 0.1]])
    exact = (torch.tanh(mean[..., None] + scale[..., None] * nodes) * weights).sum(-1)
    torch.testing.assert_close(posterior["w"].mean, exact, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("scale", [0.0, 1e-3, 0.5, 3.0, 10.0])
def test_marginal_log_odds_of_sure_weights_stay_finite_and_right(scale):
    mean = torch.tensor([0.0, 1.0, -5.0, 30.0, -100.0, 300.0])
    effect = RealPosterior(torch.zeros(1), torch.full((1,), scale), Support("real"))
    natural = BinaryPosterior({"w": mean}, {"a": effect}, {"w": ["a"]})["w"].natural
    assert bool(torch.isfinite(natural).all())
    assert bool((natural.sign() == mean.sign()).all())
    assert bool((natural.abs() <= mean.abs() + 1e-9).all())  # an effect only takes certainty away
    if scale <= 1e-3:
        torch.testing.assert_close(natural, mean, rtol=1e-4, atol=1e-9)
    # Far out P(w = -1) is E[exp(-2 lambda)] = exp(-2 m + 2 s^2), as long as that is small.
    sure = mean - 4.0 * scale**2 > 10.0
    torch.testing.assert_close(natural[sure], mean[sure] - scale**2, rtol=1e-6, atol=1e-6)


def test_kl_is_the_expected_one_given_the_effects():
    posterior = wide_posterior()
    prior = {"w": SignBernoulli(natural=torch.full((2, 3), 0.2))}
    given = torch.stack(
        [
            torch.distributions.kl_divergence(
                SignBernoulli(natural=posterior.natural_given_effects("w", i)), prior["w"]
            ).sum()
            for i in range(1000)
        ]
    )
    assert_within_standard_errors(given, posterior.kl(prior)["w"])
    marginal = torch.distributions.kl_divergence(posterior["w"], prior["w"]).sum()
    assert posterior.kl(prior)["w"] > marginal + 0.1


def test_files_and_copies_keep_the_joint_distribution(tmp_path):
    posterior = wide_posterior()
    posterior.save(tmp_path / "p.safetensors")
    for other in (
        BinaryPosterior.load(tmp_path / "p.safetensors"),
        posterior.to(torch.float64),
        copy.deepcopy(posterior),
    ):
        assert other.effects == posterior.effects
        for index in range(5):
            assert torch.equal(other.signs(index)["w"], posterior.signs(index)["w"])
        assert torch.equal(other["w"].natural, posterior["w"].natural)
    assert posterior.to(torch.float32)["w"].natural.dtype == torch.float32


def test_predictors_use_the_joint_distribution():
    guide = AutoNestedSignBernoulli(
        Regressor(net := BinaryLinear(30, 1, bias=False, scale=1.0), 10, noise=1.0),
        ("layer",), KIND,
    )  # fmt: skip
    with torch.no_grad():
        guide.get_parameter("loc.weight.layer").zero_()
        guide.get_parameter("log_scale.weight.layer").fill_(math.log(1.5))
    posterior = guide.posterior()
    x = torch.ones(1, 30)
    head = {"kind": "normal", "noise": 1.0}
    found = Ensemble(net, posterior, 500, head=head).predict(x).epistemic_variance.item()
    # The sum of 30 weights varies about 30 times as much as if they were independent.
    nodes, weights = quadrature(80)
    correlation = (weights * torch.tanh(1.5 * nodes).square()).sum().item()
    expected = 30 + 30 * 29 * correlation
    assert expected > 300 and found == pytest.approx(expected, rel=0.15)


@pytest.mark.parametrize(
    "effects, message",
    [
        ({"v": ["a"]}, "no signs of that name"),
        ({"w": ["b"]}, "real-valued site of real support; got none"),
        ({"w": ["positive"]}, "real support; got positive"),
        ({"w": ["wide"]}, "does not broadcast"),
    ],
    ids=str,
)
def test_effects_that_do_not_fit_are_refused(effects, message):
    def distribution(shape, kind):
        return RealPosterior(torch.zeros(shape), torch.ones(shape), Support(kind))

    real = {
        "a": distribution((1,), "real"),
        "positive": distribution((1,), "positive"),
        "wide": distribution((4,), "real"),
    }
    with pytest.raises(ValueError, match=message):
        BinaryPosterior({"w": torch.zeros(3)}, real, effects)


# The guide


def classifier() -> Classifier:
    layers = [BinaryLinear(6, 4), nn.Tanh(), BinaryLinear(4, 3)]
    return Classifier(nn.Sequential(*layers), dataset_size=30)


def batch() -> tuple[Tensor, Tensor]:
    return torch.randn(15, 6, generator=torch.Generator().manual_seed(0)), torch.arange(15) % 3


def test_the_sites_of_the_guide():
    guide = AutoNestedSignBernoulli(classifier(), kind=KIND)
    trace = pyro.poutine.trace(guide).get_trace()
    assert list(trace.stochastic_nodes) == [
        "0.weight.layer", "0.weight.filter", "0.weight",
        "2.weight.layer", "2.weight.filter", "2.weight",
    ]  # fmt: skip
    natural = trace.nodes["0.weight"]["fn"].base_dist.natural
    parts = [trace.nodes[f"0.weight.{scope}"]["value"] for scope in ("layer", "filter")]
    weight = guide.get_parameter("offset.0.weight.weight")
    torch.testing.assert_close(natural, parts[0] + parts[1] + weight)
    assert {id(p) for p in guide.offsets()} == {
        id(guide.get_parameter(f"offset.{name}.weight")) for name in ("0.weight", "2.weight")
    }
    real = {id(p) for p in guide.real_parameters()}
    assert id(guide.get_parameter("loc.0.weight.filter")) in real and len(real) == 8
    assert set(guide.posterior().real) == {
        f"{i}.weight.{scope}" for i in (0, 2) for scope in ("layer", "filter")
    }


def test_lambda_of_the_posterior_is_that_of_the_guide():
    guide = AutoNestedSignBernoulli(classifier(), kind=KIND, init_scale=0.8)
    posterior = guide.posterior()
    mean, _ = posterior._natural_moments("0.weight")
    torch.testing.assert_close(mean, guide.natural_of("0.weight").detach())


def test_without_effects_left_it_is_the_shared_guide():
    model_ = classifier()
    shared = AutoNestedSignBernoulli(model_, init_scale=0.5)
    random = AutoNestedSignBernoulli(model_, kind=KIND, init=shared.posterior(), real_scale=1e-9)
    for site, distribution in shared.posterior().items():
        torch.testing.assert_close(random.posterior()[site].natural, distribution.natural)


def test_fit_trains_locations_scales_and_offsets():
    model_ = classifier()
    guide = AutoNestedSignBernoulli(model_, kind=KIND)
    before = {name: p.detach().clone() for name, p in guide.named_parameters()}
    fit(model_, guide, [batch()], epochs=3, estimator=LocalReparameterization(), progress=False)
    assert all(not torch.equal(before[name], p) for name, p in guide.named_parameters())


@pytest.mark.parametrize("local", [False, True], ids=["global", "local"])
def test_svi_trains_them_too(local):
    with pyro.settings.context(module_local_params=local):
        model_ = classifier()
        guide = AutoNestedSignBernoulli(model_, kind=KIND)
        before = {name: p.detach().clone() for name, p in guide.named_parameters()}
        svi = SVI(model_, guide, pyro.optim.Adam({"lr": 0.05}), TraceBinary_ELBO(StraightThrough()))
        for _ in range(2):
            svi.step(*batch())
        assert all(not torch.equal(before[name], p) for name, p in guide.named_parameters())


def test_it_works_as_one_guide_of_several():
    def mixed() -> None:
        w = pyro.sample("w", SignBernoulli(natural=PRIOR).to_event(1))
        b = pyro.sample("b", dist.Normal(0.0, 1.0))
        pyro.factor("data", log_likelihood(w) + b)

    guide = AutoGuideList(mixed)
    guide.append(AutoNestedSignBernoulli(pyro.poutine.block(mixed, hide=["b"]), kind=KIND))
    guide.append(AutoDelta(pyro.poutine.block(mixed, expose=["b"])))
    assert math.isfinite(TraceBinary_ELBO(Enumerate()).loss(mixed, guide))
    assert math.isfinite(TraceBinary_ELBO(Enumerate()).differentiable_loss(mixed, guide).item())


def test_arguments_that_do_not_fit():
    with pytest.raises(ValueError, match="kind is one of shared, random-effects; got 'random'"):
        AutoNestedSignBernoulli(model, kind="random")
    with pytest.raises(ValueError, match="effect_scale is a positive"):
        AutoNestedSignBernoulli(model, kind=KIND, effect_scale=0.0)
    with pytest.raises(ValueError, match="Random effects are those of layer, filter and kernel"):
        AutoNestedSignBernoulli(model, ("weight",), KIND)
    with pytest.raises(ValueError, match="random effects add up"):
        AutoNestedSignBernoulli(model, kind=KIND, combine=PolicyNetwork())
    with pytest.raises(ValueError, match="fisher is one of joint, diagonal"):
        AutoNestedSignBernoulli(model, fisher="block")
