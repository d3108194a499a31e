"""PackedPredictive: the draws and the answers of ``predict``, from packed bits."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from bayesbin import BinaryPosterior
from bayesbin.distributions import Support
from bayesbin.nn import BinaryLinear, Scale, binary_sites, conv_net, mlp, recalibrate, to_binary_
from bayesbin.posterior import RealPosterior
from bayesbin.predict import (
    PackedPredictive,
    backends,
    draw_outputs,
    kernels,
    predict,
    predict_regression,
)

needs_kernels = pytest.mark.skipif(not kernels.available(), reason=str(kernels.why_not()))
BOTH = ["torch", pytest.param("cpu", marks=needs_kernels)]


def posterior_for(net: nn.Module, scale: float = 1.0) -> BinaryPosterior:
    return BinaryPosterior(
        {name: scale * torch.randn(site.shape) for name, site in binary_sites(net).items()}
    )


def convolutional() -> nn.Module:
    layers = [
        nn.Conv2d(2, 5, 3, stride=2, padding=1), nn.BatchNorm2d(5), nn.Hardtanh(-0.5, 2.0),
        nn.AvgPool2d(2, stride=1), nn.Conv2d(5, 4, 3, padding="same"), nn.Tanh(), nn.Flatten(),
        nn.Dropout(), nn.Linear(4 * 4 * 4, 3), Scale(0.7),
    ]  # fmt: skip
    return nn.Sequential(*layers)


NETWORKS = {
    "relu": (lambda: mlp(37, [70, 33], 3), (37,)),
    "tanh": (lambda: mlp(9, [16], 4, activation="tanh", normalize=False), (9,)),
    "sign": (lambda: mlp(37, [70, 65], 3, activation="sign"), (37,)),
    "convolutional": (convolutional, (2, 10, 10)),
    "conv, signs": (lambda: conv_net((1, 14, 14), (4, 5), (6,), 3, kernel_size=3, activation="sign"),
                    (1, 14, 14)),
    "of the literature": (lambda: conv_net((1, 16, 16), (4,), (12,), 3), (1, 16, 16)),
}  # fmt: skip


def example(name: str, scale: float = 1.0) -> tuple[nn.Module, BinaryPosterior, Tensor]:
    build, shape = NETWORKS[name]
    net = to_binary_(build()).float()
    for module in net.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            for tensor in (module.running_mean, module.running_var, module.weight, module.bias):
                nn.init.uniform_(tensor, 0.3, 1.5)
            module.weight.data[0] = -0.7
    return net, posterior_for(net, scale), torch.randn(11, *shape).float()


@needs_kernels
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("with_statistics", [False, True], ids=["running", "per draw"])
def test_the_answers_are_those_of_the_streaming_predictor(name, with_statistics):
    net, posterior, x = example(name)
    statistics = None
    if with_statistics:
        statistics = recalibrate(net, posterior, torch.cat([x, 2 * x + 0.1]), 7, seed=3)
    packed = PackedPredictive(net, posterior, 7, 3, statistics=statistics, backend="cpu")
    outputs = torch.stack(list(draw_outputs(net, posterior, x, 7, 3, statistics)))
    torch.testing.assert_close(packed.outputs(x), outputs, rtol=2e-5, atol=2e-5)
    found, expected = packed.predict(x), predict(net, posterior, x, 7, 3, statistics)
    for quantity in ("probs", "entropy", "expected_entropy", "mutual_information", "probs_std"):
        torch.testing.assert_close(
            getattr(found, quantity), getattr(expected, quantity), rtol=1e-4, atol=2e-5
        )
    # Another seed is another answer: the test can tell.
    other = predict(net, posterior, x, 7, 4) if not with_statistics else None
    assert other is None or (other.probs - found.probs).abs().max() > 1e-3


@needs_kernels
def test_draws_do_not_depend_on_how_many_there_are_nor_on_the_batch():
    net, posterior, x = example("relu")
    many = PackedPredictive(net, posterior, 9, 1, backend="cpu").outputs(x)
    few = PackedPredictive(net, posterior, 4, 1, backend="cpu").outputs(x)
    assert torch.equal(few, many[:4])
    packed = PackedPredictive(net, posterior, 9, 1, backend="cpu", threads=3)
    rows = torch.cat([packed.outputs(x[i : i + 1]) for i in range(len(x))], 1)
    assert torch.equal(rows, many)
    whole, parts = packed.predict(x), packed.predict([x[:3], (x[3:], None)])
    assert torch.equal(whole.log_probs, parts.log_probs)


@needs_kernels
def test_fast_is_close_and_what_feeds_a_sign_stays_exact():
    net, posterior, x = example("relu")
    exact = PackedPredictive(net, posterior, 20, backend="cpu").predict(x)
    fast = PackedPredictive(net, posterior, 20, precision="fast", backend="cpu").predict(x)
    difference = (exact.probs - fast.probs).abs().max()
    assert 0.0 < difference < 1e-3
    net, posterior, x = example("sign")
    packed = PackedPredictive(net, posterior, 20, precision="fast", backend="cpu")
    kinds = [row.kind for row in packed.summary().rows]
    assert kinds == ["real", "sign", "sign"]
    exact = PackedPredictive(net, posterior, 20, backend="cpu").predict(x)
    assert torch.equal(exact.probs, packed.predict(x).probs)
    net, posterior, x = example("of the literature")
    packed = PackedPredictive(net, posterior, 2, precision="fast", backend="cpu")
    assert [row.kind for row in packed.summary().rows] == ["real", "fast", "fast"]


@needs_kernels
def test_the_mode_and_a_joint_posterior():
    net, posterior, x = example("relu")
    mode = PackedPredictive(net, posterior, 0, backend="cpu").predict(x)
    torch.testing.assert_close(
        mode.probs, predict(net, posterior, x, 0).probs, rtol=1e-4, atol=2e-5
    )
    assert mode.num_samples == 1
    (site, distribution), *rest = posterior.items()
    effect = RealPosterior(
        torch.zeros(distribution.natural.shape[0], 1), torch.tensor(1.5), Support("real")
    )
    effect = RealPosterior(effect.loc, effect.scale.expand_as(effect.loc), effect.support)
    joint = BinaryPosterior(
        {site: distribution.natural, **{s: q.natural for s, q in rest}},
        {"a": effect},
        {site: ["a"]},
    )
    packed = PackedPredictive(net, joint, 19, 2, backend="cpu")  # more than one chunk of draws
    outputs = torch.stack(list(draw_outputs(net, joint, x, 19, 2)))
    torch.testing.assert_close(packed.outputs(x), outputs, rtol=2e-5, atol=2e-5)
    expected = predict(net, joint, x, 19, 2)
    torch.testing.assert_close(packed.predict(x).probs, expected.probs, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("backend", BOTH)
@pytest.mark.parametrize("noise", [0.5, "noise"])
def test_regression(backend, noise):
    net = to_binary_(mlp(5, [40], 1, activation="tanh", normalize=False)).float()
    real = {"noise": RealPosterior(torch.tensor(-1.0), torch.tensor(0.3), Support("positive"))}
    posterior = BinaryPosterior({s: q.natural for s, q in posterior_for(net).items()}, real)
    x = torch.randn(6, 5).float()
    found = PackedPredictive(net, posterior, 30, 1, noise=noise, backend=backend).predict(x)
    expected = predict_regression(net, posterior, x, noise, 30, 1)
    for quantity in ("mean", "aleatoric", "epistemic"):
        one, other = (getattr(result, quantity).double() for result in (found, expected))
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@needs_kernels
def test_the_mean_converges_to_enumeration():
    """Twelve weights: all 4096 networks, weighted by their probabilities."""
    net = to_binary_(nn.Sequential(nn.Linear(4, 3, bias=False))).float()
    natural = 0.7 * torch.randn(3, 4)
    x = torch.randn(5, 4)
    total = torch.zeros(5, 3)
    probs = torch.sigmoid(2.0 * natural).flatten()
    for signs in itertools.product((-1.0, 1.0), repeat=12):
        w = torch.tensor(signs)
        weight = torch.where(w > 0, probs, 1.0 - probs).prod()
        total += weight * (0.5 * x @ w.view(3, 4).T).softmax(-1)
    draws = 20_000
    found = PackedPredictive(net, BinaryPosterior({"0.weight": natural}), draws, backend="cpu")
    prediction = found.predict(x.float())
    error = prediction.probs_std / draws**0.5
    assert bool(((prediction.probs - total).abs() < 5 * error + 1e-4).all())


@pytest.mark.parametrize("backend", BOTH)
def test_what_does_not_fit_is_refused(backend):
    net, posterior, x = example("relu")
    with pytest.raises(ValueError, match="precision to be one of exact, fast"):
        PackedPredictive(net, posterior, precision="half")
    with pytest.raises(ValueError, match="backend is one of auto, cpu, torch"):
        PackedPredictive(net, posterior, backend="gpu")
    with pytest.raises(ValueError, match="num_samples to be a whole number of at least 0"):
        PackedPredictive(net, posterior, -1)
    with pytest.raises(ValueError, match="threads to be a whole number of at least 1"):
        PackedPredictive(net, posterior, threads=0)
    with pytest.raises(ValueError, match="no real-valued site 'noise'"):
        PackedPredictive(net, posterior, noise="noise")
    with pytest.raises(ValueError, match=r"has no site '3\.weight'"):
        PackedPredictive(net, BinaryPosterior({"0.weight": posterior["0.weight"]}))
    with pytest.raises(ValueError, match=r"'weight' has shape \(2, 3\), the posterior's \(3, 2\)"):
        PackedPredictive(BinaryLinear(3, 2), BinaryPosterior({"weight": torch.zeros(3, 2)}))
    statistics = recalibrate(net, posterior, x, 3, seed=0)
    with pytest.raises(ValueError, match=r"draws 0\.\.2 of seed 0"):
        PackedPredictive(net, posterior, 4, 0, statistics=statistics)
    with pytest.raises(ValueError, match=r"use bayesbin\.predict\.predict"):
        PackedPredictive(to_binary_(nn.Sequential(nn.Linear(2, 2), nn.GELU())), posterior)
    packed = PackedPredictive(net, posterior, 2, backend=backend)
    with pytest.raises(ValueError, match="NaN or infinity"):
        packed.predict(x * torch.inf)
    with pytest.raises(ValueError, match="no batch"):
        packed.predict([])


@needs_kernels
def test_inputs_of_another_size_are_refused_in_a_sentence():
    net, posterior, x = example("relu")
    packed = PackedPredictive(net, posterior, 2, backend="cpu")
    with pytest.raises(ValueError, match="37"):
        packed.predict(x[:, :30])
    with pytest.raises(ValueError, match=r"\(B, features\) or \(B, channels, height, width\)"):
        packed.predict(x[:, None])


def test_asking_for_kernels_that_are_not_there_says_why(monkeypatch):
    net, posterior, x = example("relu")
    monkeypatch.setattr(kernels, "_module", None)
    monkeypatch.setattr(kernels, "_why_not", "There was no compiler.")
    with pytest.raises(RuntimeError, match="There was no compiler"):
        PackedPredictive(net, posterior, backend="cpu")
    backends._warn_without_kernels.cache_clear()
    with pytest.warns(UserWarning, match=r"no compiler\..*many times slower") as caught:
        packed = PackedPredictive(net, posterior, 3)
        PackedPredictive(net, posterior, 3)
    assert len(caught) == 1 and caught[0].filename == __file__  # said once, of the caller's line
    assert PackedPredictive(net, posterior, 3, backend="torch").backend == "torch"
    assert packed.backend == "torch" and "torch" in repr(packed)
    expected = predict(net, posterior, x, 3)
    assert torch.equal(packed.predict(x).log_probs, expected.log_probs)
