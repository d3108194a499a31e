"""Ensembles of every likelihood: predictions and scores against scipy over the draws, one by one."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from scipy.special import expit, log_softmax, logsumexp
from torch import nn

import bayesbin
from bayesbin import BinaryPosterior, Ensemble
from bayesbin.distributions import Support
from bayesbin.nn import (
    BinaryLinear,
    Classifier,
    Likelihood,
    MultiLabel,
    NegativeBinomial,
    Ordinal,
    Poisson,
    Regressor,
)
from bayesbin.posterior import RealPosterior

S, N = 4, 6
X = torch.randn(N, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
FEW = [1.0, 0.0, 2.0, 0.5, 3.0, 1.0]


class Laplace(Likelihood):
    """A likelihood of a user's own, with a latent and a parameter of its own."""

    def __init__(self, net, dataset_size):
        super().__init__(net, dataset_size)
        self.shift = nn.Parameter(torch.tensor(0.25))

    def latents(self):
        return {"width": dist.LogNormal(0.0, 0.1)}

    def distribution(self, outputs, width):
        return dist.Laplace(outputs.squeeze(-1) + self.shift, width)


class Cauchy(Likelihood):
    def distribution(self, outputs):
        return dist.Cauchy(outputs.squeeze(-1), 1.0)


class Channels(nn.Module):
    """Logits (B, C, 2): classes are not last."""

    def __init__(self):
        super().__init__()
        self.linear = BinaryLinear(5, 6)

    def forward(self, x):
        return self.linear(x).reshape(-1, 3, 2)


class Apart(nn.Module):
    """Two inputs, and two outputs by name."""

    def __init__(self):
        super().__init__()
        self.linear = BinaryLinear(5, 2)

    def forward(self, x, offset):
        mean, width = self.linear(x).unbind(1)
        return {"width": width, "mean": mean + offset[:, 0]}


class ByName(Likelihood):
    def distribution(self, outputs):
        return dist.Normal(outputs["mean"], outputs["width"].exp())


LATENTS = {
    "noise": ("positive", 0.3),
    "concentration": ("positive", 0.3),
    "width": ("positive", 0.3),
    "cutpoints": ("ordered_vector", torch.tensor([-0.5, 0.0])),
}


def posterior_of(model) -> BinaryPosterior:
    torch.manual_seed(1)
    signs = {
        name: torch.randn(site.shape) for name, site in bayesbin.nn.binary_sites(model.net).items()
    }
    real = {}
    for name in model.latents():
        kind, loc = LATENTS[name]
        loc = torch.as_tensor(loc)
        real[name] = RealPosterior(loc, torch.full_like(loc, 0.3), Support(kind))
    return BinaryPosterior(signs, real)


def ensemble_of(model) -> Ensemble:
    return Ensemble(model, posterior_of(model), S, seed=3)


def outputs_of(ensemble: Ensemble, x=X) -> np.ndarray:
    """Of every draw, by the network of that draw, float64."""
    nets = [ensemble.network(draw) for draw in range(S)]
    with torch.no_grad():
        return np.stack([net(x).double().numpy() for net in nets])


def latent(ensemble: Ensemble, name: str) -> np.ndarray:
    posterior = ensemble.posteriors[0]
    return np.stack([posterior.sample_real(name, s, seed=3).double().numpy() for s in range(S)])


def levels(ensemble, y):
    cuts = latent(ensemble, "cutpoints")[:, None]
    below = stats.logistic.cdf(cuts, loc=y)
    return np.diff(below, axis=-1, prepend=0.0, append=1.0)


def binomial(ensemble, y):
    r, mean = latent(ensemble, "concentration")[:, None], np.exp(y[..., 0])
    return stats.nbinom(r, r / (r + mean))


