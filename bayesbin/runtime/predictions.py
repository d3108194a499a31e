"""Predictions averaged over draws: of classes, labels, normal targets, counts, and outputs as they are.

All quantities are float64 arrays; the batch, of B inputs, is their first axis. ``quantities`` of a class are
those that are written to files.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np


class _Probabilities:
    """What follows from probabilities averaged over draws and the entropies of single draws."""

    log_probs: np.ndarray
    expected_entropy: np.ndarray
    probs_std: np.ndarray
    entropy: Any

    @cached_property
    def probs(self) -> np.ndarray:
        """The averaged probabilities: (B, ..., C) of classes; of labels, that each is present."""
        return np.exp(self.log_probs)

    @cached_property
    def mutual_information(self) -> np.ndarray:
        """entropy - expected_entropy, in nats, at least 0: what the draws disagree about."""
        return np.maximum(self.entropy - self.expected_entropy, 0.0)

    @cached_property
    def std(self) -> np.ndarray:
        """The same as ``probs_std``."""
        return self.probs_std


@dataclass(frozen=True, eq=False)
class ClassPrediction(_Probabilities):
    """A classifier's prediction: probabilities averaged over draws, and how much the draws disagree.

    :param log_probs: log of the averaged probabilities, (B, ..., C).
    :param expected_entropy: mean entropy of the single draws' predictions, in nats, (B, ...).
    :param probs_std: standard deviation of the probabilities over draws, (B, ..., C).
    :param num_samples: how many draws were averaged.
    """

    log_probs: np.ndarray
    expected_entropy: np.ndarray
    probs_std: np.ndarray
    num_samples: int
    quantities = ("probs", "entropy", "expected_entropy", "mutual_information")

    @cached_property
    def entropy(self) -> np.ndarray:
        """Entropy of the averaged probabilities, in nats, (B, ...): the total uncertainty."""
        return entropy_of(self.log_probs)


@dataclass(frozen=True, eq=False)
class LabelsPrediction(_Probabilities):
    """A prediction of labels that are independent of one another given a draw, each present or absent.

    :param log_probs: log of the averaged probability that a label is present, (B, L) or (B, L, ...).
    :param log_probs_absent: log of the averaged probability that it is absent, of the same shape.
    :param expected_entropy: mean entropy of the single draws' predictions, in nats, of each label.
    :param probs_std: standard deviation of the probability over draws, of each label.
    :param num_samples: how many draws were averaged.
    """

    log_probs: np.ndarray
    log_probs_absent: np.ndarray
    expected_entropy: np.ndarray
    probs_std: np.ndarray
    num_samples: int
    quantities = ("probs", "entropy", "expected_entropy", "mutual_information")

    @cached_property
    def entropy(self) -> np.ndarray:
        """Entropy of the averaged probability of each label, in nats: the total uncertainty."""
        return entropy_of(np.stack([self.log_probs, self.log_probs_absent], axis=-1))


@dataclass(frozen=True, eq=False)
class MomentsPrediction:
    """Mean and variance of a mixture of distributions of the targets, one for each draw.

    :param mean: mean over draws of the distributions' means, (B, ...).
    :param aleatoric_variance: mean over draws of their variances, of the same shape.
    :param epistemic_variance: variance over draws of their means, of the same shape.
    :param num_samples: how many draws were averaged.
    """

    mean: np.ndarray
    aleatoric_variance: np.ndarray
    epistemic_variance: np.ndarray
    num_samples: int
    quantities = ("mean", "aleatoric_variance", "epistemic_variance")

    @cached_property
    def variance(self) -> np.ndarray:
        """The predictive variance, aleatoric_variance + epistemic_variance."""
        return self.aleatoric_variance + self.epistemic_variance

    @cached_property
    def std(self) -> np.ndarray:
        """The predictive standard deviation."""
        return np.sqrt(self.variance)


class NormalPrediction(MomentsPrediction):
    """A regressor's prediction: a mixture of normal distributions; quantities are (B,) or (B, T)."""


class CountPrediction(MomentsPrediction):
    """A prediction of counts: a mixture of Poisson or negative binomial distributions."""


@dataclass(frozen=True, eq=False)
class OutputsPrediction:
    """Mean and variance over draws of what a network returns.

    :param mean: (B, ...), or a tuple of arrays for a network with several outputs.
    :param variance: over draws, as ``mean``. :param num_samples: how many draws were averaged.
    """

    mean: Any
    variance: Any
    num_samples: int
    quantities = ("mean", "variance")

    @cached_property
    def std(self) -> Any:
        """The standard deviation over draws, as ``mean``."""
        if isinstance(self.variance, tuple):
            return tuple(np.sqrt(each) for each in self.variance)
        return np.sqrt(self.variance)


def entropy_of(log_probs: np.ndarray) -> np.ndarray:
    """Entropy along the last axis, in nats; a probability of 0 adds nothing.

    >>> entropy_of(np.log([[0.5, 0.5]])).round(6).tolist()
    [0.693147]
    """
    probs = np.exp(log_probs)
    with np.errstate(invalid="ignore"):
        terms = np.where(probs == 0.0, 0.0, probs * log_probs)
    return 0.0 - sum_last(terms)


def sum_last(values: np.ndarray) -> np.ndarray:
    """Sums along the last axis, in an order that depends on the size of that axis alone."""
    return np.add.reduce(np.ascontiguousarray(values), axis=-1)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Log-probabilities along the last axis, in float64; NaN where a row of logits has no softmax.

    >>> np.exp(log_softmax(np.zeros((1, 4), dtype=np.float32))).tolist()
    [[0.25, 0.25, 0.25, 0.25]]
    """
    shifted = logits.astype(np.float64, order="C")
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        shifted -= shifted.max(axis=-1, keepdims=True)
        shifted -= np.log(sum_last(np.exp(shifted)))[..., None]
    return shifted


def log_sigmoid(logits: np.ndarray) -> np.ndarray:
    """log(1 / (1 + exp(-logits))), without loss where it is near 0 or far below.

    >>> log_sigmoid(np.array([0.0, -800.0])).round(6).tolist()
    [-0.693147, -800.0]
    """
    return -np.logaddexp(0.0, -logits)
