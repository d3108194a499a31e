"""The support of a binary weight."""

from __future__ import annotations

from torch import Tensor
from torch.distributions.constraints import Constraint


class _Signs(Constraint):
    """The two-point set {-1, +1}."""

    is_discrete = True
    event_dim = 0

    def check(self, value: Tensor) -> Tensor:
        return (value == -1) | (value == 1)


class _ClosedUnit(Constraint):
    """The interval [-1, +1]: where relaxed signs live, and where log p(w) is still linear in w."""

    is_discrete = False
    event_dim = 0

    def check(self, value: Tensor) -> Tensor:
        return (value >= -1) & (value <= 1)


signs = _Signs()
relaxed_signs = _ClosedUnit()

__all__ = ["relaxed_signs", "signs"]
