"""LocalReparameterization: exact moments of pre-activations, and the protocol that samples them."""

# A gradient is None until there is one, which the assertion at hand would tell.
# pyright: reportOptionalMemberAccess=false, reportArgumentType=false

from __future__ import annotations

import numpy as np
import oracles
import pyro
import pyro.distributions as dist
import pytest
import torch
from stats import assert_within_standard_errors, exceeds_standard_errors
from torch import Tensor, nn
from torch.nn import functional as F

from bayesbin.core import fused
from bayesbin.distributions import SignBernoulli
from bayesbin.estimators import LocalReparameterization
from bayesbin.estimators.weight_draws import WeightDraw
from bayesbin.estimators.weight_moments import WeightMoments
from bayesbin.guides import AutoSignBernoulli
from bayesbin.infer import TraceBinary_ELBO
from bayesbin.nn import BinaryConv1d, BinaryConv2d, BinaryLinear, Classifier

DRAWS = 500


@pytest.fixture(autouse=True)
def one_thread():
    """Thousands of tiny convolutions: handing each to several threads costs far more than it saves."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def weight_moments(natural: Tensor) -> WeightMoments:
    return WeightMoments.of(WeightDraw("w", *fused.moments(natural), "LocalReparameterization"))


def output_draws(use, natural: Tensor, count: int = DRAWS) -> Tensor:
    return torch.stack([use(weight_moments(natural)) for _ in range(count)])


def exact_moments(use, natural: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of a linear map of independent signs, column by column of its matrix."""
    zero = use(torch.zeros_like(natural))
    columns = torch.stack(
        [use(e.reshape(natural.shape)) - zero for e in torch.eye(natural.numel())]
    )
    mean, fisher = torch.tanh(natural).flatten(), 1 / torch.cosh(natural).flatten() ** 2
    shape = (-1, *[1] * zero.dim())
    return (
        zero + (columns * mean.reshape(shape)).sum(0),
        (columns**2 * fisher.reshape(shape)).sum(0),
    )


def assert_moments(use, natural: Tensor) -> None:
    draws = output_draws(use, natural)
    mean, variance = exact_moments(use, natural)
    assert draws.shape[1:] == mean.shape
    assert_within_standard_errors(draws, mean)
    assert bool((variance_scores(draws, mean, variance).abs() < 5).all())


