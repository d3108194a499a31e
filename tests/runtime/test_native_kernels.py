"""The compiled kernels against the same bits and sums in numpy, at awkward sizes and with poisoned edges."""

from __future__ import annotations

import native_oracle as oracle
import numpy as np
import pytest
from stats import FAILURE_RATE

from bayesbin.runtime import native_backend as kernels
from bayesbin.runtime import reference
from bayesbin.runtime.native_backend import NativeProgram
from bayesbin.runtime.program import Program, Step, Value

pytestmark = pytest.mark.skipif(not kernels.available(), reason=str(kernels.why_not()))
ISAS = kernels.isas() if kernels.available() else []
KEY = 0xFEDCBA9876543210

# Every size of each list occurs, together with ever other sizes of the other lists.
K = [1, 3, 4, 5, 14, 15, 16, 31, 32, 33, 63, 64, 65, 127, 128, 129, 777, 784, 2048]
N = [1, 7, 10, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 130]
M = [0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 70]
SIZES = [(M[(5 * i) % len(M)], N[(4 * i) % len(N)], K[i % len(K)]) for i in range(38)]
SIZES += [(1000, 10, 64), (2, 300, 130), (40, 128, 100)]
NONE = ((0, 0), (0, 0))


def site(units, inputs, seed=0):
    """Booleans of a mode, thresholds with 0, 1 and 32768 among them, and a draw."""
    rng = np.random.default_rng(seed)
    mode = rng.random((units, inputs)) < 0.5
    thresholds = rng.integers(0, 32769, (units, inputs)).astype(np.uint16)
    thresholds.flat[::5], thresholds.flat[1::7], thresholds.flat[2::11] = 0, 32768, 1
    return mode, thresholds, oracle.draw(mode, thresholds, KEY)


def guarded(rows, inputs, seed=0, dtype=np.float32):
    """A batch between rows of NaN, with the NaN in the same memory."""
    room = np.full((rows + 2, inputs), np.nan, dtype=dtype)
    room[1:-1] = np.random.default_rng(seed).standard_normal((rows, inputs))
    return room[1:-1]


def same(found, expected):
    assert found.dtype == expected.dtype and np.array_equal(found, expected, equal_nan=True)


# Draws


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("rows", "units", "inputs"), SIZES)
def test_draws_have_the_canonical_bits(isa, rows, units, inputs):
    mode, thresholds, plus = site(units, inputs)
    for pad in (False, True):
        packed = oracle.pack(mode, pad)
        for threads in (1, 3):
            found = kernels.draw_bits(packed, thresholds, KEY, isa=isa, threads=threads)
            same(found, oracle.pack(plus))


@pytest.mark.parametrize("isa", ISAS)
def test_thresholds_0_and_half(isa):
    mode = np.random.default_rng(0).random((64, 1000)) < 0.5
    never, fair = (np.full(mode.shape, t, dtype=np.uint16) for t in (0, 32768))
    same(kernels.draw_bits(oracle.pack(mode), never, KEY, isa=isa), oracle.pack(mode))
    flipped = kernels.draw_bits(oracle.pack(mode), fair, KEY, isa=isa) ^ oracle.pack(mode)
    count = int(np.bitwise_count(flipped).sum())
    assert abs(count - 32000) < 5 * 0.5 * 64000**0.5


