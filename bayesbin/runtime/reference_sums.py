"""Sums of products in a fixed order, so that no batch, block or number of threads changes a bit.

Inputs come as columns (K, R): K numbers for each of R places. Weights come as rows (N, K), real or packed
signs. All functions return (N, R).
"""

from __future__ import annotations

import itertools
import math

import numpy as np

from bayesbin.core.canonical import unpack_words

PANEL = 32  # inputs whose signed sum is formed before it is added to the total
_TABLES = 1 << 17  # numbers in the tables of a block: they should stay in the second-level cache
_SUMS = 1 << 15  # sums that are added to at once, likewise
_ORDERED = 1 << 20  # products that are added in order at once, of sums that are few
_FEWEST_UNITS = 48  # for which tables of bytes are worth making


def signed_sums(columns: np.ndarray, words: np.ndarray) -> np.ndarray:
    """Sums of inputs under signs, in the order of panels, in the type of the inputs.

    With e a group of four, (s0 x0 + s1 x1) + (s2 x2 + s3 x3), a panel of 32 inputs is
    ((e0 + e1) + (e2 + e3)) + (e4 + e5)) + (e6 + e7), added from the left, and the total ((0 + p0) + p1) + ...
    Inputs past the last count as 0. Where every such sum is exact, its order does not matter, and it is
    left to a matrix product.

    :param columns: float32 or float64 (K, R). :param words: packed signs (N, words).
    """
    exact = _sums_are_exact(columns)
    if not exact.any():
        return _sums_by_tables(columns, words)
    signs = _signs(words, len(columns), columns.dtype)
    if exact.all():
        return signs @ columns + 0.0  # a sum that is 0 is +0
    out = np.empty((len(words), columns.shape[1]), columns.dtype)
    out[:, exact] = signs @ columns[:, exact] + 0.0
    out[:, ~exact] = _sums_by_tables(columns[:, ~exact], words)
    return out


