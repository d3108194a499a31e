"""Scores of probabilistic classifiers."""

from __future__ import annotations

from torch import Tensor

from bayesbin.diagnostics._accepted import labelled, log_probs_of
from bayesbin.diagnostics.calibration import ece_equal_mass, equal_width, top_label


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