def flips(thresholds, keys):
    """Booleans (draws, N, K) of what differs from a mode of all -1."""
    units, inputs = thresholds.shape
    none = np.zeros((units, -(-inputs // 64)), dtype=np.uint64)
    words = np.stack([kernels.draw_bits(none, thresholds, int(key)) for key in keys])
    bits = np.unpackbits(words.view(np.uint8), axis=-1, bitorder="little")
    return bits[:, :, :inputs].astype(bool)


def test_frequencies_are_the_thresholds():
    """A chi-square test over 4096 weights for each threshold; fails by chance once in a million."""
    keys = np.random.default_rng(1).integers(0, 2**64, 60, dtype=np.uint64)
    for t in (655, 3277, 16384, 32768):
        found = flips(np.full((64, 64), t, dtype=np.uint16), keys).sum(0)
        p = t / 65536
        statistic = ((found - 60 * p) ** 2 / (60 * p * (1 - p))).sum()
        deviation = (statistic - 4096) / (
            4096 * (2 + (1 - 6 * p * (1 - p)) / (60 * p * (1 - p)))
        ) ** 0.5
        assert abs(deviation) < 6, (t, deviation)


@pytest.mark.parametrize("t", [6554, 32768])
def test_neighbours_are_independent(t):
    """Correlations of neighbouring inputs, units, draws and keys, each over 2^20 pairs and more.

    Under independence a correlation is normal with variance 1 / pairs; 5.5 of its standard deviations
    are exceeded with probability 4e-8, over 28 correlations with about FAILURE_RATE.
    """
    rng = np.random.default_rng(2)
    consecutive = np.arange(12, dtype=np.uint64) + np.uint64(rng.integers(2**63))
    for keys in (consecutive, rng.integers(0, 2**64, 12, dtype=np.uint64)):
        found = flips(np.full((300, 333), t, dtype=np.uint16), keys)
        z = (found - t / 65536) / (t / 65536 * (1 - t / 65536)) ** 0.5
        pairs = [(z[1:], z[:-1]), (z[:, 1:], z[:, :-1])]
        pairs += [(z[..., lag:], z[..., :-lag]) for lag in (1, 2, 3, 4, 64)]
        for a, b in pairs:
            correlation = (a * b).mean() * a.size**0.5
            assert abs(correlation) < 5.5
    assert 28 * 4e-8 < 2 * FAILURE_RATE


# Sums


def weights(units, inputs):
    """Packed weights with poisoned pad bits, and their signs."""
    plus = site(units, inputs)[2]
    return oracle.pack(plus, pad=True), oracle.signs(plus)


@pytest.mark.parametrize(("rows", "units", "inputs"), SIZES)
def test_linear(rows, units, inputs):
    x = guarded(rows, inputs)
    bits, w = weights(units, inputs)
    for kind, tolerance in (("real", 1e-6), ("fast", 3e-4), ("sign", 0.0)):
        values = oracle.signs(x >= 0) if kind == "sign" else x.astype(np.float64)
        found = [kernels.linear(x, bits, kind, isa=isa) for isa in ISAS]
        assert found[0].shape == (rows, units)
        if rows:
            assert oracle.relative_error(found[0], values @ w.T) <= tolerance
        for other in found[1:]:
            same(other, found[0])
        for threads in (2, 3, 8) if rows > 32 else ():
            same(kernels.linear(x, bits, kind, threads=threads), found[0])
    if rows:
        wide = [kernels.linear(x.astype(np.float64), bits, isa=isa) for isa in ISAS]
        assert oracle.relative_error(wide[0], x.astype(np.float64) @ w.T) < 1e-14
        for other in wide[1:]:
            same(other, wide[0])


def test_signs_beyond_narrow_sums():
    """All signs alike, over more inputs than a 16-bit sum holds."""
    inputs = 32704 + 32767
    ones = np.ones((2, inputs), dtype=np.float32)
    bits = oracle.pack(np.array([[True], [False]]).repeat(inputs, 1), True)
    for isa in ISAS:
        found = kernels.linear(ones, bits, "sign", isa=isa)
        same(found, np.array([[inputs, -inputs]] * 2, dtype=np.float32))


CONVOLUTIONS = [
    ((1, 5, 5), 3, (3, 3), (1, 1), NONE, (1, 1), 1),
    ((3, 8, 7), 10, (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 1),
    ((7, 6, 9), 17, (2, 3), (2, 1), ((0, 0), (2, 2)), (1, 1), 1),
    ((65, 4, 4), 33, (1, 1), (1, 1), NONE, (1, 1), 1),
    ((2, 5, 6), 130, (5, 5), (1, 1), ((4, 4), (4, 4)), (1, 1), 1),
    ((4, 9, 9), 6, (4, 3), (3, 2), ((3, 3), (2, 2)), (1, 1), 2),
    ((1, 28, 28), 32, (5, 5), (1, 1), NONE, (1, 1), 1),
    ((1, 7, 13), 6, (3, 2), (1, 2), ((1, 1), (1, 1)), (1, 2), 1),
    ((3, 5, 3), 6, (2, 2), (1, 1), ((0, 3), (1, 0)), (1, 1), 3),
    ((2, 6, 23), 130, (3, 3), (1, 3), ((1, 1), (1, 1)), (1, 4), 1),
    ((2, 1, 37), 3, (1, 4), (1, 1), NONE, (1, 9), 1),
    ((5, 3, 11), 5, (3, 3), (1, 4), NONE, (1, 1), 5),
    ((6, 10, 7), 9, (2, 2), (3, 5), ((2, 0), (0, 5)), (4, 3), 3),
]
SHAPES = ("shape", "units", "kernel", "stride", "padding", "dilation", "groups")


@pytest.mark.parametrize(SHAPES, CONVOLUTIONS)
@pytest.mark.parametrize("rows", [0, 1, 2, 3, 9, 35])
def test_convolutions(rows, shape, units, kernel, stride, padding, dilation, groups):
    channels = shape[0] // groups
    inputs = channels * kernel[0] * kernel[1]
    x = guarded(rows, int(np.prod(shape))).reshape(rows, *shape)
    bits, w = weights(units, inputs)
    w = w.reshape(units, channels, *kernel)
    expected = oracle.conv(x, w, stride, padding, dilation, groups)
    of_signs = oracle.conv(oracle.signs(x >= 0), w, stride, padding, dilation, groups)
    more = {"dilation": dilation, "groups": groups}
    for isa in ISAS:
        found = kernels.conv(x, bits, kernel, stride, padding, isa=isa, **more)
        assert found.shape == expected.shape
        if rows:
            assert oracle.relative_error(found, expected) <= 1e-6
        same(kernels.conv(x, bits, kernel, stride, padding, isa=isa, threads=3, **more), found)
        found = kernels.conv(x, bits, kernel, stride, padding, "sign", isa=isa, **more)
        same(found, of_signs.astype(np.float32))


@pytest.mark.parametrize("kind", ["real", "fast", "sign"])
def test_a_row_is_the_same_alone_and_in_any_batch(kind):
    x = guarded(70, 300)
    for units in (10, 200):  # sums by nibbles, and for few rows by bytes
        bits = weights(units, 300)[0]
        whole = kernels.linear(x, bits, kind)
        for rows in (1, 2, 8, 9, 16, 17, 33):
            same(kernels.linear(x[:rows], bits, kind), whole[:rows])
            same(kernels.linear(x[-rows:], bits, kind), whole[-rows:])
        shuffled = np.random.default_rng(4).permutation(70)
        same(kernels.linear(x[shuffled], bits, kind), whole[shuffled])


@pytest.mark.parametrize("kind", ["real", "sign"])
@pytest.mark.parametrize(SHAPES, CONVOLUTIONS)
def test_an_image_is_the_same_alone_and_in_any_batch(
    shape, units, kernel, stride, padding, dilation, groups, kind
):
    x = guarded(35, int(np.prod(shape))).reshape(35, *shape)
    bits = weights(units, shape[0] // groups * kernel[0] * kernel[1])[0]
    more = {"dilation": dilation, "groups": groups}
    whole = kernels.conv(x, bits, kernel, stride, padding, kind, **more)
    for rows in (1, 2, 3, 4, 5, 8, 9, 17, 33):
        found = kernels.conv(x[-rows:], bits, kernel, stride, padding, kind, threads=2, **more)
        same(found, whole[-rows:])


# Values


@pytest.mark.parametrize("rows", [1, 3, 9])
def test_one_nan_or_infinity_in_an_image(rows):
    """It reaches the outputs whose windows hold it, and no others."""
    x = np.random.default_rng(11).standard_normal((rows, 2, 6, 19)).astype(np.float32)
    x[0, 1, 2, 9], x[-1, 0, 5, 18] = np.nan, np.inf
    for stride in ((1, 1), (2, 3)):
        bits, w = weights(9, 18)
        padding = ((1, 1), (1, 1))
        with np.errstate(invalid="ignore"):
            expected = oracle.conv(x, w.reshape(9, 2, 3, 3), stride, padding)
        for isa in ISAS:
            found = kernels.conv(x, bits, (3, 3), stride, padding, isa=isa)
            same(np.isnan(found), np.isnan(expected))
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 16, 33])
@pytest.mark.parametrize("kind", ["max_pool", "avg_pool"])
def test_nan_is_the_largest_and_stays_in_its_window(rows, kind):
    x = np.random.default_rng(12).standard_normal((rows, 1, 4, 6)).astype(np.float32)
    x[0, 0, 1, 1], x[-1, 0, 2, 5], x[-1, 0, 3, 0] = np.nan, np.inf, -np.inf
    attributes = {"size": (2, 2), "stride": (2, 2), "padding": (0, 0), "ceil": False}
    more = {"dilation": (1, 1)} if kind == "max_pool" else {"count_padding": True, "divisor": 0}
    step = Step(kind, ("x",), ("y",), "f4", attributes | more)
    program = Program({"x": Value((1, 4, 6), "f4")}, {}, {}, (step,), ("y",))
    expected = reference.run(program, [x], [0])[0]
    assert np.isnan(expected).sum() == 1
    for isa in ISAS:
        same(NativeProgram(program).run([x], [0], isa=isa)[0], expected)


def test_infinity_nan_and_zero_are_summed_as_they_are():
    rng = np.random.default_rng(5)
    x = rng.standard_normal((40, 70)).astype(np.float32)
    x[1, 3], x[2, 5], x[3, 69] = np.inf, -np.inf, np.nan
    x[4, [1, 2]], x[5, [0, 60]], x[6, [7, 8]] = np.inf, (np.inf, -np.inf), (np.nan, np.inf)
    x[7], x[8], x[9] = 0.0, -0.0, 1e-44
    bits, w = weights(33, 70)
    with np.errstate(invalid="ignore"):
        expected = (x.astype(np.float64)[:, None] * w).sum(-1)
    for isa in ISAS:
        for kind, tolerance in (("real", 1e-5), ("fast", 3e-2)):
            found = kernels.linear(x, bits, kind, isa=isa)
            same(np.isnan(found), np.isnan(expected))
            np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)
            same(found[7:9], np.zeros((2, 33), dtype=np.float32))
            np.testing.assert_allclose(found[9], expected[9], rtol=1e-6)
        clean = np.delete(x, range(1, 7), axis=0)
        fast = kernels.linear(x, bits, "fast", isa=isa)
        same(np.delete(fast, range(1, 7), axis=0), kernels.linear(clean, bits, "fast", isa=isa))
        found = kernels.linear(np.full((1, 70), -0.0, np.float32), bits, "sign", isa=isa)
        same(found, w.sum(1)[None].astype(np.float32))  # sign(-0) = +1


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1.0, 1e30])
def test_fast_sums_at_every_scale(scale):
    x = (scale * np.random.default_rng(6).standard_normal((20, 500))).astype(np.float32)
    bits, w = weights(40, 500)
    for isa in ISAS:
        found = kernels.linear(x, bits, "fast", isa=isa) / scale
        assert oracle.relative_error(found, x.astype(np.float64) @ w.T / scale) < 3e-4


