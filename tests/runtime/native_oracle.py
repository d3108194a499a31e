"""What the compiled kernels are compared with: the same bits and the same sums, slowly, in float64."""

from __future__ import annotations

import numpy as np

GAMMA = np.uint64(0x9E3779B97F4A7C15)


def numbers(key: int, units: int, inputs: int) -> np.ndarray:
    """The 16-bit random number of every weight, (N, K), by the formula in native/canonical.h."""
    words = np.uint64(-(-inputs // 4))
    n, j = np.arange(units, dtype=np.uint64)[:, None], np.arange(words, dtype=np.uint64)
    with np.errstate(over="ignore"):
        x = np.uint64(key) + GAMMA * (n * words + j + np.uint64(1))
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x = x ^ (x >> np.uint64(31))
    halves = [(x >> np.uint64(16 * i)) & np.uint64(0xFFFF) for i in range(4)]
    return np.stack(halves, axis=-1).reshape(units, -1)[:, :inputs]


def draw(mode: np.ndarray, thresholds: np.ndarray, key: int) -> np.ndarray:
    """Booleans (N, K): the mode, flipped where u < t."""
    return mode ^ (numbers(key, *mode.shape) < thresholds)


def pack(plus: np.ndarray, pad: bool = False) -> np.ndarray:
    """Booleans (N, K) in words, with the pad bits at ``pad``."""
    rows, inputs = plus.shape
    padded = np.full((rows, -(-inputs // 64) * 64), pad)
    padded[:, :inputs] = plus
    return np.packbits(padded, axis=1, bitorder="little").view(np.uint64)


def signs(plus: np.ndarray) -> np.ndarray:
    """-1.0 and +1.0 in float64."""
    return np.where(plus, 1.0, -1.0)


def conv(
    x: np.ndarray,
    w: np.ndarray,
    stride: tuple[int, int],
    padding: tuple[tuple[int, int], tuple[int, int]],
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
) -> np.ndarray:
    """x (M, C, H, W) with w (N, C / groups, h, w) and zero padding, float64: (M, N, H', W')."""
    x = np.pad(x.astype(np.float64), ((0, 0), (0, 0), *padding))
    span = [spread * (size - 1) + 1 for spread, size in zip(dilation, w.shape[2:], strict=True)]
    windows = np.lib.stride_tricks.sliding_window_view(x, span, axis=(2, 3))
    windows = windows[:, :, :: stride[0], :: stride[1], :: dilation[0], :: dilation[1]]
    parts = zip(np.split(windows, groups, axis=1), np.split(w, groups), strict=True)
    return np.concatenate([np.einsum("mcyxhw,nchw->mnyx", *each) for each in parts], axis=1)


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """Root of the mean square of the difference, over that of what is expected."""
    return float(np.sqrt(((found - expected) ** 2).mean() / (expected**2).mean()))
