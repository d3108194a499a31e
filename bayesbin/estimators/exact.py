"""The oracle: the expectation over all joint states of the signs."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from bayesbin import _numerics
from bayesbin.estimators.base import Estimator, Objective


class Enumerate(Estimator):
    r"""The exact expectation, by summing over all 2^D joint states of the D signs.

    .. math:: E_q[f(w)] = \sum_{w \in \{-1,+1\}^D} q_\lambda(w)\, f(w)

    Exact in value and gradient, and the oracle against which the other estimators are tested. The cost
    doubles with each weight.

    :param max_weights: the largest D accepted. :raises ValueError: for more weights than that.

    Example::

        >>> import torch
        >>> from bayesbin.estimators import Enumerate
        >>> natural = {"w": torch.tensor([0.5], requires_grad=True)}
        >>> objective = lambda values: torch.stack([torch.exp(0.8 * w).sum() for w in values["w"]])
        >>> round(Enumerate()(objective, natural).item(), 3)
        1.748
    """

    unbiased = True

    def __init__(self, max_weights: int = 16) -> None:
        super().__init__()
        self.max_weights = max_weights

    def forward(self, objective: Objective, natural: Mapping[str, Tensor]) -> Tensor:
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
            log_q = log_q + _numerics.log_prob(flat, pieces[name]).sum(1)
        values = {name: list(pieces[name].reshape(-1, *lam.shape)) for name, lam in natural.items()}
        return (log_q.exp() * objective(values)).sum()

    def extra_repr(self) -> str:
        return f"max_weights={self.max_weights}"


def all_signs(count: int, like: Tensor) -> Tensor:
    """All joint states of ``count`` signs, shape (2^count, count)."""
    codes = torch.arange(2**count, device=like.device)
    bits = (codes[:, None] >> torch.arange(count, device=like.device)) & 1
    assert len(codes) == math.prod([2] * count)
    return bits.to(like.dtype) * 2.0 - 1.0
