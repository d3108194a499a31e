"""Samplers of signs against exact sums: transition matrices of the kernels' own steps, marginals, the
distribution of states, and wrong twins."""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from oracles import all_states
from pyro import poutine
from pyro.infer import HMC
from scipy.stats import chi2
from stats import FAILURE_RATE
from torch import Tensor

from bayesbin.distributions import SignBernoulli
from bayesbin.infer import DiscreteLangevin, GibbsWithGradients, MixedKernel
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


# Transition matrices, from every outcome of every random choice that a kernel makes


class Choices:
    """Runs a function once for every outcome of its random choices, and knows the probability of each."""

    def __init__(self) -> None:
        self.outcomes: list[list[int]] = []  # of each choice so far: the outcome, their number
        self.asked, self.probability = 0, 1.0

    def choose(self, probabilities: Tensor) -> int:
        if self.asked == len(self.outcomes):
            self.outcomes.append([0, len(probabilities)])
        outcome = self.outcomes[self.asked][0]
        self.asked += 1
        self.probability *= float(probabilities[outcome])
        return outcome

    def every(self, run: Callable[[], Any]) -> Iterator[tuple[float, Any]]:
        self.outcomes = []
        while True:
            self.asked, self.probability = 0, 1.0
            result = run()
            if self.probability:
                yield self.probability, result
            while self.outcomes and self.outcomes[-1][0] + 1 == self.outcomes[-1][1]:
                self.outcomes.pop()
            if not self.outcomes:
                return
            self.outcomes[-1][0] += 1


def enumerated(kernel: SignKernel, choices: Choices) -> SignKernel:
    """The kernel, with its own moves and probabilities, and choices in the place of random numbers."""
    accepts = kernel.accepts

    def draw_move(slopes: Tensor) -> Tensor:
        moves = list(all_moves(kernel, len(slopes)))
        rates = torch.stack([kernel.log_prob_of_move(move, slopes) for move in moves]).exp()
        return moves[choices.choose(rates)]

    def accepts_or_not(probability: float) -> bool:
        if not getattr(kernel, "metropolis", True):
            assert accepts(probability)
            return True
        return choices.choose(torch.tensor([probability, 1.0 - probability])) == 0

    kernel.draw_move, kernel.accepts = draw_move, accepts_or_not  # pyright: ignore
    if kernel.draw_num_moves.__func__ is SignKernel.draw_num_moves:  # pyright: ignore
        kernel.draw_num_moves = lambda: 1 + choices.choose(torch.tensor([0.5, 0.5]))
    return kernel


def all_moves(kernel: SignKernel, size: int) -> Iterator[Tensor]:
    if isinstance(kernel, GibbsWithGradients):
        for number in range(1, kernel.num_flips + 1):
            yield from map(torch.tensor, itertools.permutations(range(size), number))
    else:
        yield from all_states(size)


class Remembered(LogJoint):
    """The log joint of a model, evaluated once per state."""

    def value_and_gradient(self, signs, real=None):
        known = self.__dict__.setdefault("known", {})
        key = (*signs.tolist(), *(value.item() for value in (real or {}).values()))
        if key not in known:
            known[key] = super().value_and_gradient(signs, real)
        return known[key]


def place_of(signs: Tensor) -> int:
    return int(codes(signs[None])[0])


def step_matrix(kernel: SignKernel, joint: LogJoint, moves: int | None = None) -> Tensor:
    """P(w -> w') of one step, or of so many moves, over all states."""
    choices = Choices()
    enumerated(kernel, choices).attach(joint, 0)
    states = all_states(joint.size)
    matrix = torch.zeros(len(states), len(states))

    def run(signs: Tensor) -> int:
        kernel.move_to(signs, {})
        if moves is None:
            return place_of(joint.flat(kernel.sample(joint.by_site(signs))))
        for _ in range(moves):
            kernel.make_move()
        return place_of(kernel._signs)

    for i, signs in enumerate(states):
        for probability, new in choices.every(functools.partial(run, signs)):
            matrix[i, new] += probability
    torch.testing.assert_close(matrix.sum(1), torch.ones(len(states)), rtol=0.0, atol=1e-12)
    return matrix


def imbalance(matrix: Tensor, probabilities: Tensor) -> float:
    """The largest difference between the flows between two states."""
    flow = probabilities[:, None] * matrix
    return (flow - flow.T).abs().max().item()


def eigenvalues(matrix: Tensor, probabilities: Tensor) -> Tensor:
    """Of a reversible chain, in increasing order; the last is 1."""
    root = probabilities.sqrt()
    symmetric = root[:, None] * matrix / root
    return torch.linalg.eigvalsh(0.5 * (symmetric + symmetric.T))


