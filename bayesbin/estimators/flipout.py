"""Flipout, and the choice between it and local reparameterization weight by weight."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from bayesbin.core.checks import whole_number
from bayesbin.core.networks import normalisation_kept
from bayesbin.estimators.base import BatchObjective, Estimator, Objective
from bayesbin.estimators.local_reparam import drawn_weights, moments_of


class Flipout(Estimator):
    r"""A Gaussian weight for each datum: one perturbation for all, times random signs of the datum's own.

    .. math::
        W_b = \mu + (r_b s_b^T) \circ \epsilon \circ \sqrt{F}, \qquad \epsilon \sim N(0, 1), \quad
        r_b, s_b \in \{-1, +1\}, \quad F = 1 - \mu^2
    """

    unbiased = False
    low_bit = True

    def __init__(self, num_samples: int = 1) -> None:
        super().__init__()
        self.num_samples = whole_number("num_samples", num_samples, at_least=1)

    def forward(self, objective: Objective, natural: Mapping[str, Any]) -> Tensor:
        values = drawn_weights(
            moments_of(natural), self.num_samples, type(self).__name__, True, data_sizes(objective)
        )
        return objective(values).mean()

    def extra_repr(self) -> str:
        return f"num_samples={self.num_samples}"


class FlipoutWhereShared(Estimator):
    """Flipout where a weight is used more than once for a datum, local reparameterization elsewhere."""

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


def data_sizes(objective: Objective) -> tuple[int, ...]:
    """How many data the batch of an objective may have: the length of the last tensor in it."""
    if not isinstance(objective, BatchObjective):
        return ()
    given = objective.kwargs.get("y", (objective.args, dict(objective.kwargs)))
    tensors = [t for t in _tensors(given) if t.dim()]
    return (len(tensors[-1]),) if tensors else ()


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _tensors(each)
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _tensors(each)
