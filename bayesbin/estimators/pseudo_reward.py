"""A reward for each weight: SnapQuant's policy gradient on the slopes at the drawn signs."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from bayesbin.core import fused
from bayesbin.core.checks import real_number, whole_number
from bayesbin.estimators.base import Estimator, Objective
from bayesbin.estimators.surrogate import draw_signs


class PseudoReward(Estimator):
    r"""Each drawn weight is rewarded for lying downhill, and made likelier by its reward.

    .. math::
        r_j = \beta\, w_j \frac{\partial f}{\partial w_j}(w), \qquad
        \hat\nabla_{\lambda_j} = r_j\, \nabla_{\lambda_j} \log q(w_j) = r_j (w_j - \mu_j)

    Derivation: to first order f gains 2 w_j df/dw_j by w_j having its sign rather than the other one;
    half of it is credited to that sign alone, and the policy gradient of a reward follows. It is df/dw
    times w_j (w_j - mu_j) = 1 - w_j mu_j, which weighs the two signs equally in expectation:

    .. math::
        E\,\hat\nabla_{\lambda_j} = \beta\, \mathrm{sech}^2(\lambda_j)\;
        E\Big[\tfrac12 \frac{\partial f}{\partial w_j}(w_{j \to +1})
        + \tfrac12 \frac{\partial f}{\partial w_j}(w_{j \to -1})\Big]

    This is the trapezoid rule for the exact (f(+1) - f(-1)) / 2, so that with beta = 1 it is exact where f
    is at most quadratic in each weight, where :class:`StraightThrough` needs it to be linear.

    Biased beyond: where f has a third derivative in a single weight. A scale other than 1 rescales the
    gradient, and is a bias of its own. The factor 1 - w mu, up to 2 at the rarer sign, adds variance.

    :param scale: beta > 0. :param num_samples: draws averaged per call.
    :raises ValueError: if the scale or the number of draws is not positive.

    Example::

        >>> import torch
        >>> from bayesbin.estimators import PseudoReward
        >>> natural = {"w": torch.zeros(3, requires_grad=True)}
        >>> objective = lambda values: torch.stack([w.sum() for w in values["w"]])
        >>> PseudoReward()(objective, natural).backward(); natural["w"].grad.tolist()
        [1.0, 1.0, 1.0]

    Source: SnapQuant, ICLR 2019 submission B1ePui0ctQ; the trapezoid rule for straight-through gradients:
    Liu, Dong, Liu, Yu and Gao 2023, arXiv 2304.08612 (ReinMax).
    """

    unbiased = False

    def __init__(self, scale: float = 1.0, num_samples: int = 1) -> None:
        super().__init__()
        self.scale = real_number("scale", scale, above=0)
        self.num_samples = whole_number("num_samples", num_samples, at_least=1)

    def forward(self, objective: Objective, natural: Mapping[str, Tensor]) -> Tensor:
        signs = draw_signs(natural, self.num_samples)
        values = {
            name: [fused.signs_rewarded(lam, draw, self.scale) for draw in signs[name]]
            for name, lam in natural.items()
        }
        return objective(values).mean()

    def extra_repr(self) -> str:
        return f"scale={self.scale:g}, num_samples={self.num_samples}"
