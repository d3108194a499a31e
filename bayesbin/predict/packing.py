"""Signs packed into 64-bit words: bit k mod 64 of word k // 64 of a row is input k, a set bit is +1."""

from __future__ import annotations

import math

import numpy as np

WORD = 64


def num_words(inputs: int) -> int:
    """Words per row."""
    return -(-inputs // WORD)


def pack(plus: np.ndarray) -> np.ndarray:
    """Packed rows (N, words), uint64, of booleans (N, ...) that say which signs are +1; pad bits are 0.

    >>> pack(np.array([[True, False, True]])).tolist()
    [[5]]
    """
    units, inputs = len(plus), math.prod(plus.shape[1:])
    padded = np.zeros((units, num_words(inputs) * WORD), dtype=bool)
    padded[:, :inputs] = plus.reshape(units, inputs)
    return np.packbits(padded, axis=1, bitorder="little").view("<u8").astype(np.uint64, copy=False)


def unpack(words: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Booleans of ``shape`` (N, ...) from packed rows; what the pad bits are does not matter.

    :raises ValueError: for words of another shape.

    >>> unpack(np.array([[5]], dtype=np.uint64), (1, 3)).tolist()
    [[True, False, True]]
    """
    inputs = math.prod(shape[1:])
    if words.shape != (shape[0], num_words(inputs)) or words.dtype != np.uint64:
        raise ValueError(
            f"Expected words of shape {(shape[0], num_words(inputs))} and type uint64 for signs of shape "
            f"{shape}; got {words.shape} and {words.dtype}."
        )
    eights = words.astype("<u8").view(np.uint8).reshape(shape[0], 8 * num_words(inputs))
    bits = np.unpackbits(eights, axis=1, bitorder="little")
    return bits[:, :inputs].astype(bool).reshape(shape)
