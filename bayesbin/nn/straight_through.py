"""The sign with the derivative of a smoothed sign: one function for activations and for weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from bayesbin.core.differentiable import Elementwise, applied, save
from bayesbin.core.numerics import log_variance

DERIVATIVES = ("identity", "clipped", "polynomial", "tanh-noise")


def sign_through(input: Tensor, derivative: str = "clipped", width: float = 1.0) -> Tensor:
    """The signs of a tensor, +1 at 0 and -0, with a derivative that is not 0 everywhere.

    :param derivative: "identity": 1; "clipped": 1 where |x| <= width, else 0; "polynomial":
        2 - 2|x| where |x| <= 1, else 0; "tanh-noise": sech^2(x).
    :param width: of "clipped" alone.

    NaN stays NaN.
    """
    return _apply_sign_through(input, derivative, width)


_AS_OPERATOR: ContextVar[bool] = ContextVar("whether signs are one operator", default=False)


@torch.library.custom_op("bayesbin::sign", mutates_args=())
def sign_operator(input: Tensor) -> Tensor:
    """The signs of a tensor, +1 at 0 and -0, as one operator of torch; NaN stays NaN."""
    return _signs(input)


@sign_operator.register_fake
def _(input: Tensor) -> Tensor:
    return torch.empty_like(input)


@contextmanager
def sign_as_operator() -> Iterator[None]:
    """While it is open, graphs that torch traces have ``bayesbin::sign`` in place of what it computes."""
    token = _AS_OPERATOR.set(True)
    try:
        yield
    finally:
        _AS_OPERATOR.reset(token)


def _signs(input: Tensor) -> Tensor:
    signs = (input >= 0).to(input.dtype) * 2.0 - 1.0
    return torch.where(torch.isnan(input), input, signs)


class _SignThrough(Elementwise):
    @staticmethod
    def forward(input: Tensor, derivative: str, width: float) -> Tensor:
        return sign_operator(input) if _AS_OPERATOR.get() else _signs(input)

    @classmethod
    def setup_context(cls, ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        input, ctx.derivative, ctx.width = inputs
        if ctx.derivative != "identity":
            save(ctx, input)

    @classmethod
    def backward(cls, ctx: Any, *grads: Any) -> Any:
        return cls._along(ctx, ctx.saved_tensors, grads[0]), None, None

    @classmethod
    def tangent(cls, ctx: Any, saved: Sequence[Tensor], tangents: Sequence[Any]) -> Any:
        return cls._along(ctx, saved, tangents[0])

    @staticmethod
    def _along(ctx: Any, saved: Sequence[Tensor], grad: Tensor) -> Tensor:
        if ctx.derivative == "identity":
            return grad.view_as(grad)
        (input,) = saved
        if ctx.derivative == "clipped":
            return torch.where(input.abs() <= ctx.width, grad, 0.0)
        if ctx.derivative == "polynomial":
            return grad * (2.0 - 2.0 * input.abs()).clamp_min(0.0)
        return grad * torch.exp(log_variance(input))


_apply_sign_through = applied(_SignThrough)


def checked_derivative(derivative: str, known: tuple[str, ...] = DERIVATIVES) -> str:
    """The name of a derivative, or an error."""
    if derivative not in known:
        raise ValueError(
            f"The derivative of a sign is one of {', '.join(known)}; got {derivative!r}."
        )
    return derivative


def checked_width(clip: float | None) -> float | None:
    """The half-width of the window in which a gradient passes, or an error."""
    if clip is not None and not 0 < clip < math.inf:
        raise ValueError(f"clip is a positive number, or None for no clipping; got {clip!r}.")
    return None if clip is None else float(clip)
