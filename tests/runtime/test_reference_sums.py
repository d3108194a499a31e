"""Sums in a fixed order: bit for bit those of a slow twin and of the compiled kernels."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from bayesbin.core.canonical import draw_words, key_of, pack_words
from bayesbin.runtime import native_backend as kernels
from bayesbin.runtime import reference_products, reference_sequences, reference_sums
from bayesbin.runtime.program import Constant, DrawnSite, Program, Step, StoredSite, Value
from bayesbin.runtime.reference import run
from bayesbin.runtime.reference_sequences import attention, matmul
from bayesbin.runtime.reference_sums import fast_sums, ordered_sums, rounded_sums, signed_sums

SIZES = [
    (1, 1, 1),
    (2, 5, 3),
    (1, 784, 200),
    (7, 33, 5),
    (40, 100, 70),
    (9, 31, 48),
    (3, 320, 1),
    (300, 64, 49),
]
needs_kernels = pytest.mark.skipif(not kernels.available(), reason=str(kernels.why_not()))


@pytest.fixture(autouse=True)
def _as_within_a_program():
    """Where sums are called, numpy is told that infinities and NaN are values like others."""
    with np.errstate(all="ignore"):
        yield


def numbers(rows: int, inputs: int, seed: int = 0) -> np.ndarray:
    """Numbers of very different sizes, with rows of which the sums are exact."""
    rng = np.random.default_rng([seed, rows, inputs])
    x = rng.standard_normal((rows, inputs)) * np.exp(rng.standard_normal((rows, inputs)) * 3)
    x[::3] = np.round(x[::3])
    return x.astype(np.float32)


def packed(units: int, inputs: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Signs, and their words with pad bits of any value."""
    plus = np.random.default_rng([seed, units, inputs]).random((units, inputs)) < 0.5
    return np.where(plus, 1, -1), pack_words(plus)


