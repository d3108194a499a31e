"""Intervals of any score, by the bootstrap."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bayesbin.core.arrays import as_tensor
from bayesbin.core.checks import whole_number
from bayesbin.diagnostics._accepted import share
from bayesbin.diagnostics.held_out import Estimate


def bootstrap(
    score: Callable[..., Mapping[str, float]],
    *samples: Any,
    num_bootstrap: int = 1000,
    interval: float = 0.95,
    seed: int = 0,
) -> dict[str, Estimate]:
    """Percentile intervals of scores over the data, which are drawn anew with replacement.

    The tensors of one tuple are drawn at the same positions, and all scores see the same draws: a score
    that takes two models' predictions of the same data gives a paired interval of their difference.
    Different samples, such as the inner and outer inputs of :func:`ood_scores`, are drawn apart.

    A calibration error is biased upwards by noise, and more so on data drawn twice: its interval
    tells how much it varies, and may lie above its value.

    :param score: takes all the tensors, in order; gives numbers by name.
    :param samples: tensors or arrays (N, ...), or tuples of them with the same N.
    :param num_bootstrap: how often data are drawn. :param interval: coverage, in (0, 1).
    :raises ValueError: for no sample, tensors of a tuple that differ in length, no data, or settings out
        of range. :raises TypeError: for a score that does not give numbers by name.

    Example::

        >>> import torch
        >>> from bayesbin.diagnostics import bootstrap, classification_scores
        >>> log_probs = torch.log_softmax(torch.arange(40.0).reshape(20, 2).sin(), -1)
        >>> found = bootstrap(classification_scores, (log_probs, torch.arange(20) % 2), num_bootstrap=50)
        >>> found["accuracy"].low <= found["accuracy"].value <= found["accuracy"].high
        True

    Source: Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 13.
    """
    interval = share("interval", interval)
    num_bootstrap = whole_number("num_bootstrap", num_bootstrap, at_least=1)
    groups = _groups(samples)
    generator = torch.Generator().manual_seed(whole_number("seed", seed))
    value = score(*(tensor for group in groups for tensor in group))
    if not isinstance(value, Mapping):
        raise TypeError(
            f"expected a score that gives numbers by name, got {type(value).__name__}; wrap it, as in "
            'lambda p, y: {"brier": brier(p, y)}.'
        )
    table = [score(*_redrawn(groups, generator)) for _ in range(num_bootstrap)]
    tails = [0.5 * (1.0 - interval), 0.5 * (1.0 + interval)]
    found = {}
    for name, whole in value.items():
        # Order statistics, as between infinite scores no number can be put.
        rows = np.array([row[name] for row in table], dtype=float)
        low, high = np.quantile(rows, tails, method="inverted_cdf").tolist()
        found[name] = Estimate(float(whole), low, high)
    return found


def _groups(samples: tuple[Any, ...]) -> list[tuple[Tensor, ...]]:
    """The samples as tuples of tensors of one length, each with data."""
    groups = [
        tuple(as_tensor("a sample", part) for part in sample)
        if isinstance(sample, tuple)
        else (as_tensor("a sample", sample),)
        for sample in samples
    ]
    if not groups or any(not group or not len(group[0]) for group in groups):
        raise ValueError("expected at least one sample, and data in each, got none; pass tensors.")
    for group in groups:
        if len({len(tensor) for tensor in group}) > 1:
            raise ValueError(
                f"expected tensors of one length in a tuple, got {[len(t) for t in group]}; samples that "
                "are not paired are arguments of their own."
            )
    return groups


def _redrawn(groups: list[tuple[Tensor, ...]], generator: torch.Generator) -> list[Tensor]:
    """All the tensors, each group drawn anew with replacement."""
    drawn = []
    for group in groups:
        size = len(group[0])
        positions = torch.randint(size, (size,), generator=generator)
        drawn += [tensor[positions.to(tensor.device)] for tensor in group]
    return drawn
