"""A reward for each weight: SnapQuant's policy-gradient view of the straight-through estimator."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from bayesbin import _fused
from bayesbin.estimators.base import Estimator, Objective, checked_count
from bayesbin.estimators.surrogate import draw_signs


class PseudoReward(Estimator):
    r"""Each drawn weight is rewarded for lying downhill, and made likelier by its reward.

    .. math::
        r_j = \beta\, w_j \frac{\partial f}{\partial w_j}(w), \qquad
        \hat\nabla_{\lambda_j} = r_j\, \nabla_{\lambda_j} \log q(w_j) = r_j (w_j - \mu_j)

    Derivation: to first order f gains 2 w_j df/dw_j by w_j having its sign rather than the other one;
    half of it is credited to that sign alone, and the policy gradient of a reward follows. As
    w_j (w_j - mu_j) = 1 - w_j mu_j has mean sech^2(lambda_j), its expectation for a gradient that does
    not depend on w_j is beta times that of :class:`StraightThrough`.

    Biased, in two ways: df/dw is not the difference f(+1) - f(-1) where f is curved in a weight; and
    where it varies with w_j itself, it meets the factor 1 - w_j mu_j, which is larger at the rarer sign.
    A scale other than 1 rescales the gradient, and is a bias of its own.

    :param scale: beta > 0. :param num_samples: draws averaged per call.
    :raises ValueError: if the scale or the number of draws is not positive.

    Example::

        >>> import torch
        >>> from bayesbin.estimators import PseudoReward
        >>> natural = {"w": torch.zeros(3, requires_grad=True)}
        >>> objective = lambda values: torch.stack([w.sum() for w in values["w"]])
        >>> PseudoReward()(objective, natural).backward(); natural["w"].grad.tolist()
        [1.0, 1.0, 1.0]

    Source: SnapQuant, ICLR 2019 submission B1ePui0ctQ.
    """

    unbiased = False

    def __init__(self, scale: float = 1.0, num_samples: int = 1) -> None:
        super().__init__()
        if not 0 < scale < math.inf:
            raise ValueError(
                f"The scale of the reward is positive and finite (1: as straight-through); got {scale}."
            )
        self.scale = float(scale)
        self.num_samples = checked_count("num_samples", num_samples)

    def forward(self, objective: Objective, natural: Mapping[str, Tensor]) -> Tensor:
        signs = draw_signs(natural, self.num_samples)
        values = {
            name: [_fused.signs_rewarded(lam, draw, self.scale) for draw in signs[name]]
            for name, lam in natural.items()
        }
        return objective(values).mean()

    def extra_repr(self) -> str:
        return f"scale={self.scale:g}, num_samples={self.num_samples}"
