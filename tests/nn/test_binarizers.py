"""Binarizers: values, published derivatives, and what they do to a plain network."""

# A gradient is None until there is one, which the assertion at hand would tell.
# pyright: reportOptionalMemberAccess=false, reportArgumentType=false
# pyright: reportOperatorIssue=false

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from scipy import integrate
from stats import assert_within_standard_errors, exceeds_standard_errors
from torch import nn

from bayesbin.distributions import equal_levels
from bayesbin.nn import binarize_, binary_sites, latents, to_binary_
from bayesbin.nn.binarizers import (
    SLB,
    ApproxSign,
    BinaryConnect,
    ReCU,
    Signs,
    SignSTE,
    SoftSign,
    TernaryConnect,
    clamped_laplace_entropy,
    latent_histogram,
)
from bayesbin.optim import clip_after_step

LATENTS = [-2.0, -1.0, -0.75, -0.25, -0.0, 0.0, 0.25, 0.5, 1.0, 1.5]
TO_SIGNS = [
    SignSTE(),
    SignSTE(None),
    ApproxSign(),
    BinaryConnect(),
    BinaryConnect(True),
    SoftSign(),
]
EVERY = [
    *TO_SIGNS,
    ReCU(),
    SLB(),
    SLB((-1, 0, 1)),
    TernaryConnect(),
    TernaryConnect(False),
    Signs(),
]


def slopes(binarizer, values=LATENTS):
    latent = torch.tensor(values, requires_grad=True)
    result = binarizer(latent)
    (slope,) = torch.autograd.grad(result.sum(), latent)
    return result.detach(), slope


# Signs and their derivatives


@pytest.mark.parametrize("binarizer", TO_SIGNS, ids=repr)
def test_hard_weights_are_the_signs_with_plus_one_at_zero(binarizer):
    latent = torch.tensor(LATENTS)
    expected = torch.tensor([-1.0] * 4 + [1.0] * 6)
    assert torch.equal(binarizer.hard(latent), expected)
    assert torch.equal(copy.deepcopy(binarizer).eval()(latent), expected)


@pytest.mark.parametrize(
    ("binarizer", "slope"),
    [
        (SignSTE(), lambda v: 1.0 if abs(v) <= 1 else 0.0),
        (SignSTE(0.5), lambda v: 1.0 if abs(v) <= 0.5 else 0.0),
        (SignSTE(None), lambda v: 1.0),
        (ApproxSign(), lambda v: 2 + 2 * v if -1 <= v < 0 else 2 - 2 * v if 0 <= v < 1 else 0.0),
        (BinaryConnect(), lambda v: 1.0),
        (TernaryConnect(False), lambda v: 1.0),
        (Signs(), lambda v: 1.0),
        (SoftSign(3.0), lambda v: 3.0 / math.cosh(3.0 * v) ** 2),
        (SoftSign(3.0, mirror=True), lambda v: 1.0),
    ],
    ids=lambda value: (
        "slope" if callable(value) and not isinstance(value, torch.nn.Module) else repr(value)
    ),
)
def test_published_derivatives(binarizer, slope):
    _, got = slopes(binarizer)
    torch.testing.assert_close(got, torch.tensor([slope(v) for v in LATENTS]))


def test_the_polynomial_is_the_derivative_of_its_published_approximation():
    # ApproxSign's forward approximation: 2x + x^2 below 0, 2x - x^2 above, -1 and 1 outside.
    x = torch.tensor([-1.5, -0.6, 0.3, 0.9, 2.0], requires_grad=True)
    inside = torch.where(x < 0, 2 * x + x * x, 2 * x - x * x)
    approximation = torch.where(x.abs() < 1, inside, x.detach().sign())
    (expected,) = torch.autograd.grad(approximation.sum(), x)
    torch.testing.assert_close(slopes(ApproxSign(), x.tolist())[1], expected)


# Draws


