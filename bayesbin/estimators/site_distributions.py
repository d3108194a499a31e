"""What estimators do with a site, whether its weights are signs or have a few levels.

An entry of ``natural`` is the tensor of natural parameters of a site of signs, or the
``LowBitCategorical`` itself, with live logits, of a site with a few levels.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from bayesbin.core import numerics
from bayesbin.distributions import LowBitCategorical, RelaxedLowBit
from bayesbin.estimators.surrogate import draw_signs, weighted_score

Entry = Tensor | LowBitCategorical


def parameters_of(natural: Mapping[str, Entry]) -> dict[str, Tensor]:
    """The tensor that each site's distribution is computed from: natural parameters or logits."""
    return {name: _parameter(entry) for name, entry in natural.items()}


def dims_of(entry: Entry) -> int:
    """The number of dimensions of a site's values."""
    return entry.dim() if isinstance(entry, Tensor) else len(entry.batch_shape)


def _parameter(entry: Entry) -> Tensor:
    return entry.logits if isinstance(entry, LowBitCategorical) else entry


def draw_weights(natural: Mapping[str, Entry], num_samples: int) -> dict[str, list[Tensor]]:
    """Independent joint draws of all sites; no graph."""
    signs = {name: lam for name, lam in natural.items() if isinstance(lam, Tensor)}
    drawn = draw_signs(signs, num_samples)
    return {
        name: list(distribution.sample(torch.Size([num_samples])))
        if name not in signs
        else drawn[name]
        for name, distribution in (
            (n, e) for n, e in natural.items() if isinstance(e, LowBitCategorical)
        )
    } | drawn


def score_gradient(
    weights: Tensor, draws: Sequence[Tensor], entry: Entry, *, centred: bool
) -> Tensor:
    """sum_s a_s d log q(w_s), in natural parameters or logits; a as in ``weighted_score``."""
    if isinstance(entry, Tensor):
        return weighted_score(weights, draws, entry, centred=centred)
    each = weights[..., None] if weights.dim() > 1 else weights.tolist()
    return torch.stack([a * entry.score(draw) for a, draw in zip(each, draws, strict=True)]).sum(0)


def relaxed_weights(distribution: LowBitCategorical, temperature: float) -> Tensor:
    """A relaxed draw, with its gradient."""
    return RelaxedLowBit(
        temperature, distribution.levels, distribution.logits, validate_args=False
    ).rsample()


def sharpened_mean(entry: Entry, sharpness: float) -> Tensor:
    """E[w] under q^T, normalised."""
    if isinstance(entry, Tensor):
        return numerics.mean(entry * sharpness)
    return LowBitCategorical(entry.levels, sharpness * entry.logits, validate_args=False).mean


def all_states(natural: Mapping[str, Entry]) -> tuple[dict[str, list[Tensor]], Tensor]:
    """Every joint state of all sites, by site, and log q of each, with a live graph."""
    supports = {name: _log_probs(entry) for name, entry in natural.items()}
    sizes = [
        range(len(values))
        for values, log_probs in supports.values()
        for _ in range(log_probs.shape[:-1].numel())
    ]
    codes = torch.tensor(list(itertools.product(*sizes)))
    states, log_q, start = {}, torch.zeros(()), 0
    for name, (values, log_probs) in supports.items():
        shape = log_probs.shape[:-1]
        index = codes[:, start : start + shape.numel()].to(log_probs.device)
        start += shape.numel()
        flat = log_probs.reshape(1, shape.numel(), -1).expand(len(codes), -1, -1)
        log_q = log_q.to(log_probs) + flat.gather(-1, index[..., None]).sum((1, 2))
        states[name] = list(values[index].reshape(-1, *shape))
    return states, log_q


def count_states(natural: Mapping[str, Entry]) -> float:
    """The base-2 logarithm of the number of joint states."""
    total = 0.0
    for entry in natural.values():
        levels = len(entry.levels) if isinstance(entry, LowBitCategorical) else 2
        weights = _parameter(entry).numel() / (levels if not isinstance(entry, Tensor) else 1)
        total += weights * torch.tensor(float(levels), dtype=torch.float64).log2().item()
    return total


def _log_probs(entry: Entry) -> tuple[Tensor, Tensor]:
    """The values of one weight, and log q of each, along the last dimension."""
    if isinstance(entry, LowBitCategorical):
        return entry.level_values, entry.log_probs
    values = torch.tensor([-1.0, 1.0], dtype=entry.dtype, device=entry.device)
    stacked = torch.stack([numerics.log_prob(entry, v.expand_as(entry)) for v in values], -1)
    return values, stacked
