"""The control variate that RELAX learns by default: a function of two numbers per draw."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from bayesbin.estimators.base import Objective
from bayesbin.estimators.baselines import RunningMoments


class ObjectiveVariate(nn.Module):
    r"""c = m + d h(t, q): a small network of the relaxed objective and of how relaxed the signs are.

    .. math::
        t = \frac{f(s) - m}{d}, \qquad q = \frac1D \sum_j s_j^2, \qquad
        h(t, q) = \eta\, t + b + v \cdot \tanh(U (\tanh \tfrac{t}{4},\, q) + a)

    m and d are the running mean and standard deviation of f at earlier draws, so that h works on numbers
    of the order of 1. h starts as t, that is c = f(s). It has 4 width + 2 parameters.

    :param width: of the hidden layer.

    >>> sum(p.numel() for p in ObjectiveVariate(width=8).parameters())
    34
    """

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        # A fixed fan of directions instead of random ones: the same estimator at every construction.
        angles = torch.arange(width) * (2.0 * torch.pi / width)
        self.eta = nn.Parameter(torch.ones(()))
        self.offset = nn.Parameter(torch.zeros(()))
        self.directions = nn.Parameter(torch.stack([angles.cos(), angles.sin()], 1))
        self.shift = nn.Parameter(torch.zeros(width))
        self.outputs = nn.Parameter(torch.zeros(width))
        self.moments = RunningMoments(0.9)

    def forward(
        self, objective: Objective, relaxed: Mapping[str, list[Tensor]], results: Tensor
    ) -> Tensor:
        value = objective(relaxed)
        centre, deviation = (m.to(value) for m in (self.moments.mean(), self.moments.deviation()))
        self.moments.update(results)
        standard = (value - centre) / deviation
        features = torch.stack([torch.tanh(standard / 4.0), self._hardness(relaxed).to(value)], 1)
        hidden = torch.tanh(features @ self.directions.to(value).T + self.shift.to(value))
        learned = hidden @ self.outputs.to(value) + self.offset.to(value)
        return centre + deviation * (self.eta.to(value) * standard + learned)

    @staticmethod
    def _hardness(relaxed: Mapping[str, list[Tensor]]) -> Tensor:
        count = sum(sequence[0].numel() for sequence in relaxed.values())
        draws = zip(*relaxed.values(), strict=True)
        sums = [sum(site.square().sum() for site in draw) for draw in draws]
        return torch.stack([torch.as_tensor(total) for total in sums]) / count
