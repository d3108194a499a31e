"""The score-function estimator: works for any objective, differentiable or not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from bayesbin.core.checks import whole_number
from bayesbin.estimators.base import Estimator, Objective
from bayesbin.estimators.baselines import Baseline, LeaveOneOut
from bayesbin.estimators.site_distributions import draw_weights, parameters_of, score_gradient
from bayesbin.estimators.surrogate import with_gradient


class ScoreFunction(Estimator):
    r"""REINFORCE: the objective times the score, less a baseline.

    .. math::
        \hat\nabla_\lambda = \frac1S \sum_s (f(w_s) - b_s)\, \nabla_\lambda \log q(w_s), \qquad
        \nabla_\lambda \log q(w) = w - \mu

    Needs nothing of f but its values, so that hard thresholds and lookup tables will do. Unbiased with
    every baseline. The variance grows with the number of weights; a baseline is not optional beyond
    a handful of them.

    :param num_samples: draws S per call, one evaluation of f each.
    :param baseline: b: "leave-one-out" (or ``LeaveOneOut()``), ``MovingAverage()``, ``Learned()``, or
        None for none.
    :raises ValueError: for the leave-one-out baseline with fewer than two draws, or an unknown baseline.

    Example::

        >>> import torch
        >>> from bayesbin.estimators import MovingAverage, ScoreFunction
        >>> natural = {"w": torch.zeros(3, requires_grad=True)}
        >>> hard = lambda values: torch.stack([(w.sum() > 0).float() for w in values["w"]])
        >>> ScoreFunction(num_samples=8)(hard, natural).backward(); natural["w"].grad.shape
        torch.Size([3])
        >>> ScoreFunction(num_samples=1, baseline=MovingAverage(0.9)).baseline
        MovingAverage(decay=0.9)

    Source: Williams 1992, Machine Learning 8, 229-256; Ranganath, Gerrish and Blei 2014, arXiv 1401.0118.
    """

    unbiased = True
    low_bit = True

    def __init__(
        self, num_samples: int = 4, baseline: Baseline | str | None = "leave-one-out"
    ) -> None:
        super().__init__()
        self.num_samples = whole_number("num_samples", num_samples, at_least=1)
        if baseline == "leave-one-out":
            baseline = LeaveOneOut()
        if baseline is not None and not isinstance(baseline, Baseline):
            raise ValueError(
                "baseline is LeaveOneOut(), MovingAverage(), Learned(), or None for none; got "
                f"{baseline!r}."
            )
        if isinstance(baseline, LeaveOneOut) and num_samples < 2:
            raise ValueError(
                "The leave-one-out baseline averages the other draws and needs num_samples of at least "
                f"2; got {num_samples}. With one draw use MovingAverage(), Learned() or None."
            )
        self.baseline = baseline

    def forward(self, objective: Objective, natural: Mapping[str, Any]) -> Tensor:
        draws = draw_weights(natural, self.num_samples)
        results = objective(draws)
        loss = None
        weights = results.detach()
        if self.baseline is not None:
            baseline, loss = self.baseline(results.detach(), objective)
            weights = weights - baseline
        centred = isinstance(self.baseline, LeaveOneOut)
        gradients = {
            name: score_gradient(weights / self.num_samples, draws[name], entry, centred=centred)
            for name, entry in natural.items()
        }
        surrogate = with_gradient(results.mean(), parameters_of(natural), gradients)
        if loss is not None and torch.is_grad_enabled():
            surrogate = surrogate - (
                loss - loss.detach()
            )  # what is maximised, loss is minimised by
        return surrogate

    def extra_repr(self) -> str:
        return f"num_samples={self.num_samples}, baseline={self.baseline}"
