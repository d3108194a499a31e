"""What raw inputs are put through before a network sees them: known to the data and to a model file."""

from __future__ import annotations

from typing import NamedTuple


class Preprocessing(NamedTuple):
    """x = (raw / divisor - mean) / std, in float32 and in this order.

    >>> Preprocessing(divisor=255.0, mean=0.13, std=0.31).divisor
    255.0
    """

    divisor: float
    mean: float
    std: float
