"""The formulas of ``_numerics`` for layers of millions of weights, in one pass over the memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import softplus

from bayesbin._numerics import LOG_2, blocks, kl_divergence, sign_of


def _decay(natural: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """|lambda|, e = exp(-2|lambda|) and r = 1 / (1 + e), from which everything else is formed."""
    magnitude = natural.abs()
    decay = torch.mul(magnitude, -2.0).exp_()
    return magnitude, decay, decay.add(1.0).reciprocal_()


class _Moments(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, natural: Tensor) -> tuple[Tensor, Tensor]:
        mu, fisher = torch.empty_like(natural), torch.empty_like(natural)
        for lam, m, f in blocks(natural, mu, fisher):
            _, decay, r = _decay(lam)
            torch.copysign(r.mul(2.0).sub_(1.0), lam, out=m)  # (1 - e) / (1 + e) = 2 r - 1
            torch.mul(decay.mul_(4.0), r.square_(), out=f)
        ctx.save_for_backward(mu, fisher)
        return mu, fisher

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_mean: Tensor, grad_variance: Tensor) -> Tensor:
        mu, fisher = ctx.saved_tensors
        result = torch.empty_like(mu)
        for gm, gv, m, f, out in blocks(grad_mean, grad_variance, mu, fisher, result):
            torch.addcmul(gm, gv, m, value=-2.0, out=out)
            out.mul_(f)
        return result


def moments(natural: Tensor) -> tuple[Tensor, Tensor]:
    """(mu, F) = (tanh(lambda), sech^2(lambda)) of a large layer; first derivatives only.

    mu is exact to one rounding of 1 (not of mu itself), F to a few roundings of F.
    """
    return _Moments.apply(natural)


class _KLSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, natural: Tensor, prior: Tensor) -> Tensor:
        slope = torch.empty_like(natural)
        total = torch.zeros((), dtype=torch.float64, device=natural.device)
        if prior.numel() == 1:
            parts = ((lam, prior.reshape(()), out) for lam, out in blocks(natural, slope))
        else:
            parts = blocks(natural, prior.expand_as(natural).contiguous(), slope)
        uniform = prior.numel() == 1 and not prior.any()
        for lam, lam_p, out in parts:
            # As _kl_value: softplus(-2 s lambda_p) - log1p(e) + 2 e r (s lambda_p - |lambda|).
            magnitude, decay, r = _decay(lam)
            value = torch.log1p(decay).neg_()
            torch.mul(decay, r, out=out)
            if uniform:
                value.add_(LOG_2).addcmul_(out, magnitude, value=-2.0)
                out.mul_(lam)
            else:
                aligned = sign_of(lam) * lam_p
                value.add_(softplus(-2.0 * aligned)).addcmul_(out, aligned - magnitude, value=2.0)
                out.mul_(lam - lam_p)
            # The slope (lambda - lambda_p) F, F = 4 e r^2, costs little beside the value: kept.
            out.mul_(r.mul_(4.0))
            total += value.sum(dtype=torch.float64)
        ctx.save_for_backward(slope)
        return total.to(natural.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (slope,) = ctx.saved_tensors
        return slope * grad, None


def kl_sum(natural: Tensor, prior: Tensor) -> Tensor:
    """The sum of ``kl_divergence`` over the weights, in one pass for large layers.

    Where the prior is itself learned or drawn, the elementwise form carries its gradient too.
    """
    if prior.dim() and prior.numel() and not any(prior.stride()):
        prior = prior[(0,) * prior.dim()]  # one number, expanded to a layer: keep it one
    if prior.requires_grad:
        return kl_divergence(*torch.broadcast_tensors(natural, prior)).sum()
    return _KLSum.apply(natural, prior)


def over_fisher(gradient: Tensor, natural: Tensor, bound: float | None = None) -> Tensor:
    """gradient / F, the natural gradient, without a graph.

    1/F = cosh^2(lambda); in float32 it is finite up to |lambda| of about 44. With a bound, F is taken
    at lambda clamped to it, so that a gradient that has underflowed to 0 stays 0 and is not NaN.
    """
    result = torch.empty_like(gradient, memory_format=torch.contiguous_format)
    for lam, g, out in blocks(natural.detach(), gradient, result):
        # 4 / F = (exp(lambda) + exp(-lambda))^2: no intermediate exceeds the result.
        if bound is None:
            torch.exp(lam, out=out)
        else:
            torch.clamp(lam, -bound, bound, out=out).exp_()
        out.add_(out.reciprocal()).square_().mul_(0.25).mul_(g)
    return result


class _SignsThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, natural: Tensor, signs: Tensor) -> Tensor:
        ctx.save_for_backward(natural)
        return signs.view_as(signs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (natural,) = ctx.saved_tensors
        result = torch.empty_like(natural)
        for lam, g, out in blocks(natural, grad, result):
            _, decay, r = _decay(lam)
            torch.mul(decay.mul_(4.0), r.square_(), out=out)
            out.mul_(g)
        return result, None


def signs_through(natural: Tensor, signs: Tensor) -> Tensor:
    """Hard signs in the forward pass whose gradient is passed to the mean: dw/d lambda := F."""
    return _SignsThrough.apply(natural, signs)