def variance_scores(draws: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """Standard-normal scores of the variance of Gaussian draws with a known mean.

    Squares of Gaussians are skewed, and their own standard error with them; the cube root of their mean
    is normal to high accuracy (Wilson and Hilferty 1931), with a known standard deviation.
    """
    n = len(draws)
    root = (((draws - mean) ** 2).mean(0) / variance) ** (1 / 3)
    return (root - (1 - 2 / (9 * n))) / (2 / (9 * n)) ** 0.5


B1, B2 = torch.tensor([0.3, -0.7, 0.1, 0.5]), torch.tensor([0.2, -0.4, 0.6, 0.1])

USES = {
    "linear": ((4, 3), (5, 3), lambda x, w: F.linear(x, w)),
    "linear, bias": ((4, 3), (5, 3), lambda x, w: F.linear(x, w, B1.to(x))),
    "linear, bias by name": ((4, 3), (5, 3), lambda x, w: F.linear(x, weight=w, bias=B1.to(x))),
    "linear, more dimensions": ((4, 3), (2, 2, 3), lambda x, w: F.linear(x, w)),
    "conv1d": ((4, 2, 3), (2, 2, 7), lambda x, w: F.conv1d(x, w)),
    "conv1d, everything": (
        (4, 1, 3), (2, 2, 7),
        lambda x, w: F.conv1d(x, w, B2.to(x), stride=2, padding=1, dilation=1, groups=2),
    ),
    "conv1d, same": ((4, 2, 3), (2, 2, 7), lambda x, w: F.conv1d(x, w, None, 1, "same")),
    "conv2d": ((4, 2, 2, 3), (1, 2, 4, 5), lambda x, w: F.conv2d(x, w)),
    "conv2d, everything": (
        (4, 1, 2, 2), (2, 2, 4, 5),
        lambda x, w: F.conv2d(x, w, bias=B2.to(x), stride=(2, 1), padding=1, groups=2),
    ),
    "torch.conv2d, positional": (
        (4, 1, 2, 2), (2, 2, 4, 5),
        lambda x, w: torch.conv2d(x, w, B2.to(x), (1, 1), (1, 0), (1, 1), 2),
    ),
    "x @ W": ((3, 4), (5, 3), lambda x, w: x @ w),
    "W @ x": ((4, 3), (3, 5), lambda x, w: w @ x),
    "x @ w, a vector": ((3,), (5, 3), lambda x, w: x @ w),
    "matmul": ((3, 4), (2, 5, 3), lambda x, w: torch.matmul(x, w)),
    "method": ((3, 4), (5, 3), lambda x, w: x.matmul(w)),
    "reflected": ((4, 3), (3, 5), lambda x, w: x.__rmatmul__(w)),
    "mm": ((3, 4), (5, 3), lambda x, w: torch.mm(x, w)),
    "mv": ((4, 3), (3,), lambda x, w: torch.mv(w, x)),
    "scaled": ((4, 3), (5, 3), lambda x, w: F.linear(x, 0.5 * w * torch.tensor(3.0))),
    "scaled by row": (
        (4, 3), (5, 3),
        lambda x, w: F.linear(x, w * torch.tensor([[1.0], [2.0], [-1.0], [0.5]], dtype=x.dtype)),
    ),
    "divided and negated": ((4, 3), (5, 3), lambda x, w: F.linear(x, -(w / 2.0))),
    "transposed": ((3, 4), (5, 3), lambda x, w: F.linear(x, w.t())),
    ".T": ((3, 4), (5, 3), lambda x, w: F.linear(x, w.T)),
    ".mT": ((3, 4), (5, 3), lambda x, w: F.linear(x, w.mT)),
    "transpose": ((3, 4), (5, 3), lambda x, w: F.linear(x, torch.transpose(w, 0, 1))),
    "permuted": ((3, 1, 4), (5, 3), lambda x, w: F.linear(x, w.permute(2, 1, 0).squeeze(1))),
    "reshaped": ((12,), (5, 3), lambda x, w: F.linear(x, w.reshape(4, 3).contiguous())),
    "viewed": ((2, 6), (5, 3), lambda x, w: F.linear(x, w.view(4, -1))),
    "flattened": ((4, 3, 1), (5, 3), lambda x, w: F.linear(x, w.flatten(1))),
    "unflattened": ((4, 3), (5, 3), lambda x, w: F.linear(x, w.unflatten(0, (2, 2)).flatten(0, 1))),
    "unsqueezed": ((4, 3), (2, 1, 7), lambda x, w: F.conv1d(x, w.unsqueeze(1))),
}  # fmt: skip


@pytest.mark.parametrize("name", USES)
def test_outputs_have_the_exact_mean_and_variance(name):
    weight_shape, input_shape, use = USES[name]
    natural = torch.randn(weight_shape)
    x = torch.randn(input_shape)
    assert_moments(lambda w: use(x, w), natural)


def test_the_moments_test_can_fail():
    natural, x = torch.randn(4, 3), torch.randn(5, 3)
    draws = output_draws(lambda w: F.linear(x, w), natural)
    mean, _ = exact_moments(lambda w: F.linear(x, w), natural)
    assert exceeds_standard_errors(draws, -mean)
    # The commonest slip: the variance of a unit's weights without the square of its inputs.
    wrong = x.abs() @ (1 / torch.cosh(natural) ** 2).T
    assert bool((variance_scores(draws, mean, wrong).abs() > 5).any())


def test_saturated_weights_are_not_noisy_and_not_nan():
    natural = torch.tensor([[40.0, -40.0, 100.0]], dtype=torch.float32, requires_grad=True)
    x = torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float32)
    output = F.linear(x, weight_moments(natural))
    assert output.item() == pytest.approx(2.0, abs=1e-6)
    output.sum().backward()
    assert bool(torch.isfinite(natural.grad).all())