# Model, targets, and the distribution of the targets in each draw: probabilities, or one of scipy.
CASES = {
    "classes": (
        lambda: Classifier(BinaryLinear(5, 3), N), torch.tensor([0, 1, 2, 2, 1, 0]),
        lambda e, y: np.exp(log_softmax(y, -1)),
    ),
    "classes of two": (
        lambda: Classifier(Channels(), N, class_dim=1),
        torch.tensor([[0, 1], [2, 2], [1, 0], [-100, 1], [0, 0], [-100, -100]]),
        lambda e, y: np.exp(log_softmax(np.moveaxis(y, 2, -1), -1)),
    ),
    "levels": (lambda: Ordinal(BinaryLinear(5, 1), N, 3), torch.tensor([0, 1, 2, 2, 1, 0]), levels),
    "noise": (
        lambda: Regressor(BinaryLinear(5, 1), N), torch.tensor(FEW),
        lambda e, y: stats.norm(y[..., 0], latent(e, "noise")[:, None]),
    ),
    "two targets": (
        lambda: Regressor(BinaryLinear(5, 2), N, noise=[0.5, 2.0]),
        torch.tensor([FEW, FEW[::-1]]).T,
        lambda e, y: stats.norm(y, [0.5, 2.0]),
    ),
    "heteroscedastic": (
        lambda: Regressor(BinaryLinear(5, 2), N, noise="heteroscedastic"), torch.tensor(FEW),
        lambda e, y: stats.norm(y[..., 0], np.exp(y[..., 1])),
    ),
    "labels": (
        lambda: MultiLabel(BinaryLinear(5, 3), N), (torch.arange(18).reshape(6, 3) % 4 == 0).float(),
        lambda e, y: stats.bernoulli(expit(y)),
    ),
    "counts": (
        lambda: Poisson(BinaryLinear(5, 1), N), torch.tensor(FEW).ceil(),
        lambda e, y: stats.poisson(np.exp(y[..., 0])),
    ),
    "overdispersed": (
        lambda: NegativeBinomial(BinaryLinear(5, 1), N), torch.tensor(FEW).ceil(), binomial,
    ),
    "own": (
        lambda: Laplace(BinaryLinear(5, 1), N), torch.tensor(FEW),
        lambda e, y: stats.laplace(y[..., 0] + 0.25, latent(e, "width")[:, None]),
    ),
    "no mean": (
        lambda: Cauchy(BinaryLinear(5, 1), N), torch.tensor(FEW),
        lambda e, y: stats.cauchy(y[..., 0], 1.0),
    ),
}  # fmt: skip


def log_likelihood(law, y: np.ndarray, mask=True) -> tuple[np.ndarray, np.ndarray]:
    """Of each datum in each draw, and which targets count."""
    kept = (y != -100) & mask
    if isinstance(law, np.ndarray):
        index = np.broadcast_to(np.where(kept, y, 0)[None, ..., None], (*law.shape[:-1], 1))
        each = np.log(np.take_along_axis(law, index, -1)[..., 0])
    else:
        each = (
            law.logpdf(y) if hasattr(law, "pdf") or law.dist.name in CONTINUOUS else law.logpmf(y)
        )
    return np.where(kept, each, 0.0).reshape(S, N, -1).sum(-1), kept


CONTINUOUS = ("norm", "laplace", "cauchy")


@pytest.mark.parametrize("name", CASES)
def test_predictions_and_scores(name):
    make, y, of_draws = CASES[name]
    ensemble = ensemble_of(make())
    law = of_draws(ensemble, outputs_of(ensemble))
    found, scores = ensemble.predict(X), ensemble.evaluate(X, y)
    assert found.num_samples == scores["num_samples"] == S

    each, kept = log_likelihood(law, y.numpy())
    rows = kept.reshape(N, -1).any(1)
    mixture = logsumexp(each, axis=0) - math.log(S)
    assert scores["mean"]["nll"] == pytest.approx(-mixture[rows].mean(), rel=1e-9)
    biased = -each.mean(0)[rows].mean()  # the mean of logarithms is not the logarithm of the mean
    assert abs(scores["mean"]["nll"] - biased) > 1e-3
    single = -each[:, rows].mean(1)
    assert scores["draws"]["mean"]["nll"] == pytest.approx(single.mean(), rel=1e-9)
    assert scores["draws"]["std"]["nll"] == pytest.approx(single.std(), rel=1e-8)

    if isinstance(law, np.ndarray):
        probs = law.mean(0)
        np.testing.assert_allclose(found.probs, probs, rtol=1e-9)
        np.testing.assert_allclose(ensemble.log_probs(X).exp(), law, rtol=1e-9)
        hits = (probs.argmax(-1) == y.numpy())[kept]
        assert scores["mean"]["accuracy"] == pytest.approx(hits.mean())
    elif name == "labels":
        np.testing.assert_allclose(found.probs, law.mean().mean(0), rtol=1e-9)
        hits = (law.mean().mean(0) > 0.5) == (y.numpy() > 0)
        assert scores["mean"]["accuracy"] == pytest.approx(hits.mean())
    elif name == "no mean":
        assert isinstance(found.variance, torch.Tensor) and set(scores["mean"]) == {"nll"}
    else:
        means, variances = law.mean(), np.broadcast_to(law.var(), law.mean().shape)
        np.testing.assert_allclose(found.mean, means.mean(0), rtol=1e-9, atol=1e-7)
        np.testing.assert_allclose(found.aleatoric_variance, variances.mean(0), rtol=1e-9)
        np.testing.assert_allclose(found.epistemic_variance, means.var(0), rtol=1e-8)
        error = math.sqrt(np.square(means.mean(0) - y.numpy()).mean())
        assert scores["mean"]["rmse"] == pytest.approx(error, rel=1e-9)


