"""Preprocessing as programs: the numbers of training, to the bit."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import load_digits

from bayesbin.core.preprocessing import Preprocessing
from bayesbin.data import digits
from bayesbin.runtime import reference
from bayesbin.runtime.preprocessing import bins_program, scaling_program
from bayesbin.runtime.program import Program
from bayesbin.sklearn import PiecewiseLinearEncoder


def run(program: Program, x: np.ndarray) -> np.ndarray:
    return reference.run(program, [x], [0])[0][0]


@pytest.mark.parametrize("shape", [(1, 6, 6), (3, 4, 4), (48,), (3, 16), (2, 3, 4, 2)], ids=str)
def test_each_channel_may_have_constants_of_its_own(shape):
    channels = 3 if shape == (48,) else shape[0]
    means, stds = (0.49, 0.48, 0.45)[:channels], (0.25, 0.24, 0.26)[:channels]
    raw = np.random.default_rng(0).integers(0, 256, (5, *shape)).astype(np.uint8)
    images = raw.reshape(5, channels, -1).astype(np.float32) / np.float32(255.0)
    mean, std = (np.float32(constants)[:, None] for constants in (means, stds))
    expected = ((images - mean) / std).reshape(raw.shape)
    found = run(scaling_program(Preprocessing(255.0, means, stds), shape), raw)
    assert found.dtype == np.float32 and np.array_equal(found, expected)
    for wrong in (means * 2, ()) if shape != (48,) else (means[:1] * 5, ()):
        with pytest.raises(ValueError, match=r"a number for each channel|numbers, one or several"):
            scaling_program(Preprocessing(255.0, wrong, stds), shape)


def test_the_preprocessing_of_a_data_set_makes_its_inputs_from_the_pixels():
    splits = digits()
    assert splits.preprocessing is not None
    made = run(scaling_program(splits.preprocessing, (64,)), load_digits().data.astype(np.float32))
    rows = {row.tobytes() for row in made}
    assert all(row.tobytes() in rows for row in splits.train.x.numpy())


def test_constants_that_do_not_scale_are_refused():
    for wrong, message in [
        ((0.0, 0.0, 1.0), "divisor of preprocessing other than 0"),
        ((1.0, 0.0, 1e-60), "std of preprocessing other than 0"),
        ((1.0, 0.0, [1.0, 0.0, 1.0]), "std of preprocessing other than 0"),
        ((1.0, float("nan"), 1.0), "mean to be a finite number"),
        ((1.0, 1e300, 1.0), "numbers of float32 as the mean"),
        (("a", 0.0, 1.0), "divisor to be a finite number"),
    ]:
        with pytest.raises(ValueError, match=message):
            scaling_program(wrong, (3, 2, 2))


@pytest.mark.parametrize("num_bins", [1, 4, 16])
def test_bins_are_those_of_the_encoder(num_bins):
    rng = np.random.default_rng(num_bins)
    table = np.column_stack(
        [
            rng.standard_normal(200),
            rng.integers(0, 3, 200),
            np.full(200, 7.0),
            rng.random(200) * 1e6,
        ]
    )
    encoder = PiecewiseLinearEncoder(num_bins).fit(table)
    other = np.concatenate([table, 3.0 * table - 5.0])
    found = run(bins_program(encoder.edges_), other)
    assert np.array_equal(found, encoder.transform(other).astype(np.float32))
    with pytest.raises(ValueError, match="rising edges"):
        bins_program([[0.0, 1.0], [1.0, 1.0]])
    with pytest.raises(ValueError, match="rising edges"):
        bins_program([])
