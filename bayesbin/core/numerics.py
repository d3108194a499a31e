"""The only home of formulas that saturate.

With the natural parameter lambda (half the log-odds of +1) every quantity of a sign-Bernoulli distribution is
an elementary function of lambda whose naive form loses all its digits at moderate |lambda|: in
float32 ``1 - tanh(lambda)**2`` is exactly 0 from |lambda| of about 9. Each function here keeps its
relative accuracy over the whole range of its dtype, and so does its gradient: where autograd would
differentiate through ``1 - tanh**2`` the backward pass is written by hand, with the Fisher
information F = sech^2(lambda) formed from ``exp(-2|lambda|)``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import softplus

from bayesbin.core.differentiable import Elementwise, Slopes, applied, save
from bayesbin.core.one_pass import BLOCK, one_pass

LOG_2 = math.log(2.0)
LOG_4 = math.log(4.0)
# 1/F = cosh^2(lambda) stays well inside each dtype's range up to here.
BOUNDS = {torch.float64: 300.0, torch.float32: 40.0, torch.bfloat16: 40.0}


def log_variance(natural: Tensor) -> Tensor:
    """log sech^2(lambda) = log 4 - 2|lambda| - 2 softplus(-2|lambda|): the log Fisher information."""
    magnitude = _magnitude(natural)
    return LOG_4 - 2.0 * magnitude - 2.0 * softplus(-2.0 * magnitude)


def _fisher(natural: Tensor) -> Tensor:
    """sech^2(lambda) for backward passes: fused when nobody differentiates it again."""
    if torch.is_grad_enabled():
        return torch.exp(log_variance(natural))
    return _fisher_value(natural)[0]


@one_pass
def _fisher_value(natural: Tensor) -> tuple[Tensor]:
    # 4 e / (1 + e)^2 with e = exp(-2|lambda|): one exponential and no cancellation.
    decay = natural.abs().mul_(-2.0).exp_()
    return (decay.mul(4.0).div_(decay.add_(1.0).square_()),)


def _tail(magnitude: Tensor) -> Tensor:
    """1 - tanh(|lambda|) = 2 sigmoid(-2|lambda|), without the subtraction."""
    return 2.0 * torch.sigmoid(-2.0 * magnitude)


def sign_of(natural: Tensor) -> Tensor:
    """The sign of lambda, +1 at lambda = 0 (the mode's convention), as a float tensor."""
    # Adding 0 turns -0 into +0; torch.where with two numbers is many times slower.
    return torch.copysign(torch.ones((), dtype=natural.dtype, device=natural.device), natural + 0.0)


def _magnitude(natural: Tensor) -> Tensor:
    """|lambda| for formulas that autograd differentiates: ``abs`` has the gradient 0 at 0, not +-1."""
    return natural * sign_of(natural)


class _Mean(Elementwise):
    @staticmethod
    def forward(natural: Tensor) -> Tensor:
        return torch.tanh(natural)

    @staticmethod
    def partials(needed: Sequence[bool], natural: Tensor) -> Slopes:
        return (_fisher(natural),)


_apply_mean = applied(_Mean)


def mean(natural: Tensor) -> Tensor:
    """mu = tanh(lambda), the expectation parameter; d mu = F d lambda survives saturation."""
    return _apply_mean(natural)


class _Variance(Elementwise):
    @staticmethod
    def forward(natural: Tensor) -> Tensor:
        return _fisher_value(natural)[0]

    @staticmethod
    def partials(needed: Sequence[bool], natural: Tensor) -> Slopes:
        return (-2.0 * torch.tanh(natural) * _fisher(natural),)


_apply_variance = applied(_Variance)


def variance(natural: Tensor) -> Tensor:
    """F = sech^2(lambda), the variance of a sign; dF = -2 mu F d lambda."""
    return _apply_variance(natural)


class _LogPartition(Elementwise):
    @staticmethod
    def forward(natural: Tensor) -> Tensor:
        magnitude = natural.abs()
        return magnitude + softplus(-2.0 * magnitude)

    @staticmethod
    def partials(needed: Sequence[bool], natural: Tensor) -> Slopes:
        return (mean(natural),)


_apply_log_partition = applied(_LogPartition)


def log_partition(natural: Tensor) -> Tensor:
    """A(lambda) = log 2cosh(lambda) = |lambda| + softplus(-2|lambda|); dA = mu d lambda."""
    return _apply_log_partition(natural)


class _LogProb(Elementwise):
    @staticmethod
    def forward(natural: Tensor, value: Tensor) -> Tensor:
        once = without_repeats(natural)
        sign, magnitude = sign_of(once), once.abs()
        return magnitude * (value * sign - 1.0) - softplus(-2.0 * magnitude)

    @staticmethod
    def partials(needed: Sequence[bool], natural: Tensor, value: Tensor) -> Slopes:
        if not needed[0]:
            return None, natural
        # The score w - mu = (w - s) + s (1 - tanh|lambda|): at a drawn w = s only the tail is left.
        sign = sign_of(natural)
        return (value - sign) + sign * _tail(_magnitude(natural)), natural if needed[1] else None


_apply_log_prob = applied(_LogProb)


def without_repeats(expanded: Tensor, keep: int = 0) -> Tensor:
    """A view with one element along the dimensions that ``expand`` made: a prior is often one number.

    The last ``keep`` dimensions stay as they are.
    """
    repeats = [
        stride == 0 and size > 1 and dim < expanded.dim() - keep
        for dim, (stride, size) in enumerate(zip(expanded.stride(), expanded.shape, strict=True))
    ]
    return expanded[tuple(slice(1) if repeat else slice(None) for repeat in repeats)]


def log_prob(natural: Tensor, value: Tensor) -> Tensor:
    """log p(w) = lambda w - A(lambda), linear in w; the score is 2 w sigmoid(-2 w lambda) at w = +-1."""
    return _apply_log_prob(*torch.broadcast_tensors(natural, value))


class _Entropy(Elementwise):
    @staticmethod
    def forward(natural: Tensor) -> Tensor:
        magnitude = natural.abs()
        return softplus(-2.0 * magnitude) + magnitude * _tail(magnitude)

    @staticmethod
    def partials(needed: Sequence[bool], natural: Tensor) -> Slopes:
        return (-natural * _fisher(natural),)


_apply_entropy = applied(_Entropy)


def entropy(natural: Tensor) -> Tensor:
    """H = A(lambda) - lambda mu, in nats; dH = -lambda F d lambda."""
    return _apply_entropy(natural)


def _kl_value(natural: Tensor, prior: Tensor) -> Tensor:
    # With s the sign of lambda, a = |lambda|, b = s lambda_p:
    # KL = softplus(-2b) - softplus(-2a) + 2 sigmoid(-2a) (b - a); no two large numbers are subtracted.
    magnitude = natural.abs()
    aligned = prior * sign_of(natural)
    return (
        softplus(-2.0 * aligned)
        - softplus(-2.0 * magnitude)
        + _tail(magnitude) * (aligned - magnitude)
    )


class _KL(Elementwise):
    @staticmethod
    def forward(natural: Tensor, prior: Tensor) -> Tensor:
        return _kl_value(natural, prior)

    @staticmethod
    def partials(needed: Sequence[bool], natural: Tensor, prior: Tensor) -> Slopes:
        return (
            (natural - prior) * _fisher(natural) if needed[0] else None,
            mean_difference(prior, natural) if needed[1] else None,
        )


_apply_kl = applied(_KL)


def mean_difference(first: Tensor, second: Tensor) -> Tensor:
    """tanh(a) - tanh(b) = sinh(a - b) / (cosh(a) cosh(b)).

    For opposite signs nothing cancels. For equal ones, with l and h the smaller and the larger
    magnitude and d = |a - b| = h - l, it is (1 - exp(-2d)) (1 - tanh(l)) sigmoid(2h) in magnitude.
    """
    gap = first - second
    direction = sign_of(gap)
    one, other = _magnitude(first), _magnitude(second)
    closeness = -direction * torch.expm1(-2.0 * direction * gap)
    near = closeness * _tail(torch.minimum(one, other))
    near = near * torch.sigmoid(2.0 * torch.maximum(one, other))
    far = torch.tanh(first) - torch.tanh(second)
    return torch.where(sign_of(first) == sign_of(second), near, far)


def kl_divergence(natural: Tensor, prior: Tensor) -> Tensor:
    """KL(q||p) = (lambda - lambda_p) mu - A(lambda) + A(lambda_p), in nats, elementwise.

    Finite at every finite pair; d lambda carries (lambda - lambda_p) F, d lambda_p carries mu_p - mu.
    """
    return _apply_kl(natural, prior)


def logistic_noise(like: Tensor) -> Tensor:
    """delta = logit(u) / 2, u uniform on (0, 1): sign(lambda + delta) is then a draw of the signs.

    Drawn in at least float32, whose 24 random bits bound |delta| by about 8.7 (float64: 18.7).
    """
    uniform = uniform_noise(like)
    return torch.log(uniform).sub_(torch.log1p(uniform.neg_())).mul_(0.5).to(like.dtype)


def uniform_noise(like: Tensor) -> Tensor:
    """u uniform on the open interval (0, 1), of ``like``'s shape, in float32 or better."""
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    uniform = None
    if like.numel() >= BLOCK and like.device.type == "cpu" and dtype == torch.float32:
        uniform = _fast_noise(like.numel())
    if uniform is None:
        uniform = torch.rand(like.shape, dtype=dtype, device=like.device)
    # Rounding may reach 0 or 1: both are moved to their neighbours inside.
    eps = torch.finfo(dtype).eps
    return uniform.clamp(eps / 4, 1.0 - eps / 2).view(like.shape)


def _fast_noise(size: int) -> Tensor | None:
    """Numbers on [0, 1] in float32, or None under ``torch.vmap``, where each draw has its own seed.

    torch's CPU generator is serial and takes 3 ns per number; a generator of numpy's, seeded from it,
    fills large layers with 32-bit integers several times faster.
    """
    drawn = torch.randint(2**63 - 1, ())
    try:
        seed = int(drawn.item())
    except RuntimeError:
        return None
    words = np.random.SFC64(seed).random_raw(-(-size // 2)).view(np.int32)
    return torch.from_numpy(words[:size]).to(torch.float32).mul_(2.0**-32).add_(0.5)


def hard_signs(natural: Tensor, uniform: Tensor) -> Tensor:
    """The draw sign(lambda + logit(u)/2), as -1 and +1: +1 where u >= sigmoid(-2 lambda)."""
    return _hard_signs(natural.detach().to(uniform.dtype), uniform)[0].to(natural.dtype)


@one_pass
def _hard_signs(natural: Tensor, uniform: Tensor) -> tuple[Tensor]:
    return (sign_of(uniform - natural.mul(-2.0).sigmoid_()),)


class _RelaxedSigns(Elementwise):
    @staticmethod
    def forward(shifted: Tensor, temperature: Tensor) -> Tensor:
        # The inputs are saved, not their ratio, which a second derivative would take for a constant.
        return torch.tanh(shifted / temperature)

    @staticmethod
    def partials(needed: Sequence[bool], shifted: Tensor, temperature: Tensor) -> Slopes:
        scaled = shifted / temperature
        slope = _fisher(scaled) / temperature
        return slope, -slope * scaled if needed[1] else None


_apply_relaxed_signs = applied(_RelaxedSigns)


def relaxed_signs(shifted: Tensor, temperature: Tensor) -> Tensor:
    """w_r = tanh((lambda + delta) / tau) given lambda + delta; the gradient carries sech^2 in log space."""
    return _apply_relaxed_signs(shifted, temperature)


class _SafeSqrt(Elementwise):
    @staticmethod
    def forward(variance: Tensor) -> Tensor:
        return variance.clamp(min=0.0).sqrt_()

    @classmethod
    def setup_context(cls, ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        save(ctx, output)

    @classmethod
    def backward(cls, ctx: Any, *grads: Any) -> Any:
        return cls.tangent(ctx, ctx.saved_tensors, grads)

    @classmethod
    def tangent(cls, ctx: Any, saved: Sequence[Tensor], tangents: Sequence[Any]) -> Any:
        (root,) = saved
        return 0.5 * tangents[0] / torch.where(root > 0, root, math.inf)


safe_sqrt = applied(_SafeSqrt)
safe_sqrt.__doc__ = """sqrt(v), 0 where v is negative by rounding, with the derivative 0 at v = 0.

A row of inputs that are all 0 has no noise, and must not make the gradient NaN.
"""
