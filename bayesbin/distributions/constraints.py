"""The support of a binary weight, and of one with a few levels."""

from __future__ import annotations

import torch
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


class LevelSet(Constraint):
    """A finite set of levels, to the rounding of the value's type."""

    is_discrete = True
    event_dim = 0

    def __init__(self, levels: tuple[float, ...]) -> None:
        self.levels = levels

    def check(self, value: Tensor) -> Tensor:
        levels = torch.tensor(self.levels, dtype=torch.float64, device=value.device)
        close = 4 * torch.finfo(value.dtype).eps * max(map(abs, self.levels))
        return ((value[..., None].double() - levels).abs() <= close).any(-1)


signs = _Signs()
relaxed_signs = _ClosedUnit()

__all__ = ["LevelSet", "relaxed_signs", "signs"]
