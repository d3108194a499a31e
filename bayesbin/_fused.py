"""The formulas of ``_numerics`` for layers of millions of weights, in one pass over the memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import softplus

from bayesbin._numerics import LOG_2, kl_divergence, sign_of

# Elementwise chains over ten million weights are bound by memory traffic, not arithmetic: the two
# functions below work through the weights in blocks whose temporaries stay in the cache.
_BLOCK = 1 << 18


def _blocks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Matching blocks of contiguous tensors of one shape; a single block where one is not contiguous."""
    if not all(tensor.is_contiguous() for tensor in tensors):
        return iter([tensors])
    return zip(*(tensor.view(-1).split(_BLOCK) for tensor in tensors), strict=True)


def _decay(natural: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """|lambda|, e = exp(-2|lambda|) and r = 1 / (1 + e), from which everything else is formed."""
    magnitude = natural.abs()
    decay = torch.mul(magnitude, -2.0).exp_()
    return magnitude, decay, decay.add(1.0).reciprocal_()


class _Moments(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, natural: Tensor) -> tuple[Tensor, Tensor]:
        mu, fisher = torch.empty_like(natural), torch.empty_like(natural)
        for lam, m, f in _blocks(natural, mu, fisher):
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
        for gm, gv, m, f, out in _blocks(grad_mean, grad_variance, mu, fisher, result):
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
            blocks = ((lam, prior.reshape(()), out) for lam, out in _blocks(natural, slope))
        else:
            blocks = _blocks(natural, prior.expand_as(natural).contiguous(), slope)
        uniform = prior.numel() == 1 and not prior.any()
        for lam, lam_p, out in blocks:
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
    if prior.requires_grad:
        return kl_divergence(*torch.broadcast_tensors(natural, prior)).sum()
    return _KLSum.apply(natural, prior)


def over_fisher(gradient: Tensor, natural: Tensor, bound: float | None = None) -> Tensor:
    """gradient / F, the natural gradient, without a graph.

    1/F = cosh^2(lambda); in float32 it is finite up to |lambda| of about 44. With a bound, F is taken
    at lambda clamped to it, so that a gradient that has underflowed to 0 stays 0 and is not NaN.
    """
    result = torch.empty_like(gradient, memory_format=torch.contiguous_format)
    for lam, g, out in _blocks(natural.detach(), gradient, result):
        # 4 / F = (exp(lambda) + exp(-lambda))^2: no intermediate exceeds the result.
        if bound is None:
            torch.exp(lam, out=out)
        else:
            torch.clamp(lam, -bound, bound, out=out).exp_()
        out.add_(out.reciprocal()).square_().mul_(0.25).mul_(g)
    return result
