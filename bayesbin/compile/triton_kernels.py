"""The kernels for a GPU, in Triton; :mod:`bayesbin.compile.triton_signs` calls them, and says what for.

Signs are in int32 words: bit k mod 32 of word k // 32 of a row is weight (n, k). Four inputs whose random
numbers share a 64-bit word are a quad, and so are their four thresholds. Sizes of a layer are
constants where a loop runs up to them; the others are arguments, so that kernels serve every batch.

Source: Tillet, Kung and Cox 2019 (Triton); Steele, Lea and Flood 2014 (SplitMix64).
"""

# What is decorated is Triton's language, of which a checker of Python's types knows little.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportIndexIssue=false
# pyright: reportOperatorIssue=false, reportCallIssue=false, reportOptionalMemberAccess=false

from __future__ import annotations

import triton
import triton.language as tl

_GAMMA = tl.constexpr(0x9E3779B97F4A7C15)
_FIRST = tl.constexpr(0xBF58476D1CE4E5B9)
_SECOND = tl.constexpr(0x94D049BB133111EB)


@triton.jit
def _four(words, thresholds, key, n, q, units, inputs, DRAWN: tl.constexpr):
    """Whether each of the four signs of units n and quads q is +1; False past the last input."""
    inside = (n < units)[:, None] & (4 * q < inputs)[None, :]
    width = (inputs + 63) // 64 * 2
    word = tl.load(words + n.to(tl.int64)[:, None] * width + (q // 8)[None, :], inside, 0)
    nibble = word.to(tl.uint32, bitcast=True) >> (q % 8 * 4).to(tl.uint32)[None, :]
    one, two = (nibble & 1) != 0, (nibble & 2) != 0
    three, four = (nibble & 4) != 0, (nibble & 8) != 0
    if DRAWN:
        quads = (inputs + 3) // 4
        place = n.to(tl.int64) * quads
        t = tl.load(thresholds + place[:, None] + q[None, :], inside, 0).to(tl.uint64, bitcast=True)
        # The products are of vectors, and the tile has sums alone.
        row = key + (place + 1).to(tl.uint64, bitcast=True) * _GAMMA
        z = row[:, None] + (q.to(tl.uint64) * _GAMMA)[None, :]
        z = (z ^ (z >> 30)) * _FIRST
        z = (z ^ (z >> 27)) * _SECOND
        z = z ^ (z >> 31)
        one = one ^ (z.to(tl.uint16) < t.to(tl.uint16))
        two = two ^ ((z >> 16).to(tl.uint16) < (t >> 16).to(tl.uint16))
        three = three ^ ((z >> 32).to(tl.uint16) < (t >> 32).to(tl.uint16))
        four = four ^ ((z >> 48).to(tl.uint16) < (t >> 48).to(tl.uint16))
    return one, two, three, four


@triton.jit
def _key(keys, draw, DRAWN: tl.constexpr):
    key = tl.full((), 0, tl.uint64)
    if DRAWN:
        key = tl.load(keys + draw).to(tl.uint64, bitcast=True)
    return key


@triton.jit
def _tile(one, two, three, four, NUMBER: tl.constexpr, ROWS: tl.constexpr, Q: tl.constexpr):
    """-1 and +1 of quads in the order of their inputs, (ROWS, 4 Q)."""
    plus, minus = tl.full((1, 1), 1.0, NUMBER), tl.full((1, 1), -1.0, NUMBER)
    even = tl.join(tl.where(one, plus, minus), tl.where(three, plus, minus))
    odd = tl.join(tl.where(two, plus, minus), tl.where(four, plus, minus))
    return tl.reshape(tl.join(even, odd), (ROWS, 4 * Q))


@triton.jit
def linear_kernel(
    x, scale, inverse, words, thresholds, keys, out, rows, units, blocks, x_step, words_step,
    inputs: tl.constexpr, DRAWN: tl.constexpr, FAST: tl.constexpr, NUMBER: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_Q: tl.constexpr,
):  # fmt: skip
    # Computed as (N, M): the first factor of a product, here the signs, may stay in registers.
    draw = tl.program_id(1).to(tl.int64)
    n = tl.program_id(0) % blocks * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tl.program_id(0) // blocks * BLOCK_M + tl.arange(0, BLOCK_M)
    row = draw * x_step + m
    key = _key(keys, draw, DRAWN)
    total = tl.full((BLOCK_N, BLOCK_M), 0.0, tl.float32)
    for first in range(0, inputs, 4 * BLOCK_Q):
        q = first // 4 + tl.arange(0, BLOCK_Q)
        k = first + tl.arange(0, 4 * BLOCK_Q)
        bits = words + draw * words_step
        one, two, three, four = _four(bits, thresholds, key, n, q, units, inputs, DRAWN)
        signs = _tile(one, two, three, four, NUMBER, BLOCK_N, BLOCK_Q)
        inside = (k < inputs)[:, None] & (m < rows)[None, :]
        values = tl.load(x + (row * inputs)[None, :] + k[:, None], inside, 0.0)
        if FAST:
            values = values * tl.load(scale + row, m < rows, 0.0)[None, :]
            total = tl.dot(signs, values.to(tl.float16).to(NUMBER), total)
        else:
            high = values.to(tl.bfloat16)
            rest = values - high.to(tl.float32)
            middle = rest.to(tl.bfloat16)
            low = (rest - middle.to(tl.float32)).to(tl.bfloat16)
            total = tl.dot(signs, low.to(NUMBER), total)
            total = tl.dot(signs, middle.to(NUMBER), total)
            total = tl.dot(signs, high.to(NUMBER), total)
    if FAST:
        total = total * tl.load(inverse + row, m < rows, 0.0)[None, :]
    inside = (n < units)[:, None] & (m < rows)[None, :]
    tl.store(out + ((draw * rows + m) * units)[None, :] + n[:, None], total, inside)


@triton.jit
def xnor_kernel(
    x, words, out, rows, units, inputs, blocks, x_step, words_step,
    width: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    draw = tl.program_id(1).to(tl.int64)
    n = (tl.program_id(0) % blocks * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    m = (tl.program_id(0) // blocks * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    differing = tl.full((BLOCK_M, BLOCK_N), 0, tl.uint32)
    for place in range(0, width):
        a = tl.load(x + draw * x_step + m * width + place, m < rows, 0)
        b = tl.load(words + draw * words_step + n * width + place, n < units, 0)
        bits = a.to(tl.uint32, bitcast=True)[:, None] ^ b.to(tl.uint32, bitcast=True)[None, :]
        # LLVM knows these lines for a popcount, and makes one instruction of them.
        bits = bits - ((bits >> 1) & 0x55555555)
        bits = (bits & 0x33333333) + ((bits >> 2) & 0x33333333)
        bits = (bits + (bits >> 4)) & 0x0F0F0F0F
        differing += (bits * 0x01010101) >> 24
    inside = (m < rows)[:, None] & (n < units)[None, :]
    sums = inputs - 2 * differing.to(tl.int32)
    tl.store(out + ((draw * rows + m) * units)[:, None] + n[None, :], sums, inside)


@triton.jit
def draw_kernel(
    words, thresholds, keys, out, units, inputs, width, blocks,
    BLOCK_N: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    draw = tl.program_id(1).to(tl.int64)
    n = tl.program_id(0) % blocks * BLOCK_N + tl.arange(0, BLOCK_N)
    first = tl.program_id(0) // blocks * BLOCK_W
    q = first * 8 + tl.arange(0, BLOCK_W * 8)
    key = _key(keys, draw, True)
    one, two, three, four = _four(words, thresholds, key, n, q, units, inputs, True)
    nibble = one.to(tl.uint32) | (two.to(tl.uint32) << 1)
    nibble |= (three.to(tl.uint32) << 2) | (four.to(tl.uint32) << 3)
    placed = nibble << (q % 8 * 4).to(tl.uint32)[None, :]
    found = tl.sum(tl.reshape(placed, (BLOCK_N, BLOCK_W, 8)), axis=2).to(tl.int32, bitcast=True)
    w = first + tl.arange(0, BLOCK_W)
    inside = (n < units)[:, None] & (w < width)[None, :]
    tl.store(out + ((draw * units + n) * width)[:, None] + w[None, :], found, inside)


@triton.jit
def pack_kernel(x, out, rows, inputs, width, blocks, BLOCK_M: tl.constexpr, BLOCK_W: tl.constexpr):
    m = (tl.program_id(0) // blocks * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    first = tl.program_id(0) % blocks * BLOCK_W
    k = first * 32 + tl.arange(0, BLOCK_W * 32)
    inside = (m < rows)[:, None] & (k < inputs)[None, :]
    plus = tl.load(x + (m * inputs)[:, None] + k[None, :], inside, -1.0) >= 0.0
    placed = plus.to(tl.uint32) << (k % 32).to(tl.uint32)[None, :]
    found = tl.sum(tl.reshape(placed, (BLOCK_M, BLOCK_W, 32)), axis=2).to(tl.int32, bitcast=True)
    w = first + tl.arange(0, BLOCK_W)
    inside = (m < rows)[:, None] & (w < width)[None, :]
    tl.store(out + (m * width)[:, None] + w[None, :], found, inside)


@triton.jit
def dense_kernel(
    words, thresholds, keys, out, units, inputs, blocks,
    DRAWN: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_Q: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0) % blocks * BLOCK_N + tl.arange(0, BLOCK_N)
    first = tl.program_id(0) // blocks * BLOCK_Q
    q, k = first + tl.arange(0, BLOCK_Q), first * 4 + tl.arange(0, 4 * BLOCK_Q)
    key = _key(keys, 0, DRAWN)
    one, two, three, four = _four(words, thresholds, key, n, q, units, inputs, DRAWN)
    signs = _tile(one, two, three, four, tl.float32, BLOCK_N, BLOCK_Q)
    inside = (n < units)[:, None] & (k < inputs)[None, :]
    tl.store(out + (n.to(tl.int64) * inputs)[:, None] + k[None, :], signs, inside)