def test_fast_sums_do_not_overflow():
    """A panel at the largest norm, alone and with every sign; all alike; one huge value and tiny ones."""
    inputs = 2048
    x = np.zeros((6, inputs), dtype=np.float32)
    x[0, :32] = 1.0
    x[1], x[2] = 1.0, -1.0
    x[3], x[3, 100] = 1e-6, 1.0
    x[4, 32:64] = np.tile([1.0, -1.0], 16)
    x[5, ::2] = 3.0
    w = np.ones((6, inputs), dtype=bool)
    w[1] = False
    w[2, ::2], w[3, 1::2] = False, False
    w[4] = x[4] > 0
    w[5] = x[4] <= 0
    expected = x.astype(np.float64) @ oracle.signs(w).T
    for isa in ISAS:
        found = kernels.linear(x, oracle.pack(w), "fast", isa=isa)
        assert np.abs(found - expected).max() <= 3e-4 * np.abs(expected).max()
        assert np.abs(found[4] - expected[4]).max() <= 1e-2


def test_errors():
    x, bits = np.zeros((2, 70), dtype=np.float32), np.zeros((3, 2), dtype=np.uint64)
    with pytest.raises(ValueError, match="packed signs of 'w'"):
        kernels.linear(x, bits[:, :1])
    with pytest.raises(ValueError, match="real"):
        kernels.linear(x, bits, "exact")
    with pytest.raises(ValueError, match="threads to be a whole number of at least 1"):
        kernels.linear(x, bits, threads=0)
    with pytest.raises(ValueError, match="'sse'"):
        kernels.linear(x, bits, isa="sse")
    with pytest.raises(ValueError, match="window that fits"):
        kernels.conv(np.zeros((1, 1, 2, 2), np.float32), bits[:, :1], (3, 3))
    with pytest.raises(TypeError, match="thresholds is an array of another type"):
        kernels.draw_bits(bits, x, KEY)
    with pytest.raises(ValueError, match=r"mode has the shape \(2, 2\); got \(3, 2\)"):
        kernels.draw_bits(bits, np.zeros((2, 70), np.uint16), KEY)


