"""Layers whose weights are signs: ordinary torch modules with a buffer of -1 and +1."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from bayesbin.nn.effective import (
    EffectiveWeights,
    convolution_forward,
    effective,
    layer_of,
    linear_forward,
    make_binary,
    scale_of,
)
from bayesbin.nn.scales import LayerPrior, LayerScale, checked_prior, checked_scale


class _BinaryLayer(EffectiveWeights):
    """What the layers of this file have in common: their weight alone is binary."""

    binary_leaves = ("weight",)

    def _make_binary(self, scale: LayerScale, prior: LayerPrior) -> None:
        own: Any = self
        weight = own._parameters["weight"].detach()
        found = checked_scale(scale, "weight", own, "weight")
        make_binary(own, "weight", checked_prior(prior, weight), found)

    @property
    def scale(self) -> float | Tensor:
        """The number, or tensor per output, that multiplies the signs."""
        own: Any = self
        return scale_of(own, "weight")

    @property
    def prior(self) -> Tensor:
        """The natural parameter of the weights' prior."""
        own: Any = self
        return own._buffers["weight_prior"]


@layer_of(nn.Linear)
class BinaryLinear(_BinaryLayer, nn.Linear):
    r"""Linear layer with binary weights.

    .. math:: y = (s W) x + b, \qquad W \in \{-1, +1\}^{\text{out} \times \text{in}}

    ``layer.weight`` reads s W, the weight that the layer uses. The signs W are a buffer, under the key
    "weight" of the state dict and in ``binary_sites(layer)``; inference replaces them by value.

    :param in_features: size of the last dimension of x, shape (..., in_features).
    :param out_features: size of the last dimension of y.
    :param bias: whether a real-valued bias is learned.
    :param scale: s. "fan-in": the power of two nearest to 1 / sqrt(in_features), so that no product or sum
        of signs is rounded by it; or a positive number, or a tensor of one for each output.
    :param prior: natural parameter of the weights' prior, a number or a tensor of the weight's shape,
        or the prior itself, ``SignBernoulli(probs=0.3)``.
    :raises ValueError: for a scale that is not positive or a prior of another shape or not finite.

    Example::

        >>> import torch
        >>> from bayesbin.nn import BinaryLinear
        >>> layer = BinaryLinear(4, 2)
        >>> layer(torch.ones(3, 4)).shape
        torch.Size([3, 2])
        >>> layer.weight.abs().unique().tolist()
        [0.5]

    Source: Courbariaux, Bengio and David 2015, arXiv 1511.00363 (binary weights).
    """

    weight = effective("weight")  # type: ignore[assignment]
    forward = linear_forward

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        scale: LayerScale = "fan-in",
        prior: LayerPrior = 0.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device=device, dtype=dtype)
        self._make_binary(scale, prior)


@layer_of(nn.Conv1d)
class BinaryConv1d(_BinaryLayer, nn.Conv1d):
    """One-dimensional convolution with binary weights: ``nn.Conv1d`` with scaled signs.

    Arguments as ``nn.Conv1d``, and ``scale`` and ``prior`` as in :class:`BinaryLinear`; the fan-in is
    kernel size times input channels per group. Input (B, C, L), output (B, C', L').

    Example::

        >>> import torch
        >>> from bayesbin.nn import BinaryConv1d
        >>> BinaryConv1d(2, 3, kernel_size=3)(torch.ones(1, 2, 8)).shape
        torch.Size([1, 3, 6])
    """

    weight = effective("weight")  # type: ignore[assignment]
    forward = convolution_forward

    def __init__(
        self, *args: Any, scale: LayerScale = "fan-in", prior: LayerPrior = 0.0, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self._make_binary(scale, prior)


@layer_of(nn.Conv2d)
class BinaryConv2d(_BinaryLayer, nn.Conv2d):
    """Two-dimensional convolution with binary weights: ``nn.Conv2d`` with scaled signs.

    Arguments as ``nn.Conv2d``, and ``scale`` and ``prior`` as in :class:`BinaryLinear`; the fan-in is
    kernel area times input channels per group. Input (B, C, H, W), output (B, C', H', W').

    Example::

        >>> import torch
        >>> from bayesbin.nn import BinaryConv2d
        >>> BinaryConv2d(1, 4, kernel_size=3, padding=1)(torch.ones(1, 1, 8, 8)).shape
        torch.Size([1, 4, 8, 8])
    """

    weight = effective("weight")  # type: ignore[assignment]
    forward = convolution_forward

    def __init__(
        self, *args: Any, scale: LayerScale = "fan-in", prior: LayerPrior = 0.0, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self._make_binary(scale, prior)


class Scale(nn.Module):
    """A learned positive scale on a network's outputs: y = exp(log_scale) x.

    The logits of a binary network with a normalised or fan-in scaled last layer have a fixed size;
    without a learned scale their likelihood is poor however accurate the network is.

    :param initial: the scale at the start, positive.

    Example::

        >>> import torch
        >>> from bayesbin.nn import Scale
        >>> Scale(2.0)(torch.ones(1)).item()
        2.0
    """

    def __init__(self, initial: float = 1.0) -> None:
        super().__init__()
        if not initial > 0:
            raise ValueError(f"The initial scale is a positive number; got {initial}.")
        self.log_scale = nn.Parameter(torch.tensor(math.log(initial)))

    def forward(self, input: Tensor) -> Tensor:
        return input * self.log_scale.exp()
