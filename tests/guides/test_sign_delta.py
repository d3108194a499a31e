"""Point estimates as a guide: parameters, losses, training, and the posterior without spread."""

# A gradient is None until there is one, which the assertion at hand would tell.
# pyright: reportOptionalMemberAccess=false, reportArgumentType=false
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import copy
import io
import math
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI
from torch import nn

from bayesbin.data import Batches, two_moons
from bayesbin.distributions import SignBernoulli
from bayesbin.ensemble import Ensemble
from bayesbin.estimators import LocalReparameterization
from bayesbin.guides import AutoSignDelta, with_effects
from bayesbin.infer import TraceBinary_ELBO, fit
from bayesbin.nn import Classifier, binarize_, latents, mlp, to_binary_
from bayesbin.nn.binarizers import (
    SLB,
    ApproxSign,
    BinaryConnect,
    ReCU,
    Signs,
    SignSTE,
    SoftSign,
    TernaryConnect,
)
from bayesbin.optim import Schedule, clip_after_step, exponential
from bayesbin.posterior import BinaryPosterior, LowBitPosterior

EVERY = [
    SignSTE(), SignSTE(None), ApproxSign(), BinaryConnect(), BinaryConnect(True), ReCU(), SLB(),
    SLB((-1, 0, 1)), SoftSign(), SoftSign(mirror=True), TernaryConnect(), TernaryConnect(False),
]  # fmt: skip
every_binarizer = pytest.mark.parametrize("binarizer", [*EVERY, Signs()], ids=repr)


def mixed_model():
    """Signs in an event and in a plate, and real sites."""
    w = pyro.sample("layer.weight", SignBernoulli(natural=torch.zeros(2, 3)).to_event(2))
    with pyro.plate("units", 4):
        v = pyro.sample("v", SignBernoulli(natural=torch.tensor(0.2)))
    scale = pyro.sample("scale", dist.LogNormal(0.3, 1.0))
    pyro.factor("data", (w.sum() + v.sum()) * scale * 0.1)


def moons_model(seed=0):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 2))
    return Classifier(to_binary_(net.float()), dataset_size=200)


def copied(binarizer):
    return copy.deepcopy(binarizer)


@every_binarizer
def test_parameters_draws_and_posterior(binarizer):
    guide = AutoSignDelta(mixed_model, binarizer=copied(binarizer))
    assert list(guide.natural_parameters()) == list(guide.offsets()) == []
    assert [p.shape for p in guide.real_parameters()] == [(), ()]
    extra = (len(binarizer.levels),) if isinstance(binarizer, SLB) else ()
    assert [tuple(p.shape) for p in guide.latents()] == [(2, 3, *extra), (4, *extra)]
    assert {id(p) for p in guide.parameters()} == {
        id(p) for p in [*guide.latents(), *guide.real_parameters()]
    }
    guide.eval()
    posterior = guide.posterior()
    kind = BinaryPosterior if binarizer.levels == (-1.0, 1.0) else LowBitPosterior
    assert type(posterior) is kind and set(posterior.real) == {"scale"}
    draw = guide()
    for name in ("layer.weight", "v"):
        assert torch.equal(draw[name], posterior.signs()[name])
        # No spread: every draw of the posterior is its mode.
        for index in range(5):
            assert torch.equal(posterior.signs(index, seed=index)[name], posterior.signs()[name])
        assert bool((posterior[name].variance < 1e-30).all())


