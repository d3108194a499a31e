"""Features as bars: scikit-learn's own checks, its splines, and what the code promises."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.preprocessing import SplineTransformer
from sklearn.utils.estimator_checks import parametrize_with_checks

from bayesbin.sklearn import PiecewiseLinearEncoder


@parametrize_with_checks([PiecewiseLinearEncoder()])
def test_scikit_learns_checks(estimator, check):
    check(estimator)


def features():
    generator = np.random.default_rng(0)
    return np.column_stack([generator.standard_normal(200), generator.exponential(50.0, 200)])


@pytest.mark.parametrize("num_bins", [1, 2, 7, 16])
def test_bars_are_sums_of_linear_splines(num_bins):
    x = features()
    encoder = PiecewiseLinearEncoder(num_bins).fit(x)
    new = np.linspace(x.min(0), x.max(0), 200)
    knots: Any = np.column_stack(encoder.edges_)
    hats = (
        SplineTransformer(degree=1, knots=knots).fit(x).transform(new).reshape(200, 2, num_bins + 1)
    )
    expected = hats[:, :, ::-1].cumsum(-1)[:, :, ::-1][:, :, 1:].reshape(200, -1)
    np.testing.assert_allclose(encoder.transform(new), expected, atol=1e-9)


def test_nothing_is_lost():  # neither within the data nor far outside
    x = features()
    encoder = PiecewiseLinearEncoder(5).fit(x)
    new = 10.0 * x
    bars = encoder.transform(new).reshape(200, 2, 5)
    for feature, edges in enumerate(encoder.edges_):
        again = edges[0] + bars[:, feature] @ np.diff(edges)
        np.testing.assert_allclose(again, new[:, feature], rtol=1e-12)


def test_bins_hold_equal_shares_and_end_at_data():
    x = features()
    encoder = PiecewiseLinearEncoder(8).fit(x)
    for column, edges in zip(x.T, encoder.edges_, strict=True):
        assert np.isin(edges, column).all()
        assert (edges[0], edges[-1]) == (column.min(), column.max())
        assert np.histogram(column, edges)[0] == pytest.approx([25] * 8, abs=1)


def test_few_distinct_values_are_a_thermometer():
    x = np.array([3.0, 1.0, 7.0, 3.0, 1.0, 1.0, 1.0, 1.0])[:, None]  # one value rules all quantiles
    encoder = PiecewiseLinearEncoder(2).fit(x)
    np.testing.assert_array_equal(encoder.edges_[0], [1.0, 3.0, 7.0])
    np.testing.assert_array_equal(
        encoder.transform([[1.0], [3.0], [7.0]]), [[0, 0], [1, 0], [1, 1]]
    )


def test_repeated_values_are_one_edge():
    x = np.concatenate([np.zeros(90), np.arange(1.0, 31.0)])[:, None]
    encoder = PiecewiseLinearEncoder(8).fit(x)
    (edges,) = encoder.edges_
    assert (np.diff(edges) > 0).all() and edges[0] == 0.0 and len(edges) < 9
    assert encoder.transform(x).shape == (120, len(edges) - 1)
    assert len(encoder.get_feature_names_out()) == len(edges) - 1


@pytest.mark.parametrize("value", [0.0, -2.5, 1e18])
def test_one_value(value):
    encoder = PiecewiseLinearEncoder().fit(np.full((4, 1), value))
    size = max(1.0, abs(value))
    bars = encoder.transform([[value], [value + size], [value - 2.0 * size]])
    np.testing.assert_array_equal(bars, [[0.0], [1.0], [-2.0]])


def test_a_count_of_numpys_is_a_count():  # as a search over np.arange gives them
    assert len(PiecewiseLinearEncoder(np.int64(2)).fit(features()).edges_[0]) == 3


@pytest.mark.parametrize("num_bins", [0, -3, 2.0, None])
def test_bins_out_of_range(num_bins):
    with pytest.raises(ValueError, match="num_bins to be a whole number of at least 1"):
        PiecewiseLinearEncoder(num_bins).fit([[1.0], [2.0]])
