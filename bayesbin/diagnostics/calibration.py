"""Whether confidences are frequencies: the expected calibration error, in two ways to bin."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bayesbin.core.checks import whole_number
from bayesbin.diagnostics._accepted import hits_of, labelled

NUM_BINS = 15
_BELOW_ONE = math.nextafter(1.0, 0.0)


def top_label(log_probs: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The largest probability of each prediction, and whether its label is right: (N,) float64, (N,) bool.

    Of several classes with the same probability the first is predicted.

    :param log_probs: (N, C), normalised. :param y: labels (N,).
    :raises ValueError: for shapes that do not fit, no data, or labels out of range.

    Example::

        >>> import torch
        >>> from bayesbin.diagnostics import top_label
        >>> top_label(torch.tensor([[0.0, -torch.inf]]), torch.tensor([1]))
        (tensor([1.], dtype=torch.float64), tensor([False]))
    """
    log_probs, y = labelled(log_probs, y)
    largest, label = log_probs.max(-1)
    # Rounding may leave a probability just above 1.
    return largest.exp().clamp(max=1.0), label == y


def ece(confidence: Tensor, correct: Tensor, num_bins: int = NUM_BINS) -> float:
    r"""Expected calibration error over bins of equal width of the confidence.

    .. math:: \mathrm{ECE} = \sum_b \frac{n_b}{n} |\mathrm{accuracy}_b - \mathrm{confidence}_b|

    A bin has its lower edge in it, and the last one both. Noise alone makes it positive: a calibrated
    predictor has an ECE of the order of sqrt(num_bins / n).

    :param confidence: in 0 .. 1, (N,). :param correct: whether each was right, (N,).
    :raises ValueError: for shapes that do not fit, no data, or numbers out of range.

    Example::

        >>> import torch
        >>> from bayesbin.diagnostics import ece
        >>> round(ece(torch.tensor([0.9, 0.9]), torch.tensor([True, False])), 6)
        0.4

    Source: Guo et al. 2017, arXiv 1706.04599.
    """
    num_bins = whole_number("num_bins", num_bins, at_least=1)
    return equal_width(*hits_of(confidence, correct, probabilities=True), num_bins)


def equal_width(confidence: Tensor, correct: Tensor, num_bins: int = NUM_BINS) -> float:
    """:func:`ece` of what was checked."""
    # Imported here: torchmetrics loads matplotlib, which prediction alone has no use for.
    from torchmetrics.functional.classification import binary_calibration_error

    # torchmetrics has a bin of its own for 1, and takes what is above it for a logit.
    below_one = confidence.clamp(max=_BELOW_ONE)
    return binary_calibration_error(below_one, correct.long(), n_bins=num_bins, norm="l1").item()


def ece_equal_mass(confidence: Tensor, correct: Tensor, num_bins: int = NUM_BINS) -> float:
    """Expected calibration error over bins with equally many data, as far as ties allow.

    The bins follow the data, which crowd near 1, where :func:`ece` has a single bin. Equal confidences
    are never in different bins, so that the order of the data does not matter.

    :param confidence: in 0 .. 1, (N,). :param correct: whether each was right, (N,).
    :raises ValueError: for shapes that do not fit, no data, or numbers out of range.

    Example::

        >>> import torch
        >>> from bayesbin.diagnostics import ece_equal_mass
        >>> confidence = torch.tensor([0.5, 0.5, 0.9, 1.0])
        >>> round(ece_equal_mass(confidence, torch.tensor([True, False, True, True]), num_bins=2), 6)
        0.025

    Source: Nguyen and O'Connor 2015, arXiv 1508.05154 (adaptive binning).
    """
    num_bins = whole_number("num_bins", num_bins, at_least=1)
    confidence, correct = hits_of(confidence, correct, probabilities=True)
    count = len(confidence)
    first = torch.arange(1, num_bins, device=confidence.device) * count // num_bins
    edges = confidence.sort().values[first]
    bins = torch.searchsorted(edges, confidence, right=True)
    gaps = torch.zeros(num_bins, dtype=torch.float64, device=confidence.device)
    return (gaps.index_add(0, bins, correct - confidence).abs().sum() / count).item()
