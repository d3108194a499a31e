"""Baselines: what a score-function estimator subtracts from the objective to lower its variance."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bayesbin.core.checks import real_number
from bayesbin.estimators.base import BatchObjective, Objective, SitePlates


class Baseline(nn.Module, ABC):
    """A number per draw that does not depend on that draw, so that subtracting it adds no bias.

    Where a site of the model lies in a plate, the baseline is called for each site: with what each element
    of the site sees of the objective.
    """

    @abstractmethod
    def forward(
        self, results: Tensor, objective: Objective, site: str | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """The baseline, and a loss to train it by if it has parameters.

        :param results: the objective at the S draws, (S,), without a graph; for one site, what its elements
            are weighed by, (S, *sizes), with size 1 along the axes that are no plates.
        :param objective: where they came from; a :class:`BatchObjective` knows its batch and the plates.
        :param site: the site; None: the results are the same for all sites.
        :return: the baseline without a graph, of a shape that broadcasts to the results'; and a scalar
            loss or None.
        """

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.extra_repr()})"


class RunningMoments(nn.Module):
    """Mean and standard deviation of a number over recent calls, bias-corrected as in Adam.

    Buffers, so that they are saved, moved and copied with the estimator; evaluation leaves them alone.

    :param shape: of several numbers, each with moments of its own.
    """

    mean_sum: Tensor
    square_sum: Tensor
    weight: Tensor

    def __init__(self, decay: float, shape: Sequence[int] = ()) -> None:
        super().__init__()
        self.decay = real_number("decay", decay, at_least=0, below=1)
        # float64 whatever the model's type: squares of log-likelihoods of a whole data set.
        for name in ("mean_sum", "square_sum"):
            self.register_buffer(name, torch.zeros(tuple(shape), dtype=torch.float64))
        self.register_buffer("weight", torch.zeros((), dtype=torch.float64))

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
        over = 0 if self.mean_sum.dim() else None  # the draws, or all there is
        self.mean_sum.lerp_(results.mean(over), 1.0 - self.decay)
        self.square_sum.lerp_(results.square().mean(over), 1.0 - self.decay)
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


class MomentsBySite(nn.Module):
    """Moments for each site, made when they are first asked for or loaded."""

    def __init__(self, decay: float) -> None:
        super().__init__()
        self.decay = decay

    def of(self, site: str, like: Tensor, shape: Sequence[int] = ()) -> RunningMoments:
        """Those of a site, new if it has none or numbers of another shape."""
        name = site.replace(".", "/")  # names of modules have no dots
        if name not in self._modules or self[name].mean_sum.shape != tuple(shape):
            self.add_module(name, RunningMoments(self.decay, shape).to(like.device))
        return self[name].train(self.training)

    def __getitem__(self, name: str) -> RunningMoments:
        found = self._modules[name]
        assert isinstance(found, RunningMoments)
        return found

    def _load_from_state_dict(self, state: Any, prefix: str, *args: Any) -> None:
        for key in state:
            site, _, buffer = key.removeprefix(prefix).rpartition(".")
            if key.startswith(prefix) and buffer == "mean_sum":
                self.add_module(site, RunningMoments(self.decay, state[key].shape))
        super()._load_from_state_dict(state, prefix, *args)


class MovingAverage(Baseline):
    r"""The exponential moving average of the objective over earlier calls.

    .. math:: b_t = \frac{\sum_{k<t} d^{\,t-1-k} \bar f_k}{\sum_{k<t} d^{\,t-1-k}}

    0 at the first call. Needs no second draw, but follows the objective of earlier minibatches. A site
    in a plate has an average for each element of the plate; if the plate is subsampled, one for all of
    its elements.

    :param decay: d in [0, 1). :raises ValueError: outside it.

    >>> MovingAverage(0.9)
    MovingAverage(decay=0.9)

    Source: Williams 1992, Machine Learning 8, 229-256 (reinforcement baselines).
    """

    def __init__(self, decay: float = 0.9) -> None:
        super().__init__()
        self.moments = RunningMoments(decay)
        self.by_site = MomentsBySite(decay)

    def forward(
        self, results: Tensor, objective: Objective, site: str | None = None
    ) -> tuple[Tensor, Tensor | None]:
        moments = self.moments
        if site is not None:
            whole = isinstance(objective, BatchObjective) and objective.plates[site].are_whole
            moments = self.by_site.of(site, results, results.shape[1:] if whole else ())
        average = moments.mean().to(results)
        moments.update(results)
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

    def forward(
        self, results: Tensor, objective: Objective, site: str | None = None
    ) -> tuple[Tensor, Tensor | None]:
        return (results.sum(0) - results) / (len(results) - 1), None


class Learned(Baseline):
    r"""A baseline that is learned by least squares, from the batch if it is a module of the batch.

    .. math::
        b = m + s\, h(\text{batch}), \qquad \text{loss} = \Big(\frac{f(w) - m}{s} - h(\text{batch})\Big)^2

    with m and s the running mean and standard deviation of the objective over earlier calls, so that
    h works on numbers of the order of 1 whatever the size of the data set. The loss trains h alone, and
    the surrogate's value and its gradients in anything else know nothing of it. Train it with the
    parameters of the guide: ``fit`` does, and any optimizer that is given
    ``elbo(model, guide).parameters()``.

    For a site in plates each of its elements has a baseline, m and s are those of what the elements see, and
    the module may return a number for each element of the plates.

    :param module: h, called as the model is, ``module(x, y)``; returns one number, or one for each
        element of the plates of a site, in the order of the axes. Other sites get the mean of these. None:
        a learned constant. :param decay: of the running moments.
    :raises ValueError: at a call, if the module returns another number of numbers.

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
        self.by_site = MomentsBySite(decay)

    def forward(
        self, results: Tensor, objective: Objective, site: str | None = None
    ) -> tuple[Tensor, Tensor | None]:
        moments = self.moments if site is None else self.by_site.of(site, results)
        centre, spread = moments.mean(), moments.deviation()
        started = moments.started
        moments.update(results)
        learned = self.constant.to(results)
        if self.module is not None:
            learned = learned + self._of_batch(objective, results.shape[1:]).to(results)
        baseline = (centre + spread * learned.detach()).to(results)
        if not started:  # m and s are not known yet, so there is nothing to fit
            return baseline, None
        loss = ((results.detach() - centre) / spread - learned).square().mean()
        return baseline, loss.to(results.dtype)

    def extra_repr(self) -> str:
        module = "" if self.module is None else f"{type(self.module).__name__}(...), "
        return module + self.moments.extra_repr()

    def _of_batch(self, objective: Objective, shape: Sequence[int]) -> Tensor:
        """What the module returns: a number, or one for each element that the results have."""
        assert self.module is not None
        batch: tuple[Any, Mapping[str, Any]] = ((), {})
        plates: Iterable[SitePlates] = ()
        if isinstance(objective, BatchObjective):
            batch = (objective.args, objective.kwargs)
            plates = objective.plates.values()
        output = self.module(*batch[0], **batch[1])
        known = isinstance(output, Tensor)
        sizes = {tuple(n for n, _ in own.sizes.values()) for own in plates if own.axes}
        if known and output.numel() == 1:
            return output.reshape(())
        if not known or tuple(output.shape) not in sizes:
            came = tuple(output.shape) if known else type(output).__name__
            raise ValueError(
                "The module of a Learned baseline returns one number per batch, or one for each element of "
                f"the plates of a site; got {came}. Sum or average over the batch."
            )
        fits = tuple(n for n in shape if n != 1) == tuple(n for n in output.shape if n != 1)
        return output.reshape(tuple(shape)) if fits else output.mean()
