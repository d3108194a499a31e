"""What raw inputs are put through before a network sees them: known to the data and to a model file."""

from __future__ import annotations

from typing import NamedTuple


class Preprocessing(NamedTuple):
    """x = (raw / divisor - mean) / std, in float32 and in this order.

    Mean and std are numbers, or a tuple each of one number per channel of images: inputs (B, channels,
    rows, columns), or the same images in rows (B, channels * rows * columns).

    >>> Preprocessing(divisor=255.0, mean=0.13, std=0.31).divisor
    255.0
    >>> Preprocessing(255.0, mean=(0.49, 0.48, 0.45), std=(0.25, 0.24, 0.26)).mean[0]
    0.49
    """

    divisor: float
    mean: float | tuple[float, ...]
    std: float | tuple[float, ...]
