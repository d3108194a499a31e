"""Sums over states: of all signs jointly (the oracle), or of one sign at a time given the others."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from bayesbin.core import numerics
from bayesbin.core.checks import whole_number
from bayesbin.estimators.base import Estimator, Objective
from bayesbin.estimators.plates import EvaluatedTerms, evaluate
from bayesbin.estimators.site_distributions import all_states, count_states
from bayesbin.estimators.surrogate import draw_signs, with_gradient


class Enumerate(Estimator):
    r"""The exact expectation, by summing over all 2^D joint states of the D signs.

    .. math:: E_q[f(w)] = \sum_{w \in \{-1,+1\}^D} q_\lambda(w)\, f(w)

    Exact in value and gradient, and the oracle against which the other estimators are tested. The cost
    doubles with each weight.

    :param max_weights: the largest D accepted; of weights with K levels each, D log2 K.
    :raises ValueError: for more weights than that.

    Example::

        >>> import torch
        >>> from bayesbin.estimators import Enumerate
        >>> natural = {"w": torch.tensor([0.5], requires_grad=True)}
        >>> objective = lambda values: torch.stack([torch.exp(0.8 * w).sum() for w in values["w"]])
        >>> round(Enumerate()(objective, natural).item(), 3)
        1.748
    """

    unbiased = True
    low_bit = True

    def __init__(self, max_weights: int = 16) -> None:
        super().__init__()
        self.max_weights = whole_number("max_weights", max_weights, at_least=1)

    def forward(self, objective: Objective, natural: Mapping[str, Any]) -> Tensor:
        if not all(isinstance(entry, Tensor) for entry in natural.values()):
            return self._over_levels(objective, natural)
        sizes = {name: lam.numel() for name, lam in natural.items()}
        total = sum(sizes.values())
        if total > self.max_weights:
            raise ValueError(
                f"Enumerate sums over 2^D states and takes at most {self.max_weights} weights; the "
                f"guide has {total}. Use a sampling estimator, or raise max_weights."
            )
        states = all_signs(total, like=next(iter(natural.values())))
        pieces = dict(zip(natural, states.split(list(sizes.values()), dim=1), strict=True))
        log_q = torch.zeros(len(states), dtype=states.dtype, device=states.device)
        for name, lam in natural.items():
            flat = lam.reshape(1, -1).expand(len(states), -1)
            log_q = log_q + numerics.log_prob(flat, pieces[name]).sum(1)
        values = {name: list(pieces[name].reshape(-1, *lam.shape)) for name, lam in natural.items()}
        return (log_q.exp() * objective(values)).sum()

    def _over_levels(self, objective: Objective, natural: Mapping[str, Any]) -> Tensor:
        if (bits := count_states(natural)) > self.max_weights:
            raise ValueError(
                f"Enumerate sums over all states and takes at most 2^{self.max_weights}; the guide has "
                f"2^{bits:.1f}. Use a sampling estimator, or raise max_weights."
            )
        values, log_q = all_states(natural)
        return (log_q.exp() * objective(values)).sum()

    def extra_repr(self) -> str:
        return f"max_weights={self.max_weights}"


class LocalExpectation(Estimator):
    r"""Sums each weight over its two signs, at draws of all the others.

    .. math::
        \hat\nabla_{\mu_j} = \frac{f(w_{j \to +1}) - f(w_{j \to -1})}{2}, \qquad
        \hat\nabla_{\lambda_j} = \mathrm{sech}^2(\lambda_j)\, \hat\nabla_{\mu_j}

    Unbiased, needs only the values of f, and of far less variance than a score-function estimator at
    the same number of draws: the natural gradient of a saturated weight has none of its own noise. But
    it costs D + 1 evaluations of f per draw, and is for small layers and references. Signs in a plate of the
    model are flipped together over the plate, where each term that depends on them belongs to one element
    of it: D then counts the signs of one datum.

    :param num_samples: draws averaged per call.
    :param max_weights: the largest D accepted.
    :raises ValueError: for a count below 1; at a call, for more flips than max_weights.

    Example::

        >>> import torch
        >>> from bayesbin.estimators import LocalExpectation
        >>> natural = {"w": torch.tensor([0.5], requires_grad=True)}
        >>> objective = lambda values: torch.stack([torch.exp(0.8 * w).sum() for w in values["w"]])
        >>> LocalExpectation()(objective, natural).backward()
        >>> round(natural["w"].grad.item() * torch.cosh(torch.tensor(0.5)).item() ** 2, 3)
        0.888

    Source: Titsias and Lazaro-Gredilla 2015, "Local expectation gradients for black box variational
    inference", NIPS.
    """

    unbiased = True

    def __init__(self, num_samples: int = 1, max_weights: int = 2000) -> None:
        super().__init__()
        self.num_samples = whole_number("num_samples", num_samples, at_least=1)
        self.max_weights = whole_number("max_weights", max_weights, at_least=1)

    def forward(self, objective: Objective, natural: Mapping[str, Tensor]) -> Tensor:
        signs = draw_signs(natural, self.num_samples)
        evaluation = evaluate(objective, signs)
        results = evaluation.total
        flips = {
            name: _flips(evaluation, name, lam) for name, lam in natural.items() if lam.numel()
        }
        total = sum(int(flip.max()) + 1 for flip in flips.values())
        if total > self.max_weights:
            raise ValueError(
                f"LocalExpectation evaluates the model once per weight and draw and takes at most "
                f"{self.max_weights} weights; the guide has {total}. Use DisARM or StraightThrough, or "
                "raise max_weights."
            )
        sums = {name: torch.zeros_like(lam) for name, lam in natural.items()}
        with torch.no_grad():
            before = {name: evaluation.of_site(name, natural[name].dim()) for name in flips}
            for s in range(self.num_samples):
                draw = {name: sequence[s] for name, sequence in signs.items()}
                for name, flip in flips.items():
                    after = self._flipped(objective, draw, name, flip)
                    sums[name] += 0.5 * draw[name] * (before[name][s] - after)
        gradients = {
            name: numerics.variance(lam.detach()) * sums[name] / self.num_samples
            for name, lam in natural.items()
        }
        return with_gradient(results.mean(), natural, gradients)

    @staticmethod
    def _flipped(
        objective: Objective, draw: Mapping[str, Tensor], name: str, flips: Tensor
    ) -> Tensor:
        """What each weight of one site sees of the objective where it is flipped, of the site's shape.

        :param flips: number of the evaluation in which a weight is flipped, of the site's shape.
        """
        signs = draw[name]
        results = []
        numbers = torch.arange(int(flips.max()) + 1, device=flips.device)
        for some in numbers.split(_FLIPS_AT_ONCE):
            flipped = flips == some.reshape(-1, *[1] * signs.dim())
            values = {other: [value] * len(some) for other, value in draw.items()}
            values[name] = list(torch.where(flipped, -signs, signs))
            results.append(evaluate(objective, values).of_site(name, signs.dim()))
        seen = torch.cat(results)
        seen = seen.reshape(len(seen), *(seen.shape[1:] or [1] * signs.dim()))
        return seen.expand(-1, *signs.shape).gather(0, flips[None])[0]

    def extra_repr(self) -> str:
        return f"num_samples={self.num_samples}, max_weights={self.max_weights}"


_FLIPS_AT_ONCE = 256  # bounds the memory; more at once would not be faster


def _flips(evaluation: EvaluatedTerms, name: str, natural: Tensor) -> Tensor:
    """A number for each weight of a site; weights of one number can be flipped together.

    Those are the elements of a plate that every term which depends on the site lies in.
    """
    axes = evaluation.plates[name].axes if name in evaluation.plates else {}
    together = [axes[plate] for plate in evaluation.resolved_plates(name)]
    shape = list(natural.shape)
    for axis in together:
        shape[axis] = 1
    numbers = torch.arange(math.prod(shape), device=natural.device)
    return numbers.reshape(shape).expand(natural.shape)


def all_signs(count: int, like: Tensor) -> Tensor:
    """All joint states of ``count`` signs, shape (2^count, count)."""
    codes = torch.arange(2**count, device=like.device)
    bits = (codes[:, None] >> torch.arange(count, device=like.device)) & 1
    return bits.to(like.dtype) * 2.0 - 1.0