# What the extension module checks itself


def test_the_module_refuses_what_does_not_fit():
    module = kernels._loaded()
    program = module.Program(2)
    x = program.input(6, "f4", False, True)
    with pytest.raises(ValueError, match="3 units of 2 inputs where 3 units of 6 inputs"):
        program.sign_layer(
            x,
            module.Geometry(6, 3),
            program.stored(np.zeros((1, 3, 1), np.uint64), 2),
            "real",
            "f4",
        )
    with pytest.raises(ValueError, match="takes 5 numbers but gets 6"):
        program.sign_layer(
            x,
            module.Geometry(5, 3),
            program.stored(np.zeros((1, 3, 1), np.uint64), 5),
            "real",
            "f4",
        )
    with pytest.raises(ValueError, match="row that is not there"):
        program.stored(np.zeros((2, 3, 1), np.uint64), 6, np.array([0, 2]))
    with pytest.raises(ValueError, match=r"rows has the shape \(2\); got \(3\)"):
        program.numbers(np.zeros((2, 6), np.float32), np.array([0, 1, 1]))
    with pytest.raises(ValueError, match="at most 32768"):
        program.drawn(
            np.zeros((1, 1, 1), np.uint64),
            np.full((1, 1, 2), 40000, np.uint16),
            np.zeros(2, np.uint64),
        )
    with pytest.raises(ValueError, match="6 numbers of float64 where 6 of float32"):
        program.with_numbers(x, program.numbers(np.zeros((1, 6))), "add", True, "f4")
    with pytest.raises(ValueError, match="takes a number that is not there"):
        program.move([x], np.array([6]), 0.0, "f4")
    with pytest.raises(ValueError, match="window that does not fit"):
        wide = module.Axis(3, 5)
        program.pool(x, True, 2, module.Axis(), wide, 1, 9, True, 0, "f4")
    with pytest.raises(ValueError, match="no value number 7"):
        program.unary(7, "relu", 0.0, 0.0, "f4")
    y = program.unary(x, "relu", 0.0, 0.0, "f4")
    with pytest.raises(ValueError, match="not finished"):
        program.run("", [], [], [0], [], 1)
    program.output(y, "f4")
    program.finish()
    with pytest.raises(ValueError, match="nothing can be added"):
        program.unary(x, "relu", 0.0, 0.0, "f4")
    good = np.zeros((1, 4, 6), np.float32)
    with pytest.raises(ValueError, match="no such draw"):
        program.run("", [good], [], [2], [good.copy()], 1)
    with pytest.raises(ValueError, match=r"out has the shape \(1, 4, 6\); got \(1, 4, 5\)"):
        program.run("", [good], [], [0], [np.zeros((1, 4, 5), np.float32)], 1)
    with pytest.raises(TypeError, match="x is an array of another type"):
        program.run("", [good.astype(np.float64)], [], [0], [good.copy()], 1)
    frozen = good.copy()
    frozen.flags.writeable = False
    with pytest.raises((ValueError, BufferError)):
        program.run("", [good], [], [0], [frozen], 1)
