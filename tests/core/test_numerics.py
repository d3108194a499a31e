"""Every saturating formula against 300-digit arithmetic: value, gradient, every dtype."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import mpmath
import pytest
import torch
from mpmath import mpf
from torch import Tensor

from bayesbin.core import fused, numerics, one_pass

MAGNITUDES = (0.5, 3.0, 8.5, 10.0, 20.0, 40.0, 100.0)  # all of them exact in bfloat16
GRID = [0.0, *MAGNITUDES, *(-m for m in MAGNITUDES)]
DTYPES = [torch.float64, torch.float32, torch.bfloat16]


@pytest.fixture(autouse=True)
def many_digits():
    """1 - tanh(100)^2 is 1e-86: the naive formulas need that many digits, and more, to be right."""
    with mpmath.workdps(300):
        yield


def mean(x):
    return mpmath.tanh(x)


def variance(x):
    return 1 - mpmath.tanh(x) ** 2


def log_variance(x):
    return mpmath.log(1 - mpmath.tanh(x) ** 2)


def log_partition(x):
    return mpmath.log(2 * mpmath.cosh(x))


def entropy(x):
    return log_partition(x) - x * mpmath.tanh(x)


def kl(x, p):
    return (x - p) * mpmath.tanh(x) - log_partition(x) + log_partition(p)


def d_mean(x):
    return variance(x)


def d_variance(x):
    return -2 * mean(x) * variance(x)


def d_log_variance(x):
    return -2 * mean(x)


def d_entropy(x):
    return -x * variance(x)


UNARY = {
    "mean": (numerics.mean, mean, d_mean),
    "variance": (numerics.variance, variance, d_variance),
    "log_variance": (numerics.log_variance, log_variance, d_log_variance),
    "log_partition": (numerics.log_partition, log_partition, mean),
    "entropy": (numerics.entropy, entropy, d_entropy),
}


def oracle(function: Callable[..., Any], *arguments: list[float]) -> Tensor:
    return torch.tensor([float(function(*map(mpf, row))) for row in zip(*arguments, strict=True)])


def assert_relative(got: Tensor, expected: Tensor, roundings: float) -> None:
    """Relative error of a few roundings, down to the dtype's smallest normal number."""
    info = torch.finfo(got.dtype)
    allowed = roundings * info.eps * expected.abs() + 4.0 * info.tiny
    error = (got.double() - expected).abs()
    worst = int((error / allowed).argmax())
    assert bool((error <= allowed).all()), (
        f"entry {worst}: got {got.flatten()[worst].item()!r}, expected {expected[worst].item()!r}"
    )


def with_gradient(function: Callable[[Tensor], Tensor], at: Tensor) -> tuple[Tensor, Tensor]:
    at = at.clone().requires_grad_()
    value = function(at)
    (slope,) = torch.autograd.grad(value.sum(), at)
    return value.detach(), slope


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", UNARY)
def test_value_and_gradient_keep_their_relative_accuracy(name, dtype):
    function, formula, derivative = UNARY[name]
    value, slope = with_gradient(function, torch.tensor(GRID, dtype=dtype))
    assert value.dtype == slope.dtype == dtype
    assert_relative(value, oracle(formula, GRID), roundings=8)
    assert_relative(slope, oracle(derivative, GRID), roundings=8)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_log_prob_and_score_at_signs(sign, dtype):
    signs = [sign] * len(GRID)
    value, score = with_gradient(
        lambda natural: numerics.log_prob(natural, torch.full_like(natural, sign)),
        torch.tensor(GRID, dtype=dtype),
    )
    expected = oracle(lambda x, w: x * w - log_partition(x), GRID, signs)
    assert_relative(value, expected, roundings=8)
    assert_relative(score, oracle(lambda x, w: w - mpmath.tanh(x), GRID, signs), roundings=8)


@pytest.mark.parametrize("value", [-0.75, 0.0, 0.25])
def test_log_prob_is_linear_in_a_relaxed_sign(value):
    natural = torch.tensor(GRID)
    at = torch.full_like(natural, value, requires_grad=True)
    result = numerics.log_prob(natural, at)
    expected = oracle(lambda x, w: x * w - log_partition(x), GRID, [value] * len(GRID))
    torch.testing.assert_close(result.detach(), expected, rtol=1e-14, atol=0)
    (slope,) = torch.autograd.grad(result.sum(), at)
    assert torch.equal(slope, natural)