@every_binarizer
def test_copies_types_and_state(binarizer):
    guide = AutoSignDelta(mixed_model, binarizer=copied(binarizer)).eval()
    expected = guide.posterior().signs()
    other = AutoSignDelta(mixed_model, binarizer=copied(binarizer)).eval()
    file = io.BytesIO()
    torch.save(guide.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    for twin in (other, copy.deepcopy(guide), pickle.loads(pickle.dumps(guide))):
        assert all(torch.equal(twin.posterior().signs()[n], w) for n, w in expected.items())
    assert not pyro.get_param_store().keys()
    narrow = copy.deepcopy(guide).to(torch.float32)
    assert narrow()["v"].dtype == torch.float32
    assert isinstance(narrow.posterior(), BinaryPosterior | LowBitPosterior)


@every_binarizer
@pytest.mark.parametrize("local", [False, True], ids=["global", "local"])
def test_svi_and_the_module_give_the_same_gradient(binarizer, local):
    x, y = torch.randn(5, 3), torch.tensor([0, 1, 1, 0, 1])
    results = []
    for way in ("svi", "torch"):
        pyro.clear_param_store()
        torch.manual_seed(1)
        with pyro.settings.context(module_local_params=local):
            model = Classifier(to_binary_(nn.Linear(3, 2)), dataset_size=10)
            guide = AutoSignDelta(model, binarizer=copied(binarizer))
            elbo = TraceBinary_ELBO(LocalReparameterization())
            torch.manual_seed(2)
            if way == "svi":
                SVI(model, guide, pyro.optim.SGD({"lr": 0.1}), elbo).step(x, y)
            else:
                module = elbo(model, guide)
                module(x, y).backward()
                torch.optim.SGD(module.parameters(), lr=0.1).step()
        results.append([p.detach().clone() for p in [*model.parameters(), *guide.parameters()]])
    for p, q in zip(*results, strict=True):
        torch.testing.assert_close(p, q)


def test_the_loss_is_the_negative_log_joint_at_the_signs():
    prior, x = torch.tensor([0.4, -0.3, 0.0]), torch.randn(6, 3)
    y = x @ torch.tensor([1.0, 1.0, -1.0]) + 0.1 * torch.randn(6)

    def model():
        w = pyro.sample("w", SignBernoulli(natural=prior).to_event(1))
        with pyro.plate("data", 6):
            pyro.sample("y", dist.Normal(x @ w, 0.5), obs=y)

    guide = AutoSignDelta(
        model, binarizer=SignSTE(None), init={"w": torch.tensor([0.5, -2.0, 0.1])}
    )
    w = torch.tensor([1.0, -1.0, 1.0], requires_grad=True)
    nll = -dist.Normal(x @ w, 0.5).log_prob(y).sum()
    log_prior = (prior * w - torch.log(2 * torch.cosh(prior))).sum()
    for kl_weight in (1.0, 0.3):
        elbo = TraceBinary_ELBO(LocalReparameterization(), kl_weight=kl_weight)
        terms = elbo.terms(model, guide)
        expected = nll - kl_weight * log_prior
        torch.testing.assert_close(terms.loss, expected)
        torch.testing.assert_close(terms.kl, -log_prior.detach())
        (slope,) = torch.autograd.grad(terms.loss, list(guide.latents()))
        torch.testing.assert_close(slope, torch.autograd.grad(expected, w, retain_graph=True)[0])
        assert elbo.loss(model, guide) == pytest.approx(expected.item())


@pytest.mark.parametrize("levels", [(-1.0, 1.0), (-1.0, 0.0, 1.0)])
def test_the_prior_of_levels_is_the_sign_priors_tilt(levels):
    prior = torch.tensor([0.4, -0.3])

    def model():
        pyro.sample("w", SignBernoulli(natural=prior).to_event(1))

    guide = AutoSignDelta(
        model, binarizer=SLB(levels), init={"w": torch.tensor([1.0, -0.5])}
    ).eval()
    w = guide()["w"].detach()
    tilt = torch.exp(prior[:, None] * torch.tensor(levels)).sum(-1).log()
    loss = TraceBinary_ELBO(LocalReparameterization()).loss(model, guide)
    assert loss == pytest.approx(-(prior * w - tilt).sum().item())
    value = with_effects(model, guide)
    assert (value is model) == (levels == (-1.0, 1.0))


@pytest.mark.parametrize("binarizer", EVERY, ids=repr)
def test_training_through_fit(binarizer, tmp_path):
    binarizer = copied(binarizer)
    model = moons_model()
    guide = AutoSignDelta(model, binarizer=binarizer)
    data = two_moons(seed=0)
    adam = torch.optim.Adam([*model.parameters(), *guide.parameters()], lr=0.04)
    if binarizer.latent_bound is not None:
        clip_after_step(adam, guide.latents(), binarizer.latent_bound)
    schedules = []
    if isinstance(binarizer, SLB | SoftSign):
        schedules.append(Schedule(binarizer, "sharpness", exponential(1.0, 30.0, 30)))
    settings = dict(
        optimizers=[adam], schedulers=schedules, progress=False, checkpoint_dir=tmp_path
    )
    # Interrupted half-way, and continued from the checkpoint.
    fit(model, guide, Batches(data, batch_size=100), epochs=15, **settings)
    result = fit(model, guide, Batches(data, batch_size=100), epochs=30, **settings)
    if schedules:
        assert binarizer.sharpness == pytest.approx(30.0)
    if binarizer.latent_bound is not None:
        assert max(p.abs().max().item() for p in guide.latents()) <= binarizer.latent_bound
    assert result.epochs == 30
    scores = Ensemble(model, guide.posterior(), 2).calibrate(None).predict(data.x)
    accuracy = (scores.probs.argmax(-1) == data.y).double().mean().item()
    assert accuracy > 0.8 and scores.mutual_information.abs().max() < 1e-6


def test_validation_statistics_and_the_default_optimizer():
    torch.manual_seed(0)
    model = Classifier(to_binary_(mlp(2, [16], 2).float()), dataset_size=200)
    guide = AutoSignDelta(model)
    data = Batches(two_moons(seed=0), batch_size=50)
    row = fit(model, guide, data, epochs=5, validation=data, progress=False).history[-1]
    assert row["validation_accuracy"] > 0.6 and math.isfinite(row["validation_nll"])
    ensemble = Ensemble(model, guide.posterior(), 1).calibrate(two_moons(seed=0).x)
    assert ensemble.compiled


def test_the_guide_and_a_plain_network_take_the_same_steps():
    torch.manual_seed(3)
    real = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    x, y = torch.randn(20, 4), torch.arange(20) % 3
    for binarizer in (SignSTE(), ApproxSign(), ReCU(0.9), TernaryConnect(False)):
        plain = binarize_(copy.deepcopy(real), binarizer)
        model = Classifier(to_binary_(copy.deepcopy(real)), dataset_size=20)
        guide = AutoSignDelta(model, binarizer=binarizer)
        with torch.no_grad():
            for p, q in zip(guide.latents(), latents(plain).values(), strict=True):
                p.copy_(q)
        elbo = TraceBinary_ELBO(LocalReparameterization(), kl_weight=0.0)(model, guide)
        one = torch.optim.SGD(elbo.parameters(), lr=0.01)
        two = torch.optim.SGD(plain.parameters(), lr=0.01)
        for _ in range(10):
            one.zero_grad()
            two.zero_grad()
            elbo(x, y).backward()
            (20 * nn.functional.cross_entropy(plain(x), y)).backward()
            one.step()
            two.step()
        for p, q in zip(guide.latents(), latents(plain).values(), strict=True):
            torch.testing.assert_close(p, q)


def test_signs_that_another_optimizer_has_moved_are_an_error():
    guide = AutoSignDelta(mixed_model, binarizer=Signs())
    guide.posterior()
    with torch.no_grad():
        next(guide.latents()).add_(0.01)
    with pytest.raises(RuntimeError, match="an optimizer other than Bop"):
        guide.posterior()


def test_what_is_refused():
    with pytest.raises(ValueError, match=r"binarizer is one of bayesbin\.nn\.binarizers"):
        AutoSignDelta(mixed_model, binarizer=torch.sign)
    with pytest.raises(ValueError, match=r"ReCU\(.*scale=True.*\) scales them"):
        AutoSignDelta(mixed_model, binarizer=ReCU(scale=True))
    with pytest.raises(ValueError, match="found no latent SignBernoulli site"):
        AutoSignDelta(lambda: pyro.sample("z", dist.Normal(0.0, 1.0)))
