"""What every guide in ``bayesbin.guides`` promises."""

from __future__ import annotations

import copy
import io
import math
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoDelta, AutoGuideList
from torch import nn

import bayesbin.guides
from bayesbin.distributions import SignBernoulli
from bayesbin.estimators import Enumerate, StraightThrough
from bayesbin.infer import TraceBinary_ELBO
from bayesbin.nn import BinaryLinear, Classifier, to_binary_
from bayesbin.posterior import BinaryPosterior

# Those of point estimates and of weights with a few levels have other parameters, and tests of their own.
OTHERS = {"AutoSignDelta", "AutoLowBit"}
every_guide = pytest.mark.parametrize(
    "Guide",
    [
        getattr(bayesbin.guides, name)
        for name in bayesbin.guides.__all__
        if name.startswith("Auto") and name not in OTHERS
    ],
)
both_modes = pytest.mark.parametrize("local", [False, True], ids=["global", "local"])


def signs(*shape, natural=0.0):
    return SignBernoulli(natural=torch.full(shape, natural)).to_event(len(shape))


def mixed_model():
    """Signs in an event and in a plate, and a real site of each kind of support."""
    w = pyro.sample("layer.weight", signs(2, 3))
    with pyro.plate("units", 4):
        v = pyro.sample("v", SignBernoulli(natural=torch.tensor(0.2)))
    bias = pyro.sample("bias", dist.Normal(torch.tensor([0.5, -1.0]), 2.0).to_event(1))
    scale = pyro.sample("scale", dist.LogNormal(0.3, 1.0))
    share = pyro.sample("share", dist.Uniform(-1.0, 3.0))
    pyro.factor("data", (w.sum() + v.sum() + bias.sum()) * scale * 0.1 + share)


def classifier(seed=0):
    torch.manual_seed(seed)
    net = to_binary_(nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2)))
    return Classifier(net, dataset_size=20)


def batch():
    return torch.linspace(-1.0, 1.0, 10).view(5, 2), torch.tensor([0, 1, 1, 0, 1])


def closure(weights=3):
    def model():
        w = pyro.sample("w", signs(weights, natural=0.1))
        pyro.factor("data", 0.5 * w.sum())

    return model


def binary_parameters(guide):
    """What the distributions of the signs are computed from: natural parameters, or a nested
    guide's offsets."""
    return [*guide.natural_parameters(), *guide.offsets()]


def naturals(guide):
    return [guide.natural_of(name) for name, site in guide.sites.items() if site.is_binary]


# Built at construction


@every_guide
def test_parameters_exist_before_the_first_call(Guide):
    guide = Guide(mixed_model)
    assert [tuple(natural.shape) for natural in naturals(guide)] == [(2, 3), (4,)]
    assert [tuple(p.shape) for p in guide.real_parameters()] == [(2,), (), ()] * 2
    natural, real = binary_parameters(guide), list(guide.real_parameters())
    assert all(type(p) is nn.Parameter and p.requires_grad for p in [*natural, *real])
    assert {id(p) for p in guide.parameters()} == {id(p) for p in [*natural, *real]}
    assert len({id(p) for p in [*natural, *real]}) == len([*natural, *real])
    own = {"offset.layer.weight.filter", "offset.v.weight"} if list(guide.offsets()) else {
        "natural.layer.weight", "natural.v"}  # fmt: skip
    assert {"loc.scale", "log_scale.share", *own} <= set(guide.state_dict())
    assert not pyro.get_param_store().keys()
    before = [p.detach().clone() for p in natural]
    guide()
    assert all(p is q for p, q in zip(natural, binary_parameters(guide), strict=True))
    assert all(torch.equal(p, q) for p, q in zip(natural, before, strict=True))


