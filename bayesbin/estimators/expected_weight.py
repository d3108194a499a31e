"""The expected weight in place of the weights: what low-bit search trains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from bayesbin.core.checks import real_number
from bayesbin.estimators.base import Estimator, Objective
from bayesbin.estimators.site_distributions import sharpened_mean


class ExpectedWeight(Estimator):
    r"""The objective at the mean of the sharpened distribution, without noise.

    .. math:: w_T = \sum_k l_k\, \frac{p_k^T}{\sum_j p_j^T}, \qquad
        \text{for signs}\ \ w_T = \tanh(T \lambda)

    At T = 1 it is the network of mean weights; raise ``sharpness``, T, between epochs
    (``bayesbin.optim.Schedule(estimator, "sharpness", ...)``) until it is that of the mode. With
    ``AutoLowBit`` and ``kl_weight=0`` this is SLB; with ``AutoSignBernoulli``, ``kl_weight=0`` and a torch
    optimizer, proximal mean-field; at T = 1 with the Bayesian learning rule, mirror descent.

    Biased: f of a mean is not the mean of f, unless f is multilinear. It sees none of the posterior's spread.

    :param sharpness: T > 0. :raises ValueError: if it is not positive and finite.

    Example::

        >>> import torch
        >>> from bayesbin.estimators import ExpectedWeight
        >>> natural = {"w": torch.tensor([0.0, 9.0], requires_grad=True)}
        >>> objective = lambda values: torch.stack([w.sum() for w in values["w"]])
        >>> round(ExpectedWeight()(objective, natural).item(), 3)
        1.0

    Source: Yang et al. 2020, arXiv 2009.08695 (SLB); Ajanthan, Dokania, Hartley and Torr 2019, arXiv
    1812.04353 (proximal mean-field).
    """

    unbiased = False
    low_bit = True

    def __init__(self, sharpness: float = 1.0) -> None:
        super().__init__()
        self.sharpness = real_number("sharpness", sharpness, above=0)

    def forward(self, objective: Objective, natural: Mapping[str, Any]) -> Tensor:
        values = {name: [sharpened_mean(entry, self.sharpness)] for name, entry in natural.items()}
        return objective(values).mean()

    def extra_repr(self) -> str:
        return f"sharpness={self.sharpness:g}"