PAIRS = [(x, p) for x in GRID for p in GRID]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_kl_divergence_over_all_pairs(dtype):
    natural, prior = (list(column) for column in zip(*PAIRS, strict=True))
    x = torch.tensor(natural, dtype=dtype, requires_grad=True)
    p = torch.tensor(prior, dtype=dtype, requires_grad=True)
    value = numerics.kl_divergence(x, p)
    for_natural, for_prior = torch.autograd.grad(value.sum(), (x, p))
    assert bool(torch.isfinite(value).all())
    assert bool((value >= 0).all())
    # The value is a difference of terms, whose sizes are added up here, and as good as they are.
    terms = oracle(
        lambda a, b: log_partition(b) - abs(b) + abs(a - b) * (1 - mpmath.tanh(abs(a)))
        + max(0, -2 * b * mpmath.sign(a)),
        natural, prior,
    )  # fmt: skip
    error = (value.detach().double() - oracle(kl, natural, prior)).abs()
    info = torch.finfo(dtype)
    assert bool((error <= 8 * info.eps * terms + 4 * info.tiny).all())
    assert_relative(for_natural, oracle(lambda a, b: (a - b) * variance(a), natural, prior), 12)
    assert_relative(for_prior, oracle(lambda a, b: mean(b) - mean(a), natural, prior), 12)


def test_kl_of_a_distribution_to_itself_is_exactly_zero():
    for dtype in DTYPES:
        natural = torch.tensor(GRID, dtype=dtype, requires_grad=True)
        value, slope = with_gradient(lambda x, p=natural: numerics.kl_divergence(x, p), natural)
        assert not value.any() and not slope.any()


@pytest.mark.parametrize("natural, prior", [(1e-5, 2e-5), (1e-5, -1e-5), (0.3, 0.3001), (9.0, 9.5)])
def test_the_gradient_in_a_close_prior_is_not_lost_to_cancellation(natural, prior):
    x = torch.tensor([natural], dtype=torch.float32)
    p = torch.tensor([prior], dtype=torch.float32)
    _, slope = with_gradient(lambda prior: numerics.kl_divergence(x, prior), p)
    expected = oracle(lambda a, b: mean(b) - mean(a), x.tolist(), p.tolist())
    assert_relative(slope, expected, roundings=16)


def test_kl_broadcasts_and_sums_its_gradients_back():
    natural = torch.randn(4, 3, requires_grad=True)
    prior = torch.randn(3, requires_grad=True)
    for_natural, for_prior = torch.autograd.grad(
        numerics.kl_divergence(natural, prior).sum(), (natural, prior)
    )
    wide = prior.detach().expand(4, 3).clone().requires_grad_()
    wide_natural, wide_prior = torch.autograd.grad(
        numerics.kl_divergence(natural, wide).sum(), (natural, wide)
    )
    torch.testing.assert_close(for_natural, wide_natural)
    torch.testing.assert_close(for_prior, wide_prior.sum(0))


# Second derivatives


def leaf(*values: float) -> Tensor:
    return torch.tensor(values, requires_grad=True)


@pytest.mark.parametrize(
    "function, arguments",
    [
        (numerics.mean, (leaf(0.0, 0.3, -2.0),)),
        (numerics.variance, (leaf(0.0, 0.3, -2.0),)),
        (numerics.log_variance, (leaf(0.0, 0.3, -2.0),)),
        (numerics.log_partition, (leaf(0.0, 0.3, -2.0),)),
        (numerics.entropy, (leaf(0.0, 0.3, -2.0),)),
        (numerics.log_prob, (leaf(0.0, 0.3, -2.0), leaf(1.0, -1.0, 0.2))),
        (numerics.kl_divergence, (leaf(0.0, 0.3, -2.0, 0.7), leaf(0.0, -0.4, -1.0, 0.7))),
        (numerics.relaxed_signs, (leaf(0.0, 0.3, -2.0), leaf(0.7))),
        (numerics.relaxed_signs, (leaf(0.4), leaf(0.7, 0.5))),
    ],
)
def test_first_and_second_derivatives_by_finite_differences(function, arguments):
    arguments = tuple(a.detach().double().requires_grad_() for a in arguments)
    assert torch.autograd.gradcheck(function, arguments)
    assert torch.autograd.gradgradcheck(function, arguments)


# Natural gradients in float32


NATURAL_GRADIENT_GRID = [0.0, 3.0, 8.0, 10.0, 20.0, -3.0, -8.0, -10.0, -20.0]


def natural_gradient(function: Callable[[Tensor], Tensor], dtype: torch.dtype) -> Tensor:
    natural = torch.tensor(NATURAL_GRADIENT_GRID, dtype=dtype)
    _, slope = with_gradient(function, natural)
    return fused.over_fisher(slope, natural)


