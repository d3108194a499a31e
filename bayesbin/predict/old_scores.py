"""Scores of networks and posteriors apart: to be deleted with this room."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from bayesbin.core.arrays import class_labels
from bayesbin.core.checks import whole_number
from bayesbin.diagnostics.scores import scores
from bayesbin.nn.state_norm import Statistics
from bayesbin.posterior import BinaryPosterior, Posterior
from bayesbin.predict.predictive import checked_noise, draw_log_probs, draw_outputs


def evaluate(
    net: nn.Module,
    posterior: Posterior[Any],
    x: Any,
    y: Any,
    num_samples: int = 32,
    seed: int = 0,
    statistics: Statistics | None = None,
) -> dict[str, Any]:
    """Scores of the mode, of the mean of draws, and mean and spread over the single draws.

    :param x: inputs as for :func:`bayesbin.predict.predict`. :param y: labels (N,), whole numbers.
    :returns: ``{"mode": scores, "mean": scores, "draws": {"mean": scores, "std": scores, "low": scores,
        "high": scores}}`` with ``num_samples``; the spread is the standard deviation over draws (0 for
        one draw), and 95 % of the draws lie between low and high, of each score by itself.
    """
    num_samples = whole_number("num_samples", num_samples, at_least=1)
    y = class_labels("labels", y)
    (mode,) = draw_log_probs(net, posterior, x, 0, seed, statistics)
    total: Tensor | None = None
    single: list[dict[str, float]] = []
    for log_probs in draw_log_probs(net, posterior, x, num_samples, seed, statistics):
        total = log_probs if total is None else torch.logaddexp(total, log_probs)
        single.append(scores(log_probs, y))
    assert total is not None
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


def draw_gaussians(
    net: nn.Module,
    posterior: BinaryPosterior,
    x: Tensor,
    noise: float | str = "noise",
    num_samples: int = 32,
    seed: int = 0,
    statistics: Statistics | None = None,
) -> tuple[Tensor, Tensor]:
    """Means and noise variances of a regressor's draws, (S, B) each: for :func:`regression_uncertainty`.

    The draws are those of :func:`bayesbin.predict.predict_regression`, whose arguments these are.

    :raises ValueError: for no draws, a noise that the posterior does not have, or outputs that are not
        (B,) or (B, 1).
    """
    num_samples = whole_number("num_samples", num_samples, at_least=1)
    noise = checked_noise(posterior, noise)
    means, variances = [], []
    for index, output in enumerate(draw_outputs(net, posterior, x, num_samples, seed, statistics)):
        mean = output.double()
        mean = mean.squeeze(1) if mean.dim() == 2 and mean.shape[1] == 1 else mean
        if mean.dim() != 1:
            raise ValueError(
                f"expected one mean per input from the network, (B,) or (B, 1), got "
                f"{tuple(output.shape)}; give it one output."
            )
        std = posterior.sample_real(noise, index, seed=seed) if isinstance(noise, str) else noise
        means.append(mean)
        variances.append(torch.as_tensor(std, device=mean.device).double().square().expand_as(mean))
    return torch.stack(means), torch.stack(variances)