def test_the_gradient_for_the_same_noise_by_hand():
    natural = torch.randn(4, 3, requires_grad=True)
    x = torch.randn(5, 3)
    torch.manual_seed(4)
    got = torch.autograd.grad(F.linear(x, weight_moments(natural)).square().sum(), natural)[0]
    torch.manual_seed(4)
    mean, variance = torch.tanh(natural), 1 - torch.tanh(natural) ** 2
    plain = x @ mean.T + torch.randn(5, 4) * (x**2 @ variance.T).sqrt()
    expected = torch.autograd.grad(plain.square().sum(), natural)[0]
    torch.testing.assert_close(got, expected)


def test_dead_inputs_give_finite_gradients():
    natural = torch.randn(4, 3, requires_grad=True)
    x = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, -2.0]], requires_grad=True)
    h = F.relu(x) * 1.0
    output = F.linear(h, weight_moments(natural))
    assert not output[0].any()
    output.square().sum().backward()
    assert bool(torch.isfinite(natural.grad).all()) and bool(torch.isfinite(x.grad).all())
    # sqrt without care for 0 does produce NaN there.
    zero = torch.zeros(1, requires_grad=True)
    (torch.sqrt(zero.square()) * 0.0).sum().backward()
    assert bool(zero.grad.isnan().all())


def relative_bias(fan_in: int) -> float:
    """The bias of the gradient in lambda under a smooth loss, relative to the exact gradient."""

    def loss(h: Tensor) -> Tensor:
        return torch.exp(0.8 * h)

    x = torch.ones(fan_in) / fan_in**0.5
    natural = torch.linspace(-0.3, 0.42, fan_in)
    exact = oracles.gradient(lambda w: loss(w @ x), natural)
    # The Gaussian's own expectation, by quadrature: no Monte Carlo error to hide behind.
    lam = natural.clone().requires_grad_()
    mean, variance = fused.moments(lam)
    nodes = torch.linspace(-9, 9, 2001)
    weights = torch.exp(-(nodes**2) / 2) / (2 * torch.pi) ** 0.5
    outputs = (x * mean).sum() + nodes * (x**2 * variance).sum().sqrt()
    (slope,) = torch.autograd.grad(torch.trapezoid(weights * loss(outputs), nodes), lam)
    return ((slope - exact).norm() / exact.norm()).item()


def test_the_bias_of_the_gradient_falls_as_one_over_the_fan_in():
    biases = {fan_in: relative_bias(fan_in) for fan_in in (3, 6, 12)}
    for fan_in, bias in biases.items():
        # Below 1 % from some 25 inputs on; never zero, for the approximation is one.
        assert 0.18 < bias * fan_in < 0.26


def test_the_surrogate_estimates_the_gaussian_expectation():
    natural = {"w": torch.full((1, 6), 0.3, requires_grad=True)}
    x = torch.linspace(-1, 1, 6)[None]
    estimator = LocalReparameterization(num_samples=4)

    def objective(values):
        return torch.stack([F.linear(x, w).square().sum() for w in values["w"]])

    slopes = torch.stack(
        [torch.autograd.grad(estimator(objective, natural), natural["w"])[0] for _ in range(1500)]
    )
    # E[(x w)^2] has only first and second moments, which are exact.
    exact = oracles.gradient(lambda w: (x[0] @ w) ** 2, natural["w"].detach())
    assert_within_standard_errors(slopes[:, 0], exact)


# The protocol


def test_a_weight_used_twice_is_an_error():
    w, x = weight_moments(torch.zeros(3, 3)), torch.randn(2, 3)
    F.linear(x, w)
    with pytest.raises(RuntimeError, match=r"'w' is used twice.*\(linear, then matmul\).*Concrete"):
        x @ w.t()


def test_two_views_of_one_weight_count_as_one():
    w, x = weight_moments(torch.zeros(4, 3)), torch.randn(2, 3)
    scaled = 0.5 * w
    F.linear(x, w)
    with pytest.raises(RuntimeError, match="used twice"):
        F.linear(x, scaled)


def test_the_next_draw_may_use_the_weight_again():
    natural = {"w": torch.zeros(4, 3, requires_grad=True)}
    x = torch.randn(2, 3)
    estimator = LocalReparameterization(num_samples=3)
    for _ in range(2):
        estimator(lambda values: torch.stack([F.linear(x, w).sum() for w in values["w"]]), natural)


