"""Scores of an ensemble: of the mean of its draws, of the mode, and of single draws with their spread."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from bayesbin.core.arrays import as_tensor, class_labels
from bayesbin.diagnostics import brier, regression_scores, scores

_TAILS = (0.025, 0.975)


def class_scores(draws: np.ndarray, mode: np.ndarray, y: Any) -> dict[str, Any]:
    """Accuracy, NLL in nats, ECE and Brier score; of several answers for each datum, over all of them.

    :param draws: log-probabilities (S, N, ..., C). :param mode: those of the mode, (N, ..., C).
    :param y: labels (N, ...).
    """
    given = as_tensor("labels", y)
    if tuple(given.shape) != mode.shape[:-1]:
        raise ValueError(f"expected labels of shape {mode.shape[:-1]}; got {tuple(given.shape)}.")
    labels = class_labels("labels", given.reshape(-1)).cpu()
    draws = draws.reshape(len(draws), -1, draws.shape[-1])
    mode = mode.reshape(-1, mode.shape[-1])

    def of(log_probs: np.ndarray) -> dict[str, float]:
        given = torch.from_numpy(log_probs)
        return scores(given, labels) | {"brier": brier(given, labels)}

    mean = np.logaddexp.reduce(draws, axis=0) - math.log(len(draws))
    return _summary(of(mode), of(mean), [of(each) for each in draws])


def normal_scores(
    draws: np.ndarray, noise: Any, mode: np.ndarray, mode_noise: Any, y: Any
) -> dict[str, Any]:
    """RMSE, NLL in nats, CRPS, and coverage and mean width (sharpness) of 95 % intervals.

    :param draws: means (S, N) or (S, N, T). :param noise: standard deviations of the draws, (S,) or (S, T).
    :param mode: of the mode, or the modes of M joined posteriors: (M, N) or (M, N, T), with their noise.
    :param y: targets (N,) or (N, T).
    """
    y = as_tensor("targets", y).cpu().double()
    if y.dim() == 2 and y.shape[1] == 1 and mode.ndim == 2:
        y = y[:, 0]
    if tuple(y.shape) != mode.shape[1:]:
        raise ValueError(f"expected targets of shape {mode.shape[1:]}; got {tuple(y.shape)}.")
    flat = y.reshape(-1)

    def of(means: np.ndarray, stds: Any) -> dict[str, float]:
        spread = np.square(np.asarray(stds, dtype=np.float64))
        spread = spread.reshape(len(means), *[1] * (means.ndim - spread.ndim), *spread.shape[1:])
        variances = np.broadcast_to(spread, means.shape).reshape(len(means), -1)
        given = torch.from_numpy(np.ascontiguousarray(means.reshape(len(means), -1), np.float64))
        return regression_scores(given, torch.from_numpy(variances.copy()), flat)

    single = [of(mean[None], [std]) for mean, std in zip(draws, noise, strict=True)]
    return _summary(of(mode, mode_noise), of(draws, noise), single)


def _summary(
    mode: Mapping[str, float], mean: Mapping[str, float], single: Sequence[Mapping[str, float]]
) -> dict[str, Any]:
    names = list(mode)
    table = np.array([[row[name] for name in names] for row in single])
    low, high = np.quantile(table, _TAILS, axis=0)

    def named(values: np.ndarray) -> dict[str, float]:
        return dict(zip(names, values.tolist(), strict=True))

    return {
        "mode": dict(mode),
        "mean": dict(mean),
        "draws": {
            "mean": named(table.mean(0)),
            "std": named(table.std(0)),
            "low": named(low),
            "high": named(high),
        },
        "num_samples": len(single),
    }
