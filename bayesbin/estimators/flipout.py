"""Flipout, and the choice between it and local reparameterization weight by weight."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from bayesbin.core.checks import true_or_false, whole_number
from bayesbin.core.networks import normalisation_kept
from bayesbin.estimators.base import BatchObjective, Estimator, Objective
from bayesbin.estimators.local_reparam import drawn_weights, moments_of


class Flipout(Estimator):
    r"""Give each datum a Gaussian weight: one perturbation for all, times random signs of its own.

    .. math::
        W_b = \mu + (r_b s_b^\top) \circ \epsilon \circ \sqrt{F}, \qquad
        f(x_b, W_b) = f(x_b, \mu) + r_b \circ f(x_b \circ s_b, \epsilon \circ \sqrt{F})

    epsilon ~ N(0, 1) is drawn once for a weight and evaluation of the model, the signs r_b of outputs and
    s_b of inputs once for each datum; F = 1 - mu^2, or the variance of a weight with a few levels. All
    positions of a datum (of an image, a sequence, the steps of a recurrence) see the same weight, so that
    the mean and the covariance of its outputs, between units and between positions, are those of hard
    draws.
    A weight may be used several times: layers called again, tied weights, recurrences written by hand.

    Takes ``linear``, ``bilinear``, ``matmul``, convolutions and transposed convolutions of any
    kind, the projections of torch's attention, ``embedding``, after scaling, reshaping and slicing; other
    uses, torch's recurrent modules among them, are refused by name.

    What it drops: weights are Gaussian and not signs, as in :class:`LocalReparameterization`; and data
    are uncorrelated, though all of them have the same weight in a hard draw. Only a network that mixes
    the data of a batch sees the latter, by batch normalisation in training mode. Measured on four layers
    of fan-in 64 to 2,304, the expected NLL per datum, 4.4 to 5.1 nats, was .03 below that of hard draws,
    which is 1.3 to 1.6 standard errors.

    The gradient in F goes, by default, through the marginal variance V of each output, as that of local
    reparameterization: a perturbation n counts as sqrt(V) times a constant. It is exact with one position
    or equal ones; terms of pairs of different positions, and of several uses of a weight, are left out.
    ``pathwise=True`` has them, and noise that grows with cosh(lambda) in natural gradients: it trains
    slowly.

    Which axis of an input counts data is found by its length, that of the targets: the argument ``y`` of
    the model, or the last tensor it is called with. In attention it is known. Where no axis has that
    length, or two have, or the inputs of a datum lie in several rows, all data get the same perturbation,
    which is right and has a larger variance. An objective that is a plain function tells no length: the
    first axis is then taken to count data.

    :param num_samples: draws averaged per call.
    :param pathwise: whether the gradient in F goes through each weight's own perturbation.
    :raises ValueError: for less than one draw.

    Example::

        >>> import torch
        >>> from bayesbin.estimators import Flipout
        >>> natural = {"w": torch.zeros(4, 2, 3, requires_grad=True)}
        >>> conv = torch.nn.functional.conv1d
        >>> objective = lambda values: torch.stack([conv(torch.ones(5, 2, 8), w).mean() for w in values["w"]])
        >>> Flipout()(objective, natural).backward(); natural["w"].grad.shape
        torch.Size([4, 2, 3])

    Source: Wen, Vicol, Ba, Tran and Grosse 2018, arXiv 1803.04386.
    """

    unbiased = False
    low_bit = True

    def __init__(self, num_samples: int = 1, pathwise: bool = False) -> None:
        super().__init__()
        self.num_samples = whole_number("num_samples", num_samples, at_least=1)
        self.pathwise = true_or_false("pathwise", pathwise)

    def forward(self, objective: Objective, natural: Mapping[str, Any]) -> Tensor:
        values = drawn_weights(
            moments_of(natural), self.num_samples, type(self).__name__, True,
            data_sizes(objective), pathwise=self.pathwise,
        )  # fmt: skip
        return objective(values).mean()

    def extra_repr(self) -> str:
        short = ", pathwise=True" if self.pathwise else ""
        return f"num_samples={self.num_samples}{short}"


class FlipoutWhereShared(Estimator):
    """Flipout where a weight is used more than once for a datum, local reparameterization elsewhere.

    The choice is made where the weight is used, by the shapes at hand: convolutions, linear layers over
    sequences, attention, embeddings and weights that are used several times get :class:`Flipout`, linear
    layers of a perceptron :class:`LocalReparameterization`, with the same draws as by itself. After a
    call, ``choices`` says which weight got which. A weight that is used a second time after its first use
    was drawn for that alone is drawn anew: the model is evaluated again, with the random numbers and the
    statistics of normalisation of before.

    :param num_samples: draws averaged per call.
    :raises ValueError: for less than one draw.

    Example::

        >>> import torch
        >>> from bayesbin.estimators import FlipoutWhereShared
        >>> natural = {"kernel": torch.zeros(4, 2, 3), "head": torch.zeros(3, 4)}
        >>> x, functional = torch.ones(5, 2, 8), torch.nn.functional
        >>> def objective(values):
        ...     hidden = functional.conv1d(x, values["kernel"][0]).mean(-1)
        ...     return functional.linear(hidden, values["head"][0]).mean()[None]
        >>> estimator = FlipoutWhereShared()
        >>> value = estimator(objective, natural)
        >>> estimator.choices
        {'kernel': 'Flipout', 'head': 'local reparameterization'}
    """

    unbiased = False
    low_bit = True

    def __init__(self, num_samples: int = 1) -> None:
        super().__init__()
        self.num_samples = whole_number("num_samples", num_samples, at_least=1)
        self.choices: dict[str, str] = {}
        self._repeated: frozenset[str] = frozenset()

    def forward(self, objective: Objective, natural: Mapping[str, Any]) -> Tensor:
        moments, sizes = moments_of(natural), data_sizes(objective)
        devices = {mean.device for mean, _ in moments.values() if mean.is_cuda}
        while True:
            values = drawn_weights(
                moments, self.num_samples, type(self).__name__, None, sizes, self._repeated
            )
            draws = [each.draw for several in values.values() for each in several]
            states = [torch.get_rng_state(), *(torch.cuda.get_rng_state(d) for d in devices)]
            try:
                with normalisation_kept(on_error=True):
                    result = objective(values).mean()
                break
            except RuntimeError:
                # A second use of a weight that was drawn for the first alone: begin again with Flipout.
                again = {draw.site for draw in draws if draw.repeated and not draw.flips}
                if not again:
                    raise
                self._repeated |= again
                torch.set_rng_state(states[0])
                for device, state in zip(devices, states[1:], strict=True):
                    torch.cuda.set_rng_state(state, device)
        self._repeated &= {draw.site for draw in draws if draw.repeated}
        self.choices = {draw.site: _CHOICES[draw.flips] for draw in draws}
        return result

    def extra_repr(self) -> str:
        return f"num_samples={self.num_samples}"


_CHOICES = {None: "not used", True: "Flipout", False: "local reparameterization"}


def data_sizes(objective: Objective) -> Callable[[], set[int]]:
    """How many data the batch of an objective may have: the length of its targets, and of subsamples."""
    if not isinstance(objective, BatchObjective):
        return set
    given = objective.kwargs.get("y", (objective.args, dict(objective.kwargs)))
    tensors = [t for t in _tensors(given) if t.dim()]
    own = {len(tensors[-1])} if tensors else set()
    return lambda: own | {len(indices) for indices in objective.subsamples.values()}


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _tensors(each)
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _tensors(each)
