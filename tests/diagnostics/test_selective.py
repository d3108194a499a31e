"""Risk against coverage: by hand, and the mean over all orders of ties by enumeration."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from bayesbin.diagnostics import risk_coverage


def by_hand(correct):
    """Risks of answers in the order given."""
    wrong = [1.0 - float(c) for c in correct]
    return torch.tensor([sum(wrong[:k]) / k for k in range(1, len(wrong) + 1)])


def test_without_ties_the_order_is_that_of_the_confidence():
    confidence = torch.randn(50)
    correct = torch.rand(50) < 0.7
    found = risk_coverage(confidence, correct)
    torch.testing.assert_close(found.risk, by_hand(correct[confidence.argsort(descending=True)]))
    torch.testing.assert_close(found.coverage, torch.arange(1, 51) / 50)
    assert found.aurc == pytest.approx(found.risk.mean().item())
    best = by_hand(sorted(correct.tolist(), reverse=True))
    torch.testing.assert_close(found.best_risk, best)
    assert found.excess_aurc == pytest.approx((found.risk - best).mean().item())


def test_ties_are_the_mean_over_all_their_orders():
    groups = [[True, False], [True, True, False, False], [False]]
    confidence = torch.tensor([0.9] * 2 + [0.5] * 4 + [0.1])
    correct = torch.tensor([c for group in groups for c in group])
    orders = itertools.product(*(itertools.permutations(group) for group in groups))
    risks = torch.stack([by_hand([c for group in order for c in group]) for order in orders])
    shuffled = torch.randperm(7)
    found = risk_coverage(confidence[shuffled], correct[shuffled])
    torch.testing.assert_close(found.risk, risks.mean(0))
    assert found.aurc == pytest.approx(risks.mean().item())


def test_a_constant_confidence_has_the_error_rate_everywhere():
    found = risk_coverage(torch.zeros(10), torch.arange(10) < 7)
    torch.testing.assert_close(found.risk, torch.full((10,), 0.3))
    assert found.aurc == pytest.approx(0.3)


def test_the_best_order_has_no_excess():
    correct = torch.tensor([True] * 5 + [False] * 3)
    assert risk_coverage(torch.arange(8, 0, -1), correct).excess_aurc == 0.0
    assert risk_coverage(torch.arange(8), correct).excess_aurc > 0.4
    for same in (torch.ones(8), torch.zeros(8)):  # all right, all wrong: no order matters
        found = risk_coverage(torch.rand(8), same)
        assert found.excess_aurc == 0.0 and found.aurc == 1.0 - same[0].item()


def test_for_many_data_the_best_area_is_that_of_the_formula():
    found = risk_coverage(torch.arange(100_000, 0, -1), torch.arange(100_000) < 80_000)
    assert found.aurc == pytest.approx(0.2 + 0.8 * math.log(0.8), abs=1e-4)


def test_log_probabilities_with_labels_or_hits():
    log_probs = torch.log_softmax(torch.randn(30, 4), -1)
    y = torch.randint(4, (30,))
    correct = log_probs.argmax(-1) == y
    expected = risk_coverage(log_probs.exp().max(-1).values, correct).risk
    torch.testing.assert_close(risk_coverage(log_probs, y).risk, expected)
    torch.testing.assert_close(risk_coverage(log_probs, correct).risk, expected)


def test_the_risk_at_a_coverage():
    found = risk_coverage(torch.arange(10, 0, -1), torch.arange(10) < 5)
    assert found.risk_at(0.5) == 0.0 and found.risk_at(1.0) == 0.5
    assert found.risk_at(0.55) == found.risk_at(0.6) == pytest.approx(1 / 6)
    assert all(found.risk_at(k / 10) == found.risk[k - 1].item() for k in range(1, 11))
    for wrong in (0.0, 1.1, math.nan):
        with pytest.raises(ValueError, match=r"coverage to be a .*number above 0 and at most 1"):
            found.risk_at(wrong)


def test_infinite_confidence_can_be_ordered():
    found = risk_coverage(torch.tensor([math.inf, 0.0, -math.inf]), torch.tensor([1, 0, 1]))
    torch.testing.assert_close(found.risk, torch.tensor([0.0, 0.5, 1 / 3]))


@pytest.mark.parametrize(
    ("confidence", "correct", "message"),
    [
        (torch.zeros(3), torch.zeros(2), r"got \(3,\) and \(2,\)"),
        (torch.zeros(0), torch.zeros(0), "N at least 1"),
        (torch.tensor([math.nan]), torch.zeros(1), "can be ordered, got NaN"),
        (torch.zeros(2), torch.tensor([0, 5]), "true or false"),
        (torch.zeros(2, 3), torch.tensor([0, 1]), "pass log_softmax"),
    ],
)
def test_errors(confidence, correct, message):
    with pytest.raises(ValueError, match=message):
        risk_coverage(confidence, correct)
