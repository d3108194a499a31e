"""Summary numbers of a sequence of tasks, from the matrix of scores.

R[i, j] is the score on task j after learning task i (both from 0), T x T; above the diagonal stands the
score on tasks not learned yet, or NaN where it was not computed. Every function takes such a matrix, of a
score of which more is better, or a :class:`~bayesbin.continual.ContinualResult`, whose main score it uses:
accuracy, or of regression rmse, of which less is better. Transfer is positive and forgetting negative where
scores have become better, for either. Nothing here changes its input, and what is not defined (transfer and
forgetting of a single task, the mean of a NaN) is NaN.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from bayesbin.core.checks import one_of, whole_number

__all__ = [
    "average_accuracies",
    "average_accuracy",
    "backward_transfer",
    "forgetting",
    "forward_transfer",
    "last_k_average",
    "learning_accuracy",
]


def average_accuracy(R: ArrayLike | Any) -> float:
    r"""The mean score on all tasks after the last one.

    .. math:: \tfrac1T \textstyle\sum_j R_{T,j}

    :param R: a matrix or a result, as in all functions here.
    :raises ValueError: unless R is square with at least one row.

    >>> average_accuracy([[0.9, np.nan], [0.7, 0.8]])
    0.75

    Source: Lopez-Paz and Ranzato 2017, arXiv 1706.08840, as backward and forward transfer.
    """
    return float(_matrix(R)[-1].mean())


def average_accuracies(R: ArrayLike | Any) -> np.ndarray:
    r"""The mean score on the tasks seen so far, after each task: (T,).

    .. math:: \tfrac1i \textstyle\sum_{j \le i} R_{i,j}

    >>> average_accuracies([[0.5, np.nan], [0.25, 0.75]]).tolist()
    [0.5, 0.5]
    """
    return np.array([row[: i + 1].mean() for i, row in enumerate(_matrix(R))])


def learning_accuracy(R: ArrayLike | Any) -> float:
    r"""The mean score on each task just after it was learned: plasticity.

    .. math:: \tfrac1T \textstyle\sum_i R_{i,i}

    >>> round(learning_accuracy([[0.9, np.nan], [0.7, 0.8]]), 6)
    0.85

    Source: Riemer et al. 2019, arXiv 1810.11910.
    """
    return float(np.diag(_matrix(R)).mean())


def backward_transfer(R: ArrayLike | Any) -> float:
    r"""How much better the scores of all tasks but the last are at the end than when they were learned.

    .. math:: \tfrac1{T-1} \textstyle\sum_{j < T} (R_{T,j} - R_{j,j})

    >>> round(backward_transfer([[0.9, np.nan], [0.7, 0.8]]), 6)
    -0.2
    """
    matrix = _oriented(R)
    return _mean(matrix[-1, :-1] - np.diag(matrix)[:-1])


def forward_transfer(R: ArrayLike | Any, b: ArrayLike | None = None) -> float:
    r"""How much better a task starts, before it is learned, than with nothing learned at all.

    .. math:: \tfrac1{T-1} \textstyle\sum_{j > 1} (R_{j-1,j} - b_j)

    :param b: scores of the untrained learner, (T,); None: those of the result.
    :raises ValueError: for other shapes, or a matrix without ``b``.

    >>> round(forward_transfer([[0.9, 0.3], [0.7, 0.8]], [0.1, 0.1]), 6)
    0.2
    """
    matrix = _oriented(R)
    if b is None:
        if not hasattr(R, "untrained"):
            raise ValueError(
                "expected the scores of the untrained learner as b beside a matrix; got none."
            )
        result: Any = R
        b = result.untrained.get(result.score, np.full(len(matrix), np.nan))
    base = np.asarray(b, dtype=float) * _sign(R)
    if base.shape != matrix.shape[:1]:
        raise ValueError(
            f"expected scores of an untrained learner on {len(matrix)} tasks, got shape {base.shape}."
        )
    return _mean(np.diag(matrix, 1) - base[1:])


def forgetting(R: ArrayLike | Any, kind: str = "final") -> float:
    r"""How much worse the tasks but the last are answered at the end than they have been.

    .. math::
        \text{final}: \tfrac1{T-1} \textstyle\sum_{j<T} (R_{j,j} - R_{T,j}), \qquad
        \text{max\_past}: \tfrac1{T-1} \textstyle\sum_{j<T} (\max_{i<T} R_{i,j} - R_{T,j})

    The two differ in value, so say which. "final" is minus the backward transfer.

    :param kind: "final" or "max_past", where NaNs do not count. :raises ValueError: for another kind.

    >>> R = [[0.5, np.nan, np.nan], [0.75, 0.5, np.nan], [0.25, 0.5, 0.75]]
    >>> forgetting(R), forgetting(R, "max_past")
    (0.125, 0.25)

    Source: Chaudhry et al. 2018, arXiv 1801.10112 (max_past).
    """
    if one_of("kind", kind, ("final", "max_past")) == "final":
        return -backward_transfer(R)
    matrix = _oriented(R)
    if len(matrix) == 1:
        return float("nan")
    best = np.fmax.reduce(matrix[:-1, :-1], axis=0)  # unlike max, passes over NaN
    return _mean(best - matrix[-1, :-1])


def last_k_average(R: ArrayLike | Any, k: int) -> float:
    """The mean score, after the last task, on the k tasks learned last: of very long sequences.

    :raises ValueError: for k out of 1 .. T.

    >>> last_k_average([[0.9, np.nan], [0.7, 0.8]], k=1)
    0.8
    """
    matrix = _matrix(R)
    k = whole_number("k", k, at_least=1, at_most=len(matrix))
    return float(matrix[-1, -k:].mean())


def _matrix(R: ArrayLike | Any) -> np.ndarray:
    matrix = np.asarray(getattr(R, "R", R), dtype=float)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not len(matrix):
        raise ValueError(
            f"expected R as a square matrix, tasks learned by tasks scored; got shape {matrix.shape}."
        )
    return matrix


def _oriented(R: ArrayLike | Any) -> np.ndarray:
    """The matrix, with the sign at which more is better."""
    return _sign(R) * _matrix(R)


def _sign(R: ArrayLike | Any) -> float:
    return -1.0 if getattr(R, "score", "accuracy") == "rmse" else 1.0


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")