def signs_site(name: str, natural: Tensor) -> Tensor:
    return pyro.sample(name, SignBernoulli(natural=natural).to_event(1))


def one_sign() -> None:
    signs_site("w", torch.zeros(1))


def pair() -> None:
    signs_site("w", torch.zeros(2))


def flat() -> None:
    signs_site("w", torch.zeros(3))


def coupled() -> None:
    w = signs_site("w", torch.tensor([0.3, 0.0, -0.2]))
    pyro.factor("pairs", 0.8 * (w[0] * w[1] - w[1] * w[2] + w[0] * w[2]))


def multimodal() -> None:
    w = signs_site("w", torch.zeros(3))
    pyro.factor("modes", 0.4 * w.sum().square())


def curved() -> None:
    """Each slope says that a flip gains 8 nats; it gains none of it, since w^2 is 1."""
    w = signs_site("w", torch.zeros(2))
    pyro.factor("square", -4.0 * w.square().sum() + 0.3 * w.sum())


def small_noise() -> None:
    w = signs_site("w", torch.zeros(2))
    pyro.sample("y", dist.Normal(0.5 * w.sum(), 0.5), obs=torch.tensor(0.4))


def dependent_prior() -> None:
    first = signs_site("first", torch.tensor([0.4]))
    signs_site("second", torch.tensor([0.5, -0.3]) * first)


def masked_and_scaled() -> None:
    w = signs_site("w", torch.tensor([0.2, -0.4]))
    with poutine.scale(scale=torch.tensor(2.5)), pyro.plate("rows", 3):
        counted: Any = torch.tensor([True, False, True])
        with poutine.mask(mask=counted):
            pyro.sample("y", dist.Normal(w.sum(), 1.5), obs=torch.tensor([0.1, 9.0, -0.6]))


def normal(y: float, mean: Tensor, scale: float) -> Tensor:
    return -0.5 * ((y - mean) / scale).square()


# The logarithm of each model's probability, by hand, up to a constant.
TARGETS: dict[Callable[[], None], Callable[[Tensor], Tensor]] = {
    one_sign: lambda w: 0.0 * w.sum(),
    pair: lambda w: 0.0 * w.sum(),
    flat: lambda w: 0.0 * w.sum(),
    coupled: lambda w: 0.3 * w[0] - 0.2 * w[2] + 0.8 * (w[0] * w[1] - w[1] * w[2] + w[0] * w[2]),
    multimodal: lambda w: 0.4 * w.sum() ** 2,
    curved: lambda w: 0.3 * w.sum(),
    small_noise: lambda w: normal(0.4, 0.5 * w.sum(), 0.5),
    # The normalising constant of w_1 given w_0 is the same for both values of w_0.
    dependent_prior: lambda w: 0.4 * w[0] + w[0] * (0.5 * w[1] - 0.3 * w[2]),
    masked_and_scaled: lambda w: (
        0.2 * w[0] - 0.4 * w[1] + 2.5 * (normal(0.1, w.sum(), 1.5) + normal(-0.6, w.sum(), 1.5))
    ),
}


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.__name__)
@every_kernel
def test_a_step_leaves_the_posterior_as_it_is_reversibly_and_without_a_period(name, target):
    joint = Remembered(target, (), {})
    states = all_states(joint.size)
    probabilities = torch.stack([TARGETS[target](w) for w in states]).softmax(0)
    make, kind = KERNELS[name]
    if name == "two flips" and joint.size == 1:
        return
    move = step_matrix(make(), joint, 1)
    step = 0.5 * (move + move @ move)
    if joint.size < 3:
        torch.testing.assert_close(step_matrix(make(), joint), step, rtol=0.0, atol=1e-12)
    torch.testing.assert_close(probabilities @ step, probabilities, rtol=0.0, atol=1e-12)
    assert imbalance(step, probabilities) < 1e-12
    found = eigenvalues(step, probabilities)
    assert found[0] > -0.125 - 1e-9  # so that no thinning leaves two draws the same
    assert found[-2] < 1.0 - 1e-4  # every state is reached from every other
    if target in (coupled, masked_and_scaled):
        for mistake in (Inverted, ForgetsReverse):
            twin = step_matrix(make(kind=twin_of(mistake, kind)), joint, 1)
            assert imbalance(twin, probabilities) > 1e-4


class OneMove:
    """Makes one move per step."""

    def draw_num_moves(self):
        return 1


@pytest.mark.parametrize(
    ("kind", "target"),
    [
        (GibbsWithGradients, one_sign),
        (GibbsWithGradients, pair),
        (functools.partial(DiscreteLangevin, step=1.0), curved),
    ],
)
def test_a_chain_of_single_moves_alternates_between_likely_states(kind, target):
    joint = Remembered(target, (), {})
    probabilities = torch.stack([TARGETS[target](w) for w in all_states(joint.size)]).softmax(0)
    move, step = (step_matrix(kind(target), joint, moves) for moves in (1, None))
    assert eigenvalues(move, probabilities)[0] < -0.99
    assert eigenvalues(step, probabilities)[0] > -0.126


