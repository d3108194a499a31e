"""The formulas of ``numerics`` that large layers need at every step, each in one pass over the weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import softplus

from bayesbin.core.differentiable import (
    Differentiable,
    Elementwise,
    Slopes,
    applied,
    batched,
    first_order,
    save,
)
from bayesbin.core.numerics import LOG_2, kl_divergence, mean_difference, sign_of, variance
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


class _Moments(Elementwise):
    @staticmethod
    def forward(natural: Tensor) -> tuple[Tensor, ...]:
        return _mean_and_fisher(natural)

    @classmethod
    def setup_context(cls, ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        # Both derivatives are formed from the results, which have derivatives of their own.
        save(ctx, *output)

    @classmethod
    def backward(cls, ctx: Any, *grads: Any) -> Any:
        mean, fisher = ctx.saved_tensors
        if torch.is_grad_enabled():
            return (grads[0] - 2.0 * grads[1] * mean) * fisher
        return _moments_slope(*grads, mean, fisher)[0]

    @classmethod
    def tangent(cls, ctx: Any, saved: Sequence[Tensor], tangents: Sequence[Any]) -> Any:
        mean, fisher = saved
        return tangents[0] * fisher, tangents[0] * (-2.0 * mean * fisher)


_apply_moments = applied(_Moments)


def moments(natural: Tensor) -> tuple[Tensor, Tensor]:
    """(mu, F) = (tanh(lambda), sech^2(lambda)) of a large layer.

    mu is exact to one rounding of 1 (not of mu itself), F to a few roundings of F.
    """
    return _apply_moments(natural)


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


class _KLSum(Differentiable):
    @staticmethod
    def forward(natural: Tensor, prior: Tensor) -> tuple[Tensor, Tensor]:
        if prior.dim() == 0 and not prior.any():
            slope, total = _kl_to_uniform(natural)
        else:
            slope, total = _kl_to_prior(natural, prior)
        return total.to(natural.dtype), slope

    @classmethod
    def setup_context(cls, ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        save(ctx, *inputs, output[1])
        ctx.set_materialize_grads(False)

    @classmethod
    def backward(cls, ctx: Any, *grads: Any) -> Any:
        natural, prior, slope = ctx.saved_tensors
        for_total, for_slope = grads
        for_natural = for_prior = None
        if for_total is not None:
            for_natural = slope * for_total
            if ctx.needs_input_grad[1]:
                for_prior = (mean_difference(prior, natural) * for_total).sum_to_size(prior.shape)
        if for_slope is not None:
            fisher = variance(natural)
            second = for_slope * (fisher - 2.0 * torch.tanh(natural) * slope)
            for_natural = second if for_natural is None else for_natural + second
            if ctx.needs_input_grad[1]:
                second = (-for_slope * fisher).sum_to_size(prior.shape)
                for_prior = second if for_prior is None else for_prior + second
        return for_natural, for_prior

    @classmethod
    def tangent(cls, ctx: Any, saved: Sequence[Tensor], tangents: Sequence[Any]) -> Any:
        natural, prior, slope = saved
        along, along_prior = (0.0 if tangent is None else tangent for tangent in tangents)
        fisher = variance(natural)
        of_slope = along * (fisher - 2.0 * torch.tanh(natural) * slope) - along_prior * fisher
        of_total = (along * slope + along_prior * mean_difference(prior, natural)).sum()
        return of_total, of_slope

    @classmethod
    def vmap(cls, info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[Any, Any]:
        natural, prior = torch.broadcast_tensors(*batched(info.batch_size, in_dims, inputs))
        each = kl_divergence(natural, prior)
        total = each[:, None].flatten(1).sum(1, dtype=torch.float64).to(natural.dtype)
        return (total, (natural - prior) * variance(natural)), (0, 0)


_apply_kl_sum = applied(_KLSum)


def kl_sum(natural: Tensor, prior: Tensor) -> Tensor:
    """The sum of ``kl_divergence`` over the weights, added up in float64."""
    if prior.numel() == 1 or (prior.numel() and not any(prior.stride())):
        prior = prior[(0,) * prior.dim()]  # one number, expanded to a layer: keep it one
    else:
        natural, prior = torch.broadcast_tensors(natural, prior)
    return _apply_kl_sum(natural, prior)[0]


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
    return (grad * decay.mul_(4.0).mul_(r.square_()),)


class _SignsThrough(Elementwise):
    @staticmethod
    def forward(natural: Tensor, signs: Tensor) -> Tensor:
        return signs.view_as(signs)

    @classmethod
    def setup_context(cls, ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        save(ctx, inputs[0])

    @classmethod
    def backward(cls, ctx: Any, *grads: Any) -> Any:
        (natural,) = ctx.saved_tensors
        if torch.is_grad_enabled():
            return grads[0] * variance(natural), None
        return _through_slope(natural, grads[0])[0], None

    @classmethod
    def tangent(cls, ctx: Any, saved: Sequence[Tensor], tangents: Sequence[Any]) -> Any:
        return tangents[0] * variance(saved[0])


_apply_signs_through = applied(_SignsThrough)


def signs_through(natural: Tensor, signs: Tensor) -> Tensor:
    """Hard signs in the forward pass whose gradient is passed to the mean: dw/d lambda := F."""
    return _apply_signs_through(natural, signs)


class _SignsSloped(Elementwise):
    @staticmethod
    def forward(natural: Tensor, signs: Tensor, slope: Tensor) -> Tensor:
        return signs.view_as(signs)

    @staticmethod
    def partials(needed: Sequence[bool], natural: Tensor, signs: Tensor, slope: Tensor) -> Slopes:
        return first_order(slope, natural), None, None


_apply_signs_sloped = applied(_SignsSloped)


def signs_sloped(natural: Tensor, signs: Tensor, slope: Tensor) -> Tensor:
    """Hard signs in the forward pass with a slope that is given: dw/d lambda := slope."""
    return _apply_signs_sloped(natural, signs, slope)


@one_pass
def _reward_slope(natural: Tensor, signs: Tensor, scale: float) -> tuple[Tensor]:
    # 1 - w mu = 2 sigmoid(-2 w lambda), which does not cancel.
    return (torch.mul(natural, signs).mul_(-2.0).sigmoid_().mul_(2.0 * scale),)


def signs_rewarded(natural: Tensor, signs: Tensor, scale: float) -> Tensor:
    """Hard signs whose gradient g becomes scale w g times the score: dw/d lambda := scale (1 - w mu)."""
    return _apply_signs_sloped(natural, signs, _reward_slope(natural.detach(), signs, scale)[0])


@one_pass
def _relaxed(natural: Tensor, uniform: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    noise = torch.log(uniform).sub_(torch.log1p(-uniform)).mul_(0.5)
    scaled = noise.add_(natural).div_(temperature)
    _, decay, r = _decay(scaled)
    value = r.mul(2.0).sub_(1.0).copysign_(scaled)
    return value, decay.mul_(r.square_()).mul_(4.0 / temperature)


class _RelaxedDraw(Elementwise):
    @staticmethod
    def forward(natural: Tensor, uniform: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        value, slope = _relaxed(natural.to(uniform.dtype), uniform, temperature)
        return value.to(natural.dtype), slope

    @classmethod
    def setup_context(cls, ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.temperature, ctx.dtype = inputs[2], inputs[0].dtype
        save(ctx, *output)
        ctx.set_materialize_grads(False)

    @classmethod
    def backward(cls, ctx: Any, *grads: Any) -> Any:
        value, slope = ctx.saved_tensors
        for_value, for_slope = grads
        total = None if for_value is None else for_value * slope
        if for_slope is not None:
            second = for_slope * (-2.0 / ctx.temperature * value * slope)
            total = second if total is None else total + second
        return None if total is None else total.to(ctx.dtype), None, None

    @classmethod
    def tangent(cls, ctx: Any, saved: Sequence[Tensor], tangents: Sequence[Any]) -> Any:
        value, slope = saved
        of_value = tangents[0] * slope
        return of_value.to(ctx.dtype), of_value * (-2.0 / ctx.temperature * value)


_apply_relaxed_draw = applied(_RelaxedDraw)


def relaxed_draw(natural: Tensor, uniform: Tensor, temperature: float) -> Tensor:
    """w_r = tanh((lambda + logit(u)/2) / tau) with its gradient sech^2 / tau."""
    return _apply_relaxed_draw(natural, uniform, temperature)[0]
