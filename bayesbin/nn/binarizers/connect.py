"""BinaryConnect and TernaryConnect: latents in [-1, 1], rounded or drawn, with an identity gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from bayesbin.core import numerics
from bayesbin.distributions.relaxed import straight_through
from bayesbin.nn.binarizers.base import Binarizer


class BinaryConnect(Binarizer):
    r"""The sign of a latent, or a draw whose mean is the clipped latent; the gradient at it is the latent's.

    .. math::
        w = \mathrm{sign}(v) \quad\text{or}\quad P(w = +1) = \mathrm{clip}\big(\tfrac{v + 1}{2}, 0, 1\big),
        \qquad \frac{\partial L}{\partial v} := \frac{\partial L}{\partial w}

    Latents are clipped to [-1, 1] after each step (``latent_bound``), and only by that. In evaluation the
    weights are the signs, in either variant; the paper tests its stochastic one on the real latents.

    :param stochastic: whether to draw the signs while training (torch's global generator).

    Example::

        >>> import torch
        >>> from bayesbin.nn.binarizers import BinaryConnect
        >>> latent = torch.tensor([0.3, -2.0, 5.0], requires_grad=True)
        >>> BinaryConnect(stochastic=True)(latent)[1:].tolist()
        [-1.0, 1.0]
        >>> BinaryConnect()(latent).sum().backward(); latent.grad.tolist()
        [1.0, 1.0, 1.0]

    Source: Courbariaux, Bengio and David 2015, arXiv 1511.00363.
    """

    latent_bound = 1.0

    def __init__(self, stochastic: bool = False) -> None:
        super().__init__()
        self.stochastic = stochastic

    def forward(self, latent: Tensor) -> Tensor:
        signs = self._draw(latent.detach()) if self.stochastic and self.training else None
        return straight_through(self.hard(latent) if signs is None else signs, latent)

    def _draw(self, latent: Tensor) -> Tensor:
        uniform = numerics.uniform_noise(latent)
        return ((2.0 * uniform < latent + 1.0).to(latent.dtype)) * 2.0 - 1.0

    def extra_repr(self) -> str:
        return f"stochastic={self.stochastic}"


class TernaryConnect(Binarizer):
    r"""A latent rounded to -1, 0 or 1, or drawn so that its mean is the clipped latent.

    .. math::
        w = \mathrm{round}(v) \quad\text{or}\quad P(w = \mathrm{sign}(v)) = \min(|v|, 1) = 1 - P(w = 0),
        \qquad \frac{\partial L}{\partial v} := \frac{\partial L}{\partial w}

    Latents are clipped to [-1, 1] after each step (``latent_bound``). In evaluation the weights are the
    rounded latents (0 where \|v\| <= 1/2), in either variant.

    :param stochastic: whether to draw the weights while training (torch's global generator).

    Example::

        >>> import torch
        >>> from bayesbin.nn.binarizers import TernaryConnect
        >>> TernaryConnect(stochastic=False)(torch.tensor([0.3, -0.7, 5.0])).tolist()
        [0.0, -1.0, 1.0]

    Source: Lin, Courbariaux, Memisevic and Bengio 2016, arXiv 1510.03009.
    """

    levels = (-1.0, 0.0, 1.0)
    latent_bound = 1.0

    def __init__(self, stochastic: bool = True) -> None:
        super().__init__()
        self.stochastic = stochastic

    def forward(self, latent: Tensor) -> Tensor:
        if not (self.stochastic and self.training):
            return straight_through(self.hard(latent), latent)
        fixed = latent.detach()
        drawn = numerics.uniform_noise(fixed) < fixed.abs()
        return straight_through(torch.where(drawn, fixed.sign(), 0.0).to(latent.dtype), latent)

    def hard(self, latent: Tensor) -> Tensor:
        """The rounded latents; a half goes to 0."""
        return latent.detach().clamp(-1.0, 1.0).round() + 0.0  # -0 is 0

    def right_inverse(self, weight: Tensor) -> Tensor:
        """The real weight, scaled to the root mean square 1 / sqrt(3) of numbers uniform in [-1, 1].

        Weights as torch starts them would round to 0, every one, and then nothing would learn.
        """
        return weight * (3.0 * weight.detach().square().mean().clamp_min(1e-30)).rsqrt()

    def extra_repr(self) -> str:
        return f"stochastic={self.stochastic}"
