"""Samplers of signs against exact sums: detailed balance, marginals, the distribution of states,
their wrong twins."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from oracles import all_states
from scipy.stats import chi2
from stats import FAILURE_RATE
from torch import Tensor

from bayesbin.infer import DiscreteLangevin, GibbsWithGradients
from bayesbin.infer.checks import convergence
from bayesbin.infer.mcmc import LogJoint, SignKernel

Make = Callable[..., SignKernel]


class Quadratic(LogJoint):
    """b w + w A w / 2 over D signs, in the place of a model: a step costs a fraction of a model's."""

    def __init__(self, size: int, coupling: float = 0.8) -> None:
        generator = torch.Generator().manual_seed(size)
        coupled = torch.randn(size, size, generator=generator) * coupling / size**0.5
        self.pairs = (coupled + coupled.T) * (1.0 - torch.eye(size))
        self.single = 0.4 * torch.randn(size, generator=generator)
        # Not linear in each weight, so that the gradient only approximates what a flip gains.
        self.third = 0.3
        self.shapes, self.real = {"w": torch.Size([size])}, ()

    def value_and_gradient(self, signs, real=None):
        field = self.pairs @ signs
        total = signs.sum()
        value = signs @ (self.single + 0.5 * field) + self.third * torch.sin(total)
        return value, self.single + field + self.third * torch.cos(total)

    def probabilities(self) -> Tensor:
        log_joint = torch.stack([self.value_and_gradient(w)[0] for w in all_states(self.size)])
        return log_joint.softmax(0)


class Inverted:
    """Accepts with the ratio turned over."""

    def log_acceptance(self, log_joint, new_log_joint, forward, backward):
        return log_joint - new_log_joint + forward - backward


class ForgetsReverse:
    """Accepts as if the proposal were as likely back as forth."""

    def log_acceptance(self, log_joint, new_log_joint, forward, backward):
        return new_log_joint - log_joint


def twin_of(mistake: type, kind: type[SignKernel]) -> type[SignKernel]:
    return type(f"{mistake.__name__}{kind.__name__}", (mistake, kind), {})


def model() -> None:
    """Takes the place of a model that is never run."""


def Langevin(kind: type = DiscreteLangevin, **options) -> SignKernel:
    return kind(model, step=0.7, **options)


def Gibbs(num_flips: int, kind: type = GibbsWithGradients) -> SignKernel:
    return kind(model, num_flips)


KERNELS = {
    "langevin": (Langevin, DiscreteLangevin),
    "gibbs": (functools.partial(Gibbs, 1), GibbsWithGradients),
    "two flips": (functools.partial(Gibbs, 2), GibbsWithGradients),
}
every_kernel = pytest.mark.parametrize("name", KERNELS)


# Detailed balance, from all moves between all states


def all_moves(kernel: SignKernel, size: int) -> Iterator[Tensor]:
    if isinstance(kernel, GibbsWithGradients):
        yield from map(torch.tensor, itertools.permutations(range(size), kernel.num_flips))
    else:
        yield from all_states(size)


def transitions(kernel: SignKernel, joint: Quadratic, adjusted: bool = True) -> Tensor:
    """P(w -> w') over all states; what is not accepted stays."""
    kernel.attach(joint, 0)
    states = all_states(joint.size)
    place = {tuple(w.tolist()): i for i, w in enumerate(states)}
    matrix = torch.zeros(len(states), len(states))
    for i, signs in enumerate(states):
        value, gradient = joint.value_and_gradient(signs)
        for move in all_moves(kernel, joint.size):
            new = kernel.flipped(move, signs)
            new_value, new_gradient = joint.value_and_gradient(new)
            forward = kernel.log_prob_of_move(move, -signs * gradient)
            backward = kernel.log_prob_of_move(kernel.reverse(move), -new * new_gradient)
            ratio = kernel.log_acceptance(value, new_value, forward, backward)
            rate = forward.exp() * (ratio.clamp(max=0.0).exp() if adjusted else 1.0)
            matrix[i, place[tuple(new.tolist())]] += rate
    return matrix + torch.diag(1.0 - matrix.sum(1))


def imbalance(kernel: SignKernel, joint: Quadratic) -> float:
    """The largest difference between the flows between two states."""
    flow = joint.probabilities()[:, None] * transitions(kernel, joint)
    return (flow - flow.T).abs().max().item()


@every_kernel
def test_detailed_balance_holds_to_rounding_and_not_for_wrong_twins(name):
    make, kind = KERNELS[name]
    joint = Quadratic(4)
    assert imbalance(make(), joint) < 1e-15
    for mistake in (Inverted, ForgetsReverse):
        assert imbalance(make(kind=twin_of(mistake, kind)), joint) > 1e-3


@every_kernel
def test_moves_have_the_probabilities_they_are_said_to_have(name):
    make, _ = KERNELS[name]
    kernel, slopes = make(), torch.tensor([0.4, -0.8, 1.3, 0.1])
    moves = list(all_moves(kernel, 4))
    probabilities = torch.stack([kernel.log_prob_of_move(move, slopes) for move in moves]).exp()
    assert probabilities.sum().item() == pytest.approx(1.0, abs=1e-12)
    place = {tuple(move.tolist()): i for i, move in enumerate(moves)}
    draws = [place[tuple(kernel.draw_move(slopes).tolist())] for _ in range(4000)]
    counts = np.bincount(draws, minlength=len(moves))
    assert chi_square(counts, probabilities.numpy()) > FAILURE_RATE