def test_stochastic_binary_connect_draws_have_the_clipped_latent_as_mean():
    latent = torch.tensor([-3.0, -1.0, -0.4, 0.0, 0.7, 1.0, 2.0])
    draws = torch.stack([BinaryConnect(stochastic=True)(latent) for _ in range(4000)])
    assert bool((draws.abs() == 1).all())
    assert_within_standard_errors(draws, latent.clamp(-1, 1))
    assert exceeds_standard_errors(
        draws, torch.sigmoid(latent) * 2 - 1
    )  # another published sigmoid


def test_stochastic_ternary_connect_against_its_published_probabilities():
    latent = torch.tensor([-2.0, -0.4, 0.0, 0.3, 1.0])
    draws = torch.stack([TernaryConnect()(latent) for _ in range(4000)])
    assert set(draws.unique().tolist()) == {-1.0, 0.0, 1.0}
    assert_within_standard_errors(draws, latent.clamp(-1, 1))
    assert_within_standard_errors(draws.abs(), latent.abs().clamp(max=1))
    assert TernaryConnect(False)(torch.tensor([-0.51, 0.5, -0.5, 0.6])).tolist() == [-1, 0, 0, 1]


def test_ternary_connect_starts_with_weights_that_are_not_all_zero():
    weight = nn.Linear(100, 50).weight.detach()
    latent = TernaryConnect().right_inverse(weight)
    torch.testing.assert_close(latent.square().mean(), torch.tensor(1 / 3))
    assert torch.equal(latent.sign(), weight.sign())
    # Of numbers uniform in [-1, 1] a half rounds to 0.
    assert_within_standard_errors((TernaryConnect().hard(latent) == 0).double().flatten(), 0.5)
    assert torch.equal(TernaryConnect().right_inverse(torch.zeros(3)), torch.zeros(3))


def test_in_evaluation_nothing_is_drawn():
    for binarizer in (BinaryConnect(True).eval(), TernaryConnect(True).eval()):
        latent = torch.full((100,), 0.6)
        assert bool((binarizer(latent) == 1).all())


# SLB


def test_slb_is_the_expected_level_and_its_derivative_autograds():
    logits = torch.randn(4, 3, requires_grad=True)
    levels, sharpness = torch.tensor([-1.0, 0.0, 1.0]), 2.5
    share = torch.exp(sharpness * logits) / torch.exp(sharpness * logits).sum(-1, keepdim=True)
    expected = (share * levels).sum(-1)
    got = SLB((-1, 0, 1), sharpness)(logits)
    torch.testing.assert_close(got, expected)
    one = torch.autograd.grad(got.sum(), logits)[0]
    torch.testing.assert_close(one, torch.autograd.grad(expected.sum(), logits)[0])


@pytest.mark.parametrize("levels", [(-1, 1), (-1, 0, 1), equal_levels(2), equal_levels(4)], ids=len)
def test_slb_at_infinite_sharpness_is_its_hard_weight(levels):
    logits = torch.randn(50, len(levels))
    hard = SLB(levels).hard(logits)
    gaps = []
    for sharpness in (1.0, 10.0, 100.0, 1e12):
        gaps.append((SLB(levels, sharpness)(logits) - hard).abs().max().item())
    assert gaps[0] > gaps[1] > gaps[2] > gaps[3] == 0.0
    assert torch.equal(SLB(levels, math.inf)(logits), hard)
    assert torch.equal(SLB(levels, 1.0).eval()(logits), hard)


def test_slb_ties_and_starting_points():
    assert SLB().hard(torch.zeros(1, 2)).item() == 1.0  # as the mode of a sign at lambda = 0
    weight = torch.tensor([[0.3, -0.02, -0.4], [0.1, 0.0, 0.5]])
    size = weight.square().mean().sqrt()
    nearest = ((weight / size)[..., None] - torch.tensor([-1.0, 0.0, 1.0])).abs().argmin(-1) - 1.0
    binarizer = SLB((-1, 0, 1))
    assert torch.equal(binarizer.hard(binarizer.right_inverse(weight)), nearest)
    assert torch.isfinite(binarizer.right_inverse(torch.zeros(2))).all()


# ReCU


