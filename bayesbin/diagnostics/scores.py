"""Scores of probabilistic classifiers, and a posterior's scores at its mode, its mean and its draws."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics.functional.classification import multiclass_calibration_error

from bayesbin.nn.state_norm import Statistics
from bayesbin.posterior import BinaryPosterior
from bayesbin.predict import draw_log_probs

NUM_BINS = 15


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
    if log_probs.dim() != 2 or y.shape != log_probs.shape[:1] or len(y) == 0:
        raise ValueError(
            f"Expected log-probabilities (N, C) and labels (N,), N at least 1; got "
            f"{tuple(log_probs.shape)} and {tuple(y.shape)}."
        )
    if int(y.min()) < 0 or int(y.max()) >= log_probs.shape[1]:
        raise ValueError(
            f"Expected labels in 0 .. {log_probs.shape[1] - 1}; got {int(y.min())} .. {int(y.max())}."
        )
    probs = log_probs.exp()
    calibration_error = multiclass_calibration_error(
        # Rounding may leave a probability just above 1, which torchmetrics would take for a logit.
        probs.float().clamp(max=1.0),
        y,
        num_classes=log_probs.shape[1],
        n_bins=NUM_BINS,
        norm="l1",
    )
    return {
        "accuracy": (log_probs.argmax(-1) == y).double().mean().item(),
        "nll": -log_probs.gather(1, y[:, None]).double().mean().item(),
        "ece": calibration_error.item(),
    }


def evaluate(
    net: nn.Module,
    posterior: BinaryPosterior,
    x: Tensor,
    y: Tensor,
    num_samples: int = 32,
    seed: int = 0,
    statistics: Statistics | None = None,
) -> dict[str, Any]:
    """Scores of the mode, of the mean of draws, and mean and spread over the single draws.

    :returns: ``{"mode": scores, "mean": scores, "draws": {"mean": scores, "std": scores, "low": scores,
        "high": scores}}`` with ``num_samples``; the spread is the standard deviation over draws (0 for
        one draw), and 95 % of the draws lie between low and high, of each score by itself.
    """
    (mode,) = draw_log_probs(net, posterior, x, 0, seed, statistics)
    total: Tensor | None = None
    single: list[dict[str, float]] = []
    for log_probs in draw_log_probs(net, posterior, x, num_samples, seed, statistics):
        total = log_probs if total is None else torch.logaddexp(total, log_probs)
        single.append(scores(log_probs, y))
    if total is None or num_samples < 1:
        raise ValueError(f"num_samples is at least 1; got {num_samples}.")
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
