"""Scores of probabilistic classifiers, and a posterior's scores at its mode, its mean and its draws."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from bayesbin.core.arrays import class_labels
from bayesbin.core.checks import whole_number
from bayesbin.diagnostics._accepted import labelled, log_probs_of
from bayesbin.diagnostics.calibration import ece_equal_mass, equal_width, top_label
from bayesbin.nn.state_norm import Statistics
from bayesbin.posterior import Posterior
from bayesbin.predict import draw_log_probs


def scores(log_probs: Tensor, y: Tensor) -> dict[str, float]:
    """Accuracy, negative log-likelihood per datum in nats, and expected calibration error.

    .. math:: \\mathrm{ECE} = \\sum_b \\frac{n_b}{n} |\\mathrm{accuracy}_b - \\mathrm{confidence}_b|

    over 15 bins of equal width of the largest probability.

    :param log_probs: (N, C), normalised. :param y: labels (N,).
    :raises ValueError: for shapes that do not fit, no data, or labels out of range.

    Example::

        >>> import torch
        >>> from bayesbin.diagnostics import scores
        >>> scores(torch.tensor([[0.0, -torch.inf]]), torch.tensor([0]))["accuracy"]
        1.0

    Source: Guo et al. 2017, arXiv 1706.04599.
    """
    log_probs, y = labelled(log_probs, y)
    confidence, correct = top_label(log_probs, y)
    return {
        "accuracy": correct.double().mean().item(),
        "nll": -log_probs.gather(1, y[:, None]).mean().item(),
        "ece": equal_width(confidence, correct),
    }


def brier(log_probs: Tensor, y: Tensor) -> float:
    r"""Brier score: mean squared distance of the probabilities from the true label's, in 0 .. 2.

    .. math:: \frac1N \sum_n \sum_c (p_{nc} - [y_n = c])^2

    :param log_probs: (N, C), normalised. :param y: labels (N,).
    :raises ValueError: for shapes that do not fit, no data, NaN, or labels out of range.

    Example::

        >>> import torch
        >>> from bayesbin.diagnostics import brier
        >>> brier(torch.tensor([[0.0, -torch.inf]]), torch.tensor([1]))
        2.0

    Source: Brier 1950, Monthly Weather Review 78.
    """
    log_probs, y = labelled(log_probs, y)
    true = log_probs.gather(1, y[:, None]).exp().mean().item()
    return max(sharpness(log_probs) + 1.0 - 2.0 * true, 0.0)  # the square, multiplied out


def sharpness(log_probs: Tensor) -> float:
    r"""How concentrated predictions are, right or wrong: 1 / C for uniform ones, 1 for certain ones.

    .. math:: \frac1N \sum_n \sum_c p_{nc}^2

    A calibrated predictor has a Brier score of 1 - sharpness: one far above it is not calibrated.

    :param log_probs: (N, C), normalised.
    :raises ValueError: for another shape, no data, or NaN.

    Example::

        >>> import torch
        >>> from bayesbin.diagnostics import sharpness
        >>> round(sharpness(torch.zeros(3, 4).log_softmax(-1)), 6)
        0.25

    Source: Gneiting, Balabdaoui and Raftery 2007, JRSS B 69 (sharpness subject to calibration).
    """
    return log_probs_of(log_probs, "NC").exp().square().sum(-1).mean().item()


def classification_scores(log_probs: Tensor, y: Tensor) -> dict[str, float]:
    """What :func:`scores` gives, and "brier", "ece_equal_mass" and "sharpness": six numbers.

    With intervals: ``bootstrap(classification_scores, (log_probs, y))``.

    :param log_probs: (N, C), normalised. :param y: labels (N,).
    :raises ValueError: for shapes that do not fit, no data, NaN, or labels out of range.

    Example::

        >>> import torch
        >>> from bayesbin.diagnostics import classification_scores
        >>> list(classification_scores(torch.zeros(2, 2).log_softmax(-1), torch.tensor([0, 1])))
        ['accuracy', 'nll', 'brier', 'ece', 'ece_equal_mass', 'sharpness']
    """
    found = scores(log_probs, y)
    return {
        "accuracy": found["accuracy"],
        "nll": found["nll"],
        "brier": brier(log_probs, y),
        "ece": found["ece"],
        "ece_equal_mass": ece_equal_mass(*top_label(log_probs, y)),
        "sharpness": sharpness(log_probs),
    }


def evaluate(
    net: nn.Module,
    posterior: Posterior[Any],
    x: Any,
    y: Any,
    num_samples: int = 32,
    seed: int = 0,
    statistics: Statistics | None = None,
) -> dict[str, Any]:
    """Scores of the mode, of the mean of draws, and mean and spread over the single draws.

    :param x: inputs as for :func:`bayesbin.predict.predict`. :param y: labels (N,), whole numbers.
    :returns: ``{"mode": scores, "mean": scores, "draws": {"mean": scores, "std": scores, "low": scores,
        "high": scores}}`` with ``num_samples``; the spread is the standard deviation over draws (0 for
        one draw), and 95 % of the draws lie between low and high, of each score by itself.
    """
    num_samples = whole_number("num_samples", num_samples, at_least=1)
    y = class_labels("labels", y)
    (mode,) = draw_log_probs(net, posterior, x, 0, seed, statistics)
    total: Tensor | None = None
    single: list[dict[str, float]] = []
    for log_probs in draw_log_probs(net, posterior, x, num_samples, seed, statistics):
        total = log_probs if total is None else torch.logaddexp(total, log_probs)
        single.append(scores(log_probs, y))
    assert total is not None
    table = torch.tensor([list(row.values()) for row in single], dtype=torch.float64)
    names = list(single[0])
    low, high = torch.quantile(table, torch.tensor([0.025, 0.975], dtype=table.dtype), dim=0)
    return {
        "mode": scores(mode, y),
        "mean": scores(total - math.log(num_samples), y),
        "draws": {
            "mean": dict(zip(names, table.mean(0).tolist(), strict=True)),
            "std": dict(zip(names, table.std(0, correction=0).tolist(), strict=True)),
            "low": dict(zip(names, low.tolist(), strict=True)),
            "high": dict(zip(names, high.tolist(), strict=True)),
        },
        "num_samples": num_samples,
    }
