"""What scores and curves accept: log-probabilities with labels, and confidences with hits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bayesbin.core.arrays import as_tensor, class_labels
from bayesbin.core.checks import real_number

_ROUNDING = 1e-3  # by which the logarithm of a total may miss 0: that of float32 with many classes
_COARSE = 0.05  # that of float16 and bfloat16


def log_probs_of(log_probs: Any, shape: str) -> Tensor:
    """Return log-probabilities in float64, checked.

    :param shape: what is expected, letter by letter: "SBC" or "NC".
    :raises ValueError: for another number of dimensions, nothing in one of them, NaN, or
        probabilities that do not add up to 1.
    """
    log_probs = _in_float64(log_probs, shape)
    if bool(log_probs.isnan().any()):
        raise ValueError(
            "expected log-probabilities that add up to 1 over classes, got NaN; look for its origin."
        )
    return log_probs


def labelled(log_probs: Any, y: Any) -> tuple[Tensor, Tensor]:
    """Return log-probabilities (N, C) in float64 and labels (N,) in int64, checked.

    :raises ValueError: for shapes that do not fit, labels out of range, or probabilities that do not add
        up to 1. NaN is left to the score.
    """
    log_probs, y = as_tensor("log-probabilities", log_probs), class_labels("labels", y)
    if log_probs.dim() != 2 or y.shape != log_probs.shape[:1] or len(y) == 0:
        raise ValueError(
            f"Expected log-probabilities (N, C) and labels (N,), N at least 1; got "
            f"{tuple(log_probs.shape)} and {tuple(y.shape)}."
        )
    if int(y.min()) < 0 or int(y.max()) >= log_probs.shape[1]:
        raise ValueError(
            f"Expected labels in 0 .. {log_probs.shape[1] - 1}; got {int(y.min())} .. {int(y.max())}."
        )
    return _in_float64(log_probs, "NC"), y.to(log_probs.device)


def hits_of(confidence: Any, correct: Any, *, probabilities: bool) -> tuple[Tensor, Tensor]:
    """Return confidences and hits in float64, (N,), checked.

    :param probabilities: whether a confidence has to be one.
    :raises ValueError: for other shapes, no data, NaN, or numbers out of range.
    """
    confidence, correct = as_tensor("confidences", confidence), as_tensor("hits", correct)
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
    return confidence, correct.to(confidence.device)


def share(name: str, value: Any) -> float:
    """Return a number, after checking that it is strictly between 0 and 1."""
    return real_number(name, value, above=0.0, below=1.0)


def normalised(log_probs: Any) -> Tensor:
    """Return log-probabilities (..., C), after checking that they are such; those of 16 bits normalised.

    :raises ValueError: for numbers above 0, or probabilities that do not add up to 1. NaN is let through.
    """
    log_probs = as_tensor("log-probabilities", log_probs)
    found = log_probs.detach().double()
    total = found.logsumexp(-1)  # comparisons with NaN are false
    short = log_probs.is_floating_point() and log_probs.element_size() < 4
    off = total.abs() > (_COARSE if short else _ROUNDING)
    if bool(off.any()):
        raise ValueError(
            f"expected log-probabilities, at most 0, that add up to 1 over classes, got {_kind(found)} in "
            f"{int(off.sum())} of {off.numel()} rows; {_remedy(found)}."
        )
    return found - total[..., None] if short else log_probs


def _kind(found: Tensor) -> str:
    if _are_probabilities(found):
        return "probabilities"
    return "numbers above 0" if bool((found > _COARSE).any()) else "another total"


def _remedy(found: Tensor) -> str:
    if _are_probabilities(found):
        return "pass their logarithm, probs.log()"
    return "pass log_softmax(-1) of logits, classes along the last axis"


def _are_probabilities(found: Tensor) -> bool:
    inside = bool(((found >= 0.0) & (found <= 1.0)).all())
    return inside and bool(((found.sum(-1) - 1.0).abs() <= _COARSE).all())


def _in_float64(log_probs: Any, shape: str) -> Tensor:
    log_probs = as_tensor("log-probabilities", log_probs)
    if log_probs.dim() != len(shape) or 0 in log_probs.shape:
        raise ValueError(
            f"expected log-probabilities ({', '.join(shape)}), at least 1 of each, got "
            f"{tuple(log_probs.shape)}; stack or reshape them."
        )
    return normalised(log_probs).detach().double()


def equal_to(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The different values in ascending order (K,), which of them each one is (N,), how often (K,)."""
    found = torch.unique(values, sorted=True, return_inverse=True, return_counts=True)
    return found[0], found[1], found[2]
