"""The formulas of ``numerics`` that large layers need at every step, each in one pass over the weights."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import softplus

from bayesbin.core.numerics import LOG_2, kl_divergence, sign_of
from bayesbin.core.one_pass import one_pass


def _decay(natural: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """|lambda|, e = exp(-2|lambda|) and r = 1 / (1 + e), from which everything else is formed."""
    magnitude = natural.abs()
    decay = torch.mul(magnitude, -2.0).exp_()
    return magnitude, decay, decay.add(1.0).reciprocal_()


@one_pass
def _mean_and_fisher(natural: Tensor) -> tuple[Tensor, Tensor]:
    _, decay, r = _decay(natural)
    mean = r.mul(2.0).sub_(1.0).copysign_(natural)  # (1 - e) / (1 + e) = 2 r - 1
    return mean, decay.mul_(4.0).mul_(r.square_())


@one_pass
def _moments_slope(
    grad_mean: Tensor, grad_variance: Tensor, mean: Tensor, fisher: Tensor
) -> tuple[Tensor]:
    return (torch.addcmul(grad_mean, grad_variance, mean, value=-2.0).mul_(fisher),)


class _Moments(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, natural: Tensor) -> tuple[Tensor, ...]:
        results = _mean_and_fisher(natural)
        ctx.save_for_backward(*results)
        return results

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_mean: Tensor, grad_variance: Tensor) -> Tensor:
        return _moments_slope(grad_mean, grad_variance, *ctx.saved_tensors)[0]


def moments(natural: Tensor) -> tuple[Tensor, Tensor]:
    """(mu, F) = (tanh(lambda), sech^2(lambda)) of a large layer; first derivatives only.

    mu is exact to one rounding of 1 (not of mu itself), F to a few roundings of F.
    """
    return _Moments.apply(natural)


# The slope (lambda - lambda_p) F, F = 4 e r^2, costs little beside the value: both come together.


@one_pass
def _kl_to_uniform(natural: Tensor) -> tuple[Tensor, Tensor]:
    magnitude, decay, r = _decay(natural)
    value = torch.log1p(decay).neg_().add_(LOG_2)
    decay.mul_(r)
    value.addcmul_(decay, magnitude, value=-2.0)
    return decay.mul_(r.mul_(4.0)).mul_(natural), value.sum(dtype=torch.float64)


@one_pass
def _kl_to_prior(natural: Tensor, prior: Tensor) -> tuple[Tensor, Tensor]:
    # As _kl_value: softplus(-2 s lambda_p) - log1p(e) + 2 e r (s lambda_p - |lambda|).
    magnitude, decay, r = _decay(natural)
    aligned = sign_of(natural) * prior
    value = softplus(-2.0 * aligned) - torch.log1p(decay)
    decay.mul_(r)
    value.addcmul_(decay, aligned - magnitude, value=2.0)
    return decay.mul_(r.mul_(4.0)).mul_(natural - prior), value.sum(dtype=torch.float64)


class _KLSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, natural: Tensor, prior: Tensor) -> Tensor:
        if prior.dim() == 0 and not prior.any():
            slope, total = _kl_to_uniform(natural)
        else:
            slope, total = _kl_to_prior(natural, prior)
        ctx.save_for_backward(slope)
        return total.to(natural.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (slope,) = ctx.saved_tensors
        return slope * grad, None


def kl_sum(natural: Tensor, prior: Tensor) -> Tensor:
    """The sum of ``kl_divergence`` over the weights, added up in float64.

    Where the prior is itself learned or drawn, the elementwise form carries its gradient too.
    """
    if prior.requires_grad:
        return kl_divergence(*torch.broadcast_tensors(natural, prior)).sum()
    if prior.numel() == 1 or (prior.numel() and not any(prior.stride())):
        prior = prior[(0,) * prior.dim()]  # one number, expanded to a layer: keep it one
    else:
        natural, prior = torch.broadcast_tensors(natural, prior)
    return _KLSum.apply(natural, prior)


@one_pass
def _over_fisher(natural: Tensor, gradient: Tensor, bound: float) -> tuple[Tensor]:
    # 4 / F = (exp(lambda) + exp(-lambda))^2: no intermediate exceeds the result.
    growth = natural.clamp(-bound, bound).exp_()
    return (growth.add_(growth.reciprocal()).square_().mul_(0.25).mul_(gradient),)


def over_fisher(gradient: Tensor, natural: Tensor, bound: float | None = None) -> Tensor:
    """gradient / F, the natural gradient, without a graph.

    1/F = cosh^2(lambda); in float32 it is finite up to |lambda| of about 44. With a bound, F is taken
    at lambda clamped to it, so that a gradient that has underflowed to 0 stays 0 and is not NaN.
    """
    return _over_fisher(natural.detach(), gradient, math.inf if bound is None else bound)[0]


@one_pass
def _through_slope(natural: Tensor, grad: Tensor) -> tuple[Tensor]:
    _, decay, r = _decay(natural)
    return (decay.mul_(4.0).mul_(r.square_()).mul_(grad),)


class _SignsThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, natural: Tensor, signs: Tensor) -> Tensor:
        ctx.save_for_backward(natural)
        return signs.view_as(signs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (natural,) = ctx.saved_tensors
        return _through_slope(natural, grad)[0], None


def signs_through(natural: Tensor, signs: Tensor) -> Tensor:
    """Hard signs in the forward pass whose gradient is passed to the mean: dw/d lambda := F."""
    return _SignsThrough.apply(natural, signs)


class _SignsSloped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, natural: Tensor, signs: Tensor, slope: Tensor) -> Tensor:
        ctx.save_for_backward(slope)
        return signs.view_as(signs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (slope,) = ctx.saved_tensors
        return grad * slope, None, None


def signs_sloped(natural: Tensor, signs: Tensor, slope: Tensor) -> Tensor:
    """Hard signs in the forward pass with a slope that is given: dw/d lambda := slope."""
    return _SignsSloped.apply(natural, signs, slope)


@one_pass
def _reward_slope(natural: Tensor, signs: Tensor, scale: float) -> tuple[Tensor]:
    # 1 - w mu = 2 sigmoid(-2 w lambda), which does not cancel.
    return (torch.mul(natural, signs).mul_(-2.0).sigmoid_().mul_(2.0 * scale),)


def signs_rewarded(natural: Tensor, signs: Tensor, scale: float) -> Tensor:
    """Hard signs whose gradient g becomes scale w g times the score: dw/d lambda := scale (1 - w mu)."""
    return _SignsSloped.apply(natural, signs, _reward_slope(natural.detach(), signs, scale)[0])


@one_pass
def _relaxed(natural: Tensor, uniform: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    noise = torch.log(uniform).sub_(torch.log1p(-uniform)).mul_(0.5)
    scaled = noise.add_(natural).div_(temperature)
    _, decay, r = _decay(scaled)
    value = r.mul(2.0).sub_(1.0).copysign_(scaled)
    return value, decay.mul_(r.square_()).mul_(4.0 / temperature)


class _RelaxedDraw(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, natural: Tensor, uniform: Tensor, temperature: float) -> Tensor:
        value, slope = _relaxed(natural.to(uniform.dtype), uniform, temperature)
        ctx.save_for_backward(slope)
        return value.to(natural.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (slope,) = ctx.saved_tensors
        return (grad * slope).to(grad.dtype), None, None


def relaxed_draw(natural: Tensor, uniform: Tensor, temperature: float) -> Tensor:
    """w_r = tanh((lambda + logit(u)/2) / tau) with its gradient sech^2 / tau; first derivatives only."""
    return _RelaxedDraw.apply(natural, uniform, temperature)
