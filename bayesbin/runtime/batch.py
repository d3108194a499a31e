"""Batch normalisation by the statistics of the very batch, for whoever computes statistics from data.

The numbers are the same with the compiled kernels and with numpy: sums are taken in eight lanes over the
places of a channel, row after row, chunk after chunk.
"""

from __future__ import annotations

import math

import numpy as np

from bayesbin.runtime import native_backend

_CHUNK = 1 << 15  # numbers whose sums are taken at a time
_LANES = 8


def normalise_by_batch(
    x: np.ndarray,
    axis: int,
    weight: np.ndarray | None = None,
    bias: np.ndarray | None = None,
    eps: float = 1e-5,
    *,
    threads: int = 1,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    r"""Normalise each draw's values by their own mean and biased variance, where they are.

    .. math:: y = \frac{x - m}{\sqrt{v + \epsilon}} w + b

    :param x: (draws, B, *shape) of float32 or float64, C-contiguous; overwritten.
    :param axis: that of the channels, of ``shape``. :param weight, bias: (draws or 1, channels), or None.
    :returns: what x has become; means, and sums of squares about them, (draws, channels) in float64.

    >>> y, mean, squares = normalise_by_batch(np.array([[[1.0], [3.0]]]), 0)
    >>> mean.item(), squares.item(), y.round(3).ravel().tolist()
    (2.0, 2.0, [-1.0, 1.0])
    """
    shape = x.shape[1:]
    if len(shape) == 1:
        cells = x.reshape(len(x), shape[0], 1, 1)
    else:
        sizes = (math.prod(shape[: axis + 1]), shape[axis + 1], math.prod(shape[axis + 2 :]))
        cells = x.reshape(len(x), *sizes)
    draws, channels = len(cells), cells.shape[2]
    weight, bias = (
        None
        if each is None
        else np.ascontiguousarray(np.broadcast_to(each, (draws, channels)), np.float64)
        for each in (weight, bias)
    )
    mean, squares = np.empty((draws, channels)), np.empty((draws, channels))
    if native_backend.available():
        native_backend.normalise_by_batch(cells, weight, bias, eps, mean, squares, threads)
    else:
        for draw, own in enumerate(cells):
            own_weight, own_bias = (None if each is None else each[draw] for each in (weight, bias))
            mean[draw], squares[draw] = _in_numpy(own, own_weight, own_bias, eps)
    return x, mean, squares


def _in_numpy(
    cells: np.ndarray, weight: np.ndarray | None, bias: np.ndarray | None, eps: float
) -> tuple[np.ndarray, np.ndarray]:
    """:func:`normalise_by_batch` of one draw, (rows, channels, places)."""
    rows, channels, places = cells.shape
    step = max(1, _CHUNK // (channels * places))
    chunks = [slice(first, first + step) for first in range(0, rows, step)]
    # Deviations from a number near the mean: their squares lose no digits.
    first = cells[0].astype(np.float64)
    centre = np.add.accumulate(first, axis=1)[:, -1] / places
    total, squares = np.zeros(channels), np.zeros(channels)
    for chunk in chunks:
        apart = cells[chunk] - centre[:, None]
        total += _summed(apart)
        squares += _summed(apart * apart)
    apart = total / (rows * places)
    squares -= total * apart
    slope = 1.0 / np.sqrt(squares / (rows * places) + eps)
    slope = slope if weight is None else slope * weight
    shift = np.zeros(channels) if bias is None else bias
    numbers = [each.astype(cells.dtype)[:, None] for each in (centre + apart, slope, shift)]
    for chunk in chunks:
        part = cells[chunk]
        part -= numbers[0]
        part *= numbers[1]
        part += numbers[2]
    return centre + apart, squares


def _summed(values: np.ndarray) -> np.ndarray:
    """Sums over rows and places, by channel, in the order of the kernels."""
    rows, channels, places = values.shape
    if places == 1:
        return np.add.accumulate(values[:, :, 0], axis=0)[-1]
    whole = places - places % _LANES
    # numpy adds along an axis that is not the last one number after another.
    s = np.add.reduce(values[:, :, :whole].reshape(rows, channels, -1, _LANES), axis=2)
    rest = np.zeros((rows, channels))
    for at in range(whole, places):
        rest += values[:, :, at]
    each = ((s[..., 0] + s[..., 1]) + (s[..., 2] + s[..., 3])) + (
        (s[..., 4] + s[..., 5]) + (s[..., 6] + s[..., 7])
    )
    return np.add.accumulate(each + rest, axis=0)[-1]