def ordered_sums(columns: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Sums of products in float64, added one after another in the order k = 0, 1, ..., K - 1.

    :param columns: (..., K, R). :param weights: (..., N, K), with axes before the last two that fit.
    """
    many = np.broadcast_shapes(columns.shape[:-2], weights.shape[:-2])
    (inputs, places), units = columns.shape[-2:], weights.shape[-2]
    count = math.prod(many)
    x = np.broadcast_to(columns, (*many, inputs, places)).reshape(count, inputs, places)
    w = np.broadcast_to(weights, (*many, units, inputs)).reshape(count, units, inputs)
    out = np.empty((count, units, places))
    width = max(1, min(places, _SUMS // max(1, units)))
    depth = max(1, _SUMS // max(1, units * width))
    for first, start in itertools.product(range(0, count, depth), range(0, places, width)):
        block = x[first : first + depth, :, start : start + width].astype(np.float64)
        numbers = w[first : first + depth].transpose(2, 0, 1).astype(np.float64, order="C")
        total = np.zeros((len(block), units, block.shape[2]))
        product = np.empty_like(total)
        for k in range(inputs):
            np.multiply(numbers[k][:, :, None], block[:, k][:, None, :], out=product)
            total += product
        out[first : first + depth, :, start : start + width] = total
    return out.reshape(*many, units, places)


def rounded_sums(
    columns: np.ndarray, weights: np.ndarray, dtype: np.dtype, bias: np.ndarray | None = None
) -> np.ndarray:
    """:func:`ordered_sums`, plus the bias (N,) in float64, rounded to ``dtype``.

    Of float32 numbers, a matrix product finds almost all: its sums and the ordered ones both lie within
    gamma ||w|| ||x|| of the exact sum, with gamma about K 2^-53. Where both ends of an interval of twice that
    around the product round to one float32, so does the ordered sum. The others are added in order.
    """
    shift = 0.0 if bias is None else bias.astype(np.float64)[:, None]
    if not columns.dtype == weights.dtype == dtype == np.float32:
        return (ordered_sums(columns, weights) + shift).astype(dtype)
    x, w = columns.astype(np.float64), weights.astype(np.float64)
    near = np.matmul(w, x) + 0.0
    side = lengths(w, -1) * lengths(x, -2) * (2.1 * (x.shape[-2] + 4) * 2.0**-53)
    undecided = np.nonzero(
        (near - side + shift).astype(dtype) != (near + side + shift).astype(dtype)
    )
    w = np.broadcast_to(w, (*near.shape[:-1], w.shape[-1]))
    x = np.broadcast_to(x, (*near.shape[:-2], *x.shape[-2:])).swapaxes(-1, -2)
    many = max(1, _ORDERED // max(1, x.shape[-1]))
    for start in range(0, len(undecided[0]), many):
        *stack, n, r = (places[start : start + many] for places in undecided)
        products = w[(*stack, n)] * x[(*stack, r)]
        near[(*stack, n, r)] = np.add.accumulate(products, axis=1)[:, -1] + 0.0
    return (near + shift).astype(dtype)


def lengths(x: np.ndarray, axis: int) -> np.ndarray:
    """Of vectors along an axis: the roots of the sums of squares, the axis kept."""
    return np.sqrt((x * x).sum(axis=axis, keepdims=True))


def fast_sums(columns: np.ndarray, words: np.ndarray) -> np.ndarray:
    """Sums under signs of inputs rounded to whole multiples of each place's own step, float32.

    The step is the smallest with which the sum of a panel fits 16 bits: 65,000 of them are the largest
    sum of absolute values over a panel, or 32,700 the largest value. A place with values that are not
    finite, or so large or small that there is no such step, has the exact sums.

    :param columns: float32 (K, R). :param words: packed signs (N, words).
    """
    sizes = np.abs(columns)
    worst, total = np.zeros_like(sizes[0]), np.zeros_like(sizes[0])
    for start in range(0, len(sizes), PANEL):
        norm = np.zeros_like(worst)
        for size in sizes[start : start + PANEL]:
            norm += size
        worst = np.where(norm > worst, norm, worst)
        total += norm
    largest = sizes.max(axis=0)
    exact = ~(total <= np.float32(1e37)) | ((total > 0) & (worst < np.float32(1e-30)))
    exact |= len(columns) > 1 << 20
    by_norm, by_value = np.float32(65000) / worst, np.float32(32700) / largest
    per_step = np.where(by_norm < by_value, by_norm, by_value)
    per_step[exact | (total == 0)] = 0
    step = np.where(per_step > 0, np.float32(1) / per_step, np.float32(0))
    large = np.float32(12582912)  # 1.5 * 2^23: adding it rounds to a whole number
    multiples = (np.where(per_step > 0, columns, np.float32(0)) * per_step + large) - large
    # Whole numbers below 2^35 and one product: float64 has all of their digits.
    sums = _signs(words, len(columns), np.float64) @ multiples.astype(np.float64)
    out = (sums * step.astype(np.float64)).astype(np.float32) + np.float32(0)
    if exact.any():
        out[:, exact] = signed_sums(columns[:, exact], words)
    return out


def _signs(words: np.ndarray, inputs: int, dtype: np.typing.DTypeLike) -> np.ndarray:
    plus = unpack_words(words, (len(words), inputs))
    return plus.astype(dtype) * 2 - 1


def _sums_are_exact(columns: np.ndarray) -> np.ndarray:
    """For each place, whether all sums of its inputs under any signs, in any order, are exact.

    They are where the inputs are whole multiples of a step of which float32 (float64) can count as many
    as the sizes of the inputs add up to.
    """
    digits, most = (24, 127) if columns.dtype == np.float32 else (53, 900)
    largest = np.maximum(columns.max(axis=0), -columns.min(axis=0)).astype(np.float64)
    _, exponent = np.frexp(largest)
    more = math.ceil(math.log2(max(1, len(columns))))
    exact = np.isfinite(largest) & (exponent + more <= most) & (exponent > -900)
    scale = np.ldexp(1.0, np.where(exact, digits - 1 - more - exponent, 0))
    for start in range(0, len(columns), PANEL):
        if not exact.any():
            break
        some = columns[start : start + PANEL]
        steps = some * scale  # in float64, which has room to scale any float32
        exact &= ((steps == np.rint(steps)) & ((steps != 0) | (some == 0))).all(axis=0)
    return exact


def _sums_by_tables(columns: np.ndarray, words: np.ndarray) -> np.ndarray:
    """:func:`signed_sums` by look-up: of every eight inputs there is a table of their 256 signed sums."""
    inputs, places = columns.shape
    units, panels = len(words), -(-inputs // PANEL)
    eights = words.astype("<u8").view(np.uint8).reshape(units, -1)[:, : 4 * panels].T
    by_bytes = units >= _FEWEST_UNITS
    if by_bytes:
        picks = eights.astype(np.intp)
    else:
        picks = np.stack([eights & 15, eights >> 4], axis=1).reshape(-1, units).astype(np.intp)
    size = 1024 if by_bytes else 128  # numbers of the tables of a panel, for each place
    width = max(1, min(places, _TABLES // max(size, units)))
    out = np.empty((units, places), columns.dtype)
    for start in range(0, places, width):
        block = np.zeros((PANEL * panels, min(width, places - start)), columns.dtype)
        block[:inputs] = columns[:, start : start + width]
        many = max(1, _TABLES // (max(size, 4 * units) * block.shape[1]))
        total = np.zeros((units, block.shape[1]), columns.dtype)
        for panel in range(0, panels, many):
            some = block[PANEL * panel : PANEL * (panel + many)]
            for sums in _panel_sums(some, picks, panel, by_bytes):
                total += sums
        out[:, start : start + width] = total
    return out


def _panel_sums(block: np.ndarray, picks: np.ndarray, first: int, by_bytes: bool) -> np.ndarray:
    """The sums of whole panels, (panels, N, R), from inputs (32 panels, R).

    :param picks: which entry of each table a unit takes, (tables, N). :param first: the first panel.
    """
    panels, places = len(block) // PANEL, block.shape[1]
    tables = _tables_of_four(block)
    if by_bytes:  # entry 16 high + low of a pair of tables
        tables = tables[0::2][:, None, :] + tables[1::2][:, :, None]
    tables = tables.reshape(panels, -1, 256 if by_bytes else 16, places)
    count, entries = tables.shape[1:3]
    chosen = picks[count * first : count * (first + panels)]
    chosen = chosen + entries * np.arange(len(chosen))[:, None]
    found = tables.reshape(-1, places).take(chosen, axis=0)
    found = found.reshape(panels, count, -1, places)
    if not by_bytes:
        found = found[:, 0::2] + found[:, 1::2]
    sums = found[:, 0] + found[:, 1]
    sums += found[:, 2]
    sums += found[:, 3]
    return sums


def _tables_of_four(block: np.ndarray) -> np.ndarray:
    """The 16 signed sums of every four inputs, (groups, 16, R): bit i of an entry is the sign of input i."""
    a, b, c, d = block.reshape(-1, 4, block.shape[1]).transpose(1, 0, 2)
    low = np.stack([-a - b, a - b, b - a, a + b], axis=1)
    high = np.stack([-c - d, c - d, d - c, c + d], axis=1)
    sums = low[:, None, :] + high[:, :, None]
    return sums.reshape(len(sums), 16, block.shape[1])
