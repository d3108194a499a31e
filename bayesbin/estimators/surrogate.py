"""Drawing signs, forming scores, and giving a value a gradient of one's own: what estimators share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from bayesbin.core import numerics
from bayesbin.core.differentiable import Differentiable, applied, batched, first_order, save

Noise = dict[str, list[Tensor]]


def uniform_draws(natural: Mapping[str, Tensor], num_samples: int) -> Noise:
    """u on (0, 1) for each site and draw."""
    return {
        name: [numerics.uniform_noise(lam) for _ in range(num_samples)]
        for name, lam in natural.items()
    }


def signs_at(natural: Mapping[str, Tensor], noise: Noise) -> dict[str, list[Tensor]]:
    """The draws of signs that the noise stands for, +1 where u >= sigmoid(-2 lambda); no graph."""
    return {
        name: [numerics.hard_signs(natural[name], uniform) for uniform in sequence]
        for name, sequence in noise.items()
    }


def draw_signs(natural: Mapping[str, Tensor], num_samples: int) -> dict[str, list[Tensor]]:
    """Independent joint draws of all sites; no graph."""
    return signs_at(natural, uniform_draws(natural, num_samples))


def score(natural: Tensor, signs: Tensor) -> Tensor:
    """d log q(w) / d lambda = w - mu = 2 w sigmoid(-2 w lambda), without a cancelling difference."""
    return 2.0 * signs * torch.sigmoid(-2.0 * signs * natural.detach())


def combination(weights: Tensor, tensors: Sequence[Tensor]) -> Tensor:
    """sum_s a_s t_s, added up in order.

    :param weights: a, shape (S,), or (S, *sizes) that broadcast to the tensors' shape.
    """
    total = torch.zeros_like(tensors[0])
    if weights.dim() > 1:
        for weight, tensor in zip(weights.to(total), tensors, strict=True):
            total.addcmul_(weight, tensor)
        return total
    for weight, tensor in zip(weights.tolist(), tensors, strict=True):
        total.add_(tensor, alpha=weight)
    return total


def weighted_score(
    weights: Tensor, signs: Sequence[Tensor], natural: Tensor, *, centred: bool = False
) -> Tensor:
    """The sum over draws of weight times score, sum_s a_s (w_s - mu).

    Split at the likelier sign t of each weight, sum_s a_s (w_s - t) + (t - mu) sum_s a_s: both parts
    keep their digits where lambda is saturated, which w_s - mu does not.

    :param weights: a, shape (S,), or (S, *sizes) that broadcast to the weights' shape.
    :param centred: they sum to 0 over the draws, so that the second part vanishes.
    """
    natural = natural.detach()
    likelier = numerics.sign_of(natural)
    total = combination(weights, signs)
    # sum_s a_s t, added up as the sum above was: where every draw is t, the difference is exactly 0.
    ones = torch.ones((), dtype=total.dtype, device=total.device)
    if weights.dim() > 1:
        ones = ones.expand_as(total)
    total.addcmul_(likelier, combination(weights, [ones] * len(signs)), value=-1.0)
    if not centred:
        rarer = torch.sigmoid(natural.abs().mul_(-2.0))
        if weights.dim() > 1:
            likelier = likelier * weights.sum(0).to(likelier)
            total.addcmul_(rarer, likelier, value=2.0)
        else:
            total.addcmul_(rarer, likelier, value=2.0 * weights.sum().item())
    return total


class _WithGradient(Differentiable):
    @staticmethod
    def forward(value: Tensor, parameter: Tensor, gradient: Tensor) -> Tensor:
        return value.clone()

    @classmethod
    def setup_context(cls, ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        save(ctx, *inputs[1:])

    @classmethod
    def backward(cls, ctx: Any, *grads: Any) -> Any:
        parameter, gradient = ctx.saved_tensors
        (grad,) = grads  # of a number, under vmap of a number for each of the batch
        ones = (1,) * (gradient.dim() - grad.dim())
        slope = first_order(gradient, parameter)
        return grad, grad.reshape(grad.shape + ones) * slope, None

    @classmethod
    def tangent(cls, ctx: Any, saved: Sequence[Tensor], tangents: Sequence[Any]) -> Any:
        parameter, gradient = saved
        slope = first_order(gradient, parameter)
        total = (tangents[1] * slope)[..., None].flatten(tangents[0].dim()).sum(-1)
        return tangents[0] + total

    @classmethod
    def vmap(cls, info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[Any, Any]:
        return cls.apply(*batched(info.batch_size, in_dims, inputs, align=False)), 0


_apply_with_gradient = applied(_WithGradient)


def with_gradient(
    value: Tensor, parameters: Mapping[str, Tensor], gradients: Mapping[str, Tensor]
) -> Tensor:
    """``value`` as it is, and with its own graph, whose slope in each parameter is increased by
    ``gradients``: how an estimate that is not the derivative of anything becomes a surrogate's."""
    for name, gradient in gradients.items():
        parameter = parameters[name]
        value = _apply_with_gradient(value, parameter, gradient.detach().to(parameter.dtype))
    return value
