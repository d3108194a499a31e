"""Baselines: what a score-function estimator subtracts from the objective to lower its variance."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bayesbin.core.checks import real_number
from bayesbin.estimators.base import BatchObjective, Objective


class Baseline(nn.Module, ABC):
    """A number per draw that does not depend on that draw, so that subtracting it adds no bias."""

    @abstractmethod
    def forward(self, results: Tensor, objective: Objective) -> tuple[Tensor, Tensor | None]:
        """The baseline, and a loss to train it by if it has parameters.

        :param results: the objective at the S draws, (S,), without a graph.
        :param objective: where they came from; a :class:`BatchObjective` knows its batch.
        :return: the baseline without a graph, a scalar or (S,); and a scalar loss or None.
        """

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.extra_repr()})"


class RunningMoments(nn.Module):
    """Mean and standard deviation of a number over recent calls, bias-corrected as in Adam.

    Buffers, so that they are saved, moved and copied with the estimator; evaluation leaves them alone.
    """

    mean_sum: Tensor
    square_sum: Tensor
    weight: Tensor

    def __init__(self, decay: float) -> None:
        super().__init__()
        self.decay = real_number("decay", decay, at_least=0, below=1)
        # float64 whatever the model's type: squares of log-likelihoods of a whole data set.
        for name in ("mean_sum", "square_sum", "weight"):
            self.register_buffer(name, torch.zeros((), dtype=torch.float64))

    @property
    def started(self) -> bool:
        return bool(self.weight > 0)

    def mean(self) -> Tensor:
        """The running mean; 0 before the first update."""
        return self.mean_sum / self.weight.clamp_min(1e-300)

    def deviation(self) -> Tensor:
        """The running standard deviation; 1 before there is any spread."""
        variance = self.square_sum / self.weight.clamp_min(1e-300) - self.mean().square()
        return torch.where(variance > 0, variance.clamp_min(0).sqrt(), torch.ones_like(variance))

    @torch.no_grad()
    def update(self, results: Tensor) -> None:
        if not self.training or not bool(torch.isfinite(results).all()):
            return
        results = results.detach().to(self.mean_sum)
        self.mean_sum.lerp_(results.mean(), 1.0 - self.decay)
        self.square_sum.lerp_(results.square().mean(), 1.0 - self.decay)
        self.weight.lerp_(torch.ones_like(self.weight), 1.0 - self.decay)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        # .to(device) moves them; .float(), .half() and the like do not round them.
        kept = dict(self.named_buffers(recurse=False))
        super()._apply(fn, recurse)
        for name, old in kept.items():
            setattr(self, name, old.to(getattr(self, name).device))
        return self

    def extra_repr(self) -> str:
        return f"decay={self.decay:g}"


class MovingAverage(Baseline):
    r"""The exponential moving average of the objective over earlier calls.

    .. math:: b_t = \frac{\sum_{k<t} d^{\,t-1-k} \bar f_k}{\sum_{k<t} d^{\,t-1-k}}

    0 at the first call. Needs no second draw, but follows the objective of earlier minibatches.

    :param decay: d in [0, 1). :raises ValueError: outside it.

    >>> MovingAverage(0.9)
    MovingAverage(decay=0.9)

    Source: Williams 1992, Machine Learning 8, 229-256 (reinforcement baselines).
    """

    def __init__(self, decay: float = 0.9) -> None:
        super().__init__()
        self.moments = RunningMoments(decay)

    def forward(self, results: Tensor, objective: Objective) -> tuple[Tensor, Tensor | None]:
        average = self.moments.mean().to(results)
        self.moments.update(results)
        return average, None

    def extra_repr(self) -> str:
        return self.moments.extra_repr()


class LeaveOneOut(Baseline):
    r"""For each draw the mean of the objective over the other draws (RLOO).

    .. math:: b_s = \frac{1}{S - 1} \sum_{t \ne s} f(w_t)

    Needs at least two draws; knows the minibatch at hand and has nothing to tune.

    >>> LeaveOneOut()(torch.tensor([1.0, 2.0, 6.0]), lambda values: values)[0].tolist()
    [4.0, 3.5, 1.5]

    Source: Kool, van Hoof and Welling 2019, "Buy 4 REINFORCE samples, get a baseline for free!",
    ICLR workshop; Salimans and Knowles 2014, arXiv 1401.1022.
    """

    def forward(self, results: Tensor, objective: Objective) -> tuple[Tensor, Tensor | None]:
        return (results.sum() - results) / (len(results) - 1), None


class Learned(Baseline):
    r"""A baseline that is learned by least squares, from the batch if it is a module of the batch.

    .. math::
        b = m + s\, h(\text{batch}), \qquad \text{loss} = \Big(\frac{f(w) - m}{s} - h(\text{batch})\Big)^2

    with m and s the running mean and standard deviation of the objective over earlier calls, so that
    h works on numbers of the order of 1 whatever the size of the data set. The loss trains h alone, and
    the surrogate's value and its gradients in anything else know nothing of it. Train it with the
    parameters of the guide: ``fit`` does, and any optimizer that is given
    ``elbo(model, guide).parameters()``.

    :param module: h, called as the model is, ``module(x, y)``; returns one number. None: a learned
        constant. :param decay: of the running moments.
    :raises ValueError: at a call, if the module returns more than one number.

    >>> Learned(decay=0.99)(torch.tensor([1.0, 3.0]), lambda values: values)[0].item()
    0.0

    Source: Mnih and Gregor 2014, arXiv 1402.0030 (NVIL).
    """

    def __init__(self, module: nn.Module | None = None, decay: float = 0.9) -> None:
        super().__init__()
        if module is not None and not isinstance(module, nn.Module):
            raise ValueError(
                f"Learned takes a torch module of the batch, or None for a learned constant; got {module!r}."
            )
        self.module = module
        self.constant = nn.Parameter(torch.zeros(()))
        self.moments = RunningMoments(decay)

    def forward(self, results: Tensor, objective: Objective) -> tuple[Tensor, Tensor | None]:
        centre, spread = self.moments.mean(), self.moments.deviation()
        started = self.moments.started
        self.moments.update(results)
        learned = self.constant.to(results)
        if self.module is not None:
            learned = learned + self._of_batch(objective).to(results)
        baseline = (centre + spread * learned.detach()).to(results)
        if not started:  # m and s are not known yet, so there is nothing to fit
            return baseline, None
        loss = ((results.detach() - centre) / spread - learned).square().mean()
        return baseline, loss.to(results.dtype)

    def extra_repr(self) -> str:
        module = "" if self.module is None else f"{type(self.module).__name__}(...), "
        return module + self.moments.extra_repr()

    def _of_batch(self, objective: Objective) -> Tensor:
        assert self.module is not None
        batch: tuple[Any, Mapping[str, Any]] = ((), {})
        if isinstance(objective, BatchObjective):
            batch = (objective.args, objective.kwargs)
        output = self.module(*batch[0], **batch[1])
        if not isinstance(output, Tensor) or math.prod(output.shape) != 1:
            came = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise ValueError(
                f"The module of a Learned baseline returns one number per batch; got {came}. Sum or "
                "average over the batch."
            )
        return output.reshape(())
