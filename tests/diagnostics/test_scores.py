"""Scores against hand computation and torchmetrics."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_calibration_error

from bayesbin.diagnostics import (
    TemperatureScaling,
    brier,
    classification_scores,
    risk_coverage,
    scores,
    sharpness,
    top_label,
    uncertainty,
)


def test_by_hand():
    probs = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.45, 0.55], [0.3, 0.7]])
    y = torch.tensor([0, 1, 1, 0])
    found = scores(probs.log(), y)
    assert found["accuracy"] == 0.5
    expected = -(math.log(0.9) + math.log(0.2) + math.log(0.55) + math.log(0.3)) / 4
    torch.testing.assert_close(found["nll"], expected)
    # Four confidences in four of the fifteen bins: the gaps average.
    gaps = [1 - 0.9, 0.8, 1 - 0.55, 0.7]
    torch.testing.assert_close(found["ece"], sum(gaps) / 4, rtol=1e-6, atol=1e-6)


def test_confidences_of_one_bin_are_compared_with_their_common_accuracy():
    probs = torch.tensor([[0.61, 0.39], [0.65, 0.35], [0.62, 0.38]])
    y = torch.tensor([0, 1, 0])
    expected = abs(2 / 3 - (0.61 + 0.65 + 0.62) / 3)
    torch.testing.assert_close(scores(probs.log(), y)["ece"], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_against_torchmetrics(dtype):
    log_probs = torch.log_softmax(2.0 * torch.randn(300, 5, dtype=dtype), -1)
    y = torch.randint(5, (300,))
    found = scores(log_probs, y)
    accuracy = multiclass_accuracy(log_probs, y, num_classes=5, average="micro")
    torch.testing.assert_close(found["accuracy"], accuracy.item(), rtol=1e-6, atol=1e-6)
    probs = log_probs.double().exp()
    ece = multiclass_calibration_error(probs, y, num_classes=5, n_bins=15)
    torch.testing.assert_close(found["ece"], ece.item())
    nll = nn.functional.nll_loss(log_probs, y).item()
    torch.testing.assert_close(found["nll"], nll, rtol=1e-6, atol=1e-6)


def test_rounding_above_one_is_a_probability_not_a_logit():
    exact = torch.tensor([[0.0, -20.0], [-0.1, -2.3521685]], dtype=torch.float32)
    above = torch.tensor([[1e-7, -20.0], [-0.1, -2.3521685]], dtype=torch.float32)
    y = torch.tensor([0, 1])
    torch.testing.assert_close(scores(above, y)["ece"], scores(exact, y)["ece"])


def test_calibrated_predictions_and_an_overconfident_twin():
    generator = torch.Generator().manual_seed(1)
    n = 20_000
    logits = torch.randn(n, 4, generator=generator)
    probs = torch.softmax(logits, -1)
    y = torch.multinomial(probs, 1, generator=generator)[:, 0]
    calibrated = scores(probs.log(), y)
    overconfident = scores(torch.log_softmax(3.0 * logits, -1), y)
    # Within 15 bins the accuracy of n_b data varies by less than sqrt(1/4 / n_b): the mean gap of
    # calibrated predictions is at most sqrt(15 / (4 n)).
    assert calibrated["ece"] < 2.0 * math.sqrt(15 / (4 * n))
    assert overconfident["ece"] > 0.1
    assert overconfident["accuracy"] == calibrated["accuracy"]
    assert overconfident["nll"] > calibrated["nll"]


def test_certain_and_wrong_is_infinite():
    assert scores(torch.tensor([[0.0, -math.inf]]), torch.tensor([1]))["nll"] == math.inf


@pytest.mark.parametrize(
    ("log_probs", "y", "message"),
    [
        (torch.zeros(3), torch.zeros(3).long(), r"log-probabilities \(N, C\) and labels"),
        (torch.zeros(3, 2), torch.zeros(2).long(), r"got \(3, 2\) and \(2,\)"),
        (torch.zeros(0, 2), torch.zeros(0).long(), "N at least 1"),
        (torch.zeros(2, 2), torch.tensor([0, 2]), r"labels in 0 \.\. 1; got 0 \.\. 2"),
        (torch.zeros(2, 2), torch.tensor([-1, 1]), r"got -1 \.\. 1"),
    ],
)
def test_errors(log_probs, y, message):
    with pytest.raises(ValueError, match=message):
        scores(log_probs, y)


P = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4]])
ONES = torch.tensor([[1.0, 0.0, 0.0]] * 3)

TAKES_LOG_PROBS = {
    "scores": lambda x: scores(x, torch.zeros(len(x), dtype=torch.int64)),
    "classification_scores": lambda x: classification_scores(
        x, torch.zeros(len(x), dtype=torch.int64)
    ),
    "brier": lambda x: brier(x, torch.zeros(len(x), dtype=torch.int64)),
    "sharpness": sharpness,
    "top_label": lambda x: top_label(x, torch.zeros(len(x), dtype=torch.int64)),
    "risk_coverage": lambda x: risk_coverage(x, torch.zeros(len(x), dtype=torch.int64)),
    "uncertainty": lambda x: uncertainty(x[None]),
    "temperature": lambda x: TemperatureScaling(2.0).apply(x),
}
NOT_LOG_PROBS = {
    "probabilities": (P, "got probabilities .*probs.log"),
    "probabilities of 0 and 1": (ONES, "got probabilities .*probs.log"),
    "probabilities in float16": (P.half(), "got probabilities"),
    "percentages": (100.0 * P, "numbers above 0 .*log_softmax"),
    "their logarithms": ((100.0 * P).log(), "numbers above 0"),
    "logits": (torch.tensor([[2.0, -1.0, 0.5]] * 3), "numbers above 0"),
    "logits below 0": (torch.tensor([[-2.0, -7.0, -3.0]] * 3), "another total"),
    "another axis": (P.log().T.contiguous(), "add up to 1 over classes"),
    "whole numbers": (torch.tensor([[0, 0, 1]] * 3), "got probabilities"),
    "zeros": (torch.zeros(3, 3), "another total"),
    "one class, a probability": (torch.ones(3, 1), "got probabilities"),
    "nothing possible": (torch.full((3, 3), -torch.inf), "another total"),
    "infinity": (torch.full((3, 3), torch.inf), "numbers above 0"),
    "a little off": (P.log() + 0.05, "another total|numbers above 0"),
    "one row": (torch.cat([P.log()[:2], P[2:]]), "numbers above 0 in 1 of 3 rows"),
}


@pytest.mark.parametrize("kind", NOT_LOG_PROBS)
@pytest.mark.parametrize("function", TAKES_LOG_PROBS)
def test_what_is_no_log_probability_is_refused_by_every_function(function, kind):
    wrong, message = NOT_LOG_PROBS[kind]
    with pytest.raises(ValueError, match=message):
        TAKES_LOG_PROBS[function](wrong)


@pytest.mark.parametrize(
    "right",
    [
        P.log(), P.double().log(), P.half().log(), P.bfloat16().log(), ONES.log(), torch.zeros(3, 1),
        torch.randn(3, 1000, generator=torch.Generator().manual_seed(0)).log_softmax(-1),
        (P + torch.tensor([1e-7, 0.0, 0.0])).log(), 
    ],
)  # fmt: skip
@pytest.mark.parametrize("function", TAKES_LOG_PROBS)
def test_log_probabilities_are_accepted_with_their_rounding(function, right):
    TAKES_LOG_PROBS[function](torch.as_tensor(right))