@pytest.mark.parametrize("name", CASES)
def test_everything_stays_with_an_ensemble(name, tmp_path):
    make, y, _ = CASES[name]
    ensemble = ensemble_of(make())
    scores = ensemble.evaluate(X, y)
    ensemble.save(tmp_path / "e.safetensors")
    other = make()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1.0)
    for same in (
        Ensemble.load(tmp_path / "e.safetensors", other),
        pickle.loads(pickle.dumps(ensemble)),
        Ensemble.join([ensemble.select(draws=[0, 1]), ensemble.select(draws=[2, 3])]),
    ):
        assert same.evaluate(X, y)["draws"] == scores["draws"]
        assert same.evaluate(X, y)["mean"] == scores["mean"]
        for quantity in ensemble.predict(X).quantities:
            mine, theirs = (getattr(e.predict(X), quantity) for e in (ensemble, same))
            assert torch.equal(mine, theirs)
    assert Ensemble.load(tmp_path / "e.safetensors", other).digest == ensemble.digest
    one = ensemble.select(draws=[2]).evaluate(X, y)["mean"]["nll"]
    assert ensemble.mode.evaluate(X, y)["mean"] == scores["mode"] and one != scores["mean"]["nll"]
    if name not in ("own", "no mean"):  # whose files hold the outputs alone
        predictor = ensemble.compile()
        for quantity in predictor.predict(X.numpy()).quantities:
            mine = getattr(ensemble.predict(X), quantity).numpy()
            assert np.array_equal(mine, getattr(predictor.predict(X.numpy()), quantity))


@pytest.mark.parametrize(
    "name", ["classes of two", "noise", "two targets", "labels", "counts", "own"]
)
def test_weights_and_masks(name):
    """A weight of 2 is a datum twice, one of 0 is none; what is masked may be anything."""
    make, y, _ = CASES[name]
    ensemble = ensemble_of(make())
    weight = torch.tensor([2.0, 1.0, 0.0, 1.0, 2.0, 0.0])
    twice = torch.tensor([0, 0, 1, 3, 4, 4])
    expected = ensemble.evaluate(X[twice], y[twice])["mean"]
    assert ensemble.evaluate(X, y, weight)["mean"] == pytest.approx(expected, rel=1e-9)
    assert ensemble.evaluate(X, y)["mean"] != pytest.approx(expected, rel=1e-3)

    mask = torch.ones(y.shape, dtype=torch.bool)
    mask[2] = False
    if y.dim() > 1:
        mask[0, 1] = False
    damaged = torch.where(mask, y, 77 if name == "classes of two" else torch.nan)
    found = ensemble.evaluate(X, damaged, mask=mask)["mean"]
    if y.dim() == 1:
        rows = torch.tensor([0, 1, 3, 4, 5])
        assert found == pytest.approx(ensemble.evaluate(X[rows], y[rows])["mean"], rel=1e-9)
    else:
        _, _, of_draws = CASES[name]
        law = of_draws(ensemble, outputs_of(ensemble))
        each, kept = log_likelihood(law, y.numpy(), mask.numpy())
        rows = kept.any(1)
        expected = -(logsumexp(each, axis=0) - math.log(S))[rows].mean()
        assert found["nll"] == pytest.approx(expected, rel=1e-9)
    with pytest.raises(ValueError, match="at least one target that counts"):
        ensemble.evaluate(X, y, mask=torch.zeros_like(mask))
    with pytest.raises(ValueError, match="weight of at least 0"):
        ensemble.evaluate(X, y, weight=-weight)