def test_two_flips_alone_never_change_the_product_of_all_signs():
    joint, product = Remembered(pair, (), {}), all_states(2).prod(1)
    one, one_or_two = (step_matrix(GibbsWithGradients(pair, k), joint, 1) for k in (1, 2))
    two = 2.0 * one_or_two - one  # each number of flips has probability 1/2
    torch.testing.assert_close(two @ product, product, rtol=0.0, atol=1e-12)
    torch.testing.assert_close(one_or_two @ product, 0.0 * product, rtol=0.0, atol=1e-12)


def asymptotic_variance(matrix: Tensor, probabilities: Tensor, values: Tensor) -> float:
    """Of the mean of values over n draws, times n and over their variance: 1 if independent."""
    values = values - probabilities @ values
    size = len(probabilities)
    inverse = torch.linalg.inv(torch.eye(size) - matrix + probabilities.expand(size, size))
    variance = probabilities @ values.square()
    return ((2.0 * (probabilities * values) @ inverse @ values - variance) / variance).item()


@pytest.mark.parametrize("target", [flat, coupled, multimodal])
def test_one_or_two_moves_cost_less_than_barkers_rule_and_a_draw_is_worth_more(target):
    """Per evaluation of the model as efficient as single moves, per draw more so than all others."""
    joint = Remembered(target, (), {})
    states = all_states(joint.size)
    probabilities = torch.stack([TARGETS[target](w) for w in states]).softmax(0)
    barker = twin_of(Barker, GibbsWithGradients)
    move, other = (step_matrix(kind(target), joint, 1) for kind in (GibbsWithGradients, barker))
    step = 0.5 * (move + move @ move)
    lazy = 0.5 * (torch.eye(len(states)) + move)
    assert imbalance(other, probabilities) < 1e-12
    worst = {
        name: max(asymptotic_variance(matrix, probabilities, w) for w in states.T)
        for name, matrix in (("two", step), ("one", move), ("barker", other), ("lazy", lazy))
    }
    assert worst["two"] < min(worst["one"], worst["barker"], worst["lazy"])
    assert 1.5 * worst["two"] < worst["one"] + 0.5 < worst["barker"]


class Barker:
    """Accepts with probability r / (1 + r), in the place of min(1, r)."""

    def log_acceptance(self, log_joint, new_log_joint, forward, backward):
        ratio = super().log_acceptance(log_joint, new_log_joint, forward, backward)  # pyright: ignore
        return torch.nn.functional.logsigmoid(ratio)


# Signs and a real-valued site together


def with_noise(size: int, y: Tensor) -> None:
    w = signs_site("w", torch.tensor([0.3, 0.0])[:size])
    noise = pyro.sample("noise", dist.LogNormal(torch.tensor(-0.5), torch.tensor(0.6)))
    pyro.sample("y", dist.Normal(0.5 * w.sum().expand(3), noise).to_event(1), obs=y)


GRID = torch.tensor([-1.5, -0.6, 0.4])  # of log noise
OBSERVED = torch.tensor([0.9, -0.2, -0.4])


class OnAGrid(HMC):
    """Takes the place of HMC: draws a real value from its conditional distribution on a grid."""

    choices = Choices()

    def __init__(self, model):
        super().__init__(model)
        self.known: dict[tuple[float, ...], Tensor] = {}

    def sample(self, params):
        given: Any = self.model
        potential: Any = self.potential_fn
        key = tuple(given.values["w"].tolist())
        if key not in self.known:
            self.known[key] = torch.stack([potential({"noise": z}) for z in GRID]).detach()
        return {"noise": GRID[self.choices.choose((-self.known[key]).softmax(0))]}


class Stale(MixedKernel):
    """Moves the real-valued sites given the signs that it started from."""

    def setup(self, warmup_steps, *args, **kwargs):
        super().setup(warmup_steps, *args, **kwargs)
        self.given = copy.copy(self.given)  # the other kernel keeps the one that it was built with


