"""Numbers as several inputs each, so that signs can weigh their ranges differently."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from bayesbin.core.checks import whole_number

__all__ = ["PiecewiseLinearEncoder"]


class PiecewiseLinearEncoder(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    r"""Each feature as a bar that fills from left to right, one output for each bin.

    With edges b_0 < ... < b_K of a feature x, output k = 1..K is

        (x - b_(k-1)) / (b_k - b_(k-1)), at least 0 and at most 1,

    but the first goes below 0 and the last above 1, so that nothing is lost outside the data. A weight of
    +-1 is the same for every feature, and its effect the same along one; a sum of K signed bins is a line
    with K slopes. A feature with few distinct values has them as edges: a thermometer code, each bin empty
    or full. The others have quantiles of the data.

    :param num_bins: of a feature at most, 1 or more; fewer where it has fewer distinct values.
    :ivar edges_: an array for each feature, rising. A feature with one value v in the data has the edges
        v and v + max(1, \|v\|).
    :raises ValueError: at ``fit`` for ``num_bins`` below 1, and whatever scikit-learn refuses in data.

    Example::

        >>> import numpy as np
        >>> from bayesbin.sklearn import PiecewiseLinearEncoder
        >>> encoder = PiecewiseLinearEncoder().fit([[0.0], [2.0], [10.0]])
        >>> encoder.transform([[1.0], [2.0], [4.0], [18.0]])
        array([[0.5 , 0.  ],
               [1.  , 0.  ],
               [1.  , 0.25],
               [1.  , 2.  ]])

    Source: Gorishniy, Rubachev and Babenko 2022, arXiv 2203.05556, section 3.2 (quantile bins).
    """

    n_features_in_: int
    edges_: list[np.ndarray]

    def __init__(self, num_bins: int = 16) -> None:
        self.num_bins = num_bins

    def fit(self, X: Any, y: Any = None) -> PiecewiseLinearEncoder:
        """Find the edges from inputs (n, features)."""
        whole_number("num_bins", self.num_bins, at_least=1)
        X = validate_data(self, X, dtype=np.float64)
        self.edges_ = [self._edges(column) for column in X.T]
        return self

    def _edges(self, column: np.ndarray) -> np.ndarray:
        values = np.unique(column)
        if len(values) == 1:
            return values[0] + np.array([0.0, max(1.0, abs(values[0]))])
        if len(values) <= self.num_bins + 1:
            return values
        # Quantiles that are data: an edge between two values would split a bin that no datum enters.
        levels = np.linspace(0.0, 1.0, self.num_bins + 1)
        return np.unique(np.quantile(column, levels, method="inverted_cdf"))

    def transform(self, X: Any) -> np.ndarray:
        """Inputs (n, features) as bars (n, bins of all features), a feature's bins side by side."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        return np.concatenate([_bars(*pair) for pair in zip(X.T, self.edges_, strict=True)], axis=1)

    @property
    def _n_features_out(self) -> int:
        return sum(len(edges) - 1 for edges in self.edges_)


def _bars(column: np.ndarray, edges: np.ndarray) -> np.ndarray:
    least, most = np.zeros(len(edges) - 1), np.ones(len(edges) - 1)
    least[0], most[-1] = -np.inf, np.inf
    return np.clip((column[:, None] - edges[:-1]) / np.diff(edges), least, most)