@pytest.mark.parametrize(
    "function",
    [
        numerics.mean,
        lambda x: fused.moments(x)[0],
        lambda x: 3.0 * numerics.mean(x) - 0.5 * numerics.mean(x) ** 2,
        numerics.variance,
        lambda x: fused.moments(x)[1],
        numerics.log_partition,
        numerics.entropy,
        lambda x: numerics.kl_divergence(x, torch.full_like(x, 0.7)),
        lambda x: fused.kl_sum(x, torch.tensor(0.7, dtype=x.dtype)),
        lambda x: fused.kl_sum(x, torch.zeros((), dtype=x.dtype)),
        lambda x: fused.kl_sum(x, torch.linspace(-2, 2, len(x), dtype=x.dtype)),
        lambda x: numerics.log_prob(x, torch.ones_like(x)),
        lambda x: numerics.log_prob(x, -torch.ones_like(x)),
        # Noise that leaves lambda + delta near 0: the weights that a Concrete draw moves.
        lambda x: numerics.relaxed_signs(x - 0.96875 * x.detach(), x.new_tensor(0.5)),
    ],
    ids=[
        "mean", "moments-mean", "chain", "variance", "moments-variance", "log_partition", "entropy",
        "kl", "kl_sum-scalar", "kl_sum-uniform", "kl_sum-tensor", "score-plus", "score-minus",
        "relaxed_signs",
    ],
)  # fmt: skip
def test_natural_gradients_in_float32_equal_those_in_float64(function):
    single = natural_gradient(function, torch.float32)
    double = natural_gradient(function, torch.float64)
    assert bool(torch.isfinite(single).all())
    torch.testing.assert_close(single.double(), double, rtol=1e-5, atol=0)


def test_autograd_through_one_minus_tanh_squared_would_fail_that_test():
    single = natural_gradient(torch.tanh, torch.float32)
    double = natural_gradient(torch.tanh, torch.float64)
    assert not torch.allclose(single.double(), double, rtol=1e-5, atol=0)


# Fused forms of large layers


@pytest.fixture
def small_blocks(monkeypatch):
    """Block boundaries at a size that is cheap to straddle."""
    monkeypatch.setattr(one_pass, "BLOCK", 128)


def layouts() -> dict[str, Tensor]:
    """Natural parameters of all sizes and memory layouts that a layer may bring."""
    block = one_pass.BLOCK
    long = 5.0 * torch.randn(block + 3)
    matrix = 5.0 * torch.randn(6, 5)
    return {
        "empty": torch.empty(0),
        "empty matrix": torch.empty(0, 4),
        "scalar": torch.tensor(-0.3),
        "one": torch.tensor([0.7]),
        "grid": torch.tensor(GRID),
        "matrix": matrix,
        "transposed": matrix.t(),
        "strided": matrix[:, ::2],
        "expanded": torch.tensor([0.4, -2.0]).expand(3, 2),
        "block - 1": long[: block - 1],
        "block": long[:block],
        "block + 1": long[: block + 1],
        "channels last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
    }