def reference_recu(weight: np.ndarray, tau: float, quantile: str) -> np.ndarray:
    """Standardised and clamped, in numpy."""
    dims = tuple(range(1, weight.ndim))
    centred = weight - weight.mean(dims, keepdims=True)
    spread = np.sqrt(centred.var(dims, ddof=1, keepdims=True) + 1e-5)
    standard = centred / (spread / 2 / np.sqrt(2))
    if quantile == "laplace":
        high = -np.abs(standard).mean() * np.log(2 - 2 * tau)
        return np.clip(standard, -high, high)
    return np.clip(standard, np.quantile(standard, 1 - tau), np.quantile(standard, tau))


@pytest.mark.parametrize("quantile", ["laplace", "empirical"])
@pytest.mark.parametrize("shape", [(5, 40), (4, 3, 3, 3)])
def test_recu_against_numpy(shape, quantile):
    weight = torch.randn(shape, requires_grad=True)
    binarizer = ReCU(0.9, quantile=quantile)
    expected = reference_recu(weight.detach().numpy(), 0.9, quantile)
    signs = binarizer(weight)
    assert torch.equal(signs.detach(), torch.from_numpy(np.where(expected >= 0, 1.0, -1.0)))
    assert torch.equal(binarizer.hard(weight), signs.detach())
    # The gradient is that of the standardised, clamped latents themselves.
    upstream = torch.randn(shape)
    dims = tuple(range(1, len(shape)))
    centred = weight - weight.mean(dims, keepdim=True)
    standard = centred / torch.sqrt(centred.var(dims, keepdim=True) + 1e-5) * (2 * math.sqrt(2))
    clamped = standard.clamp(expected.min(), expected.max())
    torch.testing.assert_close(clamped.detach(), torch.from_numpy(expected))
    (slope,) = torch.autograd.grad((signs * upstream).sum(), weight)
    twin = torch.autograd.grad((clamped * upstream).sum(), weight, retain_graph=True)[0]
    torch.testing.assert_close(slope, twin)
    unclamped = torch.autograd.grad((standard * upstream).sum(), weight)[0]
    assert not torch.allclose(slope, unclamped)


def test_recu_scale_and_filters_that_are_constant():
    weight = torch.randn(3, 50)
    weight[1] = 0.25
    scaled = ReCU(scale=True)(weight)
    torch.testing.assert_close(
        scaled.abs().amax(1)[[0, 2]], scaled.abs().mean(1)[[0, 2]]
    )  # one size per filter
    assert torch.isfinite(scaled).all() and torch.equal(ReCU().hard(weight)[1], torch.ones(50))
    torch.testing.assert_close(ReCU(scale=True).hard(weight), scaled)
    with pytest.raises(ValueError, match="needs two weights"):
        ReCU()(torch.randn(3, 1))


def test_recu_readouts_of_a_laplace_distribution():
    # Quantiles of Laplace(0, 2) itself: what sampling would only approach.
    p = (torch.arange(400_000) + 0.5) / 400_000
    latent = -2.0 * (p - 0.5).sign() * torch.log1p(-2.0 * (p - 0.5).abs())
    errors = {}
    for tau in (0.6, 0.75, 0.816, 0.88, 0.95):
        readout = ReCU(tau, quantile="empirical").readout(latent)
        u = -math.log(2 - 2 * tau)
        assert readout.quantization_error == pytest.approx(4 * (1 - 2 * u * math.exp(-u)), rel=3e-3)
        assert readout.clamped == pytest.approx(2 - 2 * tau, abs=1e-3)
        assert readout.sign_entropy_bits == pytest.approx(1.0)
        errors[tau] = readout.quantization_error
    assert min(errors, key=errors.__getitem__) == 0.816  # 1 - 1/(2e)


@pytest.mark.parametrize("tau", [0.6, 0.85, 0.99])
def test_the_entropy_of_a_clamped_laplace_distribution_by_quadrature(tau):
    b = 2.0
    edge = -b * math.log(2 - 2 * tau)

    def integrand(x):
        density = math.exp(-abs(x) / b) / (2 * b)
        return -density * math.log(density)

    inside = 2 * integrate.quad(integrand, 0, edge)[0]
    points = -2 * (1 - tau) * math.log(1 - tau)
    assert clamped_laplace_entropy(tau, b) == pytest.approx(inside + points)
    assert clamped_laplace_entropy(tau, b) > clamped_laplace_entropy(tau - 0.05, b)


