"""Linear maps and convolutions: products with weights that are packed signs or real numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from bayesbin.core.canonical import unpack_words
from bayesbin.runtime.reference_sums import fast_sums, rounded_sums, signed_sums

_COLUMNS = 1 << 22  # numbers that are laid out for products at once
Sums = Callable[[np.ndarray], np.ndarray]  # (K, R) -> (N, R)
Pairs = Sequence[tuple[int, int]]


@dataclass(frozen=True, eq=False)
class PackedSigns:
    """The binary weights of one draw, as they are stored: words (units, words) of weights of ``shape``."""

    words: np.ndarray
    shape: tuple[int, ...]

    def array(self) -> np.ndarray:
        """-1 and +1 in float32, with an axis of one for the batch."""
        return (unpack_words(self.words, self.shape).astype(np.float32) * 2 - 1)[None]

    def group(self, group: int, groups: int) -> PackedSigns:
        """The units of one of several groups."""
        size = len(self.words) // groups
        return PackedSigns(self.words[group * size : (group + 1) * size], (size, *self.shape[1:]))


Weights = np.ndarray | PackedSigns


def linear(
    x: np.ndarray,
    weight: Weights,
    bias: np.ndarray | None = None,
    *,
    dtype: np.dtype,
    fast: bool = False,
) -> np.ndarray:
    """x (..., K) with weights (N, K): sums over K, then the bias."""
    sums = _sums_with(weight, bias, dtype, fast)
    rows = x.reshape(-1, x.shape[-1])
    units = weight.shape[0] if isinstance(weight, PackedSigns) else weight.shape[1]
    out = np.empty((len(rows), units), dtype)
    many = max(1, _COLUMNS // max(1, rows.shape[1], units))
    for start in range(0, len(rows), many):
        out[start : start + many] = sums(rows[start : start + many].T).T
    return out.reshape(*x.shape[:-1], units)


def conv(
    x: np.ndarray,
    weight: Weights,
    bias: np.ndarray | None = None,
    *,
    dtype: np.dtype,
    stride: Sequence[int],
    padding: Pairs,
    dilation: Sequence[int],
    groups: int,
) -> np.ndarray:
    """Images (C, ...) with weights (N, C / groups, window): sums over channels and window in C order."""
    shape = weight.shape if isinstance(weight, PackedSigns) else weight.shape[1:]
    windows = _windows(x, shape[2:], stride, padding, dilation)
    axes, units, channels = len(stride), shape[0] // groups, shape[1]
    out = np.empty((len(x), shape[0], *windows.shape[2 : 2 + axes]), dtype)
    for group in range(groups):
        mine = slice(group * units, (group + 1) * units)
        sums = _sums_with(_of_group(weight, group, groups), _bias_of(bias, mine), dtype)
        seen = windows[:, group * channels : (group + 1) * channels]
        for rows, lines in _blocks(seen):
            some = seen[rows, :, lines]
            places = (some.shape[0], *some.shape[2 : 2 + axes])
            # (B, C, places, window) to (C, window, B, places)
            order = (1, *range(2 + axes, 2 + 2 * axes), 0, *range(2, 2 + axes))
            columns = some.transpose(order).reshape(math.prod(shape[1:]), math.prod(places))
            found = sums(columns).reshape(units, *places)
            out[rows, mine, lines] = np.moveaxis(found, 0, 1)
    return out


def conv_transpose(
    x: np.ndarray,
    weight: Weights,
    bias: np.ndarray | None = None,
    *,
    dtype: np.dtype,
    stride: Sequence[int],
    padding: Sequence[int],
    output_padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> np.ndarray:
    """Images (C, ...) spread by weights (C, N / groups, window), as the gradient of a convolution.

    Each output is a sum in float64 over channels and then places of the window, in C order.
    """
    by_channel = weight.array() if isinstance(weight, PackedSigns) else weight
    by_channel = by_channel[0].astype(np.float64)
    x = x.astype(np.float64)
    units, window = by_channel.shape[1], by_channel.shape[2:]
    sizes = [
        (size - 1) * hop + spread * (wide - 1) + 1 + more
        for size, wide, hop, spread, more in zip(
            x.shape[2:], window, stride, dilation, output_padding, strict=True
        )
    ]
    total = np.zeros((len(x), units * groups, *sizes))
    channels = x.shape[1] // groups
    for channel in range(x.shape[1]):
        group = channel // channels
        into = total[:, group * units : (group + 1) * units]
        for place in np.ndindex(*window):
            starts = [spread * i for spread, i in zip(dilation, place, strict=True)]
            where = tuple(
                slice(start, start + (size - 1) * hop + 1, hop)
                for start, size, hop in zip(starts, x.shape[2:], stride, strict=True)
            )
            numbers = by_channel[(channel, slice(None), *place)]
            numbers = numbers.reshape(units, *[1] * len(window))
            into[(slice(None), slice(None), *where)] += x[:, channel, None] * numbers
    cropped = tuple(slice(pad, size - pad) for pad, size in zip(padding, sizes, strict=True))
    total = total[(slice(None), slice(None), *cropped)]
    if bias is not None:
        total = total + bias.astype(np.float64).reshape(1, -1, *[1] * len(window))
    return total.astype(dtype)


def _sums_with(
    weight: Weights, bias: np.ndarray | None, dtype: np.dtype, fast: bool = False
) -> Sums:
    """What computes the outputs of units from columns (K, R): sums, then the bias, in ``dtype``.

    Sums under packed signs are in ``dtype``, in the order of panels; those with real weights are in float64,
    in the order of inputs, and are rounded once, with the bias.
    """
    if isinstance(weight, PackedSigns):
        words = weight.words
        sums_of = fast_sums if fast and dtype == np.float32 else signed_sums

        def under_signs(columns: np.ndarray) -> np.ndarray:
            sums = sums_of(columns.astype(dtype, copy=False), words)
            return sums if bias is None else sums + bias[0].astype(dtype)[:, None]

        return under_signs
    numbers = weight[0].reshape(weight.shape[1], -1)

    def with_numbers(columns: np.ndarray) -> np.ndarray:
        return rounded_sums(columns, numbers, dtype, None if bias is None else bias[0])

    return with_numbers


def _of_group(weight: Weights, group: int, groups: int) -> Weights:
    if isinstance(weight, PackedSigns):
        return weight.group(group, groups)
    return np.split(weight, groups, axis=1)[group]


def _bias_of(bias: np.ndarray | None, units: slice) -> np.ndarray | None:
    return None if bias is None else bias[:, units]


def _windows(
    x: np.ndarray,
    window: Sequence[int],
    stride: Sequence[int],
    padding: Pairs,
    dilation: Sequence[int],
) -> np.ndarray:
    """A view (B, C, places, window) of images with zeros around them."""
    x = np.pad(x, [(0, 0), (0, 0), *padding])
    spans = tuple(spread * (wide - 1) + 1 for spread, wide in zip(dilation, window, strict=True))
    axes = tuple(range(2, x.ndim))
    found = np.lib.stride_tricks.sliding_window_view(x, spans, axis=axes)
    hops = [slice(None, None, hop) for hop in stride]
    spreads = [slice(None, None, spread) for spread in dilation]
    return found[(slice(None), slice(None), *hops, *spreads)]


def _blocks(windows: np.ndarray) -> Iterator[tuple[slice, slice]]:
    """Rows, and places along the first axis of images, of which the columns fit the memory meant."""
    rows, lines = windows.shape[0], windows.shape[2]
    line = max(1, windows[:1, :, :1].size)  # numbers for one line of one row
    many_lines = max(1, min(lines, _COLUMNS // line))
    many_rows = max(1, _COLUMNS // (line * lines))
    for row in range(0, rows, many_rows):
        for start in range(0, lines, many_lines):
            yield slice(row, row + many_rows), slice(start, start + many_lines)
