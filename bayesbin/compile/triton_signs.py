"""Signs of many draws on a GPU, and their products with inputs: the bits and sums of the CPU's kernels.

Imported only where it is needed, since it needs Triton. All tensors of a call are on one device. Packed
signs are int32 words: bit k mod 32 of word k // 32 of a row is weight (n, k), which is what a uint64 word
of :mod:`bayesbin.core.canonical` is on a little-endian machine, seen as two; pad bits are 0.

Under ``TRITON_INTERPRET=1``, set before Triton is first imported, all of it runs on CPU tensors.
"""

# Launches are calls of an indexed function, which a checker of types takes for something else.
# pyright: reportIndexIssue=false, reportCallIssue=false

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import triton.language as tl
from torch import Tensor

from bayesbin.compile.devices import interpreted
from bayesbin.compile.triton_kernels import (
    dense_kernel,
    draw_kernel,
    linear_kernel,
    pack_kernel,
    xnor_kernel,
)
from bayesbin.core.canonical import num_words

# Up to so many rows a tile of signs is drawn beside its only use and never stored; with more, several
# tiles of rows need the same signs, which are then drawn once into words and expanded from there.
DRAW_ONCE_ABOVE = 64


@dataclass(frozen=True)
class SignDraws:
    """N x K signs of D draws on a device, given or to be drawn.

    :param words: int32 (D or 1, N, width): the signs, or, with thresholds, the mode (1, N, width).
    :param thresholds: int64 (N, ceil(K / 4)), four of 16 bits in each; None: the signs are given.
    :param keys: int64 (D,), with thresholds.
    """

    inputs: int
    words: Tensor
    thresholds: Tensor | None = None
    keys: Tensor | None = None

    @classmethod
    def given(cls, bits: np.ndarray, inputs: int, device: torch.device) -> SignDraws:
        """From packed bits, uint64 (D or 1, N, words)."""
        return cls(inputs, words_on(bits, device))

    @classmethod
    def drawn(
        cls, mode: np.ndarray, thresholds: np.ndarray, keys: np.ndarray, device: torch.device
    ) -> SignDraws:
        """From a packed mode, uint64 (N, words), thresholds, uint16 (N, K), and keys, uint64 (D,)."""
        inputs = thresholds.shape[1]
        return cls(
            inputs,
            words_on(mode[None], device),
            thresholds_on(thresholds, device),
            torch.tensor(keys.view(np.int64), device=device),
        )

    def draws(self, first: int, last: int) -> SignDraws:
        """Those of draws ``first`` to ``last``."""
        if self.keys is not None:
            return SignDraws(self.inputs, self.words, self.thresholds, self.keys[first:last])
        same = len(self.words) == 1
        return SignDraws(self.inputs, self.words if same else self.words[first:last])

    @property
    def num_draws(self) -> int:
        return len(self.words if self.keys is None else self.keys)


def words_on(words: np.ndarray, device: torch.device) -> Tensor:
    """Packed signs, uint64 (..., words), as int32 (..., 2 words) on a device."""
    return torch.tensor(np.ascontiguousarray(words).view(np.int32), device=device)


