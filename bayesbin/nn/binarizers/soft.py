"""The hyperbolic tangent that hardens to a sign: proximal mean-field and mirror descent."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bayesbin.distributions.relaxed import straight_through
from bayesbin.nn.binarizers.base import Binarizer


class SoftSign(Binarizer):
    r"""The mean tanh(T v) of a sign while training, its sign afterwards.

    .. math::
        w = \tanh(T v), \qquad \frac{\partial L}{\partial v} =
        \begin{cases} T\, \mathrm{sech}^2(T v)\, \partial L / \partial w & \text{proximal mean-field} \\
        \partial L / \partial w & \text{mirror descent} \end{cases}

    Mirror descent steps in the dual v with the gradient of the primal w. At T = 1 SGD on it is the Bayesian
    learning rule without prior at the mean weight: the natural gradient of lambda is the gradient of mu.
    Raise ``sharpness``, T, between epochs, with ``bayesbin.optim.Schedule``.

    :param sharpness: T > 0; both papers call it beta. :param mirror: mirror descent, or proximal mean-field.
    :raises ValueError: if the sharpness is not positive.

    Example::

        >>> import torch
        >>> from bayesbin.nn.binarizers import SoftSign
        >>> latent = torch.tensor([0.0, 9.0], requires_grad=True)
        >>> SoftSign(mirror=True)(latent).sum().backward(); latent.grad.tolist()
        [1.0, 1.0]

    Source: Ajanthan, Dokania, Hartley and Torr 2019, arXiv 1812.04353 (proximal mean-field); Ajanthan, Gupta,
    Torr, Hartley and Dokania 2021, arXiv 1910.08237 (mirror descent, its numerically stable form).
    """

    def __init__(self, sharpness: float = 1.0, *, mirror: bool = False) -> None:
        super().__init__()
        if not 0 < sharpness < math.inf:
            raise ValueError(f"The sharpness is a positive finite number; got {sharpness}.")
        self.sharpness, self.mirror = float(sharpness), mirror

    def forward(self, latent: Tensor) -> Tensor:
        if not self.training:
            return self.hard(latent)
        if self.mirror:
            return straight_through(torch.tanh(self.sharpness * latent.detach()), latent)
        return torch.tanh(self.sharpness * latent)

    def extra_repr(self) -> str:
        return f"sharpness={self.sharpness:g}, mirror={self.mirror}"
