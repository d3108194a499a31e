"""The score-function estimator: works for any objective, differentiable or not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from bayesbin.core.checks import whole_number
from bayesbin.estimators.base import Estimator, Objective
from bayesbin.estimators.baselines import Baseline, LeaveOneOut
from bayesbin.estimators.plates import evaluate
from bayesbin.estimators.site_distributions import (
    dims_of,
    draw_weights,
    parameters_of,
    score_gradient,
)
from bayesbin.estimators.surrogate import with_gradient


class ScoreFunction(Estimator):
    r"""REINFORCE: the objective times the score, less a baseline.

    .. math::
        \hat\nabla_\lambda = \frac1S \sum_s (f(w_s) - b_s)\, \nabla_\lambda \log q(w_s), \qquad
        \nabla_\lambda \log q(w) = w - \mu

    Needs nothing of f but its values, so that hard thresholds and lookup tables will do. Unbiased with
    every baseline. The variance grows with the number of weights; a baseline is not optional beyond
    a handful of them. Signs in a plate of the model are weighed, and have their baseline, element by element
    of the plate: by the terms of their own datum.

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
        evaluation = evaluate(objective, draws)
        results = evaluation.total
        centred = isinstance(self.baseline, LeaveOneOut)
        gradients, losses = {}, []
        same = None if evaluation.is_split else self._centred(results.detach(), objective, losses)
        for name, entry in natural.items():
            weights = same
            if weights is None:
                seen = evaluation.of_site(name, dims_of(entry)).detach()
                weights = self._centred(seen, objective, losses, name)
            gradients[name] = score_gradient(
                weights / self.num_samples, draws[name], entry, centred=centred
            )
        surrogate = with_gradient(results.mean(), parameters_of(natural), gradients)
        if torch.is_grad_enabled():
            for loss in losses:  # what is maximised, a loss is minimised by
                surrogate = surrogate - (loss - loss.detach())
        return surrogate

    def _centred(
        self, results: Tensor, objective: Objective, losses: list[Tensor], *site: str
    ) -> Tensor:
        """The results less the baseline, whose loss joins the losses."""
        if self.baseline is None:
            return results
        baseline, loss = self.baseline(results, objective, *site)
        if loss is not None:
            losses.append(loss)
        return results - baseline

    def extra_repr(self) -> str:
        return f"num_samples={self.num_samples}, baseline={self.baseline}"
