"""Layers whose weights are signs: ordinary torch modules with a buffer of -1 and +1."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from bayesbin.core.numerics import sign_of
from bayesbin.distributions import SignBernoulli

LayerPrior = Tensor | float | SignBernoulli


@dataclass(frozen=True)
class BinarySite:
    """One tensor of binary weights in a network: its name as a Pyro site, its shape, its prior.

    :param name: dotted parameter name, the Pyro site.
    :param shape: shape of the signs.
    :param prior: natural parameter of the prior, a scalar tensor or one of ``shape``.
    :param signs: the signs that the network itself holds (what a plain forward pass uses).
    """

    name: str
    shape: torch.Size
    prior: Tensor
    signs: Tensor


class BinaryWeight(nn.Module):
    """What a layer with a buffer ``weight`` of signs, a ``prior`` and a ``scale`` has in common."""

    weight: Tensor
    prior: Tensor
    scale: float

    def _make_binary(self, scale: float | str, prior: LayerPrior) -> None:
        # The layer's constructor made a real weight; its signs replace it as a buffer, so that no
        # optimizer ever claims them.
        weight = self._parameters.pop("weight")
        assert weight is not None
        weight = weight.detach()
        self.register_buffer("weight", signs_of(weight))
        self.register_buffer("prior", checked_prior(prior, weight))
        self.scale = resolve_scale(scale, weight)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, scale={self.scale:.4g}"


class BinaryLinear(BinaryWeight, nn.Linear):
    r"""Linear layer with binary weights.

    .. math:: y = s\, W x + b, \qquad W \in \{-1, +1\}^{\text{out} \times \text{in}}

    A plain forward pass uses the signs held in the buffer ``weight``; inference replaces them by value.

    :param in_features: size of the last dimension of x, shape (..., in_features).
    :param out_features: size of the last dimension of y.
    :param bias: whether a real-valued bias is learned.
    :param scale: s; "fan-in" is 1 / sqrt(number of inputs of a unit), or a positive number.
    :param prior: natural parameter of the weights' prior, a number or a tensor of the weight's shape,
        or the prior itself, ``SignBernoulli(probs=0.3)``.
    :raises ValueError: for a scale that is not positive or a prior of another shape or not finite.

    Example::

        >>> import torch
        >>> from bayesbin.nn import BinaryLinear
        >>> BinaryLinear(4, 2)(torch.ones(3, 4)).shape
        torch.Size([3, 2])

    Source: Courbariaux, Bengio and David 2015, arXiv 1511.00363 (binary weights).
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        scale: float | str = "fan-in",
        prior: LayerPrior = 0.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device=device, dtype=dtype)
        self._make_binary(scale, prior)

    def forward(self, input: Tensor) -> Tensor:
        # Scaling the input is the cheapest place: it is far smaller than the weight.
        return F.linear(input * self.scale, self.weight, self.bias)


class BinaryConv1d(BinaryWeight, nn.Conv1d):
    """One-dimensional convolution with binary weights: ``nn.Conv1d`` with signs, scaled by s.

    Arguments as ``nn.Conv1d``, and ``scale`` and ``prior`` as in :class:`BinaryLinear`; the fan-in is
    kernel size times input channels per group. Input (B, C, L), output (B, C', L').

    Example::

        >>> import torch
        >>> from bayesbin.nn import BinaryConv1d
        >>> BinaryConv1d(2, 3, kernel_size=3)(torch.ones(1, 2, 8)).shape
        torch.Size([1, 3, 6])
    """

    def __init__(
        self, *args: Any, scale: float | str = "fan-in", prior: LayerPrior = 0.0, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self._make_binary(scale, prior)

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input * self.scale, self.weight, self.bias)