def mixed_matrix(kind: type[MixedKernel], size: int, sign_steps: int) -> tuple[Tensor, Tensor]:
    """The transition matrix over (signs, place on the grid), and the posterior on these."""
    model = functools.partial(with_noise, size)
    choices = OnAGrid.choices = Choices()
    kernel = kind(enumerated(GibbsWithGradients(model), choices), OnAGrid, sign_steps)
    kernel.initial_params = {"w": torch.ones(size), "noise": GRID[0]}
    kernel.setup(0, OBSERVED)
    kernel.signs._joint = Remembered(model, (OBSERVED,), {})
    states = list(itertools.product(all_states(size), GRID))
    log_density = [
        kernel.signs._joint.value(w, {"noise": z.exp()}) + z for w, z in states
    ]  # the density of log noise is that of noise times noise
    matrix = torch.zeros(len(states), len(states))

    def run(w: Tensor, z: Tensor) -> int:
        kernel.signs.move_to(w, {"noise": z.exp()})
        new = kernel.sample({"w": w, "noise": z})
        assert torch.equal(kernel.signs._signs, new["w"])
        return place_of(new["w"]) * len(GRID) + int((GRID == new["noise"]).nonzero())

    for i, (w, z) in enumerate(states):
        for probability, new in choices.every(functools.partial(run, w, z)):
            matrix[i, new] += probability
    return matrix, torch.stack(log_density).softmax(0)


@pytest.mark.parametrize(("size", "sign_steps"), [(1, 1), (1, 2), (2, 1)])
def test_signs_and_a_real_site_in_turn_leave_the_posterior_as_it_is(size, sign_steps):
    matrix, probabilities = mixed_matrix(MixedKernel, size, sign_steps)
    torch.testing.assert_close(probabilities @ matrix, probabilities, rtol=0.0, atol=1e-12)
    assert (matrix > 0).all()
    found = torch.linalg.eigvals(matrix).abs().sort().values
    assert found[-2] < 0.95
    if (size, sign_steps) == (1, 1):
        twin, _ = mixed_matrix(Stale, size, sign_steps)
        assert (probabilities @ twin - probabilities).abs().max() > 1e-2


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
    joint = Quadratic(3)
    distances = []
    for step in (0.2, 0.5, 1.0):
        matrix = step_matrix(DiscreteLangevin(model, step, metropolis=False), joint, 1)
        stationary = torch.linalg.matrix_power(matrix, 2**20)[0]
        distances.append(0.5 * (stationary - joint.probabilities()).abs().sum().item())
    assert distances[0] < distances[1] < distances[2] and distances[2] > 0.05


# Chains on 12 weights


def chain(kernel: SignKernel, joint: Quadratic, num_samples: int, num_warmup: int = 300) -> Tensor:
    kernel.attach(joint, num_warmup)
    kernel.move_to(torch.ones(joint.size), {})
    states = []
    for i in range(num_warmup + num_samples):
        kernel.sample(joint.by_site(kernel._signs))
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
    states = chain(make(), joint, 2000)
    assert z_scores(states, joint).abs().max() < 5.0
    assert p_value(states, joint) > FAILURE_RATE


@pytest.mark.parametrize("mistake", [Inverted, ForgetsReverse])
@pytest.mark.parametrize("name", ["langevin", "gibbs"])
def test_wrong_twins_disagree_with_enumeration(name, mistake):
    joint = Quadratic(12, coupling=0.5)
    make, kind = KERNELS[name]
    states = chain(make(kind=twin_of(mistake, kind)), joint, 2000)
    off = z_scores(states, joint).abs().max() > 5.0
    assert off or p_value(states, joint) < FAILURE_RATE


def test_unadjusted_chains_disagree_with_enumeration():
    joint = Quadratic(12, coupling=0.5)
    states = chain(DiscreteLangevin(model, 1.5, adapt=False, metropolis=False), joint, 2000)
    assert z_scores(states, joint).abs().max() > 5.0


def test_warm_up_tunes_the_step_and_sampling_does_not():
    joint, kernel = Quadratic(12), DiscreteLangevin(model, step=0.05)
    kernel.attach(joint, 20)
    kernel.move_to(torch.ones(12), {})
    steps = []
    for _ in range(60):
        kernel.sample(joint.by_site(kernel._signs))
        steps.append(kernel.step)
    assert len(set(steps[:20])) == 20 and len(set(steps[19:])) == 1


@pytest.mark.parametrize("thin", [1, 2, 3])
@every_kernel
def test_equally_likely_states_are_visited_equally_with_any_thinning(name, thin):
    joint = Quadratic(2, coupling=0.0)
    joint.single, joint.third = torch.zeros(2), 0.0
    make, kind = KERNELS[name]

    def scores(kernel: SignKernel) -> Tensor:
        w = chain(kernel, joint, 400 * thin, 20)[thin - 1 :: thin]
        values = torch.cat([w, w.prod(1, keepdim=True)], 1)
        return values.mean(0).abs() * 400**0.5

    assert scores(make()).max() < 8.0  # with an autocorrelation time of at most 2.5
    if kind is GibbsWithGradients and thin == 2 and name == "gibbs":
        assert scores(make(kind=twin_of(OneMove, kind)))[2] == 20.0  # w_1 w_2 never changes


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
