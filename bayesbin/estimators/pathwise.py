"""Gradients along the path of one draw: relaxed signs, or hard signs with an identity backward pass."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from bayesbin.core import fused, numerics
from bayesbin.core.checks import real_number, true_or_false, whole_number
from bayesbin.estimators.base import Estimator, Objective
from bayesbin.estimators.site_distributions import relaxed_weights


class Concrete(Estimator):
    r"""Backpropagation through relaxed signs.

    .. math::
        w_r = \tanh\frac{\lambda + \delta}{\tau}, \qquad
        \hat\nabla_\lambda = \frac{\partial f(w_r)}{\partial w_r}\,
        \frac{\mathrm{sech}^2((\lambda + \delta)/\tau)}{\tau}

    Divided by the Fisher information this is the published vector s times df/dw_r, with
    s = sech^2((lambda + delta)/tau) / (tau sech^2(lambda)), formed here in log space without epsilons.

    Biased: f is evaluated at relaxed signs. As tau tends to 0 the draws tend to the hard draws of the
    same noise and the bias vanishes, while the variance grows as 1/tau.

    :param temperature: tau > 0. :param num_samples: draws averaged per call.
    :raises ValueError: if tau or the number of draws is not positive.

    Example::

        >>> import torch
        >>> from bayesbin.estimators import Concrete
        >>> natural = {"w": torch.zeros(3, requires_grad=True)}
        >>> objective = lambda values: torch.stack([w.sum() for w in values["w"]])
        >>> Concrete(temperature=0.5)(objective, natural).shape
        torch.Size([])

    Source: Maddison, Mnih and Teh 2017, arXiv 1611.00712; Meng, Bachmann and Khan 2020, arXiv
    2002.10778, section 3.
    """

    unbiased = False
    low_bit = True

    def __init__(self, temperature: float = 0.5, num_samples: int = 1) -> None:
        super().__init__()
        self.temperature = real_number("temperature", temperature, above=0)
        self.num_samples = whole_number("num_samples", num_samples, at_least=1)

    def forward(self, objective: Objective, natural: Mapping[str, Any]) -> Tensor:
        values = {
            name: [self._draw(lam) for _ in range(self.num_samples)]
            for name, lam in natural.items()
        }
        return objective(values).mean()

    def _draw(self, natural: Any) -> Tensor:
        if not isinstance(natural, Tensor):
            return relaxed_weights(natural, self.temperature)
        return fused.relaxed_draw(natural, numerics.uniform_noise(natural), self.temperature)

    def extra_repr(self) -> str:
        return f"temperature={self.temperature:g}, num_samples={self.num_samples}"


class StraightThrough(Estimator):
    r"""Hard draws whose gradient is passed to the mean as if it were the draw.

    .. math:: \hat\nabla_\mu = \frac{\partial f(w)}{\partial w}\Big|_{w = \mathrm{sign}(\lambda + \delta)}

    Biased for functions that are curved in a single weight: E[df/dw] is the exact
    (f(+1) - f(-1)) / 2 only where f is multilinear in the signs. With ``noise=False`` the draw is
    sign(lambda), the classical straight-through estimator on latent weights lambda: its surrogate is
    the objective at the mode, not an expectation.

    :param num_samples: draws averaged per call. :param noise: whether to draw.

    Example::

        >>> import torch
        >>> from bayesbin.estimators import StraightThrough
        >>> natural = {"w": torch.tensor([0.3, -0.2], requires_grad=True)}
        >>> objective = lambda values: torch.stack([w.sum() for w in values["w"]])
        >>> StraightThrough(noise=False)(objective, natural).item()
        0.0

    Source: Bengio, Leonard and Courville 2013, arXiv 1308.3432; as a case of the Bayesian learning
    rule: Meng, Bachmann and Khan 2020, arXiv 2002.10778, section 3.3.
    """

    unbiased = False

    def __init__(self, num_samples: int = 1, *, noise: bool = True) -> None:
        super().__init__()
        self.num_samples = whole_number("num_samples", num_samples, at_least=1)
        self.noise = true_or_false("noise", noise)
        if not noise and self.num_samples != 1:
            raise ValueError(
                "StraightThrough(noise=False) has one value, the mode: num_samples is 1."
            )

    def forward(self, objective: Objective, natural: Mapping[str, Tensor]) -> Tensor:
        values = {name: self._draw(lam) for name, lam in natural.items()}
        return objective(values).mean()

    def _draw(self, natural: Tensor) -> list[Tensor]:
        if not self.noise:
            return [fused.signs_through(natural, numerics.sign_of(natural.detach()))]
        return [
            fused.signs_through(
                natural, numerics.hard_signs(natural, numerics.uniform_noise(natural))
            )
            for _ in range(self.num_samples)
        ]

    def extra_repr(self) -> str:
        return f"num_samples={self.num_samples}, noise={self.noise}"
