"""Calibration errors, Brier score, sharpness: by hand, against torchmetrics and scikit-learn."""

from __future__ import annotations

import math

import pytest
import torch
from sklearn.metrics import brier_score_loss
from torchmetrics.functional.classification import binary_calibration_error

from bayesbin.diagnostics import (
    brier,
    classification_scores,
    ece,
    ece_equal_mass,
    scores,
    sharpness,
    top_label,
)

BOTH = pytest.mark.parametrize("error", [ece, ece_equal_mass])


def predictions(n=500, num_classes=4):
    log_probs = torch.log_softmax(2.0 * torch.randn(n, num_classes), -1)
    return log_probs, torch.randint(num_classes, (n,))


def sampled(n, sharper=1.0, num_classes=4, seed=0):
    """Labels drawn from probabilities; and those probabilities made sharper than they are."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2.0 * torch.randn(n, num_classes, generator=generator)
    y = torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]
    return torch.log_softmax(sharper * logits, -1), y


def test_the_top_label():
    log_probs = torch.tensor([[0.2, 0.8], [0.5, 0.5], [1.0, 0.0]]).log()
    confidence, correct = top_label(log_probs, torch.tensor([1, 1, 1]))
    torch.testing.assert_close(confidence, torch.tensor([0.8, 0.5, 1.0]))
    assert correct.tolist() == [True, False, False]
    above, _ = top_label(torch.tensor([[1e-7, -9.0]]), torch.tensor([0]))
    assert above.item() == 1.0  # rounded above 1


def test_brier_and_sharpness_are_those_of_scikit_learn():
    log_probs, y = predictions()
    probs = log_probs.exp()
    expected = brier_score_loss(y, probs, labels=range(4), scale_by_half=False)
    assert brier(log_probs, y) == pytest.approx(float(expected))
    assert sharpness(log_probs) == pytest.approx(probs.square().sum(-1).mean().item())


def test_probabilities_of_0_and_1():
    log_probs = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).log()
    right = classification_scores(log_probs, torch.tensor([0, 1]))
    assert right == {
        "accuracy": 1.0, "nll": 0.0, "brier": 0.0, "ece": pytest.approx(0.0, abs=1e-12),
        "ece_equal_mass": 0.0, "sharpness": 1.0,
    }  # fmt: skip
    wrong = classification_scores(log_probs, torch.tensor([1, 0]))
    assert wrong["nll"] == math.inf and wrong["brier"] == 2.0
    assert wrong["ece"] == pytest.approx(1.0) and wrong["ece_equal_mass"] == 1.0


def test_the_smaller_table_is_part_of_the_larger():
    log_probs, y = predictions()
    small, large = scores(log_probs, y), classification_scores(log_probs, y)
    assert {name: large[name] for name in small} == small
    assert large["ece_equal_mass"] == ece_equal_mass(*top_label(log_probs, y))


def test_calibrated_predictions_have_a_brier_score_of_one_minus_sharpness():
    log_probs, y = sampled(50_000)
    # The Brier score of one datum is between 0 and 2: its standard deviation is at most 1.
    assert abs(brier(log_probs, y) - 1.0 + sharpness(log_probs)) < 5 / math.sqrt(50_000)
    log_probs, y = sampled(50_000, sharper=3.0)
    assert brier(log_probs, y) - 1.0 + sharpness(log_probs) > 0.1


@pytest.mark.parametrize("num_bins", [1, 7, 15])
def test_equal_width_is_that_of_torchmetrics(num_bins):
    confidence, correct = top_label(*predictions())
    expected = binary_calibration_error(confidence, correct.long(), n_bins=num_bins).item()
    assert ece(confidence, correct, num_bins) == pytest.approx(expected, abs=1e-12)


def test_certainty_shares_the_last_bin():
    # One bin has all: half of them right, at a mean confidence of 0.99.
    confidence = torch.tensor([1.0, 0.98])
    assert ece(confidence, torch.tensor([False, True])) == pytest.approx(0.49)


def test_scores_above_one_are_no_logits():
    """What torchmetrics would pass through a sigmoid is refused."""
    with pytest.raises(ValueError, match=r"probabilities, in 0 \.\. 1"):
        ece(torch.tensor([3.0]), torch.tensor([True]))


def test_equal_mass_by_hand():
    confidence = torch.tensor([0.9, 0.3, 0.5, 0.8, 0.4, 0.7])
    correct = torch.tensor([1, 0, 0, 1, 1, 0]).bool()
    # Bins {.3, .4}, {.5, .7}, {.8, .9}: 1/2, 0 and 1 right.
    gaps = [abs(0.5 - 0.35), abs(0.0 - 0.6), abs(1.0 - 0.85)]
    assert ece_equal_mass(confidence, correct, num_bins=3) == pytest.approx(sum(gaps) / 3)


def test_equal_mass_of_different_confidences_has_bins_of_one_size():
    confidence, correct = top_label(*predictions(n=300))
    order = confidence.argsort()
    parts = zip(confidence[order].split(20), correct[order].double().split(20), strict=True)
    expected = sum((right.mean() - sure.mean()).abs().item() for sure, right in parts) / 15
    assert ece_equal_mass(confidence, correct) == pytest.approx(expected)


def test_ties_are_in_one_bin_whatever_their_order():
    confidence = torch.tensor([0.5] * 40 + [0.9] * 10)
    correct = torch.rand(50) < 0.5
    order = torch.randperm(50)
    found = ece_equal_mass(confidence, correct)
    assert found == pytest.approx(ece_equal_mass(confidence[order], correct[order]), abs=1e-12)
    gaps = [
        abs(correct[:40].double().mean() - 0.5) * 0.8,
        abs(correct[40:].double().mean() - 0.9) * 0.2,
    ]
    assert found == pytest.approx(float(sum(gaps)))


@BOTH
def test_a_constant_predictor_has_the_gap_of_its_one_bin(error):
    correct = torch.tensor([True] * 7 + [False] * 3)
    assert error(torch.full((10,), 0.9), correct) == pytest.approx(0.2)
    assert error(torch.full((10,), 0.7), correct) == pytest.approx(0.0, abs=1e-12)


@BOTH
def test_fewer_data_than_bins(error):
    assert error(torch.tensor([0.6]), torch.tensor([True])) == pytest.approx(0.4)
    assert error(torch.ones(3), torch.ones(3)) == pytest.approx(0.0, abs=1e-12)


@BOTH
def test_calibrated_predictions_are_within_the_sampling_error_and_a_twin_is_not(error):
    n = 20_000
    confidence, correct = top_label(*sampled(n))
    # The mean gap of bins whose accuracies vary by sqrt(1/4 / n_b) is at most sqrt(bins / (4 n)).
    bound = math.sqrt(15 / (4 * n))
    assert error(confidence, correct) < 2.0 * bound
    for sharper in (0.5, 2.0):
        assert error(*top_label(*sampled(n, sharper))) > 5.0 * bound


@BOTH
@pytest.mark.parametrize(
    ("confidence", "correct", "message"),
    [
        (torch.zeros(2, 2), torch.zeros(2, 2), r"confidences \(N,\) and hits"),
        (torch.zeros(0), torch.zeros(0), "N at least 1"),
        (torch.zeros(2), torch.tensor([0, 3]), "true or false"),
        (torch.tensor([-0.1]), torch.tensor([0]), "probabilities"),
        (torch.tensor([math.nan]), torch.tensor([0]), "probabilities"),
    ],
)
def test_errors(error, confidence, correct, message):
    with pytest.raises(ValueError, match=message):
        error(confidence, correct)


def test_errors_of_settings_and_log_probabilities():
    with pytest.raises(ValueError, match="num_bins to be a whole number of at least 1; got 0"):
        ece(torch.zeros(1), torch.zeros(1), num_bins=0)
    with pytest.raises(ValueError, match="pass log_softmax"):
        brier(torch.zeros(2, 2), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=r"labels in 0 \.\. 1; got 0 \.\. 2"):
        brier(torch.zeros(2, 2).log_softmax(-1), torch.tensor([0, 2]))


def test_scores_of_a_network_that_diverged_are_nan_and_no_error():
    found = scores(torch.full((3, 2), math.nan), torch.tensor([0, 1, 0]))
    assert math.isnan(found["nll"])
