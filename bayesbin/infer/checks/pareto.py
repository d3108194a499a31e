"""Importance weights with their tail smoothed by a generalized Pareto distribution, and its shape k-hat.

The versions of ArviZ differ here where weights are equal, as those of binary draws often are: 0.23
fits the weights above the cutoff, and from 1.0 on the cutoff's equals are in the tail, which gives NaN
or an error. The fit is therefore computed here, as 0.23 does.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

_LEAST_DRAWS = 25  # whose largest fifth has the five draws that a tail is fitted to
_LEAST_TAIL = 5


def pareto_smoothed(log_weights: Tensor) -> tuple[Tensor, Tensor]:
    r"""Normalise log weights with a smoothed tail, and give k-hat, along the last dimension.

    The tail is the weights above the largest of the others, at most min(S / 5, 3 sqrt(S)) of them. They
    are replaced by quantiles of the generalized Pareto distribution that fits them, not above the
    largest weight.

    :param log_weights: (..., S), S at least 25.
    :returns: log weights (..., S) and k-hat (...): -inf where the weights of the tail are equal, inf
        where fewer than five differ from the cutoff.
    :raises ValueError: for fewer draws, or values that are not finite.

    Source: Vehtari et al. 2024, "Pareto smoothed importance sampling", JMLR 25(72).
    """
    if log_weights.shape[-1] < _LEAST_DRAWS:
        raise ValueError(
            f"expected at least {_LEAST_DRAWS} draws to fit a tail to, got {log_weights.shape[-1]}; raise "
            "num_samples."
        )
    if not bool(torch.isfinite(log_weights).all()):
        raise ValueError(
            "expected finite log weights, got NaN or infinity; the guide draws what the model excludes, "
            "or the reverse."
        )
    shifted = log_weights.detach().double().cpu()
    shifted = shifted - shifted.amax(-1, keepdim=True)
    # Equal weights that differ by rounding would be fitted as if that were their tail.
    grain = 1e-10 * log_weights.abs().amax().clamp(min=1.0).item()
    shifted = (shifted / grain).round() * grain
    rows = [_smooth(row) for row in shifted.reshape(-1, shifted.shape[-1]).numpy()]
    smoothed = torch.from_numpy(np.stack([row for row, _ in rows])).reshape(shifted.shape)
    khat = torch.tensor([shape for _, shape in rows], dtype=torch.float64)
    return smoothed - smoothed.logsumexp(-1, keepdim=True), khat.reshape(shifted.shape[:-1])


def _smooth(log_weights: np.ndarray) -> tuple[np.ndarray, float]:
    """Smooth the tail of (S,) log weights whose largest is 0; not normalised. Also give k-hat."""
    count = math.ceil(min(len(log_weights) / 5.0, 3.0 * len(log_weights) ** 0.5))
    order = np.argsort(log_weights, kind="stable")
    cutoff = max(log_weights[order[-count - 1]], math.log(np.finfo(float).tiny))
    tail = order[-count:][log_weights[order[-count:]] > cutoff]  # in ascending order
    if len(tail) < _LEAST_TAIL:
        return log_weights, -math.inf if cutoff == 0.0 else math.inf
    shape, scale = _fit(np.exp(log_weights[tail]) - math.exp(cutoff))
    log_weights = log_weights.copy()
    if math.isfinite(shape):
        survival = np.log1p(-(np.arange(len(tail)) + 0.5) / len(tail))
        quantiles = -survival if shape == 0.0 else np.expm1(-shape * survival) / shape
        smoothed = np.log(scale * quantiles + math.exp(cutoff))
        log_weights[tail] = np.minimum(smoothed, 0.0)
    return log_weights, shape


def _fit(excess: np.ndarray) -> tuple[float, float]:
    """Shape and scale of a generalized Pareto distribution, of excesses over the cutoff, ascending.

    Source: Zhang and Stephens 2009, Technometrics 51(3), the shape drawn towards 0.5 by ten draws.
    """
    count = len(excess)
    points = 30 + int(count**0.5)
    b = (1.0 - np.sqrt(points / (np.arange(points) + 0.5))) / (
        3.0 * excess[int(count / 4 + 0.5) - 1]
    ) + 1.0 / excess[-1]
    shapes = np.log1p(-b[:, None] * excess).mean(1)
    likelihood = count * (np.log(-b / shapes) - shapes - 1.0)
    weights = np.exp(likelihood - likelihood.max())
    mean = (b * weights).sum() / weights.sum()
    shape = np.log1p(-mean * excess).mean()
    return float((count * shape + 5.0) / (count + 10.0)), float(-shape / mean)
