"""The compiled kernels against the same bits and sums in numpy, at awkward sizes and with poisoned edges."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import kernel_oracle as oracle
import numpy as np
import pytest
from stats import FAILURE_RATE

from bayesbin.predict import kernels
from bayesbin.predict.kernel_program import Program

pytestmark = pytest.mark.skipif(not kernels.available(), reason=str(kernels.why_not()))
ISAS = kernels.isas() if kernels.available() else []
KEY = 0xFEDCBA9876543210

# Every size of each list occurs, together with ever other sizes of the other lists.
K = [1, 3, 4, 5, 14, 15, 16, 31, 32, 33, 63, 64, 65, 127, 128, 129, 777, 784, 2048]
N = [1, 7, 10, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 130]
M = [0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 70]
SIZES = [(M[(5 * i) % len(M)], N[(4 * i) % len(N)], K[i % len(K)]) for i in range(38)]
SIZES += [(1000, 10, 64), (2, 300, 130), (40, 128, 100)]


# The kernels in a process of their own, without the rest of the package: torch takes long to import.
# An editable installation has the compiled module elsewhere than its loader.
PLACES = [str(Path(kernels.__file__).parent)]
if kernels.available():
    PLACES.append(str(Path(kernels.loaded().__file__).parent))
ALONE = f"""
import sys, types
package = types.ModuleType("bayesbin.predict")
package.__path__ = {PLACES!r}
sys.modules["bayesbin.predict"] = package
"""


def python(program, **environment):
    return subprocess.run(
        [sys.executable, "-c", ALONE + program],
        capture_output=True, text=True, env=os.environ | environment, timeout=120,
    )  # fmt: skip


def site(units, inputs, seed=0):
    """Booleans of a mode, thresholds with 0, 1 and 32768 among them, and a draw."""
    rng = np.random.default_rng(seed)
    mode = rng.random((units, inputs)) < 0.5
    thresholds = rng.integers(0, 32769, (units, inputs)).astype(np.uint16)
    thresholds.flat[::5], thresholds.flat[1::7], thresholds.flat[2::11] = 0, 32768, 1
    return mode, thresholds, oracle.draw(mode, thresholds, KEY)


def guarded(rows, inputs, seed=0):
    """A float32 batch between rows of NaN, with the NaN in the same memory."""
    room = np.full((rows + 2, inputs), np.nan, dtype=np.float32)
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


@pytest.mark.parametrize(("rows", "units", "inputs"), [*SIZES, (3, 5, 70000), (3, 3, 2**20 + 77)])
def test_signs_times_signs(rows, units, inputs):
    rng = np.random.default_rng(3)
    plus = rng.random((rows, inputs)) < 0.5
    w = rng.random((units, inputs)) < 0.5
    different = np.stack([(plus ^ row).sum(1) for row in w], 1)
    expected = (inputs - 2 * different).astype(np.int32)
    for isa in ISAS:
        for pad in (False, True):
            x, bits = oracle.pack(plus, pad), oracle.pack(w, not pad)
            same(kernels.linear_sign(x, bits, inputs, isa=isa, threads=1 + pad), expected)
        if inputs < 2**17:
            real = np.where(plus, 1.0, -1.0).astype(np.float32)
            found = kernels.linear(real, oracle.pack(w, True), "sign", isa=isa)
            same(found, expected.astype(np.float32))


def test_signs_at_the_limits_of_narrow_sums():
    """All signs alike, over more inputs than a 16-bit sum holds."""
    inputs = 32704 + 32767
    ones = np.ones((2, inputs), dtype=np.float32)
    bits = oracle.pack(np.array([[True], [False]]).repeat(inputs, 1), True)
    for isa in ISAS:
        found = kernels.linear(ones, bits, "sign", isa=isa)
        same(found, np.array([[inputs, -inputs]] * 2, dtype=np.float32))
        found = kernels.linear_sign(oracle.pack(ones > 0), bits, inputs, isa=isa)
        same(found, np.array([[inputs, -inputs]] * 2, dtype=np.int32))


CONVOLUTIONS = [
    ((1, 5, 5), 3, (3, 3), (1, 1), (0, 0)),
    ((3, 8, 7), 10, (3, 3), (1, 1), (1, 1)),
    ((7, 6, 9), 17, (2, 3), (2, 1), (0, 2)),
    ((65, 4, 4), 33, (1, 1), (1, 1), (0, 0)),
    ((2, 5, 6), 130, (5, 5), (1, 1), (4, 4)),
    ((4, 9, 9), 5, (4, 3), (3, 2), (3, 2)),
    ((1, 28, 28), 32, (5, 5), (1, 1), (0, 0)),
    ((1, 7, 13), 6, (3, 2), (1, 2), (1, 1)),
    ((3, 5, 3), 4, (2, 2), (1, 1), (0, 1)),
    ((2, 6, 23), 130, (3, 3), (1, 3), (1, 1)),
    ((2, 1, 37), 3, (1, 4), (1, 1), (0, 0)),
    ((5, 3, 11), 7, (3, 3), (1, 4), (0, 0)),
]


@pytest.mark.parametrize(("shape", "units", "kernel", "stride", "padding"), CONVOLUTIONS)
@pytest.mark.parametrize("rows", [0, 1, 2, 3, 9, 35])
def test_convolutions(rows, shape, units, kernel, stride, padding):
    inputs = shape[0] * kernel[0] * kernel[1]
    x = guarded(rows, int(np.prod(shape))).reshape(rows, *shape)
    bits, w = weights(units, inputs)
    w = w.reshape(units, shape[0], *kernel)
    expected = oracle.conv2d(x, w, stride, padding)
    of_signs = oracle.conv2d(oracle.signs(x >= 0), w, stride, padding)
    flat = x.reshape(rows, int(np.prod(shape)))
    for isa in ISAS:
        found = kernels.conv2d(x, bits, kernel, stride, padding, isa=isa)
        assert found.shape == expected.shape
        if rows:
            assert oracle.relative_error(found, expected) <= 1e-6
        same(kernels.conv2d(x, bits, kernel, stride, padding, isa=isa, threads=3), found)
        found = kernels.conv2d(x, bits, kernel, stride, padding, "sign", isa=isa)
        same(found, of_signs.astype(np.float32))
        packed = oracle.pack(flat >= 0, pad=True)
        found = kernels.conv2d_sign(packed, shape, bits, kernel, stride, padding, isa=isa)
        same(found, of_signs.astype(np.int32))


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
@pytest.mark.parametrize(("shape", "units", "kernel", "stride", "padding"), CONVOLUTIONS)
def test_an_image_is_the_same_alone_and_in_any_batch(shape, units, kernel, stride, padding, kind):
    x = guarded(35, int(np.prod(shape))).reshape(35, *shape)
    bits = weights(units, shape[0] * kernel[0] * kernel[1])[0]
    whole = kernels.conv2d(x, bits, kernel, stride, padding, kind)
    for rows in (1, 2, 3, 4, 5, 8, 9, 17, 33):
        for threads in (1, 3):
            found = kernels.conv2d(x[-rows:], bits, kernel, stride, padding, kind, threads=threads)
            same(found, whole[-rows:])


def test_shares_of_the_units_are_the_whole():
    """Few rows over many threads are split by units."""
    x, bits = guarded(9, 100), weights(1000, 100)[0]
    for kind in ("real", "fast", "sign"):
        whole = kernels.linear(x, bits, kind)
        for threads in (2, 3, 8, 40):
            same(kernels.linear(x, bits, kind, threads=threads), whole)


# Values


@pytest.mark.parametrize("rows", [1, 3, 9])
def test_one_nan_or_infinity_in_an_image(rows):
    """It reaches the outputs whose windows hold it, and no others."""
    x = np.random.default_rng(11).standard_normal((rows, 2, 6, 19)).astype(np.float32)
    x[0, 1, 2, 9], x[-1, 0, 5, 18] = np.nan, np.inf
    for stride in ((1, 1), (2, 3)):
        bits, w = weights(9, 18)
        with np.errstate(invalid="ignore"):
            expected = oracle.conv2d(x, w.reshape(9, 2, 3, 3), stride, (1, 1))
        for isa in ISAS:
            found = kernels.conv2d(x, bits, (3, 3), stride, (1, 1), isa=isa)
            same(np.isnan(found), np.isnan(expected))
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 16, 33])
def test_nan_is_the_largest_and_stays_in_its_window(rows):
    x = np.random.default_rng(12).standard_normal((rows, 1, 4, 6)).astype(np.float32)
    x[0, 0, 1, 1], x[-1, 0, 2, 5], x[-1, 0, 3, 0] = np.nan, np.inf, -np.inf
    for kind in ("max", "avg"):
        program = Program((1, 4, 6), 1)
        program.pool(kind, (2, 2), (2, 2), (0, 0))
        found = program.run_regression(x.reshape(rows, 24), outputs=True).outputs
        assert found is not None
        expected = oracle.pool(x.astype(np.float64), kind, (2, 2), (2, 2), (0, 0))
        np.testing.assert_allclose(found[0].reshape(expected.shape), expected, rtol=0, atol=1e-6)


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


def test_a_calling_thread_that_flushes_denormals_changes_nothing():
    torch = pytest.importorskip("torch")
    x, bits = np.full((40, 8), 1e-41, dtype=np.float32), weights(3, 8)[0]
    before = kernels.linear(x, bits)
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush denormals")
    try:
        for threads in (1, 2):
            same(kernels.linear(x, bits, threads=threads), before)
    finally:
        torch.set_flush_denormal(False)


# Whole networks, in kernel_program.py


def network(draws=7, kind="real", shape=(2, 9, 8)):
    """A program with every kind of step, and the function of (x, draw) that it stands for."""
    rng = np.random.default_rng(8)
    program = Program(shape, draws)
    steps = []

    def weighted(units, inputs, window=(), stride=(1, 1), padding=(0, 0), kind=kind):
        mode, thresholds, _ = site(units, inputs * int(np.prod(window, dtype=int)), seed=units)
        keys = rng.integers(0, 2**64, draws, dtype=np.uint64)
        full = (units, inputs, *window)
        program.drawn(oracle.pack(mode, True), thresholds, keys, full, stride, padding, kind)

        def step(x, s):
            w = oracle.signs(oracle.draw(mode, thresholds, int(keys[s]))).reshape(full)
            if window:
                return oracle.conv2d(x, w, stride, padding)
            return x @ w.T

        steps.append(step)

    def affine(channels, count, size):
        a = (size * rng.standard_normal((count, channels))).astype(np.float32)
        b = rng.standard_normal((draws, channels)).astype(np.float32)
        program.affine(a, b)
        tail = (1,) * (len(program.shape) - 1) if program.shape[1:] != (1, 1) else ()
        steps.append(
            lambda x, s: x * a[s % count].reshape(-1, *tail).astype(float) + b[s].reshape(-1, *tail)
        )

    def activation(name, function, **bounds):
        program.activation(name, **bounds)
        steps.append(lambda x, s: function(x))

    def pool(which, size, stride, padding):
        program.pool(which, size, stride, padding)
        steps.append(lambda x, s: oracle.pool(x, which, size, stride, padding))

    weighted(5, 2, (3, 2), (1, 1), (1, 1))
    affine(5, draws, 0.3)
    activation("relu", lambda x: np.maximum(x, 0.0))
    pool("max", (2, 2), (2, 1), (1, 0))
    weighted(6, 5, (2, 2))
    affine(6, 1, 0.2)
    activation("tanh", np.tanh)
    pool("avg", (2, 3), (1, 2), (0, 1))
    program.flatten()
    steps.append(lambda x, s: x.reshape(len(x), int(np.prod(x.shape[1:]))))
    weighted(140, program.shape[0])
    affine(140, draws, 0.1)
    activation("hardtanh", lambda x: np.clip(x, -0.5, 2.0), low=-0.5, high=2.0)
    activation("sign", lambda x: oracle.signs(x >= 0))
    weighted(4, 140, kind="sign")
    affine(4, 1, 0.05)

    def outputs(x):
        results = []
        for s in range(draws):
            value = x.astype(np.float64).reshape(-1, *shape)
            for step in steps:
                value = step(value, s)
            results.append(value)
        return np.stack(results)

    return program, outputs


def images(rows):
    return guarded(rows, 2 * 9 * 8, seed=9)


@pytest.mark.parametrize("rows", [0, 1, 8, 19, 70])
def test_a_network_is_a_loop_over_draws(rows):
    program, outputs = network()
    x = images(rows)
    logits = outputs(x)
    found = program.run_classes(x, outputs=True)
    assert found.outputs is not None
    np.testing.assert_allclose(found.outputs, logits, rtol=0, atol=1e-4)
    log_probs = oracle.log_softmax(logits)
    probs = np.exp(log_probs)
    np.testing.assert_allclose(found.probs, probs.sum(0), atol=1e-4)
    np.testing.assert_allclose(found.squares, (probs**2).sum(0), atol=1e-4)
    np.testing.assert_allclose(found.entropies, -(probs * log_probs).sum(-1).sum(0), atol=1e-4)
    np.testing.assert_allclose(found.log_probs, np.log(found.probs), rtol=1e-12)
    found = program.run_regression(x)
    np.testing.assert_allclose(found.mean, logits.mean(0), atol=1e-4)
    np.testing.assert_allclose(found.deviations, 7 * logits.var(0), atol=1e-3)


def arrays(sums):
    return [one for one in vars(sums).values() if one is not None]


@pytest.mark.parametrize("kind", ["real", "fast"])
def test_a_network_gives_the_same_numbers_on_every_isa_and_any_number_of_threads(kind):
    program, _ = network(draws=10, kind=kind)
    x = images(70)
    first = program.run_classes(x, isa=ISAS[0], outputs=True)
    runs = [program.run_classes(x, isa=isa, outputs=True) for isa in ISAS[1:]]
    runs += [program.run_classes(x, threads=count, outputs=True) for count in (1, 2, 3, 8)]
    for run in runs:
        for a, b in zip(arrays(run), arrays(first), strict=True):
            same(a, b)
    one = program.run_regression(x, threads=1)
    for count in (2, 3, 8, 40):  # more threads than draws: the rows are split too
        for a, b in zip(arrays(program.run_regression(x, threads=count)), arrays(one), strict=True):
            same(a, b)
    for rows in (1, 9, 33):
        part = program.run_classes(x[:rows], outputs=True)
        assert first.outputs is not None
        same(part.probs, first.probs[:rows])
        same(part.outputs, np.ascontiguousarray(first.outputs[:, :rows]))


def test_more_draws_begin_with_the_same_ones():
    mode, thresholds, _ = site(5, 30)
    keys = np.random.default_rng(0).integers(0, 2**64, 100, dtype=np.uint64)
    x = guarded(3, 30)

    def outputs(draws):
        program = Program((30, 1, 1), draws)
        program.drawn(oracle.pack(mode), thresholds, keys[:draws], (5, 30))
        found = program.run_classes(x, outputs=True).outputs
        assert found is not None
        return found

    many = outputs(100)
    for draws in (1, 3, 7):
        same(outputs(draws), many[:draws])


def test_given_bits_and_rows_beyond_a_segment():
    plus = np.random.default_rng(10).random((5, 3, 20)) < 0.5
    x = guarded(2100, 20)
    bits = np.stack([oracle.pack(one, True) for one in plus])
    expected = np.stack([x.astype(np.float64) @ oracle.signs(one).T for one in plus])
    for count, given in ((5, bits), (5, bits[:1])):
        program = Program((20, 1, 1), count)
        program.given(given, (3, 20))
        sums = program.run_regression(x, threads=2, outputs=True)
        wanted = expected if len(given) == 5 else expected[:1].repeat(5, 0)
        assert sums.outputs is not None
        np.testing.assert_allclose(sums.outputs, wanted, atol=1e-4)
        np.testing.assert_allclose(sums.mean, wanted.mean(0), atol=1e-5)


def logits_program(logits):
    """Two draws whose logits are given, whatever the input."""
    logits = np.asarray(logits, dtype=np.float32)
    program = Program((logits.shape[1], 1, 1), len(logits))
    program.affine(np.zeros_like(logits), logits)
    return program.run_classes(np.zeros((3, logits.shape[1]), dtype=np.float32))


def test_extreme_logits():
    found = logits_program([[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0]])
    np.testing.assert_allclose(found.probs[0], [1.0, 1.0, 0.0])
    np.testing.assert_allclose(found.log_probs[0], [0.0, 0.0, np.log(2) - 1e4], atol=1e-9)
    assert np.array_equal(found.entropies, np.zeros(3))
    found = logits_program([[0.0, -np.inf], [0.0, 0.0]])
    np.testing.assert_allclose(found.probs[1], [1.5, 0.5])
    np.testing.assert_allclose(found.entropies, np.log(2.0))
    found = logits_program([[0.0, -np.inf], [0.0, -np.inf]])
    assert np.array_equal(found.log_probs[2], [np.log(2.0), -np.inf])
    assert np.isnan(logits_program([[np.nan, 0.0], [0.0, 0.0]]).probs).all()


def test_tanh():
    x = np.concatenate([np.linspace(-12, 12, 20001), [0.0, -0.0, np.inf, -np.inf, 1e-30, 1e30]])
    x = np.concatenate([x, [np.nan]]).astype(np.float32)[:, None]
    program = Program((1, 1, 1), 1)
    program.activation("tanh")
    for isa in ISAS:
        found = program.run_regression(x, isa=isa).mean
        expected = np.tanh(x.astype(np.float64))
        np.testing.assert_allclose(found, expected, rtol=2.5e-7, atol=0)


def test_memory_does_not_grow_with_the_number_of_draws():
    """The process's peak for many draws is that for few."""
    if not sys.platform.startswith("linux"):
        pytest.skip("reads ru_maxrss in kilobytes")
    program = """
import resource, sys
import numpy as np
from bayesbin.predict.kernel_program import Program
sizes = [784, 1024, 1024, 10]
def run(draws):
    program = Program((784, 1, 1), draws)
    for inputs, units in zip(sizes, sizes[1:]):
        thresholds = np.full((units, inputs), 9000, dtype=np.uint16)
        mode = np.zeros((units, -(-inputs // 64)), dtype=np.uint64)
        program.drawn(mode, thresholds, np.arange(draws, dtype=np.uint64), (units, inputs))
        program.activation("relu")
    program.run_classes(np.ones((100, 784), dtype=np.float32))
run(1)
first = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
run(40)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - first)
"""
    assert int(python(program).stdout) < 12_000  # thresholds of two programs alive at once: 7.4 MB


