"""Prediction without draws: mean and variance of every unit, carried through the network once."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from bayesbin.nn.activations import Sign
from bayesbin.nn.effective import convolution_forward, linear_forward, scale_of
from bayesbin.nn.layers import Scale

_LINEAR = (
    linear_forward,
    convolution_forward,
    nn.Linear.forward,
    nn.Conv1d.forward,
    nn.Conv2d.forward,
)


@dataclass(frozen=True)
class Moments:
    """Mean and variance of each unit, taken to be independent and, before an activation, Gaussian.

    :param mean: and :param variance: of one shape, (B, ...).
    """

    mean: Tensor
    variance: Tensor

    def probs(self) -> Tensor:
        r"""Class probabilities (B, C) of Gaussian logits: softmax(m / sqrt(1 + pi v / 8)), approximately.

        Source: MacKay 1992, "The evidence framework applied to classification networks" (its binary form).
        """
        return torch.softmax(self.mean / torch.sqrt(1.0 + math.pi / 8.0 * self.variance), -1)


@torch.no_grad()
def propagate_moments(net: nn.Module, posterior: Mapping[str, Any], x: Tensor) -> Moments:
    r"""The outputs' mean and variance under a mean-field posterior, in one deterministic pass.

    .. math::
        m_a = s\,\mu\, m_x + b, \qquad
        v_a = s^2 \big(\mathrm{Var}[w] (m_x^2 + v_x) + \mu^2 v_x\big), \\
        y = \mathrm{sign}(a):\ \ m_y = \mathrm{erf}\frac{m_a}{\sqrt{2 v_a}}, \ \ v_y = 1 - m_y^2

    Exact for a linear layer. Behind it pre-activations are taken to be Gaussian, which is good for many
    inputs, and units to be independent, though all share the inputs' and, in convolutions, the weights'
    randomness. For the posterior predictive itself use ``bayesbin.Ensemble``.

    :param net: a Sequential of BinaryLinear, BinaryConv1d/2d, real Linear and Conv, Sign, ReLU, BatchNorm
        (with its running statistics), Scale, Flatten, Dropout, AvgPool2d, and of such.
    :param posterior: site name -> a distribution with mean and variance: ``BinaryPosterior`` or
    ``LowBitPosterior``.
    :param x: inputs (B, ...).
    :raises ValueError: for any other layer, by its name.

    Example::

        >>> import torch
        >>> from bayesbin.nn import BinaryLinear, Sign
        >>> from bayesbin.nn.moment_propagation import propagate_moments
        >>> from bayesbin.posterior import BinaryPosterior
        >>> net = torch.nn.Sequential(BinaryLinear(4, 8), Sign(), BinaryLinear(8, 3))
        >>> posterior = BinaryPosterior({"0.weight": torch.zeros(8, 4), "2.weight": torch.ones(3, 8)})
        >>> propagate_moments(net, posterior, torch.ones(5, 4)).probs().shape
        torch.Size([5, 3])

    Source: Soudry, Hubara and Meir 2014, "Expectation backpropagation", NIPS (its forward pass).
    """
    return _through(net, "", posterior, Moments(x, torch.zeros_like(x)))


def _through(layer: nn.Module, name: str, posterior: Mapping[str, Any], given: Moments) -> Moments:
    if isinstance(layer, nn.Sequential):
        for child, module in layer.named_children():
            given = _through(module, f"{name}.{child}" if name else child, posterior, given)
        return given
    if isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d)):
        return _weighted(layer, f"{name}.weight" if name else "weight", posterior, given)
    if isinstance(layer, Sign):
        mean = torch.erf(given.mean / (2.0 * given.variance).sqrt())
        mean = torch.where(given.variance > 0, mean, layer(given.mean))  # 0 / 0 without any noise
        return Moments(mean, 1.0 - mean.square())
    if isinstance(layer, nn.ReLU):
        return _rectified(given)
    if isinstance(layer, _BatchNorm):
        return _normalised(layer, given)
    if isinstance(layer, Scale):
        factor = layer.log_scale.exp()
        return Moments(given.mean * factor, given.variance * factor.square())
    if isinstance(layer, nn.AvgPool2d):
        size = layer.kernel_size
        area = size * size if isinstance(size, int) else math.prod(size)
        return Moments(layer(given.mean), layer(given.variance) / area)
    if isinstance(layer, (nn.Flatten, nn.Identity, nn.Dropout)):
        same = layer if isinstance(layer, nn.Flatten) else nn.Identity()
        return Moments(same(given.mean), same(given.variance))
    raise ValueError(
        f"propagate_moments has no rule for {type(layer).__name__} ({name or 'the network'}); use "
        "bayesbin.Ensemble, which draws."
    )


def _weighted(
    layer: nn.Linear | nn.Conv1d | nn.Conv2d,
    site: str,
    posterior: Mapping[str, Any],
    given: Moments,
) -> Moments:
    if type(layer).forward not in _LINEAR:
        raise ValueError(
            f"propagate_moments has no rule for {type(layer).__name__}, whose forward is its own; use "
            "bayesbin.Ensemble, which draws."
        )
    leaves = getattr(type(layer), "binary_leaves", ())
    if leaves and leaves != ("weight",):
        raise ValueError(
            f"propagate_moments takes layers whose weight alone is binary; that of {site!r} has binary "
            f"{', '.join(leaves)}. Use bayesbin.Ensemble, which draws."
        )
    if leaves:
        distribution, scale = posterior[site], scale_of(layer, "weight")
        mean, variance = scale * distribution.mean, scale**2 * distribution.variance
    else:
        mean, variance = layer.weight, torch.zeros_like(layer.weight)
    mean, variance = mean.to(given.mean), variance.to(given.mean)
    linear = _linear_map(layer)
    bias = None if layer.bias is None else layer.bias.to(mean)
    second = given.mean.square() + given.variance
    spread = linear(second, variance, None) + linear(given.variance, mean.square(), None)
    return Moments(linear(given.mean, mean, bias), spread)


def _linear_map(layer: Any) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    return F.linear if isinstance(layer, nn.Linear) else layer._conv_forward


def _rectified(given: Moments) -> Moments:
    """Mean and variance of max(0, a), a ~ N(m, v)."""
    deviation = given.variance.clamp_min(torch.finfo(given.mean.dtype).tiny).sqrt()
    z = given.mean / deviation
    above = 0.5 * torch.erfc(-z / math.sqrt(2.0))
    density = torch.exp(-0.5 * z.square()) / math.sqrt(2.0 * math.pi)
    mean = given.mean * above + deviation * density
    second = (given.mean.square() + given.variance) * above + given.mean * deviation * density
    return Moments(mean, (second - mean.square()).clamp_min(0.0))


def _normalised(layer: _BatchNorm, given: Moments) -> Moments:
    if layer.running_mean is None or layer.running_var is None:
        raise ValueError("propagate_moments needs running statistics in every normalisation layer.")
    # By the layer's own formula: its value, and the square of its slope.
    mean = F.batch_norm(
        given.mean, layer.running_mean, layer.running_var, layer.weight, layer.bias, eps=layer.eps
    )
    slope = torch.rsqrt(layer.running_var + layer.eps) * (
        1.0 if layer.weight is None else layer.weight
    )
    shape = (1, -1) + (1,) * (given.mean.dim() - 2)
    return Moments(mean, given.variance * slope.square().reshape(shape))