class BinaryConv2d(BinaryWeight, nn.Conv2d):
    """Two-dimensional convolution with binary weights: ``nn.Conv2d`` with signs, scaled by s.

    Arguments as ``nn.Conv2d``, and ``scale`` and ``prior`` as in :class:`BinaryLinear`; the fan-in is
    kernel area times input channels per group. Input (B, C, H, W), output (B, C', H', W').

    Example::

        >>> import torch
        >>> from bayesbin.nn import BinaryConv2d
        >>> BinaryConv2d(1, 4, kernel_size=3, padding=1)(torch.ones(1, 1, 8, 8)).shape
        torch.Size([1, 4, 8, 8])
    """

    def __init__(
        self, *args: Any, scale: float | str = "fan-in", prior: LayerPrior = 0.0, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self._make_binary(scale, prior)

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input * self.scale, self.weight, self.bias)


class ScaledSigns(nn.Module):
    """The torch parametrization of a binary weight inside any other module: scale times signs."""

    prior: Tensor

    def __init__(self, weight: Tensor, scale: float | str, prior: LayerPrior) -> None:
        super().__init__()
        self.scale = resolve_scale(scale, weight)
        self.register_buffer("prior", checked_prior(prior, weight))

    def forward(self, signs: Tensor) -> Tensor:
        return signs * self.scale

    def right_inverse(self, weight: Tensor) -> Tensor:
        return signs_of(weight)


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


def binary_sites(net: nn.Module) -> dict[str, BinarySite]:
    """The binary weights of a network by site name, in the order of ``net.named_modules()``.

    Example::

        >>> import torch
        >>> from bayesbin.nn import BinaryLinear, binary_sites
        >>> list(binary_sites(torch.nn.Sequential(BinaryLinear(3, 2))))
        ['0.weight']
    """
    sites = {}
    for path, module in net.named_modules():
        prefix = f"{path}." if path else ""
        if isinstance(module, BinaryWeight):
            name = f"{prefix}weight"
            sites[name] = BinarySite(name, module.weight.shape, module.prior, module.weight)
        if parametrize.is_parametrized(module):
            chains: Any = module.parametrizations
            for leaf, chain in chains.items():
                if isinstance(chain[0], ScaledSigns):
                    name = f"{prefix}{leaf}"
                    sites[name] = BinarySite(
                        name, chain.original.shape, chain[0].prior, chain.original
                    )
    return sites


def signs_of(weight: Tensor) -> Tensor:
    """The signs of a real tensor, +1 at 0."""
    return sign_of(weight.detach())


def checked_prior(prior: LayerPrior, weight: Tensor) -> Tensor:
    """A prior's natural parameter as a tensor that broadcasts to the weight, or an error."""
    if isinstance(prior, SignBernoulli):
        prior = prior.natural
    elif isinstance(prior, torch.distributions.Distribution):
        raise ValueError(
            f"The prior of binary weights is a natural parameter or a SignBernoulli, elementwise; got "
            f"{type(prior).__name__}. A distribution of the prior itself is the model's hyperprior=."
        )
    natural = torch.as_tensor(prior, dtype=weight.dtype, device=weight.device).detach().clone()
    if natural.dim() and natural.shape != weight.shape:
        raise ValueError(
            f"The prior of a weight of shape {tuple(weight.shape)} is one natural parameter or a "
            f"tensor of that shape; got shape {tuple(natural.shape)}."
        )
    if not bool(torch.isfinite(natural).all()):
        raise ValueError(
            "The prior's natural parameter is finite, its P(w = +1) strictly between 0 and 1; got NaN "
            "or infinity. A weight that must not move has the natural parameter +-40."
        )
    return natural


def resolve_scale(scale: float | str, weight: Tensor) -> float:
    """The number behind ``scale``: 1 / sqrt(fan-in) for "fan-in"."""
    if scale == "fan-in":
        # All dimensions but the first (units) feed one output.
        return 1.0 / math.sqrt(max(1, weight[0].numel() if weight.dim() > 1 else weight.numel()))
    if isinstance(scale, str) or not (scale > 0 and math.isfinite(scale)):
        raise ValueError(f'A layer\'s scale is "fan-in" or a positive number; got {scale!r}.')
    return float(scale)
