"""Draws that are functions of (seed, index, site) and the place of a weight alone.

Signs come from a counter-based generator that can be entered anywhere: the 16 bits of one weight depend
on the key of (seed, index, site), on its unit and on its input, and on nothing else. Whoever computes
them, in whatever order, batch or block, draws the same network. A site has N units, its first dimension,
and K inputs, all others flattened; with a key z, GAMMA and MIX of SplitMix64,

    word(n, j) = MIX(z + GAMMA (n ceil(K/4) + j + 1)) mod 2^64,
    u(n, k) = half-word k mod 4 of word(n, k // 4),

the lowest first. The sign is the mode, flipped if u(n, k) < t(n, k) = round(2^16 P(the other sign)).

Source: Steele, Lea and Flood 2014, Fast splittable pseudorandom number generators (SplitMix64).
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bayesbin.core.checks import whole_number

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
FLIPS = 1 << 16  # thresholds are out of so many


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


@dataclass(frozen=True)
class Thresholds:
    """What the signs of a site are drawn by.

    :param mode: whether the mode is +1. :param flip: t, uint16 in 0 .. 2^15; both of the site's shape.
    """

    mode: np.ndarray
    flip: np.ndarray

    @classmethod
    def of(cls, natural: Tensor) -> Thresholds:
        """Those of the given natural parameters."""
        lam = natural.detach().cpu().double()
        other = torch.sigmoid(
            -2.0 * lam.abs()
        )  # never above a half: t fits, and 0 is never to flip
        return cls((lam >= 0).numpy(), (FLIPS * other).round().numpy().astype(np.uint16))

    def draw(self, key: int) -> np.ndarray:
        """Whether each sign is +1 in the draw of a key."""
        return np.asarray(self.mode ^ (half_words(key, self.mode.shape) < self.flip))


def signs_of(plus: np.ndarray, like: Tensor) -> Tensor:
    """-1 and +1 in the type and on the device of ``like``."""
    return torch.from_numpy(plus).to(like.device, like.dtype).mul_(2.0).sub_(1.0)


def draw_noise(like: Tensor, key: int) -> Tensor:
    """Standard normal numbers of the shape and type of ``like``."""
    generator = np.random.Generator(np.random.Philox(key=key))
    return torch.as_tensor(generator.standard_normal(tuple(like.shape))).to(like)
