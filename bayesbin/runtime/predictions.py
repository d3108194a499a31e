"""Predictions averaged over draws: of classes, of normal targets, and of outputs as they are.

All quantities are float64 arrays; the batch, of B inputs, is their first axis.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np


@dataclass(frozen=True, eq=False)
class ClassPrediction:
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

    @cached_property
    def probs(self) -> np.ndarray:
        """The averaged probabilities, (B, ..., C)."""
        return np.exp(self.log_probs)

    @cached_property
    def entropy(self) -> np.ndarray:
        """Entropy of the averaged probabilities, in nats, (B, ...): the total uncertainty."""
        return entropy_of(self.log_probs)

    @cached_property
    def mutual_information(self) -> np.ndarray:
        """entropy - expected_entropy, in nats, at least 0, (B, ...): what the draws disagree about."""
        return np.maximum(self.entropy - self.expected_entropy, 0.0)

    @cached_property
    def std(self) -> np.ndarray:
        """The same as ``probs_std``."""
        return self.probs_std


@dataclass(frozen=True, eq=False)
class NormalPrediction:
    """A regressor's prediction: a mixture of normal distributions, one for each draw.

    :param mean: mean of the draws' outputs, (B,) or (B, T) for T targets.
    :param aleatoric_variance: noise variance, averaged over draws, of the same shape.
    :param epistemic_variance: variance of the draws' outputs, of the same shape.
    :param num_samples: how many draws were averaged.
    """

    mean: np.ndarray
    aleatoric_variance: np.ndarray
    epistemic_variance: np.ndarray
    num_samples: int

    @cached_property
    def variance(self) -> np.ndarray:
        """The predictive variance, aleatoric_variance + epistemic_variance."""
        return self.aleatoric_variance + self.epistemic_variance

    @cached_property
    def std(self) -> np.ndarray:
        """The predictive standard deviation."""
        return np.sqrt(self.variance)


@dataclass(frozen=True, eq=False)
class OutputsPrediction:
    """Mean and variance over draws of what a network returns.

    :param mean: (B, ...), or a tuple of arrays for a network with several outputs.
    :param variance: over draws, as ``mean``. :param num_samples: how many draws were averaged.
    """

    mean: Any
    variance: Any
    num_samples: int

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
