"""Steps along the axes of a datum: normalisation, reductions, and those that only move numbers.

Axes are those of a datum, from 0 on; arrays have the batch before them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from bayesbin.runtime.reference_elementwise import channels, in_range


def _axes_last(x: np.ndarray, axes: Sequence[int]) -> np.ndarray:
    """(rows, n) in C order: numpy then adds the n numbers of a row in an order that n alone decides."""
    order = [axis for axis in range(x.ndim) if axis - 1 not in axes]
    moved = x.transpose(*order, *[axis + 1 for axis in sorted(axes)])
    count = math.prod(x.shape[axis + 1] for axis in axes)
    return np.ascontiguousarray(moved).reshape(math.prod(x.shape[a] for a in order), count)


def _reduced_shape(x: np.ndarray, axes: Sequence[int], keep: bool) -> tuple[int, ...]:
    sizes = (1 if axis - 1 in axes else size for axis, size in enumerate(x.shape))
    return tuple(size for axis, size in enumerate(sizes) if keep or axis - 1 not in axes)


def _sum_of(x: np.ndarray, axes: Sequence[int], keep: bool = True) -> np.ndarray:
    return np.add.reduce(_axes_last(x, axes), axis=-1).reshape(_reduced_shape(x, axes, keep))


def _count_of(x: np.ndarray, axes: Sequence[int]) -> int:
    return math.prod(x.shape[axis + 1] for axis in axes)


# Normalisation


def batch_norm(
    x: np.ndarray,
    mean: np.ndarray,
    variance: np.ndarray,
    weight: np.ndarray | None = None,
    bias: np.ndarray | None = None,
    *,
    axis: int,
    eps: float,
) -> np.ndarray:
    """weight (x - mean) / sqrt(variance + eps) + bias, with numbers for each channel."""
    out = (x - channels(mean, x, axis)) / np.sqrt(channels(variance, x, axis) + eps)
    out = out if weight is None else out * channels(weight, x, axis)
    return out if bias is None else out + channels(bias, x, axis)


def _standard(x: np.ndarray, axes: Sequence[int], eps: float) -> np.ndarray:
    """(x - mean) / sqrt(variance + eps), with the biased variance."""
    count = _count_of(x, axes)
    centred = x - _sum_of(x, axes) / count
    return centred / np.sqrt(_sum_of(centred * centred, axes) / count + eps)


def layer_norm(
    x: np.ndarray,
    weight: np.ndarray | None = None,
    bias: np.ndarray | None = None,
    *,
    axes: int,
    eps: float,
) -> np.ndarray:
    out = _standard(x, range(x.ndim - 1 - axes, x.ndim - 1), eps)
    out = out if weight is None else out * at_last_axes(weight, x)
    return out if bias is None else out + at_last_axes(bias, x)


def rms_norm(
    x: np.ndarray, weight: np.ndarray | None = None, *, axes: int, eps: float
) -> np.ndarray:
    last = range(x.ndim - 1 - axes, x.ndim - 1)
    out = x / np.sqrt(_sum_of(x * x, last) / _count_of(x, last) + eps)
    return out if weight is None else out * at_last_axes(weight, x)


def group_norm(
    x: np.ndarray,
    weight: np.ndarray | None = None,
    bias: np.ndarray | None = None,
    *,
    groups: int,
    eps: float,
) -> np.ndarray:
    """Standardises all numbers of a group of channels; weight and bias are per channel."""
    size = math.prod(x.shape[1:]) // groups
    out = _standard(x.reshape(len(x), groups, size), [1], eps).reshape(x.shape)
    out = out if weight is None else out * channels(weight, x, 0)
    return out if bias is None else out + channels(bias, x, 0)


def softmax(x: np.ndarray, *, axis: int) -> np.ndarray:
    sizes = np.exp(x - _largest(x, [axis]))
    return sizes / _sum_of(sizes, [axis])


def log_softmax(x: np.ndarray, *, axis: int) -> np.ndarray:
    below = x - _largest(x, [axis])
    return below - np.log(_sum_of(np.exp(below), [axis]))


def cumsum(x: np.ndarray, *, axis: int) -> np.ndarray:
    return np.cumsum(x, axis=axis + 1)


# Reductions


def sum_(x: np.ndarray, *, axes: Sequence[int], keep: bool) -> np.ndarray:
    return _sum_of(x, axes, keep)


def mean(x: np.ndarray, *, axes: Sequence[int], keep: bool) -> np.ndarray:
    return _sum_of(x, axes, keep) / _count_of(x, axes)


def variance(x: np.ndarray, *, axes: Sequence[int], keep: bool, correction: int) -> np.ndarray:
    """Sum of squared deviations from the mean over (count - correction), or over 0 if that is less."""
    count = _count_of(x, axes)
    centred = x - _sum_of(x, axes) / count
    return _sum_of(centred * centred, axes, keep) / max(0, count - correction)


def _largest(x: np.ndarray, axes: Sequence[int], keep: bool = True) -> np.ndarray:
    """NaN if any is; a largest 0 is +0."""
    return np.max(x, axis=tuple(axis + 1 for axis in axes), keepdims=keep) + x.dtype.type(0)


def max_(x: np.ndarray, *, axes: Sequence[int], keep: bool) -> np.ndarray:
    return _largest(x, axes, keep)


def min_(x: np.ndarray, *, axes: Sequence[int], keep: bool) -> np.ndarray:
    return -_largest(-x, axes, keep)


def prod(x: np.ndarray, *, axes: Sequence[int], keep: bool) -> np.ndarray:
    by_place = _axes_last(x, axes).T
    found = np.ones(by_place.shape[1:], x.dtype)
    for numbers in by_place:
        found = found * numbers
    return found.reshape(_reduced_shape(x, axes, keep))


def norm(x: np.ndarray, *, axes: Sequence[int], keep: bool, order: float) -> np.ndarray:
    """(sum |x|^order)^(1/order); how many are not 0 for order 0, the largest or smallest for +-infinity."""
    sizes = np.abs(x)
    if np.isinf(in_range(order)):
        return (max_ if order > 0 else min_)(sizes, axes=axes, keep=keep)
    if order == 0:
        return _sum_of((x != 0).astype(np.float64), axes, keep)
    if order == 1:
        return _sum_of(sizes, axes, keep)
    if order == 2:
        return np.sqrt(_sum_of(x * x, axes, keep))
    exponent = np.full_like(sizes, order)
    total = _sum_of(np.power(sizes, exponent), axes, keep)
    return np.power(total, np.full_like(total, 1 / order))


def log_sum_exp(x: np.ndarray, *, axes: Sequence[int], keep: bool) -> np.ndarray:
    largest = _largest(x, axes)
    largest = np.where(np.isfinite(largest), largest, 0.0)
    total = np.log(_sum_of(np.exp(x - largest), axes)) + largest
    return total.reshape(_reduced_shape(x, axes, keep))


# Places


def aligned(*arrays: np.ndarray) -> list[np.ndarray]:
    """Arrays with as many axes as the one of most, those of a datum aligned at the last."""
    most = max(x.ndim for x in arrays)
    return [x.reshape(x.shape[0], *[1] * (most - x.ndim), *x.shape[1:]) for x in arrays]


def at_last_axes(numbers: np.ndarray, x: np.ndarray) -> np.ndarray:
    return aligned(numbers, x)[0]


def reshape(x: np.ndarray, *, shape: Sequence[int]) -> np.ndarray:
    return x.reshape(len(x), *shape)


def permute(x: np.ndarray, *, axes: Sequence[int]) -> np.ndarray:
    return x.transpose(0, *[axis + 1 for axis in axes])


def slice_(x: np.ndarray, *, axis: int, start: int, stop: int, step: int) -> np.ndarray:
    return x[(slice(None),) * (axis + 1) + (slice(start, stop, step),)]


def concat(*arrays: np.ndarray, axis: int) -> np.ndarray:
    rows = np.broadcast_shapes(*(x.shape[:1] for x in arrays))
    return np.concatenate([np.broadcast_to(x, rows + x.shape[1:]) for x in arrays], axis=axis + 1)


_PAD_MODES = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}


def pad(x: np.ndarray, *, widths: Sequence[tuple[int, int]], mode: str, value: float) -> np.ndarray:
    """Negative widths crop."""
    wider = [(0, 0), *[(max(low, 0), max(high, 0)) for low, high in widths]]
    sizes = zip(widths, x.shape[1:], strict=True)
    kept = [slice(max(-low, 0), size - max(-high, 0)) for (low, high), size in sizes]
    x = x[(slice(None), *kept)]
    if mode == "constant":
        return np.pad(x, wider, constant_values=np.asarray(in_range(value)).astype(x.dtype))
    return np.pad(x, wider, mode=_PAD_MODES[mode])  # pyright: ignore


def expand(x: np.ndarray, *, shape: Sequence[int]) -> np.ndarray:
    lined = x.reshape(len(x), *[1] * (len(shape) + 1 - x.ndim), *x.shape[1:])
    return np.broadcast_to(lined, (len(x), *shape))


def flip(x: np.ndarray, *, axes: Sequence[int]) -> np.ndarray:
    return np.flip(x, axis=tuple(axis + 1 for axis in axes))


def take(x: np.ndarray, places: np.ndarray, *, axis: int) -> np.ndarray:
    """Parts of x along an axis, at whole numbers that all data share."""
    check_indices(places, x.shape[axis + 1])
    return np.take(x, places[0], axis=axis + 1)


def check_indices(indices: np.ndarray, count: int) -> None:
    """:raises ValueError: for indices that are not 0 to ``count`` - 1."""
    if indices.size and not 0 <= int(indices.min()) <= int(indices.max()) < count:
        raise ValueError(
            f"expected indices of 0 to {count - 1}, got {int(indices.min())} to {int(indices.max())}."
        )