@every_guide
def test_state_dict_loads_with_weights_only(Guide):
    guide, other = Guide(mixed_model), Guide(mixed_model)
    file = io.BytesIO()
    torch.save(guide.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    for p, q in zip(guide.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q) and p is not q


@every_guide
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_to_another_dtype_before_the_first_call(Guide, dtype):
    def model():
        pyro.sample("w", signs(5))
        pyro.sample("scale", dist.LogNormal(0.0, 1.0))

    guide = Guide(model).to(dtype)
    assert {p.dtype for p in guide.parameters()} == {dtype}
    assert {value.dtype for value in guide().values()} == {dtype}
    assert guide.posterior()["w"].natural.dtype == dtype


@every_guide
def test_an_optimizer_made_before_the_first_call_trains(Guide):
    model = closure()
    guide = Guide(model, init_scale=0.0)
    optimizer = torch.optim.SGD(binary_parameters(guide), lr=1.0)
    TraceBinary_ELBO(StraightThrough())(model, guide)().backward()
    optimizer.step()
    assert all((natural != 0).all() for natural in naturals(guide))


@every_guide
def test_building_keeps_no_data_and_no_statistics(Guide):
    net = to_binary_(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 2)))
    model = Classifier(net, dataset_size=20)
    x, y = torch.randn(7, 2), torch.arange(7) % 2
    guide = Guide(model, args=(x, y))
    assert net[1].num_batches_tracked == 0
    assert torch.equal(net[1].running_mean, torch.zeros(3))
    tensors = [p for p in guide.parameters()]
    assert all(t.shape != x.shape and t.shape != y.shape for t in tensors)
    kept = [value for value in vars(guide).values() if isinstance(value, torch.Tensor)]
    assert not kept and guide.prototype_trace is None
    assert b"subsample" not in pickle.dumps(guide)


# Starting points


@every_guide
def test_init_scale_is_the_standard_deviation_of_the_natural_parameters(Guide):
    guide = Guide(closure(4000), init_scale=0.3)
    (natural,) = naturals(guide)
    squares = natural.detach().square()
    error = squares.std() / math.sqrt(len(natural))
    assert abs(squares.mean() - 0.3**2) < 5 * error
    assert torch.equal(naturals(Guide(closure(), init_scale=0.0))[0], torch.zeros(3))


@every_guide
@pytest.mark.parametrize("source", ["network", "state dict", "network in float32"])
def test_start_at_a_pretrained_network(Guide, source):
    real = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2))
    net = to_binary_(copy.deepcopy(real))
    given = {"network": real, "state dict": real.state_dict(), "network in float32": real.float()}
    guide = Guide(Classifier(net, dataset_size=20), init=given[source], init_scale=0.7)
    for natural, name in zip(naturals(guide), ("0.weight", "2.weight"), strict=True):
        weight = real.get_parameter(name).double()
        assert torch.equal(natural.sign(), weight.sign())
        torch.testing.assert_close(natural.square().mean().sqrt().item(), 0.7)
        ratio = natural.detach() / weight.detach()
        torch.testing.assert_close(ratio, ratio.mean().expand_as(ratio), rtol=1e-6, atol=1e-6)


@every_guide
def test_start_at_weights_that_are_all_zero(Guide):
    guide = Guide(closure(), init={"w": torch.zeros(3)})
    assert torch.equal(naturals(guide)[0], torch.zeros(3))


@every_guide
def test_start_at_a_posterior_by_value(Guide):
    start = BinaryPosterior({"w": torch.tensor([1.0, -40.0, 0.3])})
    guide = Guide(closure(), init=start)
    torch.testing.assert_close(guide.posterior()["w"].natural, start["w"].natural)
    with torch.no_grad():
        binary_parameters(guide)[-1].zero_()
    assert start["w"].natural.tolist() == [1.0, -40.0, 0.3]


@every_guide
def test_starting_points_that_do_not_fit(Guide):
    for what, init in (
        ("pretrained network", {"w": torch.zeros(4)}),
        ("posterior", BinaryPosterior({"w": torch.zeros(4)})),
    ):
        with pytest.raises(ValueError, match=rf"{what} given as init has 'w' of shape \(4,\)"):
            Guide(closure(), init=init)
    with pytest.raises(ValueError, match="has no weight 'w'; it has weight, bias"):
        Guide(closure(), init=nn.Linear(2, 2))
    with pytest.raises(ValueError, match="posterior given as init has no weight 'w'; it has v"):
        Guide(closure(), init=BinaryPosterior({"v": torch.zeros(3)}))
    with pytest.raises(ValueError, match="init_scale is a standard deviation"):
        Guide(closure(), init_scale=-1.0)
    with pytest.raises(ValueError, match="real_scale is a positive"):
        Guide(closure(), real_scale=0.0)


@every_guide
def test_real_sites_start_at_the_median_of_their_prior(Guide):
    posterior = Guide(mixed_model, real_scale=0.2).posterior()
    assert set(posterior.real) == {"bias", "scale", "share"}
    for distribution in posterior.real.values():
        torch.testing.assert_close(distribution.scale, torch.full_like(distribution.loc, 0.2))
    mode = posterior.mode()
    assert -1.0 < mode["share"] < 3.0 and mode["scale"] > 0


# Sites


