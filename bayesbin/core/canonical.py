"""Draws that are functions of (seed, index, site) and the place of a weight alone, and signs in words.

Signs come from a counter-based generator that can be entered anywhere: the 16 bits of one weight depend
on the key of (seed, index, site), on its unit and on its input, and on nothing else. Whoever computes
them, in whatever order, batch or block, draws the same network. A site has N units, its first dimension,
and K inputs, all others flattened; with a key z, GAMMA and MIX of SplitMix64,

    word(n, j) = MIX(z + GAMMA (n ceil(K/4) + j + 1)) mod 2^64,
    u(n, k) = half-word k mod 4 of word(n, k // 4),

the lowest first. The sign is the mode, flipped if u(n, k) < t(n, k) = round(2^16 P(the other sign)).

Signs are packed into 64-bit words: bit k mod 64 of word k // 64 of a row is input k, a set bit is +1.

Source: Steele, Lea and Flood 2014, Fast splittable pseudorandom number generators (SplitMix64).
"""

from __future__ import annotations

import hashlib
import math

import numpy as np

from bayesbin.core.checks import whole_number

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
FLIPS = 1 << 16  # thresholds are out of so many
WORD = 64


def key_of(seed: int, index: int, site: str) -> int:
    """The 64-bit key of draw ``index`` of ``seed`` at one site.

    The site enters by name, so that its draws do not depend on which other sites there are. Raises
    ValueError for a seed or an index that is no whole number of at least 0.
    """
    seed, index = whole_number("seed", seed), whole_number("index", index)
    digest = hashlib.sha256(f"{seed}|{index}|{site}".encode()).digest()
    return int.from_bytes(digest[:8], "little")


def half_words(key: int, shape: tuple[int, ...]) -> np.ndarray:
    """u(n, k) for every weight of a site, uint16 of the site's shape."""
    units = shape[0] if shape else 1
    inputs = math.prod(shape[1:])
    words = -(-inputs // 4)
    # Arrays of uint64 wrap around, which is meant; numpy warns only of scalars that do.
    z = np.arange(1, units * words + 1, dtype=np.uint64) * _GAMMA + np.array([key], np.uint64)
    z ^= z >> np.uint64(30)
    z *= _FIRST
    z ^= z >> np.uint64(27)
    z *= _SECOND
    z ^= z >> np.uint64(31)
    halves = z.astype("<u8").view("<u2").reshape(units, 4 * words)
    return np.ascontiguousarray(halves[:, :inputs]).reshape(shape)


def num_words(inputs: int) -> int:
    """Words per row."""
    return -(-inputs // WORD)


def pack_words(plus: np.ndarray) -> np.ndarray:
    """Packed rows (N, words), uint64, of booleans (N, ...) that say which signs are +1; pad bits are 0.

    >>> pack_words(np.array([[True, False, True]])).tolist()
    [[5]]
    """
    units, inputs = len(plus), math.prod(plus.shape[1:])
    padded = np.zeros((units, num_words(inputs) * WORD), dtype=bool)
    padded[:, :inputs] = plus.reshape(units, inputs)
    return np.packbits(padded, axis=1, bitorder="little").view("<u8").astype(np.uint64, copy=False)


def unpack_words(words: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Booleans of ``shape`` (N, ...) from packed rows; what the pad bits are does not matter.

    :raises ValueError: for words of another shape.

    >>> unpack_words(np.array([[5]], dtype=np.uint64), (1, 3)).tolist()
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


def draw_words(mode: np.ndarray, flip: np.ndarray, key: int) -> np.ndarray:
    """The packed signs of a draw: those of ``mode``, flipped where the random number is less.

    :param mode: packed rows (N, words). :param flip: t, uint16 (N, K).
    """
    return mode ^ pack_words(half_words(key, flip.shape) < flip)
