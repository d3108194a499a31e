"""Signs of latent weights that are learned straight through the sign, and signs without latents."""

from __future__ import annotations

from torch import Tensor

from bayesbin.core.numerics import sign_of
from bayesbin.nn.binarizers.base import Binarizer
from bayesbin.nn.straight_through import checked_width, sign_through


class SignSTE(Binarizer):
    r"""The sign, with the gradient passed through where the latent is small.

    .. math:: w = \mathrm{sign}(v), \qquad
        \frac{\partial L}{\partial v} = \frac{\partial L}{\partial w}\, 1\{|v| \le c\}

    :param clip: c, also where latents are to be clipped after each step (``latent_bound``); None passes
        every gradient and bounds nothing: plain SGD is then the Bayesian learning rule without prior
        whose draws are sign(lambda).
    :raises ValueError: if clip is not positive.

    Example::

        >>> import torch
        >>> from bayesbin.nn.binarizers import SignSTE
        >>> latent = torch.tensor([0.3, -2.0], requires_grad=True)
        >>> SignSTE()(latent).tolist()
        [1.0, -1.0]
        >>> SignSTE()(latent).sum().backward(); latent.grad.tolist()
        [1.0, 0.0]

    Source: Bengio, Leonard and Courville 2013, arXiv 1308.3432; Hubara, Courbariaux, Soudry, El-Yaniv and
    Bengio 2016, arXiv 1602.02830.
    """

    def __init__(self, clip: float | None = 1.0) -> None:
        super().__init__()
        self.clip = self.latent_bound = checked_width(clip)

    def forward(self, latent: Tensor) -> Tensor:
        if self.clip is None:
            return sign_through(latent, "identity")
        return sign_through(latent, "clipped", self.clip)

    def extra_repr(self) -> str:
        return f"clip={self.clip}"


class ApproxSign(Binarizer):
    r"""The sign, with the derivative of a quadratic that approximates it.

    .. math:: w = \mathrm{sign}(v), \qquad
        \frac{\partial L}{\partial v} = \frac{\partial L}{\partial w}\, \max(0,\, 2 - 2|v|)

    Example::

        >>> import torch
        >>> from bayesbin.nn.binarizers import ApproxSign
        >>> latent = torch.tensor([0.25, -2.0], requires_grad=True)
        >>> ApproxSign()(latent).sum().backward(); latent.grad.tolist()
        [1.5, 0.0]

    Source: Liu, Wu, Luo, Yang, Liu and Cheng 2018, arXiv 1808.00278 (Bi-Real net).
    """

    def forward(self, latent: Tensor) -> Tensor:
        return sign_through(latent, "polynomial")


class Signs(Binarizer):
    """No latents: the parameter is the sign itself, and its gradient that of the weight.

    For optimizers that flip signs, ``bayesbin.optim.Bop`` and ``SecondOrderBop``; any other optimizer would
    move them off -1 and +1.

    Example::

        >>> import torch
        >>> from bayesbin.nn import binarize_, latents
        >>> from bayesbin.nn.binarizers import Signs
        >>> net = binarize_(torch.nn.Linear(3, 2), Signs())
        >>> bool((latents(net)["weight"].abs() == 1).all())
        True

    Source: Helwegen et al. 2019, arXiv 1906.02107 ("latent weights do not exist").
    """

    def forward(self, latent: Tensor) -> Tensor:
        return latent

    def hard(self, latent: Tensor) -> Tensor:
        """The signs themselves. :raises RuntimeError: if they are signs no longer."""
        if not bool((latent.detach().abs() == 1).all()):
            raise RuntimeError(
                "Signs() holds parameters of -1 and +1; an optimizer other than Bop or SecondOrderBop has "
                "moved them. Use one of these, or a binarizer with latents such as SignSTE()."
            )
        return latent.detach().clone()

    def right_inverse(self, weight: Tensor) -> Tensor:
        """The signs of a real weight."""
        return sign_of(weight.detach())
