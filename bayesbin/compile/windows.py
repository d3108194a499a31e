"""Which value of an axis each place of a window reads, as tables of whole numbers.

A table is (o, k): outputs along the axis, places of the window. The size of the axis stands for the
padding, or for nothing, where a window reads beyond the axis.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def _inside(places: np.ndarray, size: int) -> np.ndarray:
    return np.where((places >= 0) & (places < size), places, size)


def _strided(outputs: int, wide: int, hop: int, spread: int, low: int) -> np.ndarray:
    return np.arange(outputs)[:, None] * hop - low + np.arange(wide) * spread


def conv_places(
    sizes: Sequence[int], window: Sequence[int], attributes: Mapping[str, Any]
) -> list[np.ndarray]:
    """Of a convolution, for each axis of the image."""
    found = []
    numbers = (attributes[name] for name in ("stride", "padding", "dilation"))
    for size, wide, hop, (low, high), spread in zip(sizes, window, *numbers, strict=True):
        outputs = (size + low + high - spread * (wide - 1) - 1) // hop + 1
        found.append(_inside(_strided(outputs, wide, hop, spread, low), size))
    return found


def transposed_places(
    sizes: Sequence[int],
    outputs: Sequence[int],
    window: Sequence[int],
    attributes: Mapping[str, Any],
) -> list[np.ndarray]:
    """Of a transposed convolution: place k of output o is input i, o = i stride - padding + k dilation."""
    found = []
    numbers = (attributes[name] for name in ("stride", "padding", "dilation"))
    for size, out, wide, hop, pad, spread in zip(sizes, outputs, window, *numbers, strict=True):
        steps = np.arange(out)[:, None] + pad - np.arange(wide) * spread
        found.append(_inside(np.where(steps % hop == 0, steps // hop, -1), size))
    return found


def pool_places(
    sizes: Sequence[int], outputs: Sequence[int], attributes: Mapping[str, Any]
) -> list[np.ndarray]:
    """Of a pool; what lies beyond the image counts as nothing."""
    spreads = attributes.get("dilation", (1,) * len(sizes))
    numbers = (attributes[name] for name in ("size", "stride", "padding"))
    return [
        _inside(_strided(out, wide, hop, spread, pad), size)
        for size, out, wide, hop, pad, spread in zip(sizes, outputs, *numbers, spreads, strict=True)
    ]


def pool_counts(
    sizes: Sequence[int], outputs: Sequence[int], attributes: Mapping[str, Any]
) -> np.ndarray:
    """What each sum of an average pool is divided by, as torch counts it."""
    if attributes["divisor"]:
        return np.full(tuple(outputs), attributes["divisor"])
    counts = np.ones((), dtype=np.int64)
    numbers = (attributes[name] for name in ("size", "stride", "padding"))
    for size, out, wide, hop, pad in zip(sizes, outputs, *numbers, strict=True):
        start = np.arange(out) * hop - pad
        end = np.minimum(start + wide, size + pad)
        if not attributes["count_padding"]:
            start, end = np.maximum(start, 0), np.minimum(end, size)
        counts = np.multiply.outer(counts, end - start)
    return counts


def adaptive_places(sizes: Sequence[int], outputs: Sequence[int]) -> list[np.ndarray]:
    """Of an adaptive pool: output o has floor(o size / outputs) to ceil((o + 1) size / outputs)."""
    found = []
    for size, out in zip(sizes, outputs, strict=True):
        starts = np.arange(out) * size // out
        ends = -(-(np.arange(1, out + 1) * size) // out)
        places = starts[:, None] + np.arange(int((ends - starts).max()))
        found.append(np.where(places < ends[:, None], places, size))
    return found


def linear_places(
    size: int, outputs: int, align_corners: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The two values that each output of a resized axis lies between, and the share of the second."""
    if align_corners:
        at = np.arange(outputs) * ((size - 1) / (outputs - 1) if outputs > 1 else 0.0)
    else:
        at = np.maximum((np.arange(outputs) + 0.5) * (size / outputs) - 0.5, 0.0)
    low = np.minimum(np.floor(at).astype(np.int64), size - 1)
    return low, np.minimum(low + 1, size - 1), at - low


def padded_places(size: int, widths: tuple[int, int], mode: str) -> np.ndarray:
    """Which value each place of a padded axis takes: modes reflect, replicate, circular."""
    names: dict[str, Any] = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}
    return np.pad(np.arange(size), widths, mode=names[mode])
