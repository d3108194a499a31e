"""Metrics of score matrices against numbers computed by hand."""

from __future__ import annotations

import json
import math
import sys
from typing import Any

import numpy as np
import pytest
from problems import learner, tasks

from bayesbin.continual import ContinualResult, learn
from bayesbin.continual.metrics import (
    average_accuracies,
    average_accuracy,
    backward_transfer,
    forgetting,
    forward_transfer,
    last_k_average,
    learning_accuracy,
)

NAN = math.nan
R = np.array([[0.90, NAN, NAN], [0.95, 0.80, NAN], [0.60, 0.70, 0.85]])
FULL = np.array([[0.90, 0.20, 0.15], [0.95, 0.80, 0.30], [0.60, 0.70, 0.85]])


def test_by_hand() -> None:
    assert average_accuracy(R) == pytest.approx((0.60 + 0.70 + 0.85) / 3)
    assert average_accuracies(R) == pytest.approx([0.90, 0.875, 2.15 / 3])
    assert learning_accuracy(R) == pytest.approx((0.90 + 0.80 + 0.85) / 3)
    assert backward_transfer(R) == pytest.approx(((0.60 - 0.90) + (0.70 - 0.80)) / 2)
    assert forgetting(R) == forgetting(R, "final") == pytest.approx(0.2)
    assert forgetting(R, "max_past") == pytest.approx(((0.95 - 0.60) + (0.80 - 0.70)) / 2)
    assert last_k_average(R, 2) == pytest.approx((0.70 + 0.85) / 2)
    b = [0.5, 0.1, 0.1]
    assert forward_transfer(FULL, b) == pytest.approx(((0.20 - 0.1) + (0.30 - 0.1)) / 2)
    assert math.isnan(forward_transfer(R, b))  # never computed: not known


def test_nothing_is_changed() -> None:
    matrix, b = FULL.copy(), np.zeros(3)
    for metric in (average_accuracy, average_accuracies, learning_accuracy, backward_transfer):
        metric(matrix)
    forgetting(matrix, "max_past")
    forward_transfer(matrix, b)
    assert np.array_equal(matrix, FULL) and not b.any()
    assert average_accuracy(FULL.tolist()) == average_accuracy(FULL)


def test_a_single_task_gives_nan_and_no_warning() -> None:
    one = [[0.9]]
    undefined = (
        backward_transfer(one),
        forgetting(one),
        forgetting(one, "max_past"),
        forward_transfer(one, [0.1]),
    )
    assert all(map(math.isnan, undefined))  # warnings are errors
    assert average_accuracy(one) == learning_accuracy(one) == last_k_average(one, 1) == 0.9


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: average_accuracy([[0.1, 0.2]]), r"square matrix.*got shape \(1, 2\)"),
        (lambda: average_accuracy([]), "square matrix"),
        (lambda: forgetting(R, "other"), "kind to be one of final, max_past"),
        (lambda: last_k_average(R, 4), r"k to be a whole number from 1 to 3"),
        (lambda: forward_transfer(R, [0.1]), "untrained learner on 3 tasks"),
    ],
)
def test_refuses(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_learn_fills_the_matrices() -> None:
    stream = tasks(3)
    made = learner()
    result = learn(made, iter(stream), progress=False)  # any iterable, one task at a time
    assert result.R.shape == (3, 3) and np.isnan(result.R[np.triu_indices(3, 1)]).all()
    assert np.isfinite(result.R[np.tril_indices(3)]).all()
    assert all(np.isnan(row).all() for row in result.untrained.values())
    for name, row in made.evaluate(stream).items():
        assert np.array_equal(result.scores[name][-1], row)

    ahead = learn(learner(), stream, forward=True, progress=False)
    assert all(np.isfinite(matrix).all() for matrix in ahead.scores.values())
    untrained = learner().evaluate(stream)
    assert np.array_equal(ahead.untrained["nll"], untrained["nll"])
    lower = np.tril_indices(3)
    assert np.array_equal(ahead.R[lower], result.R[lower])  # looking ahead changes nothing


def test_a_result_survives_json_and_becomes_a_dataset() -> None:
    result = learn(learner(), tasks(2), progress=False)
    content = json.loads(result.to_json())
    assert content["R"][0][1] is None and content["forward_transfer"] is None
    assert content["average_accuracy"] == average_accuracy(result.R)
    assert content["average_accuracies"] == average_accuracies(result.R).tolist()
    back = ContinualResult.from_dict(content)
    assert np.array_equal(back.R, result.R, equal_nan=True)
    assert back.reports == result.reports and back.tasks == result.tasks

    data = result.to_dataset()
    assert data["accuracy"].dims == ("trained_on", "evaluated_on")
    assert float(data["nll"].sel(trained_on="task 1", evaluated_on="task 0")) == pytest.approx(
        result.scores["nll"][1, 0]
    )
    first = result.reports[0].layers[0]
    entry = data["saturated"].sel(trained_on="task 0", site=first.site)
    assert float(entry) == first.saturated
    assert data["entropy_bits"].dims == ("trained_on", "site")


def test_learn_refuses() -> None:
    with pytest.raises(ValueError, match="at least one task"):
        learn(learner(), [], progress=False)
    with pytest.raises(ValueError, match="a sequence of tasks with forward=True"):
        learn(learner(), iter(tasks(1)), forward=True, progress=False)
    made = learner()
    learn(made, tasks(1), progress=False)
    with pytest.raises(ValueError, match=r"has not learned anything yet.*1 tasks"):
        learn(made, tasks(1), progress=False)


def test_progress_is_shown_when_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    learn(learner(), tasks(2), progress=False)
    assert capsys.readouterr().err == ""
    learn(learner(progress=True), tasks(2), progress=True)
    shown = capsys.readouterr().err
    assert "task 1" in shown and "accuracy=" in shown and "epoch 2/2" in shown
    assert sys.stderr is not None
