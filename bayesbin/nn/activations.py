"""The sign as an activation: layers behind it have nothing but -1 and +1 to add up."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Sign(nn.Module):
    r"""Activations of -1 and +1, with the straight-through gradient.

    .. math:: y = \mathrm{sign}(x), \quad y(0) = y(-0) = +1, \qquad
        \frac{\partial L}{\partial x} = \frac{\partial L}{\partial y}\, 1\{|x| \le 1\}

    NaN stays NaN. A layer behind it is computed by counting equal bits when it predicts from packed draws.

    Example::

        >>> import torch
        >>> from bayesbin.nn import Sign
        >>> Sign()(torch.tensor([-0.3, 0.0, 2.0])).tolist()
        [-1.0, 1.0, 1.0]

    Source: Hubara, Courbariaux, Soudry, El-Yaniv and Bengio 2016, arXiv 1602.02830.
    """

    def forward(self, input: Tensor) -> Tensor:
        result = _Sign.apply(input)
        assert isinstance(result, Tensor)
        return result


class _Sign(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(input: Tensor) -> Tensor:
        signs = (input >= 0).to(input.dtype) * 2.0 - 1.0
        return torch.where(torch.isnan(input), input, signs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (input,) = ctx.saved_tensors
        return torch.where(input.abs() <= 1.0, grad, 0.0)
