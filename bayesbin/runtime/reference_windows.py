"""Pools over windows of images, and images of another size. Images are (B, channels, ...)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from bayesbin.runtime.kinds import window_sizes


def max_pool(
    x: np.ndarray,
    *,
    size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    ceil: bool,
    dilation: Sequence[int],
) -> np.ndarray:
    """The largest of each window, NaN if it holds one; padding is never the largest."""
    out = None
    for seen in _places(x, -np.inf, size, stride, padding, dilation, ceil):
        # The first of equals stays, and NaN replaces whatever is there.
        out = seen if out is None else np.where((seen > out) | (seen != seen), seen, out)
    assert out is not None
    return out


def avg_pool(
    x: np.ndarray,
    *,
    size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    ceil: bool,
    count_padding: bool,
    divisor: int,
) -> np.ndarray:
    """The sum of each window in C order, over its count (see :func:`_counts`)."""
    once = (1,) * len(size)
    total = None
    for seen in _places(x, 0.0, size, stride, padding, once, ceil):
        total = seen + x.dtype.type(0) if total is None else total + seen
    assert total is not None
    if divisor:
        return total / x.dtype.type(divisor)
    counts = _counts(x.shape[2:], size, stride, padding, total.shape[2:], count_padding)
    return total / counts.astype(x.dtype)


def _places(
    x: np.ndarray,
    around: float,
    size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil: bool,
) -> Iterator[np.ndarray]:
    """For each place of the window, in C order, what all windows see there."""
    pairs = [(each, each) for each in padding]
    counts = window_sizes(x.shape[2:], size, stride, pairs, dilation, ceil)
    # With ceil a last window may reach beyond the padding; windows may also leave numbers out.
    reach = [
        (count - 1) * hop + spread * (wide - 1) + 1
        for count, hop, spread, wide in zip(counts, stride, dilation, size, strict=True)
    ]
    widths = [
        (before, max(0, needed - before - have))
        for before, needed, have in zip(padding, reach, x.shape[2:], strict=True)
    ]
    x = np.pad(x, [(0, 0), (0, 0), *widths], constant_values=around)
    for place in np.ndindex(*size):
        where = tuple(
            slice(spread * i, spread * i + (count - 1) * hop + 1, hop)
            for i, spread, count, hop in zip(place, dilation, counts, stride, strict=True)
        )
        yield x[(slice(None), slice(None), *where)]


def _counts(
    sizes: Sequence[int],
    size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    counts: Sequence[int],
    count_padding: bool,
) -> np.ndarray:
    """How many numbers a window is the mean of: those of the image, or of the image with its padding."""
    total = np.ones((1,) * len(sizes))
    for axis, (have, wide, hop, around, count) in enumerate(
        zip(sizes, size, stride, padding, counts, strict=True)
    ):
        starts = np.arange(count) * hop - around
        ends = np.minimum(starts + wide, have + around)
        if not count_padding:
            starts, ends = np.maximum(starts, 0), np.minimum(ends, have)
        total = total * (ends - starts).reshape([-1 if a == axis else 1 for a in range(len(sizes))])
    return total


def adaptive_max_pool(x: np.ndarray, *, size: Sequence[int]) -> np.ndarray:
    out = np.empty((*x.shape[:2], *size), x.dtype)
    for place, window in _adaptive(x, size):
        largest = np.max(window, axis=tuple(range(2, x.ndim)))  # NaN if any is
        out[(..., *place)] = largest + x.dtype.type(0)  # a largest 0 is +0
    return out


def adaptive_avg_pool(x: np.ndarray, *, size: Sequence[int]) -> np.ndarray:
    out = np.empty((*x.shape[:2], *size), x.dtype)
    for place, window in _adaptive(x, size):
        numbers = np.ascontiguousarray(window).reshape(-1, math.prod(window.shape[2:]))
        total = np.add.reduce(numbers, axis=-1) / numbers.shape[1]
        out[(..., *place)] = total.reshape(window.shape[:2])
    return out


def _adaptive(x: np.ndarray, size: Sequence[int]) -> Iterator[tuple[tuple[int, ...], np.ndarray]]:
    """Each output's place and window: from floor(i in / out) to ceil((i + 1) in / out) along each axis."""
    for place in np.ndindex(*size):
        where = tuple(
            slice(i * have // wanted, -(-(i + 1) * have // wanted))
            for i, have, wanted in zip(place, x.shape[2:], size, strict=True)
        )
        yield place, x[(slice(None), slice(None), *where)]


def nearest(have: int, wanted: int) -> np.ndarray:
    """Which of ``have`` numbers each of ``wanted`` is: floor(i (have / wanted)), in float32 as torch's."""
    places = np.arange(wanted, dtype=np.float32) * (np.float32(have) / np.float32(wanted))
    return np.minimum(places.astype(np.int64), have - 1)


def resize(x: np.ndarray, *, size: Sequence[int], mode: str, align_corners: bool) -> np.ndarray:
    """One axis after another: the nearest number (:func:`nearest`), or between the two nearest."""
    for axis, wanted in enumerate(size, 2):
        have, places = x.shape[axis], np.arange(wanted)
        if mode == "nearest":
            x = np.take(x, nearest(have, wanted), axis=axis)
            continue
        if align_corners:
            at = places * ((have - 1) / (wanted - 1) if wanted > 1 else 0.0)
        else:
            at = np.maximum((places + 0.5) * (have / wanted) - 0.5, 0.0)
        low = np.minimum(at.astype(np.int64), have - 1)
        high = np.minimum(low + 1, have - 1)
        share = (at - low).reshape([-1 if a == axis else 1 for a in range(x.ndim)])
        x = np.take(x, low, axis=axis) * (1 - share) + np.take(x, high, axis=axis) * share
    return x
