"""What is read off averaged log-probabilities, in numpy: one formula for every predictor, to the last bit.

torch and numpy round exponentials, roots and sums differently; predictors that are to agree bit for
bit, one of them without torch, share these.
"""

from __future__ import annotations

import numpy as np


def probs_of(log_probs: np.ndarray) -> np.ndarray:
    """The averaged probabilities, (B, C)."""
    return np.exp(log_probs)


def entropy_of(log_probs: np.ndarray) -> np.ndarray:
    """Their entropy in nats, (B,); a probability of 0 adds nothing.

    >>> entropy_of(np.log([[0.5, 0.5]])).round(6).tolist()
    [0.693147]
    """
    probs = np.exp(log_probs)
    with np.errstate(invalid="ignore"):
        return -np.where(probs > 0.0, probs * log_probs, 0.0).sum(-1)


def mutual_information_of(log_probs: np.ndarray, expected_entropy: np.ndarray) -> np.ndarray:
    """entropy - expected_entropy in nats, (B,), at least 0."""
    return np.maximum(entropy_of(log_probs) - expected_entropy, 0.0)


def probs_std_of(log_probs: np.ndarray, mean_squares: np.ndarray) -> np.ndarray:
    """Standard deviation of the probabilities over draws, (B, C), from the mean of their squares."""
    return np.sqrt(np.maximum(mean_squares - np.square(probs_of(log_probs)), 0.0))