@every_guide
def test_draws_lie_in_their_supports_and_have_the_models_shapes(Guide):
    guide = Guide(mixed_model)
    for _ in range(20):
        draw = guide()
        assert list(draw) == ["layer.weight", "v", "bias", "scale", "share"]
        assert draw["layer.weight"].shape == (2, 3) and draw["v"].shape == (4,)
        assert all(bool((draw[name].abs() <= 1).all()) for name in ("layer.weight", "v"))
        assert draw["scale"] > 0 and -1 < draw["share"] < 3
    trace = poutine.trace(guide).get_trace()
    assert [frame.name for frame in trace.nodes["v"]["cond_indep_stack"]] == ["units"]
    assert trace.nodes["layer.weight"]["fn"].event_dim == 2


@every_guide
def test_the_posterior_is_the_guides_distribution_by_value(Guide):
    guide = Guide(mixed_model)
    posterior = guide.posterior()
    assert list(posterior) == ["layer.weight", "v"]
    for distribution, natural in zip(posterior.values(), naturals(guide), strict=True):
        assert type(distribution) is SignBernoulli and torch.equal(distribution.natural, natural)
        assert not distribution.natural.requires_grad
    kept = [distribution.natural.clone() for distribution in posterior.values()]
    with torch.no_grad():
        for p in guide.parameters():
            p.add_(1.0)
    assert all(
        torch.equal(distribution.natural, k)
        for distribution, k in zip(posterior.values(), kept, strict=True)
    )
    median = guide.median()
    expected = guide.posterior().mode()
    assert median.keys() == expected.keys() == guide().keys()
    assert all(torch.equal(median[name], expected[name]) for name in median)


def discrete():
    pyro.sample("w", signs(2))
    pyro.sample("k", dist.Poisson(torch.tensor(1.0)))


def real_only():
    pyro.sample("z", dist.Normal(0.0, 1.0))


def loop_over_some_rows():
    pyro.sample("w", signs(2))
    for i in pyro.plate("data", 100, subsample_size=5):
        pyro.sample(f"z{i}", dist.Normal(0.0, 1.0))


def simplex():
    pyro.sample("w", signs(2))
    pyro.sample("p", dist.Dirichlet(torch.ones(3)))


def name_of_a_method():
    pyro.sample("type", signs(2))


def needs_data(x, y):
    pyro.sample("w", signs(2))


@every_guide
@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (discrete, ValueError, "site 'k' has the discrete distribution Poisson"),
        (real_only, ValueError, "found no latent SignBernoulli site in the model; its sites are z"),
        (loop_over_some_rows, ValueError, "lies in the plate 'data', a loop over 5 of 100 rows"),
        (simplex, ValueError, "'p' has support"),
        (name_of_a_method, ValueError, "cannot hold a parameter for the site 'type"),
        (needs_data, TypeError, "does not run without arguments"),
    ],
)
def test_models_that_do_not_fit(Guide, model, error, message):
    with pytest.raises(error, match=message):
        Guide(model)


@every_guide
def test_errors_inside_the_model_are_the_users_own(Guide):
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        Guide(needs_data, args=(torch.zeros(2),))
    guide = Guide(needs_data, args=(1,), kwargs={"y": 2})
    assert [tuple(natural.shape) for natural in naturals(guide)] == [(2,)]


# Copies


@every_guide
def test_pickle(Guide):
    model = Classifier(BinaryLinear(3, 2), dataset_size=10)
    guide = Guide(model)
    loaded = pickle.loads(pickle.dumps(guide))
    assert guide.model is model
    assert type(loaded) is Guide and loaded.sites == guide.sites
    for p, q in zip(guide.parameters(), loaded.parameters(), strict=True):
        assert torch.equal(p, q)
    assert torch.equal(loaded.posterior()["weight"].natural, guide.posterior()["weight"].natural)
    assert loaded().keys() == guide().keys()


@every_guide
def test_pickle_of_a_guide_for_a_local_function_and_after_training(Guide):
    model = closure()
    guide = Guide(model)
    module = TraceBinary_ELBO(StraightThrough())(model, guide)
    module().backward()
    SVI(model, guide, pyro.optim.SGD({"lr": 0.1}), TraceBinary_ELBO(StraightThrough())).step()
    loaded = pickle.loads(pickle.dumps(guide))
    assert guide.model is model
    assert torch.equal(loaded.posterior()["w"].natural, guide.posterior()["w"].natural)


@every_guide
def test_deepcopy(Guide):
    model = closure()
    guide = Guide(model)
    twin = copy.deepcopy(guide)
    assert guide.model is model and twin.model is model
    before = guide.posterior()["w"].natural
    assert torch.equal(twin.posterior()["w"].natural, before)
    TraceBinary_ELBO(StraightThrough())(model, twin)().backward()
    assert all(p.grad is None for p in guide.parameters())
    with torch.no_grad():
        binary_parameters(twin)[-1].add_(1.0)
    assert torch.equal(guide.posterior()["w"].natural, before)