HEADS = {
    "classes": ("classes", Classifier, BinaryLinear(5, 3), CASES["classes"][1]),
    "labels": ("labels", MultiLabel, BinaryLinear(5, 3), CASES["labels"][1]),
    "poisson": ("poisson", Poisson, BinaryLinear(5, 1), CASES["counts"][1]),
    "normal": (
        {"kind": "normal", "noise": 0.7}, lambda net, n: Regressor(net, n, 0.7), BinaryLinear(5, 1),
        CASES["noise"][1],
    ),
    "heteroscedastic": (
        {"kind": "normal", "heteroscedastic": True},
        lambda net, n: Regressor(net, n, "heteroscedastic"), BinaryLinear(5, 2), CASES["noise"][1],
    ),
    "ordinal": (
        {"kind": "ordinal", "cutpoints": [-1.0, 1.0]},
        lambda net, n: Ordinal(net, n, 3, [-1.0, 1.0]), BinaryLinear(5, 1), CASES["levels"][1],
    ),
    "negative_binomial": (
        {"kind": "negative_binomial", "concentration": 2.0},
        lambda net, n: NegativeBinomial(net, n, 2.0), BinaryLinear(5, 1), CASES["counts"][1],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HEADS)
def test_a_plain_network_is_scored_by_its_head(name):
    head, make, net, y = HEADS[name]
    posterior = BinaryPosterior({"weight": torch.zeros_like(net.weight)})
    plain = Ensemble(net, posterior, S, head=head)
    model = Ensemble(make(net, N), posterior, S)
    assert plain.evaluate(X, y) == model.evaluate(X, y)
    assert plain.digest == model.digest


def test_several_inputs_and_outputs_by_name():
    offset = torch.linspace(-1.0, 1.0, N, dtype=torch.float64)[:, None]
    ensemble = ensemble_of(ByName(Apart(), N))
    nets = [ensemble.network(draw) for draw in range(S)]
    outputs = [net(X, offset) for net in nets]
    law = [
        stats.norm(o["mean"].detach().double(), o["width"].detach().double().exp()) for o in outputs
    ]
    y = torch.tensor(FEW)
    expected = -(logsumexp([each.logpdf(y) for each in law], axis=0) - math.log(S)).mean()
    for x in ((X, offset), {"x": X, "offset": offset}):
        assert ensemble.evaluate(x, y)["mean"]["nll"] == pytest.approx(expected, rel=1e-9)
        found = ensemble.predict(x)
        np.testing.assert_allclose(found.mean, np.mean([each.mean() for each in law], 0), rtol=1e-9)


def test_what_does_not_fit_is_refused(tmp_path):
    model = Laplace(BinaryLinear(5, 1), N)
    with pytest.raises(ValueError, match="no real-valued site 'width', which the model draws"):
        Ensemble(model, BinaryPosterior({"weight": torch.zeros(1, 5)}))
    ensemble_of(Regressor(BinaryLinear(5, 1), N, noise=0.5)).save(tmp_path / "e")
    with pytest.raises(ValueError, match=r"whose noise is 0.5.* Regressor with 0.7"):
        Ensemble.load(tmp_path / "e", Regressor(BinaryLinear(5, 1), N, noise=0.7))
    other = Classifier(Channels(), N), Classifier(Channels(), N, class_dim=1)
    with pytest.raises(ValueError, match="one architecture"):
        Ensemble.join([ensemble_of(each) for each in other])
    with pytest.raises(ValueError, match="the same for all inputs"):
        _ = ensemble_of(Regressor(BinaryLinear(5, 2), N, noise="heteroscedastic")).noise
    with pytest.raises(ValueError, match="head of classes"):
        ensemble_of(MultiLabel(BinaryLinear(5, 2), N)).log_probs(X)
