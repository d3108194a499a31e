"""Normalisation by the statistics of a batch: formulas, and the same bits from kernels and numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from bayesbin.runtime import native_backend
from bayesbin.runtime.batch import normalise_by_batch

SHAPES = {
    "columns": ((3, 50, 7), 0),
    "one number": ((2, 40), 0),
    "images": ((3, 20, 4, 5, 6), 0),
    "small images": ((2, 300, 5, 1, 3), 0),
    "large images": ((2, 9, 3, 31, 17), 0),
    "sequences, channels last": ((2, 30, 6, 5), 1),
}
KERNELS = pytest.mark.skipif(not native_backend.available(), reason="the kernels were not built")


def values(shape, dtype=np.float32, mean=0.0):
    return (np.random.default_rng(1).standard_normal(shape) + mean).astype(dtype)


def affine(draws, channels, count):
    generator = np.random.default_rng(2)
    rows = (1, draws)[count - 1] if count else 0
    return (
        [generator.standard_normal((rows, channels)) for _ in range(2)] if count else [None, None]
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", SHAPES)
def test_against_torch(name, dtype):
    shape, axis = SHAPES[name]
    x = values(shape, dtype, mean=3.0)
    channels = shape[axis + 2] if len(shape) > 2 else 1
    weight, bias = affine(shape[0], channels, 2)
    y, mean, squares = normalise_by_batch(x.copy(), axis, weight, bias, 1e-3)
    assert y.dtype == dtype and y.shape == x.shape
    for draw in range(shape[0]):
        cells = np.moveaxis(x[draw].reshape(*shape[1:], *[1] * (len(shape) == 2)), axis + 1, 1)
        given = torch.from_numpy(np.ascontiguousarray(cells).astype(np.float64))
        found = F.batch_norm(
            given, None, None, *map(torch.from_numpy, (weight[draw], bias[draw])), training=True, eps=1e-3
        )  # fmt: skip
        wanted = np.moveaxis(found.numpy(), 1, axis + 1).reshape(shape[1:])
        tolerance = 1e-5 if dtype == np.float32 else 1e-12
        np.testing.assert_allclose(y[draw], wanted, rtol=tolerance, atol=tolerance)
        flat = given.transpose(0, 1).flatten(1)
        np.testing.assert_allclose(mean[draw], flat.mean(1), rtol=1e-12)
        np.testing.assert_allclose(
            squares[draw], flat.var(1, correction=0) * flat.shape[1], rtol=1e-10
        )


@KERNELS
@pytest.mark.parametrize("count", [0, 1, 2])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", SHAPES)
def test_kernels_and_numpy_give_the_same_bits(name, dtype, count, monkeypatch):
    shape, axis = SHAPES[name]
    weight, bias = affine(shape[0], shape[axis + 2] if len(shape) > 2 else 1, count)
    found = [
        normalise_by_batch(values(shape, dtype, 5.0), axis, weight, bias, threads=threads)
        for threads in (1, 3)
    ]
    for isa in native_backend.isas():
        monkeypatch.setenv("BAYESBIN_KERNEL", isa)
        found.append(normalise_by_batch(values(shape, dtype, 5.0), axis, weight, bias))
    monkeypatch.setattr(native_backend, "available", lambda: False)
    wanted = normalise_by_batch(values(shape, dtype, 5.0), axis, weight, bias)
    for each in found:
        assert all(np.array_equal(a, b) for a, b in zip(each, wanted, strict=True))


def test_large_means_lose_no_digits():
    x = values((1, 5000, 3), mean=0.0).astype(np.float32) + np.float32(1e4)
    wide = x.astype(np.float64)
    _, mean, squares = normalise_by_batch(x.copy(), 0)
    np.testing.assert_allclose(mean, wide.mean(1), rtol=1e-13)
    np.testing.assert_allclose(squares, 5000 * wide.var(1), rtol=1e-9)


@KERNELS
def test_arrays_that_do_not_fit_are_refused():
    x, numbers = np.zeros((2, 3, 4, 1), np.float32), np.zeros((2, 4))
    for wrong in (
        (x[:, ::2], None, None, 1e-5, numbers, numbers.copy()),
        (x.astype(np.int64), None, None, 1e-5, numbers, numbers.copy()),
        (x, numbers[:1], None, 1e-5, numbers, numbers.copy()),
        (x, None, None, 1e-5, numbers[:, :3].copy(), numbers.copy()),
        (x[:0], None, None, 1e-5, numbers[:0], numbers[:0].copy()),
    ):
        with pytest.raises((ValueError, TypeError, BufferError)):
            native_backend.normalise_by_batch(*wrong)
