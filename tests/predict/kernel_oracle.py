"""What the compiled kernels are compared with: the same bits and the same sums, slowly, in numpy."""

from __future__ import annotations

import math

import numpy as np

GAMMA = np.uint64(0x9E3779B97F4A7C15)


def numbers(key: int, units: int, inputs: int) -> np.ndarray:
    """The 16-bit random number of every weight, (N, K), by the formula in csrc/canonical.h."""
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


def conv2d(x: np.ndarray, w: np.ndarray, stride: tuple, padding: tuple) -> np.ndarray:
    """x (M, C, H, W) with w (N, C, h, w) and zero padding, float64: (M, N, H', W')."""
    x = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (padding[0],) * 2, (padding[1],) * 2))
    windows = np.lib.stride_tricks.sliding_window_view(x, w.shape[2:], axis=(2, 3))
    return np.einsum("mcyxhw,nchw->mnyx", windows[:, :, :: stride[0], :: stride[1]], w)


def pool(x: np.ndarray, kind: str, size: tuple, stride: tuple, padding: tuple) -> np.ndarray:
    """Maximum or mean (padding counts as zeros) over windows of x (M, C, H, W)."""
    fill = -math.inf if kind == "max" else 0.0
    pads = ((0, 0), (0, 0), (padding[0],) * 2, (padding[1],) * 2)
    x = np.pad(x, pads, constant_values=fill)
    windows = np.lib.stride_tricks.sliding_window_view(x, size, axis=(2, 3))
    windows = windows[:, :, :: stride[0], :: stride[1]]
    return windows.max((-1, -2)) if kind == "max" else windows.mean((-1, -2))


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Over the last dimension, in float64."""
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """Root of the mean square of the difference, over that of what is expected."""
    return float(np.sqrt(((found - expected) ** 2).mean() / (expected**2).mean()))
