"""Monte Carlo comparisons, with standard errors that come from the same draws."""

from __future__ import annotations

import torch
from torch import Tensor

FAILURE_RATE = 1e-6  # of a goodness-of-fit test, per test


def z_scores(draws: Tensor, expected: Tensor | float) -> Tensor:
    """(mean - expected) / standard error of the mean, over dimension 0, in float64.

    The standard error never counts as less than the rounding of a sum of a few hundred terms, to
    which draws that are all equal are then compared.
    """
    draws = draws.double()
    expected = torch.as_tensor(expected, dtype=torch.float64)
    n = len(draws)
    assert n > 1, "one draw has no standard error"
    error = draws.std(0) / n**0.5
    size = torch.maximum(draws.abs().amax(0), expected.abs())
    rounding = 1e-12 * size + torch.finfo(torch.float64).tiny
    return (draws.mean(0) - expected) / torch.maximum(error, rounding)


def assert_within_standard_errors(draws: Tensor, expected: Tensor | float, k: float = 5) -> None:
    """The mean of the draws (dimension 0) is within k standard errors of what is expected."""
    scores = z_scores(draws, expected)
    assert bool((scores.abs() <= k).all()), (
        f"off by {scores.abs().max().item():.2f} standard errors (allowed: {k}) over {len(draws)} "
        f"draws:\nmean {draws.double().mean(0)}\nexpected {expected}"
    )


def exceeds_standard_errors(draws: Tensor, expected: Tensor | float, k: float = 5) -> bool:
    """Whether the mean of the draws is further off than that, in at least one entry."""
    return bool((z_scores(draws, expected).abs() > k).any())