def test_without_the_correction_langevin_is_biased_and_the_more_the_larger_its_step():
    joint = Quadratic(4)
    distances = []
    for step in (0.2, 0.5, 1.0):
        matrix = transitions(DiscreteLangevin(model, step, metropolis=False), joint, adjusted=False)
        stationary = torch.linalg.matrix_power(matrix, 2**20)[0]
        distances.append(0.5 * (stationary - joint.probabilities()).abs().sum().item())
    assert distances[0] < distances[1] < distances[2] and distances[2] > 0.05
    exact = transitions(Langevin(), joint)
    left = joint.probabilities() @ exact
    torch.testing.assert_close(left, joint.probabilities(), rtol=0.0, atol=1e-14)


# Chains on 12 weights


def chain(kernel: SignKernel, joint: Quadratic, num_samples: int, num_warmup: int = 300) -> Tensor:
    kernel.attach(joint, num_warmup)
    kernel.move_to(torch.ones(joint.size), {})
    states = []
    for i in range(num_warmup + num_samples):
        kernel.step_once()
        if i >= num_warmup:
            states.append(kernel._signs)
    return torch.stack(states)


def chi_square(counts: np.ndarray, probabilities: np.ndarray) -> float:
    """The probability of counts that fit as badly; rare cells are counted together."""
    expected = probabilities * counts.sum()
    order = np.argsort(-expected)
    counts, expected = counts[order], expected[order]
    rare = expected < 5.0
    cells = [(counts[~rare], expected[~rare])]
    if rare.any():
        cells.append((counts[rare].sum(keepdims=True), expected[rare].sum(keepdims=True)))
    assert len(cells[0][0]) > 2, "too few draws to tell"
    seen, wanted = (np.concatenate(part) for part in zip(*cells, strict=True))
    return float(chi2.sf(((seen - wanted) ** 2 / wanted).sum(), len(seen) - 1))


def codes(states: Tensor) -> Tensor:
    """The place of each state among all of them."""
    size = states.shape[1]
    return ((states > 0) * 2 ** torch.arange(size - 1, -1, -1)).sum(1)


def p_value(states: Tensor, joint: Quadratic) -> float:
    """Of the distribution of states by their probability, from draws so far apart that they are
    independent."""
    effective = convergence(joint_values(states, joint)[None]).least_ess
    thinned = codes(states)[:: int(np.ceil(1.5 * len(states) / effective))]
    # Six cells of about equal probability, from the most probable states to the least.
    probabilities, order = joint.probabilities().sort(descending=True)
    cells = torch.empty_like(order)
    cells[order] = (6.0 * (probabilities.cumsum(0) - probabilities)).long().clamp(max=5)
    counts = np.bincount(cells[thinned].numpy(), minlength=6)
    mass = np.bincount(cells[order].numpy(), weights=probabilities.numpy(), minlength=6)
    return chi_square(counts, mass)


def joint_values(states: Tensor, joint: Quadratic) -> Tensor:
    return torch.stack([joint.value_and_gradient(w)[0] for w in states])


def z_scores(states: Tensor, joint: Quadratic) -> Tensor:
    """Of all means and pair products, with standard errors from effective sample sizes."""
    every, probabilities = all_states(joint.size), joint.probabilities()
    first, second = torch.triu_indices(joint.size, joint.size, offset=1)

    def features(w: Tensor) -> Tensor:
        return torch.cat([w, w[:, first] * w[:, second]], 1)

    expected = probabilities @ features(every)
    spread = (1.0 - expected.square()).sqrt()
    effective = convergence(features(states)[None]).ess_bulk
    return (features(states).mean(0) - expected) / (spread / effective.sqrt())


@every_kernel
def test_chains_on_twelve_weights_agree_with_enumeration(name):
    joint = Quadratic(12, coupling=0.5)
    make, _ = KERNELS[name]
    states = chain(make(), joint, 3000)
    assert z_scores(states, joint).abs().max() < 5.0
    assert p_value(states, joint) > FAILURE_RATE


@pytest.mark.parametrize("mistake", [Inverted, ForgetsReverse])
@pytest.mark.parametrize("name", ["langevin", "gibbs"])
def test_wrong_twins_disagree_with_enumeration(name, mistake):
    joint = Quadratic(12, coupling=0.5)
    make, kind = KERNELS[name]
    states = chain(make(kind=twin_of(mistake, kind)), joint, 3000)
    off = z_scores(states, joint).abs().max() > 5.0
    assert off or p_value(states, joint) < FAILURE_RATE


def test_unadjusted_chains_disagree_with_enumeration():
    joint = Quadratic(12, coupling=0.5)
    states = chain(DiscreteLangevin(model, 1.5, adapt=False, metropolis=False), joint, 3000)
    assert z_scores(states, joint).abs().max() > 5.0


@pytest.mark.parametrize("start", [0.02, 50.0])
@pytest.mark.parametrize("target", [0.4, 0.7])
def test_warm_up_reaches_the_acceptance_rate_from_any_step(target, start):
    joint = Quadratic(30, coupling=1.0)
    tuned, fixed = (DiscreteLangevin(model, start, adapt, target) for adapt in (True, False))
    chain(tuned, joint, 500, num_warmup=400)
    chain(fixed, joint, 100)
    assert tuned.acceptance_rate == pytest.approx(target, abs=0.2)
    assert fixed.acceptance_rate != pytest.approx(target, abs=0.2)
    assert fixed.step == start
