"""Separation of two kinds of inputs: counted pair by pair and threshold by threshold."""

from __future__ import annotations

import math

import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from bayesbin.diagnostics import ood_scores


def fpr95(inner, outer):
    """At the highest threshold that flags at least 95 % of the outer inputs."""
    thresholds = torch.cat([inner, outer]).unique().tolist()
    able = [t for t in thresholds if (outer >= t).double().mean() >= 0.95]
    return (inner >= max(able)).double().mean().item()


@pytest.mark.parametrize("decimals", [1, 6])  # with many ties, with none
def test_against_counting_and_scikit_learn(decimals):
    inner = torch.randn(83).round(decimals=decimals)
    outer = (torch.randn(61) + 1.0).round(decimals=decimals)
    found = ood_scores(inner, outer)
    above = (outer[:, None] > inner).double() + 0.5 * (outer[:, None] == inner)
    assert found["auroc"] == pytest.approx(above.mean().item())
    assert found["fpr95"] == pytest.approx(fpr95(inner, outer))
    labels = [0] * 83 + [1] * 61
    scores = torch.cat([inner, outer]).numpy()
    assert found["auroc"] == pytest.approx(float(roc_auc_score(labels, scores)))
    assert found["aupr_out"] == pytest.approx(float(average_precision_score(labels, scores)))
    flipped = [1 - label for label in labels]
    assert found["aupr_in"] == pytest.approx(float(average_precision_score(flipped, -scores)))


def test_out_of_distribution_is_positive_and_larger():
    apart = ood_scores(torch.tensor([0.0, 1.0]), torch.tensor([20.0, 30.0]))
    assert apart == {"auroc": 1.0, "aupr_out": 1.0, "aupr_in": 1.0, "fpr95": 0.0}
    reverse = ood_scores(torch.tensor([20.0, 30.0]), torch.tensor([0.0, 1.0]))
    assert reverse["auroc"] == 0.0 and reverse["fpr95"] == 1.0


def test_scores_beyond_one_are_not_squashed():
    """torchmetrics gives .5 for these, as a sigmoid rounds all of them to 1."""
    found = ood_scores(torch.tensor([200.0, 400.0]), torch.tensor([300.0, 500.0]))
    assert found["auroc"] == 0.75


def test_a_constant_score_says_nothing():
    found = ood_scores(torch.zeros(30), torch.zeros(10))
    assert found["auroc"] == 0.5 and found["fpr95"] == 1.0
    assert found["aupr_out"] == 0.25 and found["aupr_in"] == 0.75


def test_at_least_95_percent_are_found_not_about_95():
    # Of 20 outer inputs 19 are exactly 95 %; the lowest one need not be flagged, the next has to.
    outer = torch.arange(20.0)
    inner = torch.tensor([-1.0, 0.5, 1.0, 1.5])
    assert ood_scores(inner, outer)["fpr95"] == 0.5  # threshold 1, and 1 itself is flagged
    # Of 10 no threshold flags 95 %: all have to be.
    assert ood_scores(torch.tensor([-1.0, 0.5]), torch.arange(10.0))["fpr95"] == 0.5


def test_infinities_have_a_rank():
    found = ood_scores(torch.tensor([-math.inf, 0.0]), torch.tensor([1.0, math.inf]))
    assert found["auroc"] == 1.0


@pytest.mark.parametrize(
    ("inner", "outer", "message"),
    [
        (torch.zeros(2, 2), torch.zeros(2), r"got \(2, 2\) and \(2,\)"),
        (torch.zeros(2), torch.zeros(0), "at least one of each kind"),
        (torch.tensor([math.nan]), torch.zeros(2), "can be ordered, got NaN"),
    ],
)
def test_errors(inner, outer, message):
    with pytest.raises(ValueError, match=message):
        ood_scores(inner, outer)
