"""Schedules of numbers other than learning rates: functions of the epoch, and what applies them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer

from bayesbin.core.checks import is_number, whole_number

Function = Callable[[int], float]


class Schedule:
    """Sets a number of an optimizer's groups, or of a module, from a function of the epoch.

    The number of epoch 0 is set at once, that of epoch t by the t-th ``step()``. It goes among the
    ``schedulers`` of :func:`bayesbin.infer.fit`, which steps them once per epoch and saves their state.

    :param owner: an optimizer (the entry ``name`` of every group is set), or anything with an attribute
        ``name``: a binarizer, an estimator, a scale.
    :param name: "threshold", "gamma", "sigma", "lr" of an optimizer; "tau", "sharpness", "temperature".
    :param function: from the epoch (0, 1, ...) to the number.
    :raises ValueError: if the owner has no such number.

    Example::

        >>> from bayesbin.nn.binarizers import SLB
        >>> from bayesbin.optim import Schedule, exponential
        >>> binarizer = SLB()
        >>> schedule = Schedule(binarizer, "sharpness", exponential(1.0, 16.0, epochs=2))
        >>> schedule.step(); binarizer.sharpness
        4.0
    """

    def __init__(self, owner: Any, name: str, function: Function) -> None:
        groups = owner.param_groups if isinstance(owner, Optimizer) else [vars(owner)]
        if not all(is_number(group.get(name)) for group in groups):
            raise ValueError(
                f"{type(owner).__name__} has no number {name!r} to schedule; it has "
                f"{', '.join(k for k, v in groups[0].items() if type(v) in (int, float)) or 'none'}."
            )
        self.owner, self.name, self.function = owner, name, function
        self.epoch = 0
        self._apply()

    def step(self) -> None:
        """Go on by one epoch."""
        self.epoch += 1
        self._apply()

    def _apply(self) -> None:
        value = float(self.function(self.epoch))
        if isinstance(self.owner, Optimizer):
            for group in self.owner.param_groups:
                group[self.name] = value
        else:
            setattr(self.owner, self.name, value)

    def state_dict(self) -> dict[str, Any]:
        """The epoch; the function is not saved."""
        return {"epoch": self.epoch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a saved epoch, and set its number."""
        self.epoch = int(state["epoch"])
        self._apply()


def linear(
    start: float, end: float, epochs: int, hold: tuple[float, float] = (0.0, 1.0)
) -> Function:
    """From start to end on a line.

    :param epochs: how many there are; the end is reached at epoch ``epochs``, and kept.
    :param hold: the parts of training before and after which the number stays: (0.2, 0.9) moves it between
        20 % and 90 %.

    >>> [linear(1.0, 3.0, 4)(t) for t in range(5)]
    [1.0, 1.5, 2.0, 2.5, 3.0]
    """
    part = _progress(epochs, hold)
    return lambda epoch: start + (end - start) * part(epoch)


def exponential(
    start: float, end: float, epochs: int, hold: tuple[float, float] = (0.0, 1.0)
) -> Function:
    """From start to end by one factor per epoch, as SLB's sharpness (1.03 to 1.06); ``hold`` as of linear.

    >>> [exponential(1.0, 16.0, 4)(t) for t in range(5)]
    [1.0, 2.0, 4.0, 8.0, 16.0]
    """
    if not start > 0 or not end > 0:
        raise ValueError(f"An exponential schedule has positive ends; got {start} and {end}.")
    part = _progress(epochs, hold)
    return lambda epoch: start * (end / start) ** part(epoch)


def cosine(
    start: float, end: float, epochs: int, hold: tuple[float, float] = (0.0, 1.0)
) -> Function:
    """From start to end on half a cosine, slow at both; ``hold`` as of :func:`linear`.

    >>> [round(cosine(0.0, 1.0, 4)(t), 3) for t in range(5)]
    [0.0, 0.146, 0.5, 0.854, 1.0]
    """
    part = _progress(epochs, hold)
    return lambda epoch: start + (end - start) * 0.5 * (1.0 - math.cos(math.pi * part(epoch)))