@pytest.mark.parametrize("layout", layouts())
def test_moments_are_mean_and_variance(layout, small_blocks):
    natural = layouts()[layout].detach().requires_grad_()
    upstream = torch.randn(2, *natural.shape)
    mu, fisher = fused.moments(natural)
    plain = numerics.mean(natural), numerics.variance(natural)
    # mu is good to a rounding of 1, as documented: enough for a mean that is added to others.
    torch.testing.assert_close(mu, plain[0], rtol=0, atol=4e-16)
    torch.testing.assert_close(fisher, plain[1], rtol=1e-14, atol=0)
    (slope,) = torch.autograd.grad((mu * upstream[0] + fisher * upstream[1]).sum(), natural)
    (simple,) = torch.autograd.grad(
        (plain[0] * upstream[0] + plain[1] * upstream[1]).sum(), natural
    )
    # A non-contiguous gradient from above, as an expanded sum sends it.
    (ones,) = torch.autograd.grad(fused.moments(natural)[0].sum(), natural)
    # The two contributions may cancel; the error is measured against their sizes.
    sizes = (upstream[0].abs() + 2.0 * upstream[1].abs()) * plain[1].detach()
    assert bool(((slope - simple).abs() <= 1e-14 * sizes).all())
    torch.testing.assert_close(ones, numerics.variance(natural).detach(), rtol=1e-14, atol=0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_moments_saturate_as_the_plain_forms_do(dtype):
    mu, fisher = fused.moments(torch.tensor(GRID, dtype=dtype))
    eps = torch.finfo(dtype).eps
    assert bool(((mu.double() - oracle(mean, GRID)).abs() <= 2 * eps).all())
    assert_relative(fisher, oracle(variance, GRID), roundings=8)


def priors(like: Tensor) -> dict[str, Tensor]:
    return {
        "zero": torch.zeros(()),
        "number": torch.tensor(-1.5),
        "one element": torch.full((1,), 0.8),
        "tensor": torch.randn(like.shape),
        "tensor of zeros": torch.zeros(like.shape),
        "expanded": torch.tensor(0.3).expand(like.shape),
        "saturated": torch.full(like.shape, -100.0),
    }


@pytest.mark.parametrize("layout", layouts())
def test_kl_sum_is_the_sum_of_kl_divergence(layout, small_blocks):
    natural = layouts()[layout].detach().requires_grad_()
    for name, prior in priors(natural).items():
        if natural.dim() == 0 and prior.dim():
            continue
        in_one_pass = fused.kl_sum(natural, prior)
        plain = numerics.kl_divergence(*torch.broadcast_tensors(natural, prior)).sum()
        assert in_one_pass.shape == () and in_one_pass.dtype == natural.dtype
        torch.testing.assert_close(in_one_pass, plain, rtol=1e-12, atol=1e-13, msg=name)
        (got,) = torch.autograd.grad(3.0 * in_one_pass, natural)
        (expected,) = torch.autograd.grad(3.0 * plain, natural)
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-300, msg=name)


def test_kl_sum_gives_a_learned_prior_its_gradient():
    natural = torch.randn(5, 2, requires_grad=True)
    for prior in (torch.tensor(0.4, requires_grad=True), torch.randn(5, 2, requires_grad=True)):
        (slope,) = torch.autograd.grad(fused.kl_sum(natural, prior), prior)
        expected = (torch.tanh(prior) - torch.tanh(natural)).detach()
        torch.testing.assert_close(slope, expected.sum_to_size(prior.shape))