def test_latent_histogram_is_numpys():
    latent = torch.randn(3, 7)
    counts, edges = latent_histogram(latent, bins=4, limits=(-2.0, 2.0))
    expected = np.histogram(latent.numpy(), bins=4, range=(-2.0, 2.0))
    assert (counts == expected[0]).all() and (edges == expected[1]).all()


# On a plain network


@pytest.mark.parametrize("binarizer", EVERY, ids=repr)
def test_a_plain_network_trains_and_its_weights_are_levels(binarizer):
    torch.manual_seed(0)
    binarizer = copy.deepcopy(binarizer)
    net = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 2))
    assert binarize_(net, binarizer) is net
    assert list(latents(net)) == ["0.weight", "2.weight"]
    x = torch.randn(64, 6)
    y = (x[:, 0] > 0).long()
    before = [p.detach().clone() for p in latents(net).values()]
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    clip_after_step(optimizer, latents(net).values(), binarizer.latent_bound)
    for _ in range(30):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
        if binarizer.latent_bound:
            assert max(p.abs().max().item() for p in latents(net).values()) <= 1.0
    after = latents(net).values()
    assert all(not torch.equal(p, q) for p, q in zip(before, after, strict=True))
    net.eval()
    if isinstance(binarizer, Signs):
        return  # Adam moves signs off their values; Bop does not
    for layer, scale in ((net[0], 0.5), (net[2], 0.25)):  # 1 / sqrt(6) = .41, 1 / sqrt(16)
        values = (layer.weight / scale).detach()
        known = torch.tensor(binarizer.levels)
        assert torch.isclose(values[..., None], known).any(-1).all()
    loaded = binarize_(nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 2)), binarizer)
    loaded.load_state_dict(net.state_dict())
    assert torch.equal(loaded.eval()(x), net(x))
    assert torch.equal(copy.deepcopy(net)(x), net(x))


def test_binarized_and_converted_networks_are_the_same_function():
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(12, 2))
    binary = to_binary_(copy.deepcopy(net))
    plain = binarize_(copy.deepcopy(net), SignSTE())
    x = torch.randn(5, 2, 4, 4)
    torch.testing.assert_close(plain(x), binary(x))
    assert list(latents(plain)) == list(binary_sites(binary))
    assert all(torch.equal(p, net.get_parameter(n)) for n, p in latents(plain).items())


def test_what_does_not_fit():
    net = nn.Sequential(nn.Linear(3, 2))
    with pytest.raises(ValueError, match="binarize_ found no parameter"):
        binarize_(nn.Sequential(nn.ReLU()), SignSTE())
    binarize_(net, SignSTE())
    with pytest.raises(ValueError, match="binarize_ found no parameter"):
        binarize_(net, SignSTE())
    with pytest.raises(
        ValueError, match=r"binarize_ found no parameter.*already binary: 0\.weight"
    ):
        binarize_(to_binary_(nn.Sequential(nn.Linear(3, 2))), SignSTE())
    with pytest.raises(ValueError, match=r"one of bayesbin\.nn\.binarizers"):
        binarize_(nn.Linear(3, 2), nn.Tanh())
    with pytest.raises(ValueError, match='"fan-in", a positive number'):
        binarize_(nn.Linear(3, 2), SignSTE(), scale=-1.0)
    for build, message in [
        (lambda: SignSTE(clip=0.0), "clip is a positive"),
        (lambda: SLB((1, -1)), "increasing"),
        (lambda: SLB((1,)), "at least two"),
        (lambda: SLB(sharpness=0.0), "sharpness is a positive"),
        (lambda: SoftSign(math.inf), "sharpness is a positive finite"),
        (lambda: ReCU(0.5), "tau is a quantile"),
        (lambda: ReCU(quantile="median"), "quantile is one of laplace, empirical"),
    ]:
        with pytest.raises(ValueError, match=message):
            build()