def cosine_by_step_(optimizer: Optimizer, steps: int) -> None:
    r"""Let the learning rates of an optimizer fall to 0 over its next ``steps`` steps.

    .. math:: \eta_k = \tfrac12 \eta_0 (1 + \cos(\pi k / K)), \qquad k = 0, ..., K - 1

    By the step, so that training of a single epoch anneals as well. k stands in the parameter groups, and
    is saved and restored with them. A group without a learning rate stays as it is.

    :param steps: K. :raises ValueError: for less than one step.

    >>> import torch
    >>> parameter = torch.nn.Parameter(torch.zeros(()))
    >>> optimizer = torch.optim.SGD([parameter], lr=1.0)
    >>> cosine_by_step_(optimizer, 2)
    >>> optimizer.step(); optimizer.param_groups[0]["lr"]
    0.5
    """
    steps = whole_number("steps", steps, at_least=1)
    for group in optimizer.param_groups:
        if "lr" in group:
            group["initial_lr"], group["taken"] = group["lr"], 0

    def after_step(*_: Any) -> None:
        for group in optimizer.param_groups:
            if "lr" in group:
                group["taken"] += 1
                share = min(group["taken"] / steps, 1.0)
                group["lr"] = 0.5 * group["initial_lr"] * (1.0 + math.cos(math.pi * share))

    optimizer.register_step_post_hook(after_step)


def warm_restarts(start: float, end: float, period: int, factor: int = 2) -> Function:
    """From start to end on half a cosine, again and again, each time ``factor`` times as long.

    :param period: epochs of the first round; the last epoch of a round is just short of ``end``.

    >>> [round(warm_restarts(0.0, 1.0, 2)(t), 3) for t in range(7)]
    [0.0, 0.5, 0.0, 0.146, 0.5, 0.854, 0.0]

    Source: Loshchilov and Hutter 2017, arXiv 1608.03983 (SGDR).
    """
    if period < 1 or factor < 1:
        raise ValueError(f"period and factor are at least 1; got {period} and {factor}.")

    def value(epoch: int) -> float:
        length = period
        while epoch >= length:
            epoch, length = epoch - length, length * factor
        return start + (end - start) * 0.5 * (1.0 - math.cos(math.pi * epoch / length))

    return value


def step_decay(start: float, factor: float, every: int) -> Function:
    """start times factor^floor(epoch / every): Bop's gamma falls by 0.1 each hundred epochs.

    >>> [round(step_decay(1e-4, 0.1, 100)(t), 7) for t in (0, 99, 100, 200)]
    [0.0001, 0.0001, 1e-05, 1e-06]
    """
    if every < 1:
        raise ValueError(f"every is a number of epochs, at least 1; got {every}.")
    return lambda epoch: start * factor ** (epoch // every)


def recu_tau(epochs: int, start: float = 0.85, end: float = 0.99) -> Function:
    r"""ReCU's quantile, slow at first.

    .. math:: \tau_t = \frac{\tau_e - \tau_s}{e - 1} e^{t/T} + \frac{e\,\tau_s - \tau_e}{e - 1}

    >>> [round(recu_tau(2)(t), 4) for t in range(3)]
    [0.85, 0.9029, 0.99]

    Source: Xu et al. 2021, arXiv 2103.12369.
    """
    part = _progress(epochs, (0.0, 1.0))
    rise, start_share = (end - start) / (math.e - 1.0), (math.e * start - end) / (math.e - 1.0)
    return lambda epoch: rise * math.exp(part(epoch)) + start_share


def _progress(epochs: int, hold: tuple[float, float]) -> Function:
    begin, finish = hold
    if epochs < 1 or not 0 <= begin < finish <= 1:
        raise ValueError(
            f"A schedule has at least one epoch and moves between 0 <= begin < finish <= 1; got {epochs} "
            f"epochs and {hold}."
        )
    return lambda epoch: min(1.0, max(0.0, (epoch / epochs - begin) / (finish - begin)))
