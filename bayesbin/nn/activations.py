"""The sign as an activation: layers behind it have nothing but -1 and +1 to add up."""

from __future__ import annotations

from torch import Tensor, nn

from bayesbin.nn.straight_through import checked_derivative, sign_through

ACTIVATION_DERIVATIVES = ("clipped", "polynomial", "tanh-noise")


class Sign(nn.Module):
    r"""Activations of -1 and +1, with a straight-through gradient.

    .. math:: y = \mathrm{sign}(x), \quad y(0) = y(-0) = +1, \qquad
        \frac{\partial L}{\partial x} = \frac{\partial L}{\partial y}\, s(x)

    Each slope s is that of a sign whose input is noisy, so that what is differentiated is an expectation:
    with n symmetric of density p,

    .. math:: s(x) = \frac{d}{dx} E[\mathrm{sign}(x + n)] = \frac{d}{dx} (2 P(x + n > 0) - 1) = 2 p(x)

    ============ ======================== ============================== =====================
    derivative   s(x)                     noise n                        E[sign(x + n)]
    ============ ======================== ============================== =====================
    "clipped"    1 where \|x\| <= 1       uniform on (-1, 1)             x, clipped to (-1, 1)
    "polynomial" 2 - 2\|x\|, at least 0   triangular on (-1, 1)          2x - x\|x\|, clipped
    "tanh-noise" sech^2(x)                logistic of scale 1/2          tanh(x)
    ============ ======================== ============================== =====================

    The last is the noise behind a weight's draw, sign(lambda + logit(u) / 2): an activation with it has
    the gradient of the mean of a sign with natural parameter x. The forward pass adds no noise: it is the
    mode. NaN stays NaN. A layer behind it is computed by counting equal bits when it predicts from packed
    draws.

    :param derivative: "clipped", "polynomial" or "tanh-noise". :raises ValueError: for another name.

    Example::

        >>> import torch
        >>> from bayesbin.nn import Sign
        >>> Sign()(torch.tensor([-0.3, 0.0, 2.0])).tolist()
        [-1.0, 1.0, 1.0]
        >>> x = torch.tensor([-0.3, 0.0, 2.0], requires_grad=True)
        >>> Sign("polynomial")(x).sum().backward(); [round(s, 1) for s in x.grad.tolist()]
        [1.4, 2.0, 0.0]

    Source: Hubara, Courbariaux, Soudry, El-Yaniv and Bengio 2016, arXiv 1602.02830 (clipped); Liu, Wu, Luo,
    Yang, Liu and Cheng 2018, arXiv 1808.00278 (polynomial); Peters and Welling 2018, arXiv 1809.03368
    (noisy signs).
    """

    def __init__(self, derivative: str = "clipped") -> None:
        super().__init__()
        self.derivative = checked_derivative(derivative, ACTIVATION_DERIVATIVES)

    def forward(self, input: Tensor) -> Tensor:
        return sign_through(input, self.derivative)

    def extra_repr(self) -> str:
        return "" if self.derivative == "clipped" else f"derivative={self.derivative!r}"