def slow_signed(x: np.ndarray, signs: np.ndarray) -> np.ndarray:
    """One number after another, as the order of panels is written down."""
    number = x.dtype.type
    width = -(-x.shape[1] // 32) * 32
    values = np.zeros((len(x), width), x.dtype)
    values[:, : x.shape[1]] = x
    weights = np.ones((len(signs), width))
    weights[:, : x.shape[1]] = signs
    out = np.empty((len(x), len(signs)), x.dtype)
    for (m, row), (n, unit) in itertools.product(enumerate(values), enumerate(weights)):
        total = number(0)
        terms = row * unit.astype(x.dtype)
        for p in range(0, width, 32):
            e = [
                (terms[k] + terms[k + 1]) + (terms[k + 2] + terms[k + 3])
                for k in range(p, p + 32, 4)
            ]
            total = total + ((((e[0] + e[1]) + (e[2] + e[3])) + (e[4] + e[5])) + (e[6] + e[7]))
        out[m, n] = total
    return out


def slow_ordered(x: np.ndarray, weights: np.ndarray) -> np.ndarray:
    out = np.empty((len(x), len(weights)))
    for (m, row), (n, unit) in itertools.product(enumerate(x), enumerate(weights)):
        total = 0.0
        for a, b in zip(row.tolist(), unit.tolist(), strict=True):
            total += a * b
        out[m, n] = total
    return out


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", [(2, 5, 3), (3, 33, 50), (5, 100, 49), (4, 64, 2)], ids=str)
def test_sums_under_signs_are_in_the_order_of_panels(size, dtype):
    rows, inputs, units = size
    x = numbers(rows, inputs).astype(dtype) * dtype(1 + 1e-7)
    signs, words = packed(units, inputs)
    found, twin = signed_sums(x.T, words).T, slow_signed(x, signs)
    assert found.dtype == dtype and np.array_equal(found, twin)
    if dtype == np.float32 and inputs > 32:  # another order gives other bits
        assert not np.array_equal(
            found, np.cumsum(x[:, None] * signs.astype(dtype), axis=-1)[..., -1]
        )


@needs_kernels
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_sums_under_signs_are_those_of_the_kernels(size):
    rows, inputs, units = size
    x, (_, words) = numbers(rows, inputs), packed(units, inputs)
    assert np.array_equal(signed_sums(x.T, words).T, kernels.linear(x, words))
    plus = np.where(x >= 0, np.float32(1), np.float32(-1))
    assert np.array_equal(signed_sums(plus.T, words).T, kernels.linear(x, words, "sign"))


@needs_kernels
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_fast_sums_are_those_of_the_kernels(size):
    rows, inputs, units = size
    x, (_, words) = numbers(rows, inputs), packed(units, inputs)
    x[0] *= np.float32(1e-38)  # too small for a step
    if rows > 2:
        x[1] = 0
        x[2, -1] = np.inf
    if rows > 4:
        x[3] = np.float32(3e35) * np.sign(x[3])
        x[4, 0] = np.nan
    found = fast_sums(x.T, words).T
    assert np.array_equal(found, kernels.linear(x, words, "fast"), equal_nan=True)
    assert rows < 5 or not np.array_equal(found[5:], signed_sums(x[5:].T, words).T)


def test_sums_that_are_exact_and_others_agree():
    """The short way for exact sums is taken, row by row, and gives what the long way does."""
    x, (_, words) = numbers(12, 90), packed(60, 90)
    exact = reference_sums._sums_are_exact(x.T)
    assert exact.tolist() == [True, False, False] * 4
    by_tables = reference_sums._sums_by_tables(x.T, words).T
    assert np.array_equal(signed_sums(x.T, words).T, by_tables)
    # In float64 these are all exact.
    wide = x.astype(np.float64)
    assert np.array_equal(signed_sums(wide.T, words), reference_sums._sums_by_tables(wide.T, words))


@pytest.mark.parametrize(
    ("row", "exact"),
    [
        ([2.0**23, 1, 0, 0], False),  # 2^23 + 1 + ... may need 25 bits
        ([2.0**20, 1, 0, 0], True),
        ([0.5, 0.25, -0.75, 1], True),
        ([0, 0, 0, 0], True),
        ([1, 1e-30, 0, 0], False),
        ([np.inf, 1, 0, 0], False),
        ([np.nan, 1, 0, 0], False),
        ([3e38, 3e38, 3e38, 3e38], False),  # the sum is infinite, or not, by the order
        ([2.0**127, 2.0**127, -(2.0**127), 0], False),
        ([2.0**-149, 2.0**-140, 0, 0], True),
    ],
)
def test_what_counts_as_exact(row, exact):
    column = np.array(row, dtype=np.float32)[:, None]
    wide = np.array([[1e300], [1e-300], [0.5], [0.25]])  # scaling the second leaves the range
    assert reference_sums._sums_are_exact(wide[:2]).tolist() == [False]
    assert reference_sums._sums_are_exact(wide[2:]).tolist() == [True]
    assert reference_sums._sums_are_exact(column).tolist() == [exact]


@pytest.mark.parametrize("size", [(2, 5, 3), (3, 33, 50), (1, 784, 3), (5, 1, 1)], ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_products_are_added_in_order(size, dtype):
    rows, inputs, units = size
    x = numbers(rows, inputs).astype(dtype) * dtype(1 + 1e-7)
    weights = numbers(units, inputs, 1).astype(dtype)
    assert np.array_equal(ordered_sums(x.T, weights).T, slow_ordered(x, weights))


def weighted(kind: str, weight, image, attributes=None, dtype="f4", bias=None) -> Program:
    """One step with weights, a site if they are stored so."""
    sites = {"w": weight} if isinstance(weight, (StoredSite, DrawnSite)) else {}
    constants = {} if sites else {"w": Constant(weight[None])}
    names = ("x", "w")
    if bias is not None:
        constants["b"], names = Constant(bias[None]), ("x", "w", "b")
    step = Step(kind, names, ("y",), dtype, attributes or {})
    return Program({"x": Value(image, "f4")}, constants, sites, (step,), ("y",))


WINDOWS = [
    ((3, 12, 11), (7, 3, 3, 4), (2, 1), (1, 2)),
    ((1, 5, 5), (2, 1, 5, 5), (1, 1), (4, 4)),
    ((40, 6, 7), (65, 40, 3, 3), (1, 1), (1, 1)),
    ((8, 3, 3), (3, 8, 1, 1), (2, 2), (0, 0)),
]


@needs_kernels
@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_convolutions_under_signs_are_those_of_the_kernels(window, binary):
    image, shape, stride, padding = window
    x = numbers(4, int(np.prod(image))).reshape(4, *image)
    x = np.where(x >= 0, np.float32(1), np.float32(-1)) if binary else x
    _, words = packed(shape[0], int(np.prod(shape[1:])))
    attributes = dict(
        stride=stride, padding=tuple((n, n) for n in padding), dilation=(1, 1), groups=1
    )
    program = weighted("conv", StoredSite(shape, words[None]), image, attributes)
    expected = kernels.conv(
        x, words, shape[2:], stride, [(p, p) for p in padding], "sign" if binary else "real"
    )
    assert np.array_equal(run(program, [x], [0])[0][0], expected)


def test_a_convolution_is_a_linear_map_of_each_window():
    """In the order (channels, window), padding counting as 0, whatever the groups."""
    x = numbers(2, 6 * 5 * 4).reshape(2, 6, 5, 4)
    weights, bias = numbers(4, 3 * 3 * 2, 3).reshape(4, 3, 3, 2), numbers(1, 4, 4)[0]
    signs, words = packed(4, 18)
    attributes = dict(stride=(2, 1), padding=((1, 1), (2, 0)), dilation=(1, 2), groups=2)
    padded = np.pad(x, [(0, 0), (0, 0), (1, 1), (2, 0)])
    by_numbers = run(weighted("conv", weights, (6, 5, 4), attributes, bias=bias), [x], [0])[0][0]
    site = StoredSite((4, 3, 3, 2), words[None])
    by_signs = run(weighted("conv", site, (6, 5, 4), attributes, bias=bias), [x], [0])[0][0]
    assert by_numbers.shape == by_signs.shape == (2, 4, 3, 4)
    for n, unit, i, j in np.ndindex(2, 4, 3, 4):
        group = unit // 2
        seen = padded[n, 3 * group : 3 * group + 3, 2 * i : 2 * i + 3, j : j + 3 : 2].reshape(1, -1)
        total = slow_ordered(seen, weights[unit].reshape(1, -1))[0, 0] + float(bias[unit])
        assert by_numbers[n, unit, i, j] == np.float32(total)
        assert (
            by_signs[n, unit, i, j] == slow_signed(seen, signs[unit : unit + 1])[0, 0] + bias[unit]
        )


def test_a_transposed_convolution_adds_channels_and_then_places():
    x, weights = numbers(1, 12).reshape(1, 3, 4), numbers(3, 10, 1).reshape(3, 2, 5)
    attributes = dict(stride=(2,), padding=(1,), output_padding=(0,), dilation=(1,), groups=1)
    found = run(weighted("conv_transpose", weights, (3, 4), attributes), [x], [0])[0][0, 0]
    for unit, place in np.ndindex(2, 9):
        total = 0.0
        for channel, k in itertools.product(range(3), range(5)):
            at = place + 1 - k
            if at % 2 == 0 and 0 <= at // 2 < 4:
                total += float(x[0, channel, at // 2]) * float(weights[channel, unit, k])
        assert found[unit, place] == np.float32(total)


def test_a_bias_is_added_to_the_sum_under_signs_in_another_rounding():
    x, (_, words), bias = numbers(20, 50), packed(3, 50), numbers(1, 3, 9)[0]
    program = weighted("linear", StoredSite((3, 50), words[None]), (50,), bias=bias)
    assert np.array_equal(run(program, [x], [0])[0][0], signed_sums(x.T, words).T + bias)


@needs_kernels
def test_draws_are_those_of_the_kernels():
    rng = np.random.default_rng(1)
    flip = rng.integers(0, 32769, (1, 5, 77), dtype=np.uint16)
    mode = pack_words(rng.random((5, 77)) < 0.5)[None]
    keys = np.array([key_of(3, draw, "layer.weight") for draw in range(3)], dtype=np.uint64)
    x = numbers(6, 77)
    program = Program(
        {"x": Value((77,), "f4")}, {}, {"w": DrawnSite((5, 77), mode, flip, keys)},
        (Step("linear", ("x", "w"), ("y",)),), ("y",), 3,
    )  # fmt: skip
    found = run(program, [x], [2, 0])[0]
    for place, draw in enumerate((2, 0)):
        words = kernels.draw_bits(mode[0], flip[0], int(keys[draw]))
        assert np.array_equal(words, draw_words(mode[0], flip[0], int(keys[draw])))
        assert np.array_equal(found[place], kernels.linear(x, words))


def kernel_outputs(program: Program, x: np.ndarray) -> np.ndarray:
    return kernels.run(program, [x], [0])[0][0]


def one(kind: str, shape, **attributes) -> Program:
    return Program(
        {"x": Value(shape, "f4")}, {}, {}, (Step(kind, ("x",), ("y",), "f4", attributes),), ("y",)
    )


@needs_kernels
def test_tanh_is_that_of_the_kernels():
    x = np.concatenate([np.linspace(-12, 12, 30_001), np.linspace(-0.7, 0.7, 30_001)])
    x = np.concatenate([x, [0.0, -0.0, 1e-40, np.inf, -np.inf, np.nan]]).astype(np.float32)[None]
    program = one("tanh", x.shape[1:])
    found = run(program, [x], [0])[0][0]
    assert np.array_equal(found, kernel_outputs(program, x), equal_nan=True)
    assert not np.array_equal(
        found[:, :-1], np.tanh(x[:, :-1])
    )  # bits that are only near would show
    np.testing.assert_allclose(found, np.tanh(x), rtol=3e-7, equal_nan=True)


@needs_kernels
@pytest.mark.parametrize("count", [False, True])
def test_pools_are_those_of_the_kernels(count):
    x = numbers(3, 2 * 9 * 8).reshape(3, 2, 9, 8)
    x[0, 0, 4, 4] = np.nan
    window = dict(size=(3, 2), stride=(2, 3), padding=(1, 1), ceil=False)
    for kind, more in (
        ("max_pool", dict(dilation=(1, 1))),
        ("avg_pool", dict(count_padding=count, divisor=0)),
    ):
        program = one(kind, (2, 9, 8), **window, **more)
        found = run(program, [x], [0])[0][0]
        assert np.array_equal(found, kernel_outputs(program, x), equal_nan=True)


@pytest.mark.parametrize("kind", ["linear", "conv"])
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_blocks_do_not_matter(kind, dtype, monkeypatch: pytest.MonkeyPatch):
    """However little memory is meant to be used, the bits are the same."""
    image, shape = ((70,), (50, 70)) if kind == "linear" else ((7, 8, 5), (50, 7, 3, 2))
    x = numbers(23, int(np.prod(image))).reshape(23, *image)
    inputs = int(np.prod(shape[1:]))
    attributes = {} if kind == "linear" else dict(
        stride=(1, 1), padding=((1, 1), (0, 1)), dilation=(1, 1), groups=1
    )  # fmt: skip
    site = StoredSite(shape, packed(50, inputs)[1][None])
    real = numbers(50, inputs, 5).reshape(shape)
    programs = [weighted(kind, weight, image, attributes, dtype) for weight in (site, real)]
    whole = [run(program, [x], [0])[0] for program in programs]
    for tables, sums, columns in ((1, 1, 1), (2000, 100, 3000), (1 << 26, 1 << 26, 1 << 26)):
        monkeypatch.setattr(reference_sums, "_TABLES", tables)
        monkeypatch.setattr(reference_sums, "_SUMS", sums)
        monkeypatch.setattr(reference_products, "_COLUMNS", columns)
        for program, expected in zip(programs, whole, strict=True):
            assert np.array_equal(run(program, [x], [0])[0], expected)


@pytest.mark.parametrize("size", [(40, 784, 30), (3, 5, 7), (200, 33, 64), (1, 1, 1)], ids=str)
def test_sums_by_a_matrix_product_are_the_ordered_ones(size, monkeypatch: pytest.MonkeyPatch):
    """Also those that cancel, are 0, lie at ties of float32, or are not finite."""
    rows, inputs, units = size
    x, weights = numbers(rows, inputs), numbers(units, inputs, 1)
    half = inputs // 2
    x[rows // 2 :, half : 2 * half] = -x[rows // 2 :, :half]
    weights[: units // 2, half : 2 * half] = weights[: units // 2, :half]  # these sums cancel
    x[rows // 3] = 0
    if rows > 20:
        x[1, 0], x[2, 0], x[3] = np.inf, np.nan, np.float32(3e38)
        # 1 + 2^-24 lies between two float32 numbers; terms in the last places of float64 decide.
        x[4:8], weights[:2] = 0, 1
        x[4:8, :3] = [
            [1, 2.0**-24, 2.0**-53],
            [1, 2.0**-24, -(2.0**-53)],
            [1, 2.0**-24, 0],
            [1, 2.0**-77, 0],
        ]
    for bias in (None, numbers(1, units, 2)[0]):
        shift = 0.0 if bias is None else bias.astype(np.float64)[:, None]
        expected = (ordered_sums(x.T, weights) + shift).astype(np.float32)
        found = rounded_sums(x.T, weights, np.dtype(np.float32), bias)
        assert np.array_equal(found, expected, equal_nan=True)
        # What a matrix product alone gives is another thing in the last place now and then.
        product = (weights.astype(np.float64) @ x.T.astype(np.float64) + shift).astype(np.float32)
        assert inputs < 700 or not np.array_equal(product[:, 8:], expected[:, 8:])
    wide = rounded_sums(x.T, weights, np.dtype(np.float64))
    assert np.array_equal(wide, ordered_sums(x.T, weights), equal_nan=True)


def stacked(shape: tuple[int, ...], seed: int) -> np.ndarray:
    return numbers(1, int(np.prod(shape)), seed).reshape(shape)


def test_products_of_matrices_are_ordered_sums():
    a, b = stacked((6, 3, 20, 200), 1), stacked((6, 1, 200, 30), 2)
    a[0, 0, 0, 0], b[1, 0, 5, 5] = np.inf, np.nan
    found = matmul(a, b, dtype=np.dtype(np.float32))
    expected = ordered_sums(b, a)
    assert np.array_equal(found, expected.astype(np.float32), equal_nan=True)
    for place in np.ndindex(6, 3):
        assert np.array_equal(
            expected[place], ordered_sums(b[place[0], 0], a[place]), equal_nan=True
        )
    twin = slow_ordered(a[2, 1], b[2, 0].T)
    assert np.array_equal(expected[2, 1], twin)


MASKS = {
    "none": None,
    "seen": np.random.default_rng(0).random((1, 1, 40, 50)) < 0.6,
    "added": np.random.default_rng(0).standard_normal((1, 40, 50)).astype(np.float32),
    "finite": np.where(
        np.random.default_rng(0).random((1, 40, 50)) < 0.3, np.float32(-1e9), np.float32(0)
    ),
    "none seen": np.zeros((1, 40, 50), bool),
}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("causal", [False, True])
def test_attention_by_matrix_products_is_that_of_ordered_sums(mask, causal):
    rng = np.random.default_rng(0)
    query, key, value = (
        rng.standard_normal(shape).astype(np.float32)
        for shape in ((8, 3, 40, 24), (8, 3, 50, 24), (8, 1, 50, 16))
    )
    query[0] *= 100  # one key is nearly all of the answer
    query[1, 0, 3], value[2, 0, 1, 1], key[3, 2, 4, 0] = np.nan, np.inf, -np.inf
    options = dict(scale=0.2, causal=causal)
    given = (query, key, value, MASKS[mask])
    narrow = attention(*given, dtype=np.dtype(np.float32), **options)
    wide = attention(*given, dtype=np.dtype(np.float64), **options)
    assert np.array_equal(narrow, wide.astype(np.float32), equal_nan=True)
    assert narrow.shape == (8, 3, 40, 16) and np.isfinite(narrow[4:]).all()


def test_attention_lays_out_little_at_once(monkeypatch: pytest.MonkeyPatch):
    query, key, value = stacked((4, 9, 6), 1), stacked((4, 7, 6), 2), stacked((4, 7, 5), 3)
    query[:, ::2] = np.nan  # all of these are computed in order
    options = dict(dtype=np.dtype(np.float32), scale=1.0, causal=False)
    whole = attention(query, key, value, **options)
    monkeypatch.setattr(reference_sequences, "_NUMBERS", 1)
    assert np.array_equal(attention(query, key, value, **options), whole, equal_nan=True)
