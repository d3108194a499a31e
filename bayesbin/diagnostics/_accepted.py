"""What scores and curves accept: log-probabilities with labels, and confidences with hits."""

from __future__ import annotations

import torch
from torch import Tensor

_ROUNDING = 1e-3  # by which log-probabilities may miss a total of 1: that of float16 softmaxes


def log_probs_of(log_probs: Tensor, shape: str) -> Tensor:
    """Them in float64, checked.

    :param shape: what is expected, letter by letter: "SBC" or "NC".
    :raises ValueError: for another number of dimensions, nothing in one of them, NaN, or
        probabilities that do not add up to 1.
    """
    if log_probs.dim() != len(shape) or 0 in log_probs.shape:
        raise ValueError(
            f"expected log-probabilities ({', '.join(shape)}), at least 1 of each, got "
            f"{tuple(log_probs.shape)}; stack or reshape them."
        )
    log_probs = log_probs.detach().double()
    off = (log_probs.logsumexp(-1).abs() > _ROUNDING) | log_probs.isnan().any(-1)
    if bool(off.any()):  # a NaN in a sum compares as false: hence the second
        raise ValueError(
            f"expected log-probabilities that add up to 1 over classes, got {int(off.sum())} of "
            f"{off.numel()} rows that do not; apply log_softmax to logits, and look for NaN."
        )
    return log_probs


def check_labels(log_probs: Tensor, y: Tensor) -> None:
    """Refuse labels that do not fit log-probabilities (N, C)."""
    if log_probs.dim() != 2 or y.shape != log_probs.shape[:1] or len(y) == 0:
        raise ValueError(
            f"Expected log-probabilities (N, C) and labels (N,), N at least 1; got "
            f"{tuple(log_probs.shape)} and {tuple(y.shape)}."
        )
    if int(y.min()) < 0 or int(y.max()) >= log_probs.shape[1]:
        raise ValueError(
            f"Expected labels in 0 .. {log_probs.shape[1] - 1}; got {int(y.min())} .. {int(y.max())}."
        )


def hits_of(confidence: Tensor, correct: Tensor, *, probabilities: bool) -> tuple[Tensor, Tensor]:
    """Both in float64, (N,), checked.

    :param probabilities: whether a confidence has to be one.
    :raises ValueError: for other shapes, no data, NaN, or numbers out of range.
    """
    if confidence.dim() != 1 or correct.shape != confidence.shape or len(correct) == 0:
        raise ValueError(
            f"expected confidences (N,) and hits (N,), N at least 1, got {tuple(confidence.shape)} "
            f"and {tuple(correct.shape)}; top_label gives both."
        )
    confidence, correct = confidence.detach().double(), correct.detach().double()
    if not bool(((correct == 0.0) | (correct == 1.0)).all()):
        raise ValueError(
            "expected hits that are true or false (1 or 0), got other numbers; compare predicted "
            "labels with the true ones first."
        )
    if probabilities and not bool(((confidence >= 0.0) & (confidence <= 1.0)).all()):
        raise ValueError(
            "expected confidences that are probabilities, in 0 .. 1, got others; top_label makes "
            "them from log-probabilities."
        )
    if bool(confidence.isnan().any()):
        raise ValueError("expected confidences that can be ordered, got NaN; look for its origin.")
    return confidence, correct


def check_share(name: str, value: float) -> None:
    """Refuse what is not strictly between 0 and 1."""
    if not 0.0 < value < 1.0:
        raise ValueError(f"expected {name} between 0 and 1, got {value}; 0.95 is usual.")


def check_count(name: str, value: int) -> None:
    """Refuse fewer than 1."""
    if value < 1:
        raise ValueError(f"expected {name} of at least 1, got {value}; raise it.")


def equal_to(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The different values in ascending order (K,), which of them each one is (N,), how often (K,)."""
    found = torch.unique(values, sorted=True, return_inverse=True, return_counts=True)
    return found[0], found[1], found[2]