UNSUPPORTED = {
    "add": lambda w: w + 1.0,
    "add, reflected": lambda w: 1.0 + w,
    "sum": lambda w: w.sum(),
    "relu": lambda w: torch.relu(w),
    "index by a tensor": lambda w: w[torch.tensor([0, 0])],
    "index by a list": lambda w: w[[0, 0]],
    "index by an array": lambda w: w[:, np.array([1, 1])],
    "index by truth": lambda w: w[torch.ones(4, 3) > 0],
    "expand": lambda w: w.expand(2, 4, 3),
    "stack": lambda w: torch.stack([w, w]),
    "product of two": lambda w: w @ w.t(),
    "square": lambda w: w * w,
    "divided by": lambda w: 1.0 / w,
    "ratio": lambda w: torch.ones(4, 3) / w,
    "as input": lambda w: F.linear(w, torch.ones(2, 3)),
    "einsum": lambda w: torch.einsum("ij,kj->ik", torch.ones(2, 3), w),
    "equal": lambda w: w == 1.0,
    "at least": lambda w: w >= 0,
    "power": lambda w: w**2,
    "subtracted from": lambda w: torch.ones(4, 3) - w,
    "chosen": lambda w: torch.where(torch.ones(4, 3) > 0, w, 0.0),
    "numpy": lambda w: w.numpy(),
    "looked up": lambda w: F.embedding(torch.tensor([0, 1]), w),
    "log_prob": lambda w: SignBernoulli(natural=torch.zeros(4, 3)).log_prob(w),
    # Broadcasting would repeat weights, whose copies were then drawn independently.
    "repeated by a factor": lambda w: w * torch.ones(2, 4, 3),
    "repeated by a divisor": lambda w: w / torch.ones(2, 1, 1),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_an_unsupported_use_is_an_error_that_names_it(name):
    with pytest.raises(
        TypeError, match=r"(?s)cannot carry the weight 'w' through '.+'.*StraightThr"
    ):
        UNSUPPORTED[name](weight_moments(torch.zeros(4, 3)))


def test_the_error_names_the_operation():
    with pytest.raises(TypeError, match="'relu'"):
        torch.relu(weight_moments(torch.zeros(2)))
    with pytest.raises(TypeError, match="'add'"):
        weight_moments(torch.zeros(2)) + 1.0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_metadata_as_a_tensor_would_answer(dtype):
    natural = torch.zeros(4, 3, dtype=dtype)
    w = weight_moments(natural)
    assert isinstance(w, Tensor)
    assert w.shape == (4, 3) and w.size() == (4, 3) and w.size(0) == 4 and len(w) == 4
    assert w.dim() == w.ndim == 2 and w.numel() == torch.numel(w) == 12
    assert w.dtype == dtype and w.device == natural.device and w.layout == torch.strided
    assert w.is_floating_point() and torch.is_floating_point(w) and not w.is_complex()
    assert w.stride() == (3, 1) and w.is_contiguous() and not w.is_sparse
    assert w.t().shape == (3, 4) and (2 * w).shape == (4, 3)
    assert w.flatten().shape == (12,) and w.unsqueeze(0).shape == (1, 4, 3)


def test_it_prints_what_it_is():
    w = weight_moments(torch.zeros(4, 3, dtype=torch.float32))
    text = "WeightMoments(site='w', shape=(4, 3), dtype=torch.float32)"
    assert repr(w) == str(w) == f"{w}" == text
    assert f"{w:>70}" == text.rjust(70)
    assert repr(0.5 * w) == text


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_low_precision(dtype):
    natural = {"w": torch.randn(8, 6).to(dtype).requires_grad_()}
    x = torch.randn(5, 6).to(dtype)

    def objective(values):
        outputs = [F.linear(x, w) for w in values["w"]]
        assert all(output.dtype == dtype for output in outputs)
        return torch.stack([output.square().mean() for output in outputs])

    surrogate = LocalReparameterization()(objective, natural)
    surrogate.backward()
    assert surrogate.dtype == natural["w"].grad.dtype == dtype
    assert bool(torch.isfinite(natural["w"].grad).all())


def test_an_empty_batch():
    natural = torch.zeros(4, 3, requires_grad=True)
    output = F.linear(torch.empty(0, 3), weight_moments(natural))
    assert output.shape == (0, 4)
    output.sum().backward()
    assert not natural.grad.any()


# Inside models


def test_inside_a_deep_network():
    net = nn.Sequential(
        BinaryConv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(2),
        BinaryConv1d(4, 3, 3, stride=2, groups=1),
        nn.Tanh(),
        nn.Flatten(),
        BinaryLinear(51, 16),
        nn.LayerNorm(16),
        nn.ReLU(),
        BinaryLinear(16, 3, bias=False),
    )
    model = Classifier(net, dataset_size=40)
    guide = AutoSignBernoulli(model)
    loss = TraceBinary_ELBO(LocalReparameterization(num_samples=2))(model, guide)
    x, y = torch.randn(5, 1, 6, 6), torch.tensor([0, 1, 2, 1, 0])
    loss(x, y).backward()
    for parameter in (*guide.natural_parameters(), *net.parameters()):
        assert bool(torch.isfinite(parameter.grad).all())
        assert bool(parameter.grad.any())
    # One datum, of dead inputs.
    net.eval()
    guide.zero_grad()
    loss(torch.zeros(1, 1, 6, 6), y[:1]).backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in guide.natural_parameters())