def test_kl_sum_adds_up_in_float64():
    # A million equal float32 terms, added one by one in float32, would lose the third digit.
    natural = torch.full((1_000_000,), 0.4, dtype=torch.float32)
    one = float(kl(mpf(natural[0].item()), mpf(0)))
    total = fused.kl_sum(natural, torch.zeros((), dtype=torch.float32))
    assert total.item() == pytest.approx(one * 1e6, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_kl_sum_at_saturated_distributions_in_low_precision(dtype):
    natural = torch.tensor(GRID, dtype=dtype, requires_grad=True)
    for prior in (0.0, 0.5, 100.0, -100.0):
        total = fused.kl_sum(natural, torch.tensor(prior, dtype=dtype))
        (slope,) = torch.autograd.grad(total, natural)
        expected = oracle(kl, GRID, [prior] * len(GRID)).sum()
        assert total.item() == pytest.approx(expected.item(), rel=4 * torch.finfo(dtype).eps)
        assert_relative(
            slope, oracle(lambda x, p: (x - p) * variance(x), GRID, [prior] * len(GRID)), 12
        )


@pytest.mark.parametrize("layout", layouts())
def test_over_fisher_divides_by_the_variance(layout, small_blocks):
    natural = layouts()[layout]
    gradient = torch.randn(natural.shape)
    before = natural.clone(), gradient.clone()
    result = fused.over_fisher(gradient, natural)
    torch.testing.assert_close(result, gradient / numerics.variance(natural), rtol=1e-13, atol=0)
    assert torch.equal(natural, before[0]) and torch.equal(gradient, before[1])
    if gradient.dim() == 2:
        crossed = torch.randn(gradient.shape[::-1]).t()
        torch.testing.assert_close(
            fused.over_fisher(crossed, natural), crossed / numerics.variance(natural),
            rtol=1e-13, atol=0,
        )  # fmt: skip


def test_over_fisher_within_its_bound_stays_finite_where_the_gradient_has_underflowed():
    natural = torch.tensor([100.0, -100.0, 40.0, 3.0], dtype=torch.float32)
    gradient = torch.tensor([0.0, 0.0, 1e-30, 1.0], dtype=torch.float32)
    result = fused.over_fisher(gradient, natural, bound=40.0)
    assert result[:2].tolist() == [0.0, 0.0]
    expected = gradient.double()[2:] * torch.cosh(natural.double()[2:]) ** 2
    torch.testing.assert_close(result[2:].double(), expected, rtol=1e-5, atol=0)
    # Without the bound this is infinity times zero; the rule therefore always passes its own.
    assert bool(fused.over_fisher(gradient, natural)[0].isnan())


# Noise


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_noise_is_finite_and_logistic(dtype):
    like = torch.empty(100_000, dtype=dtype)
    uniform, delta = numerics.uniform_noise(like), numerics.logistic_noise(like)
    assert bool((uniform > 0).all()) and bool((uniform < 1).all())
    assert delta.dtype == dtype and bool(torch.isfinite(delta).all())
    # logit(u) / 2 has variance pi^2 / 12, and its fourth moment 7 pi^4 / 240 bounds the error.
    variance_error = ((7 * torch.pi**4 / 240 - (torch.pi**2 / 12) ** 2) / len(delta)) ** 0.5
    assert abs(delta.double().var().item() - torch.pi**2 / 12) < 5 * variance_error + 0.01 * (
        dtype == torch.bfloat16
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_end_of_the_uniform_range_is_inside_it(dtype, monkeypatch):
    edges = torch.tensor([0.0, 1.0 - torch.finfo(dtype).eps / 2], dtype=dtype)
    monkeypatch.setattr(torch, "rand", lambda *args, **kwargs: edges.clone())
    delta = numerics.logistic_noise(torch.empty(2, dtype=dtype))
    assert bool(torch.isfinite(delta).all())
    # The largest noise, which says from which lambda on a draw never flips.
    assert delta.abs().max().item() == pytest.approx({4: 8.66, 8: 18.71}[dtype.itemsize], abs=0.01)


def test_hard_signs_are_the_signs_of_lambda_plus_noise():
    natural = 2.0 * torch.randn(10_000)
    torch.manual_seed(3)
    delta = numerics.logistic_noise(natural)
    torch.manual_seed(3)
    signs = numerics.hard_signs(natural, numerics.uniform_noise(natural))
    assert torch.equal(signs, torch.sign(natural + delta))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_hard_signs_keep_the_dtype_and_the_tails(dtype):
    natural = torch.tensor([-100.0, 100.0, 0.0], dtype=dtype)
    uniform = torch.tensor([1 - 1e-7, 1e-7, 0.75], dtype=torch.float32)
    signs = numerics.hard_signs(natural, uniform)
    assert signs.dtype == dtype and signs.tolist() == [-1.0, 1.0, 1.0]


def test_noise_of_large_layers_is_uniform_and_follows_the_seed():
    """Above one block the numbers come from another generator, seeded from torch's."""
    like = torch.empty(one_pass.BLOCK + 1, dtype=torch.float32)

    def drawn(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return numerics.uniform_noise(like)

    uniform = drawn(0)
    assert torch.equal(uniform, drawn(0))
    assert not torch.equal(uniform, drawn(1))
    assert float(uniform.min()) > 0.0 and float(uniform.max()) < 1.0
    counts = torch.histc(uniform, bins=64, min=0.0, max=1.0).double()
    expected = len(uniform) / 64
    z = (counts - expected) / (expected * (1 - 1 / 64)) ** 0.5
    assert float(z.abs().max()) < 5.0
    # neighbours are independent: the two halves of one 64-bit word must not move together
    pairs = uniform[:-1].double().reshape(-1, 2) - 0.5
    correlation = 12.0 * pairs.prod(1)
    assert abs(float(correlation.mean())) < 5.0 * float(correlation.std()) / len(pairs) ** 0.5


COMPILED = """
import torch
from bayesbin.core import fused, numerics
torch.manual_seed(0)
natural = (4.0 * torch.randn(1 << 19)).requires_grad_()
mu, fisher = fused.moments(natural)
parts = [mu, fisher, fused.kl_sum(natural, torch.zeros(())), fused.over_fisher(mu.detach(), natural)]
(slope,) = torch.autograd.grad(mu.sum() + (fisher * fisher).sum() + parts[2], natural)
torch.save([part.detach() for part in (*parts, slope)], {path!r})
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_formulas_equal_the_plain_ones(tmp_path):
    """BAYESBIN_COMPILE=1 is the same arithmetic in another order of rounding."""
    results = []
    for compiled in ("0", "1"):
        path = str(tmp_path / f"{compiled}.pt")
        environment = os.environ | {
            "BAYESBIN_COMPILE": compiled, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")
        }  # fmt: skip
        code = COMPILED.format(path=path)
        subprocess.run([sys.executable, "-c", code], check=True, env=environment, cwd=tmp_path)
        results.append(torch.load(path, weights_only=True))
    for plain, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, plain, rtol=1e-4, atol=1e-6)
