"""Exact answers for up to 16 binary weights, by naive float64 sums over all 2^d states.

Nothing here uses the package: what the package computes by other means has to meet these numbers.
A target ``f`` maps one state, a vector of d signs, to a scalar; it is evaluated once per state.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import torch
from torch import Tensor

Target = Callable[[Tensor], Tensor]
LARGEST = 16


def all_states(d: int) -> Tensor:
    """The 2^d states, shape (2^d, d)."""
    assert d <= LARGEST, f"{d} weights have too many states to sum over"
    return torch.tensor(list(itertools.product((-1.0, 1.0), repeat=d)), dtype=torch.float64)


def table(f: Target, d: int) -> Tensor:
    """f at every state, shape (2^d,), without a graph."""
    with torch.no_grad():
        return torch.stack([torch.as_tensor(f(w), dtype=torch.float64) for w in all_states(d)])


def state_probabilities(natural: Tensor) -> Tensor:
    """q(w) of every state: the product of 1 / (1 + exp(-2 lambda w)), shape (2^d,)."""
    states = all_states(natural.numel())
    return (1.0 / (1.0 + torch.exp(-2.0 * natural.double().flatten() * states))).prod(1)


def expectation(f: Target, natural: Tensor) -> float:
    """E_q[f(w)]."""
    return (state_probabilities(natural) * table(f, natural.numel())).sum().item()


def gradient_in_mean(values: Tensor, natural: Tensor) -> Tensor:
    """The gradient of E_q[f] in mu, from the table of f.

    E_q[f] is linear in each mu_j, so its slope is half the difference of the conditional
    expectations given w_j = +1 and w_j = -1; no term is divided by a probability, however small.
    """
    natural = natural.double().flatten()
    states = all_states(natural.numel())
    factors = 1.0 / (1.0 + torch.exp(-2.0 * natural * states))
    slopes = []
    for j in range(natural.numel()):
        others = torch.cat([factors[:, :j], factors[:, j + 1 :]], 1).prod(1)
        slopes.append(0.5 * (others * states[:, j] * values).sum())
    return torch.stack(slopes)


def gradient(f: Target, natural: Tensor) -> Tensor:
    """The gradient of E_q[f] in lambda: the one in mu divided by cosh^2(lambda)."""
    slopes = gradient_in_mean(table(f, natural.numel()), natural)
    return slopes / torch.cosh(natural.double().flatten()) ** 2


def log_joint(log_likelihood: Target, prior: Tensor) -> Tensor:
    """log p(y, w) of every state."""
    return table(log_likelihood, prior.numel()) + state_probabilities(prior).log()


def log_evidence(log_likelihood: Target, prior: Tensor) -> float:
    """log p(y) = log of the sum of p(y, w) over w."""
    joint = log_joint(log_likelihood, prior)
    top = joint.max()
    return top.item() + math.log((joint - top).exp().sum().item())


def posterior_marginals(log_likelihood: Target, prior: Tensor) -> Tensor:
    """P(w_j = +1 | y)."""
    joint = log_joint(log_likelihood, prior)
    weights = (joint - joint.max()).exp()
    plus = (all_states(prior.numel()) > 0).double()
    return (weights[:, None] * plus).sum(0) / weights.sum()


def kl(natural: Tensor, prior: Tensor) -> float:
    """KL(q||p) of two products of sign distributions."""
    q, p = state_probabilities(natural), state_probabilities(prior)
    return (q * (q.log() - p.log())).sum().item()


def mean_field_optimum(
    log_likelihood: Target, prior: Tensor, *, start: Tensor, damping: float = 0.5
) -> Tensor:
    """The fixed point lambda = lambda_p + grad_mu E_q[log p(y|w)], by damped iteration."""
    values = table(log_likelihood, prior.numel())
    prior, natural = prior.double().flatten(), start.double().flatten()
    for _ in range(10_000):
        target = prior + gradient_in_mean(values, natural)
        if (target - natural).abs().max() < 1e-13:
            return natural
        natural = natural + damping * (target - natural)
    raise AssertionError("the damped iteration did not settle; lower the damping")