# Threads, processes, signals


def test_calls_from_several_threads():
    program, _ = network()
    x = images(40)
    expected = program.run_classes(x).probs
    results: list = [None] * 6

    def call(i):
        results[i] = [program.run_classes(x, threads=1 + i % 3).probs for _ in range(3)]

    threads = [threading.Thread(target=call, args=(i,)) for i in range(6)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    for found in results:
        for probs in found:
            same(probs, expected)


CHILD = """
import os, sys
import numpy as np
from bayesbin.predict import kernels
x, bits = np.ones((100, 64), np.float32), np.zeros((9, 1), np.uint64)
before = kernels.linear(x, bits, threads=3)
child = os.fork()
after = kernels.linear(x, bits, threads=3)
if child == 0:
    os._exit(0 if np.array_equal(before, after) else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_process_computes_on():
    child = python(CHILD)
    assert child.returncode == 0, child.stderr


INTERRUPTED = """
import sys, time
import numpy as np
from bayesbin.predict.kernel_program import Program
program = Program((1024, 1, 1), 100_000)
thresholds = np.full((1024, 1024), 9000, dtype=np.uint16)
mode, keys = np.zeros((1024, 16), np.uint64), np.arange(100_000, dtype=np.uint64)
program.drawn(mode, thresholds, keys, (1024, 1024))
print("running", flush=True)
try:
    program.run_regression(np.ones((32, 1024), np.float32), threads=int(sys.argv[1]))
except KeyboardInterrupt:
    print(time.time(), flush=True)
"""


@pytest.mark.parametrize("threads", ["1", "3"])
def test_an_interrupt_stops_a_call(threads):
    child = subprocess.Popen(
        [sys.executable, "-c", ALONE + INTERRUPTED, threads], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    with child:
        assert child.stdout.readline() == "running\n"
        time.sleep(0.3)
        child.send_signal(signal.SIGINT)
        sent = time.time()
        stopped = float(child.communicate(timeout=60)[0])
    assert child.returncode == 0
    assert stopped - sent < 2.0  # a tenth of a second on a machine with nothing else to do


# Tiers, errors


def test_the_environment_names_the_isa():
    isa = "from bayesbin.predict import kernels; print(kernels.isa())"
    assert python(isa, BAYESBIN_KERNEL="portable").stdout == "portable\n"
    assert "is one of portable, avx2" in python(isa, BAYESBIN_KERNEL="fastest").stderr
    other = next(name for name in ("neon", "avx512", "avx2") if name not in ISAS)
    assert "does not run on this machine" in python(isa, BAYESBIN_KERNEL=other).stderr


def test_the_kernels_import_no_torch():
    program = "import bayesbin.predict.kernel_program; print({'torch', 'scipy'} & set(sys.modules))"
    assert python(program).stdout == "set()\n"


def test_errors():
    x, bits = np.zeros((2, 70), dtype=np.float32), np.zeros((3, 2), dtype=np.uint64)
    with pytest.raises(TypeError, match="x is an array of float32; got float64"):
        kernels.linear(x.astype(np.float64), bits)
    with pytest.raises(TypeError, match="bits is an array of uint64; got list"):
        kernels.linear(x, [1])  # pyright: ignore
    with pytest.raises(ValueError, match=r"bits has the shape \(any, 2\); got \(3, 1\)"):
        kernels.linear(x, bits[:, :1])
    with pytest.raises(ValueError, match="one of real, fast, sign; got 'exact'"):
        kernels.linear(x, bits, "exact")
    with pytest.raises(ValueError, match="threads to be a whole number of at least 1"):
        kernels.linear(x, bits, threads=0)
    with pytest.raises(ValueError, match="'sse'"):
        kernels.linear(x, bits, isa="sse")
    with pytest.raises(ValueError, match="does not fit images of 2 x 2"):
        kernels.conv2d(np.zeros((1, 1, 2, 2), np.float32), bits[:, :1], (3, 3))
    with pytest.raises(ValueError, match="strides of at least 1"):
        kernels.conv2d(np.zeros((1, 1, 2, 2), np.float32), bits[:, :1], (2, 2), (0, 1))
    with pytest.raises(ValueError, match="at least 1 draw"):
        Program((3, 1, 1), 0)
    program = Program((3, 4, 4), 2)
    with pytest.raises(ValueError, match="follows flatten"):
        program.given(bits[None, :, :1], (3, 3))
    with pytest.raises(ValueError, match="weights for 2 channels, but gets 3"):
        program.given(bits[None, :, :1], (3, 2, 1, 1))
    with pytest.raises(ValueError, match="for 2 draws, or for one that all share; got 3"):
        program.affine(np.ones((3, 1), np.float32), np.ones((2, 1), np.float32))
    with pytest.raises(ValueError, match="does not fit images of 4 x 4"):
        program.pool("max", (5, 5), (1, 1))
    with pytest.raises(ValueError, match="at most half its size"):
        program.pool("max", (2, 2), (1, 1), (2, 2))
    with pytest.raises(ValueError, match="one of relu, tanh, sign, hardtanh"):
        program.activation("gelu")
    with pytest.raises(ValueError, match=r"x has the shape \(any, 48\)"):
        program.run_classes(x)


def test_arrays_in_any_order_are_accepted():
    x = np.asfortranarray(guarded(5, 70))
    bits = weights(3, 70)[0]
    wide = np.zeros((3, 4), dtype=np.uint64)
    wide[:, ::2] = bits
    same(kernels.linear(x, wide[:, ::2]), kernels.linear(np.ascontiguousarray(x), bits))