# Training


def parameters_of(model, guide):
    return [p.detach().clone() for p in [*model.parameters(), *guide.parameters()]]


def moved(before, after):
    return [not torch.equal(p, q) for p, q in zip(before, after, strict=True)]


@every_guide
@both_modes
@pytest.mark.parametrize("way", ["svi", "torch"])
def test_two_guides_of_one_process_train_their_own_parameters(Guide, local, way):
    """Models and guides of the same names, one after the other, in each of Pyro's modes."""
    x, y = batch()
    with pyro.settings.context(module_local_params=local):
        pairs = [(model, Guide(model)) for model in (classifier(1), classifier(2))]
        started = [parameters_of(*pair) for pair in pairs]
        for turn, (model, guide) in enumerate(pairs):
            before = [parameters_of(*pair) for pair in pairs]
            elbo = TraceBinary_ELBO(StraightThrough())
            if way == "svi":
                svi = SVI(model, guide, pyro.optim.SGD({"lr": 0.01}), elbo)
                for _ in range(3):
                    assert math.isfinite(svi.step(x, y))
            else:
                module = elbo(model, guide)
                optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
                for _ in range(3):
                    optimizer.zero_grad()
                    module(x, y).backward()
                    optimizer.step()
            after = [parameters_of(*pair) for pair in pairs]
            assert all(moved(before[turn], after[turn]))
            assert not any(moved(before[1 - turn], after[1 - turn]))
        assert all(moved(started[1], parameters_of(*pairs[1])))


@both_modes
def test_svi_and_torch_take_the_same_step(local):
    x, y = batch()
    results = []
    for way in ("svi", "torch"):
        pyro.clear_param_store()
        with pyro.settings.context(module_local_params=local):
            model = classifier(3)
            torch.manual_seed(4)
            guide = bayesbin.guides.AutoSignBernoulli(model)
            elbo = TraceBinary_ELBO(StraightThrough())
            if way == "svi":
                svi = SVI(model, guide, pyro.optim.SGD({"lr": 0.01}), elbo)
                torch.manual_seed(5)
                svi.step(x, y)
            else:
                module = elbo(model, guide)
                torch.manual_seed(5)
                module(x, y).backward()
                torch.optim.SGD(module.parameters(), lr=0.01).step()
        results.append(parameters_of(model, guide))
    for p, q in zip(*results, strict=True):
        torch.testing.assert_close(p, q)


@pytest.mark.parametrize(
    ("name", "loss"),
    [("AutoSignBernoulli", Trace_ELBO), ("AutoRelaxedSignBernoulli", TraceMeanField_ELBO)],
)
def test_stock_losses_train_the_guide(name, loss):
    """Score function for hard draws, pathwise for relaxed ones, in Pyro's global mode."""

    def model():
        w = pyro.sample("w", signs(2))
        pyro.factor("data", 1.5 * w[0] - 1.5 * w[1])

    guide = getattr(bayesbin.guides, name)(model)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), loss(num_particles=4))
    for _ in range(100):
        svi.step()
    first, second = next(guide.natural_parameters()).tolist()
    assert first > 0.5 and second < -0.5  # the optimum is +-1.5


def test_in_a_list_of_guides():
    def model():
        w = pyro.sample("w", signs(2))
        z = pyro.sample("z", dist.Normal(torch.tensor(0.3), 1.0))
        pyro.factor("data", z * w.sum())

    guide = AutoGuideList(model)
    ours = bayesbin.guides.AutoSignBernoulli(poutine.block(model, hide=["z"]))
    guide.append(ours)
    guide.append(AutoDelta(poutine.block(model, hide=["w"])))
    draw = guide()
    assert set(draw) == {"w", "z"}
    before = next(ours.natural_parameters()).detach().clone()
    svi = SVI(model, guide, pyro.optim.SGD({"lr": 0.1}), TraceBinary_ELBO(Enumerate()))
    assert math.isfinite(svi.step())
    assert not torch.equal(next(ours.natural_parameters()), before)


def test_the_relaxed_guides_temperature():
    with pytest.raises(ValueError, match="temperature is positive"):
        bayesbin.guides.AutoRelaxedSignBernoulli(closure(), temperature=0.0)
    guide = bayesbin.guides.AutoRelaxedSignBernoulli(closure(), temperature=1e-3)
    assert (guide()["w"].abs() > 0.99).all()