def test_inside_a_hand_written_pyro_model():
    x, y = torch.randn(20, 5), torch.randn(20)

    def model():
        w = pyro.sample("w", SignBernoulli(natural=torch.zeros(5)).to_event(1))
        with pyro.plate("data", 20):
            pyro.sample("y", dist.Normal(x @ w, 1.0), obs=y)

    guide = AutoSignBernoulli(model)
    (natural,) = guide.natural_parameters()
    loss = TraceBinary_ELBO(LocalReparameterization())(model, guide)
    slopes = torch.stack([torch.autograd.grad(loss(), natural)[0] for _ in range(600)])
    # A Gaussian likelihood is quadratic: the first two moments, which are exact, are all it sees.
    log_likelihood = lambda w: dist.Normal(x @ w, 1.0).log_prob(y).sum()
    lam = natural.detach()
    exact = -oracles.gradient(log_likelihood, lam) + lam / torch.cosh(lam) ** 2
    assert_within_standard_errors(slopes, exact)


def test_a_model_that_shares_a_weight_says_so():
    def model():
        w = pyro.sample("w", SignBernoulli(natural=torch.zeros(3, 3)).to_event(2))
        h = torch.tanh(torch.ones(2, 3) @ w)
        with pyro.plate("data", 2):
            pyro.sample("y", dist.Normal((h @ w).sum(-1), 1.0), obs=torch.zeros(2))

    guide = AutoSignBernoulli(model)
    with pytest.raises(RuntimeError, match="'w' is used twice"):
        TraceBinary_ELBO(LocalReparameterization())(model, guide)()


def test_a_short_variance_is_the_variance_to_three_digits():
    """The noise of the pre-activations comes in bfloat16; their mean keeps all its digits."""
    x, natural = torch.randn(40, 64), 0.5 * torch.randn(30, 64)

    def gradient(**options):
        torch.manual_seed(0)
        lam = natural.clone().requires_grad_()
        estimator = LocalReparameterization(**options)
        surrogate = estimator(
            lambda values: torch.stack([F.linear(x, w).tanh().sum() for w in values["w"]]),
            {"w": lam},
        )
        return surrogate.detach(), torch.autograd.grad(surrogate, lam)[0]

    value, slope = gradient()
    short_value, short_slope = gradient(variance_dtype=torch.bfloat16)
    assert float((short_value - value).abs()) < 0.01 * float(value.abs()) + 0.5
    assert float((short_slope - slope).norm()) < 0.01 * float(slope.norm())
    assert float((short_slope - slope).norm()) > 0.0


def test_a_variance_in_float16_is_refused():
    with pytest.raises(ValueError, match="float16 would underflow"):
        LocalReparameterization(variance_dtype=torch.float16)