def thresholds_on(thresholds: np.ndarray, device: torch.device) -> Tensor:
    """Thresholds, uint16 (..., K), as int64 (..., ceil(K / 4)) on a device."""
    *leading, inputs = thresholds.shape
    padded = np.zeros((*leading, 4 * -(-inputs // 4)), dtype=np.uint16)
    padded[..., :inputs] = thresholds  # one of 0 flips nothing
    return torch.tensor(padded.view(np.int64), device=device)


def linear(x: Tensor, signs: SignDraws, fast: bool = False) -> Tensor:
    r"""Signs times real inputs, for each draw: float32 (D, M, N).

    .. math:: y_{dmn} = \sum_k w_{dnk} x_{dmk}

    Exact: x is split into three bfloat16 numbers that add up to it, so every product is exact and the
    sums are float32's (relative error about 1e-6). Fast: x is rounded to float16 on a scale of its row,
    a power of two (about 2e-4 for inputs of similar sizes).

    :param x: float32 (D or 1, M, K).

    Source: Henry, Tang and Heinecke 2019, arXiv 1904.06376 (the three parts of a float32).
    """
    if signs.keys is not None and x.shape[1] > DRAW_ONCE_ABOVE:
        signs = SignDraws(signs.inputs, draw_words(signs))
    x = x.contiguous()
    rows, units = x.shape[1], signs.words.shape[1]
    draws = max(len(x), signs.num_draws)
    out = torch.empty(draws, rows, units, device=x.device, dtype=torch.float32)
    scale = inverse = x
    if fast:
        exponent = torch.frexp(x.abs().amax(-1)).exponent.clamp(-126, 126)
        bits = exponent << 23  # in a float32, whose exponent 0 is stored as 127
        one = 127 << 23
        scale, inverse = (one - bits).view(torch.float32), (one + bits).view(torch.float32)
    number = tl.float16 if fast else tl.bfloat16
    if interpreted():  # its products of bfloat16 are not those of the hardware
        number = tl.float32
    block_n, block_m, warps = _tiles(rows)
    blocks = _blocks(units, block_n)
    linear_kernel[(blocks * _blocks(rows, block_m), draws)](
        x, scale, inverse, *_sources(signs), out, rows, units, blocks,
        rows if len(x) > 1 else 0, _step(signs.words), inputs=signs.inputs,
        DRAWN=signs.keys is not None, FAST=fast, NUMBER=number,
        BLOCK_N=block_n, BLOCK_M=block_m, BLOCK_Q=16, num_warps=warps,
    )  # fmt: skip
    return out


def linear_sign(x: Tensor, words: Tensor, inputs: int) -> Tensor:
    """Signs times signs by popcounts, int32 (D, M, N): K minus twice the number of differing bits.

    :param x: int32 (D or 1, M, width). :param words: int32 (D or 1, N, width). :param inputs: K.
    """
    draws, rows, units = max(len(x), len(words)), x.shape[1], words.shape[1]
    out = torch.empty(draws, rows, units, device=x.device, dtype=torch.int32)
    block_m = 16 if rows <= 16 else 64
    blocks = _blocks(units, 64)
    xnor_kernel[(blocks * _blocks(rows, block_m), draws)](
        x, words, out, rows, units, inputs, blocks, _step(x), _step(words),
        width=x.shape[2], BLOCK_N=64, BLOCK_M=block_m, num_warps=4,
    )  # fmt: skip
    return out


def draw_words(signs: SignDraws) -> Tensor:
    """The signs of every draw in packed words, int32 (D, N, width)."""
    assert signs.keys is not None
    _, units, width = signs.words.shape
    out = torch.empty(len(signs.keys), units, width, device=signs.words.device, dtype=torch.int32)
    blocks = _blocks(units, 32)
    draw_kernel[(blocks * _blocks(width, 4), len(signs.keys))](
        *_sources(signs), out, units, signs.inputs, width, blocks,
        BLOCK_N=32, BLOCK_W=4, num_warps=4,
    )  # fmt: skip
    return out


def pack_signs(x: Tensor) -> Tensor:
    """The signs of x (D, M, K), +1 at 0, in packed words, int32 (D, M, width)."""
    x = x.contiguous()
    draws, rows, inputs = x.shape
    width = 2 * num_words(inputs)
    out = torch.empty(draws, rows, width, device=x.device, dtype=torch.int32)
    blocks = _blocks(width, 4)
    pack_kernel[(_blocks(draws * rows, 16) * blocks,)](
        x, out, draws * rows, inputs, width, blocks, BLOCK_M=16, BLOCK_W=4, num_warps=4
    )
    return out


def dense(signs: SignDraws) -> Tensor:
    """-1 and +1 of the first draw, float32 (N, K)."""
    units = signs.words.shape[1]
    out = torch.empty(units, signs.inputs, device=signs.words.device, dtype=torch.float32)
    blocks = _blocks(units, 32)
    dense_kernel[(blocks * _blocks(signs.inputs, 64),)](
        *_sources(signs), out, units, signs.inputs, blocks,
        DRAWN=signs.keys is not None, BLOCK_N=32, BLOCK_Q=16, num_warps=4,
    )  # fmt: skip
    return out


def _tiles(rows: int) -> tuple[int, int, int]:
    """Units and rows of a tile, and its warps. A tensor core takes at least 16 of either."""
    for size in (16, 32, 64):
        if rows <= size:
            return 64, size, 4
    return 128, 64, 8  # the largest whose sums stay in registers, on compute capability 8.0 and 9.0


def _blocks(size: int, block: int) -> int:
    return -(-size // block)


def _step(values: Tensor) -> int:
    """Elements from one draw to the next: 0 for what all draws share."""
    return values[0].numel() if len(values) > 1 else 0


def _sources(signs: SignDraws) -> tuple[Tensor, Tensor, Tensor]:
    """Words, thresholds and keys; of given signs the words in place of the others, never read."""
    if signs.thresholds is None or signs.keys is None:
        return signs.words, signs.words, signs.words
    return signs.words, signs.thresholds, signs.keys
