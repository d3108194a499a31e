"""The straight-through Concrete estimator, averaged over the noise that gives the same draw."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from bayesbin.core import fused, numerics
from bayesbin.core.checks import real_number, whole_number
from bayesbin.estimators.base import Estimator, Objective
from bayesbin.estimators.surrogate import draw_signs


class GumbelRao(Estimator):
    r"""Hard draws, with the relaxed draw's slope averaged over the noise behind them.

    .. math::
        \hat\nabla_\lambda = \frac{\partial f}{\partial w}(w)\;
        \frac1K \sum_k \frac{\mathrm{sech}^2(z_k / \tau)}{\tau}, \qquad
        z_k \sim p(\lambda + \delta \mid \mathrm{sign}(\lambda + \delta) = w)

    With K = 1 this is the straight-through Gumbel-softmax estimator; more noise per draw lowers its
    variance at no further evaluation of f, which allows a smaller temperature.

    Biased: f is differentiated at the hard draw (exact only where f is multilinear), and the slope of
    the relaxation has the right mean, sech^2(lambda), only as tau tends to 0.

    :param temperature: tau > 0. :param num_inner: K. :param num_samples: draws averaged per call.
    :raises ValueError: if one of them is not positive.

    Example::

        >>> import torch
        >>> from bayesbin.estimators import GumbelRao
        >>> natural = {"w": torch.zeros(3, requires_grad=True)}
        >>> objective = lambda values: torch.stack([w.sum() for w in values["w"]])
        >>> GumbelRao(temperature=0.3)(objective, natural).backward(); natural["w"].grad.shape
        torch.Size([3])

    Source: Paulus, Maddison and Krause 2021, arXiv 2010.04838.
    """

    unbiased = False

    def __init__(self, temperature: float = 0.5, num_inner: int = 10, num_samples: int = 1) -> None:
        super().__init__()
        self.temperature = real_number("temperature", temperature, above=0)
        self.num_inner = whole_number("num_inner", num_inner, at_least=1)
        self.num_samples = whole_number("num_samples", num_samples, at_least=1)

    def forward(self, objective: Objective, natural: Mapping[str, Tensor]) -> Tensor:
        signs = draw_signs(natural, self.num_samples)
        values = {
            name: [fused.signs_sloped(lam, w, self._slope(lam, w)) for w in signs[name]]
            for name, lam in natural.items()
        }
        return objective(values).mean()

    @torch.no_grad()
    def _slope(self, natural: Tensor, signs: Tensor) -> Tensor:
        # With v uniform, z given w is (w/2) softplus(logit v + softplus(2 w lambda)), so that
        # e = exp(-2 |z| / tau) = ((1 - v) / (1 + v exp(2 w lambda)))^(1/tau), and sech^2 = 4 e / (1 + e)^2.
        growth: Tensor | None = None
        total: Tensor | None = None
        for _ in range(self.num_inner):
            uniform = numerics.uniform_noise(natural)
            if growth is None or total is None:
                growth = torch.exp(2.0 * (signs * natural).to(uniform.dtype))
                total = torch.zeros_like(uniform)
            decay = (
                (1.0 - uniform).div_(uniform.mul_(growth).add_(1.0)).pow_(1.0 / self.temperature)
            )
            total.add_(decay.div_(decay.add(1.0).square_()))
        assert total is not None
        return total.mul_(4.0 / (self.num_inner * self.temperature)).to(natural.dtype)

    def extra_repr(self) -> str:
        return (
            f"temperature={self.temperature:g}, num_inner={self.num_inner}, "
            f"num_samples={self.num_samples}"
        )
