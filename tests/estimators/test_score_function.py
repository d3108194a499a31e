"""The score function and its baselines: identities, what is learned, and by whom."""

# A gradient is None until there is one, which the assertion at hand would tell.
# pyright: reportOptionalMemberAccess=false, reportArgumentType=false

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import oracles
import pytest
import torch
from stats import assert_within_standard_errors, exceeds_standard_errors
from torch import Tensor, nn

from bayesbin.estimators import (
    Baseline,
    BatchObjective,
    Learned,
    LeaveOneOut,
    MovingAverage,
    ScoreFunction,
)
from bayesbin.estimators.baselines import RunningMoments
from bayesbin.estimators.surrogate import score, weighted_score, with_gradient

NATURAL = torch.tensor([0.0, 0.4, -0.7, 1.0], dtype=torch.float64)
MAP = torch.tensor([0.9, -0.6, 0.5, 0.8], dtype=torch.float64)


def smooth(values: dict[str, list[Tensor]]) -> Tensor:
    return torch.exp(0.6 * torch.stack(list(values["w"])) @ MAP)


def gradient(estimator: ScoreFunction, objective: Callable[..., Tensor], seed: int) -> Tensor:
    natural = NATURAL.clone().requires_grad_()
    torch.manual_seed(seed)
    return torch.autograd.grad(estimator(objective, {"w": natural}), natural)[0]


def gradients(estimator: ScoreFunction, objective: Callable[..., Tensor], count: int) -> Tensor:
    natural = NATURAL.clone().requires_grad_()
    return torch.stack(
        [
            torch.autograd.grad(estimator(objective, {"w": natural}), natural)[0]
            for _ in range(count)
        ]
    )


class Constant(Baseline):
    """The same number always."""

    def __init__(self, value: Tensor | float) -> None:
        super().__init__()
        self.value = value

    def forward(self, results: Tensor, objective: Any) -> tuple[Tensor, None]:
        return torch.as_tensor(self.value).to(results), None


# The estimator


def test_the_gradient_by_hand_at_the_same_draws():
    seen = []

    def objective(values):
        seen.append(torch.stack(list(values["w"])))
        return smooth(values)

    for baseline in (None, LeaveOneOut(), Constant(0.7)):
        seen.clear()
        slope = gradient(ScoreFunction(3, baseline), objective, 4)
        results, scores = smooth({"w": list(seen[0])}), seen[0] - torch.tanh(NATURAL)
        weights = results.clone()
        if isinstance(baseline, LeaveOneOut):
            weights -= torch.stack([results[[1, 2]], results[[0, 2]], results[[0, 1]]]).mean(1)
        elif baseline is not None:
            weights -= 0.7
        torch.testing.assert_close(slope, (weights[:, None] * scores).mean(0))


def test_leave_one_out_does_not_see_a_constant():
    for seed in range(5):
        slopes = [
            gradient(ScoreFunction(4), lambda values, c=c: smooth(values) + c, seed)
            for c in (0.0, -1e4)
        ]
        torch.testing.assert_close(*slopes, rtol=1e-9, atol=1e-10)
    # Without a baseline the constant counts.
    plain = ScoreFunction(4, baseline=None)
    shifted = gradient(plain, lambda values: smooth(values) + 10.0, 0)
    assert (shifted - gradient(plain, smooth, 0)).abs().max() > 0.1


def test_leave_one_out_of_a_constant_objective_is_no_gradient_at_all():
    for natural in (NATURAL, torch.tensor([8.5, -8.5, 40.0, 0.0])):
        lam = natural.clone().requires_grad_()
        surrogate = ScoreFunction(5)(lambda values: torch.full((5,), 3.0), {"w": lam})
        assert not torch.autograd.grad(surrogate, lam)[0].any()


@pytest.mark.parametrize("build", [lambda: ScoreFunction(8), lambda: ScoreFunction(2, Learned())])
def test_a_hard_threshold_without_a_graph_meets_enumeration(build):
    def black_box(values):
        return torch.tensor([float(w.detach().numpy() @ MAP.numpy() > 0.3) for w in values["w"]])

    slopes = gradients(build(), black_box, 500)
    exact = oracles.gradient(lambda w: black_box({"w": [w]})[0], NATURAL)
    assert_within_standard_errors(slopes, exact)
    assert exceeds_standard_errors(slopes, -exact)


def test_baselines_lower_the_variance_of_an_objective_far_from_zero():
    def shifted(values):
        return 20.0 + smooth(values)

    spread = {}
    for name, estimator in {
        "none": ScoreFunction(2, None),
        "leave-one-out": ScoreFunction(2),
        "moving average": ScoreFunction(2, MovingAverage()),
        "learned": ScoreFunction(2, Learned()),
    }.items():
        gradients(estimator, shifted, 30)
        spread[name] = gradients(estimator, shifted, 200).var(0).sum()
    assert all(10 * value < spread["none"] for name, value in spread.items() if name != "none")


def test_the_score_keeps_its_digits_where_lambda_saturates():
    natural = torch.tensor([10.0, -10.0, 40.0, -40.0], dtype=torch.float32)
    likely = score(natural, natural.sign())
    expected = 2 * natural.double().sign() * torch.sigmoid(-2 * natural.double().abs())
    torch.testing.assert_close(likely.double(), expected, rtol=1e-6, atol=0)
    weights = torch.tensor([2.0, -0.5])
    total = weighted_score(weights, [natural.sign(), natural.sign()], natural)
    torch.testing.assert_close(total.double(), 1.5 * expected, rtol=1e-6, atol=0)
    # A draw of the rarer sign: the difference of two numbers of the order of 1, without the tail.
    rarer = weighted_score(weights, [natural.sign(), -natural.sign()], natural).double()
    wide = natural.double()
    torch.testing.assert_close(
        rarer,
        2.0 * (wide.sign() - wide.tanh()) + 0.5 * (wide.sign() + wide.tanh()),
        rtol=1e-6,
        atol=0,
    )


def test_a_value_with_a_gradient_of_its_own_keeps_its_value_and_its_graph():
    a, b = torch.tensor(2.0, requires_grad=True), torch.ones(3, requires_grad=True)
    frozen = torch.ones(3)
    value = with_gradient(a**2, {"b": b, "f": frozen}, {"b": torch.arange(3.0), "f": frozen})
    assert value.item() == 4.0
    slopes = torch.autograd.grad(3.0 * value, [a, b])
    assert slopes[0].item() == 12.0 and slopes[1].tolist() == [0.0, 3.0, 6.0]


# Running moments


def test_the_moving_average_is_that_of_earlier_calls():
    baseline, earlier = MovingAverage(decay=0.8), []
    for _ in range(6):
        results = torch.randn(3) + 5.0
        average, loss = baseline(results, smooth)
        weights = torch.tensor([0.8 ** (len(earlier) - 1 - k) for k in range(len(earlier))])
        expected = (weights * torch.tensor(earlier)).sum() / weights.sum() if earlier else 0.0
        assert loss is None and average.item() == pytest.approx(float(expected), abs=1e-12)
        earlier.append(results.mean().item())


def test_the_running_deviation_is_that_of_all_results():
    moments, weight, mean, square = RunningMoments(0.5), 0.0, 0.0, 0.0
    assert not moments.started and moments.deviation().item() == 1.0
    for _ in range(5):
        results = torch.randn(4) * 3.0 + 1.0
        moments.update(results)
        weight, mean = 0.5 * weight + 0.5, 0.5 * mean + 0.5 * results.mean()
        square = 0.5 * square + 0.5 * results.square().mean()
    assert moments.started
    torch.testing.assert_close(moments.mean(), mean / weight)
    torch.testing.assert_close(moments.deviation(), (square / weight - (mean / weight) ** 2).sqrt())


@pytest.mark.parametrize("build", [MovingAverage, Learned])
def test_evaluation_leaves_the_moments_alone(build):
    estimator = ScoreFunction(2, build())
    gradient(estimator, smooth, 0)
    before = copy.deepcopy(estimator.state_dict())
    estimator.eval()
    gradient(estimator, smooth, 1)
    after = estimator.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    estimator.train()
    gradient(estimator, smooth, 2)
    assert not torch.equal(
        before["baseline.moments.mean_sum"], estimator.state_dict()["baseline.moments.mean_sum"]
    )


def test_a_loss_that_is_not_finite_leaves_the_moments_alone():
    moments = RunningMoments(0.9)
    moments.update(torch.tensor([1.0, 3.0]))
    for bad in (math.nan, math.inf, -math.inf):
        moments.update(torch.tensor([1.0, bad]))
    assert moments.mean().item() == pytest.approx(2.0)


@pytest.mark.parametrize("build", [MovingAverage, Learned])
def test_the_state_of_a_baseline_goes_round(build):
    estimator = ScoreFunction(2, build())
    gradients(estimator, smooth, 5)
    again = ScoreFunction(2, build())
    again.load_state_dict(estimator.state_dict())
    assert torch.equal(gradient(again, smooth, 7), gradient(estimator, smooth, 7))
    assert not torch.equal(
        gradient(ScoreFunction(2, build()), smooth, 7), gradient(estimator, smooth, 7)
    )


@pytest.mark.parametrize("cast", [nn.Module.float, nn.Module.half, nn.Module.bfloat16])
def test_casting_moves_the_moments_and_does_not_round_them(cast):
    estimator = ScoreFunction(2, Learned(nn.Linear(1, 1)))
    estimator.baseline.moments.update(torch.tensor([1e6 + 0.123, 1e6]))
    mean = estimator.baseline.moments.mean()
    cast(estimator)
    for buffer in estimator.buffers():
        assert buffer.dtype == torch.float64
    assert torch.equal(estimator.baseline.moments.mean(), mean)
    assert estimator.baseline.constant.dtype != torch.float64


# What Learned learns


class Recorded:
    """An objective that keeps its results, and has a parameter of its own."""

    def __init__(self, shift: float = 3.0) -> None:
        self.scale = torch.tensor(1.3, requires_grad=True)
        self.shift, self.results = shift, torch.empty(0)

    def __call__(self, values: Any) -> Tensor:
        results = self.scale * smooth(values) + self.shift
        self.results = results.detach()
        return results


def started(baseline: Learned) -> ScoreFunction:
    """An estimator whose baseline knows the scale of the objective, and has learned something."""
    estimator = ScoreFunction(2, baseline)
    gradients(estimator, Recorded(), 5)
    with torch.no_grad():
        baseline.constant.fill_(0.3)
    return estimator


def test_the_gradient_of_a_learned_baseline_is_that_of_its_least_squares_loss():
    baseline = Learned(nn.Linear(3, 1))
    x = torch.randn(3)
    estimator = started_with(baseline, x)
    m, s = baseline.moments.mean(), baseline.moments.deviation()
    recorded = Recorded()
    learned = list(baseline.parameters())
    surrogate = estimator(BatchObjective(recorded, (x,)), {"w": NATURAL.clone()})
    found = torch.autograd.grad(surrogate, learned)
    prediction = baseline.constant + baseline.module(x).squeeze()
    loss = ((recorded.results - m) / s - prediction).square().mean()
    for got, expected in zip(found, torch.autograd.grad(loss, learned), strict=True):
        torch.testing.assert_close(got, -expected)  # the surrogate is maximised


def started_with(baseline: Learned, x: Tensor) -> ScoreFunction:
    estimator = ScoreFunction(2, baseline)
    for _ in range(5):
        estimator(BatchObjective(Recorded(), (x,)), {"w": NATURAL.clone()})
    return estimator


def test_before_the_first_call_there_is_nothing_to_fit():
    baseline = Learned()
    value, loss = baseline(torch.tensor([1.0, 5.0]), smooth)
    assert value.item() == 0.0 and loss is None
    assert baseline(torch.tensor([1.0, 5.0]), smooth)[1] is not None


def test_nothing_of_the_loss_reaches_lambda_or_the_objectives_parameters():
    for seed in range(3):
        estimator = started(Learned())
        moments = estimator.baseline.moments
        constant = moments.mean() + moments.deviation() * estimator.baseline.constant.detach()
        found = []
        for one in (estimator, ScoreFunction(2, Constant(constant))):
            recorded, natural = Recorded(), NATURAL.clone().requires_grad_()
            torch.manual_seed(seed)
            surrogate = one(recorded, {"w": natural})
            slopes = torch.autograd.grad(surrogate, [natural, recorded.scale])
            found.append((surrogate.detach(), *slopes))
        for got, expected in zip(*found, strict=True):
            torch.testing.assert_close(got, expected)


def test_the_value_is_the_mean_of_the_objective_with_every_baseline():
    for baseline in (None, LeaveOneOut(), MovingAverage(), Learned()):
        estimator = ScoreFunction(3, baseline)
        for _ in range(2):
            recorded = Recorded()
            value = estimator(recorded, {"w": NATURAL.clone().requires_grad_()})
            torch.testing.assert_close(value.detach(), recorded.results.mean())
        with torch.no_grad():
            value = estimator(recorded, {"w": NATURAL.clone()})
        torch.testing.assert_close(value, recorded.results.mean())


class OfTheBatch(nn.Module):
    """A linear function of the batch; remembers how it was called."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.called: list[Any] = []

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        self.called.append((args, kwargs))
        return self.layer(args[0])


def test_the_module_is_called_as_the_model_is():
    baseline, x, y = Learned(OfTheBatch()), torch.ones(1), object()
    ScoreFunction(1, baseline)(BatchObjective(smooth, (x,), {"y": y}), {"w": NATURAL.clone()})
    ((args, kwargs),) = baseline.module.called
    assert args[0] is x and kwargs["y"] is y


def train(estimator: ScoreFunction, steps: int) -> list[float]:
    """Batches that shift the objective by 10 x; the losses of the baseline."""
    optimizer = torch.optim.Adam(estimator.baseline.parameters(), lr=0.03)
    losses = []
    for _ in range(steps):
        x = torch.randn(1)
        optimizer.zero_grad()
        recorded = Recorded(shift=10.0 * x.item())
        m, s = estimator.baseline.moments.mean(), estimator.baseline.moments.deviation()
        surrogate = estimator(BatchObjective(recorded, (x,)), {"w": NATURAL.clone()})
        if estimator.baseline.moments.started and surrogate.requires_grad:
            (-surrogate).backward()
            optimizer.step()
            prediction = estimator.baseline.constant.detach()
            if estimator.baseline.module is not None:
                prediction = prediction + estimator.baseline.module(x).detach().squeeze()
            losses.append(((recorded.results - m) / s - prediction).square().mean().item())
    return losses


def test_a_baseline_of_the_batch_learns_and_lowers_the_variance():
    spread = {}
    for name, module in {"batch": OfTheBatch(), "constant": None}.items():
        estimator = ScoreFunction(1, Learned(module, decay=0.99))
        losses = train(estimator, 500)
        if name == "batch":
            assert sum(losses[-50:]) < 0.3 * sum(losses[20:70])
        estimator.eval()
        slopes = []
        for _ in range(300):
            x, natural = torch.randn(1), NATURAL.clone().requires_grad_()
            objective = BatchObjective(Recorded(shift=10.0 * x.item()), (x,))
            slopes.append(torch.autograd.grad(estimator(objective, {"w": natural}), natural)[0])
        spread[name] = torch.stack(slopes).var(0).sum()
        exact = oracles.gradient(lambda w: 1.3 * smooth({"w": [w]})[0], NATURAL)
        assert_within_standard_errors(torch.stack(slopes), exact)
    assert spread["batch"] < 0.3 * spread["constant"]


# Errors and names


@pytest.mark.parametrize("decay", [-0.1, 1.0, math.nan])
@pytest.mark.parametrize("build", [MovingAverage, lambda decay: Learned(decay=decay)])
def test_the_decay_is_below_one(build, decay):
    with pytest.raises(ValueError, match=r"decay to be a .*number of at least 0 and below 1; got"):
        build(decay)


def test_a_baseline_is_one_of_those_there_are():
    for wrong in ("moving-average", 3.0, nn.Linear(1, 1)):
        with pytest.raises(ValueError, match=r"baseline is LeaveOneOut.* or None for none; got"):
            ScoreFunction(2, wrong)


def test_leave_one_out_needs_another_draw():
    for baseline in ("leave-one-out", LeaveOneOut()):
        with pytest.raises(ValueError, match=r"num_samples of at least 2; got 1.*MovingAverage"):
            ScoreFunction(1, baseline)
    with pytest.raises(ValueError, match="num_samples to be a whole number of at least 1; got 0"):
        ScoreFunction(0)


def test_learned_takes_a_module_with_one_number_per_batch():
    with pytest.raises(ValueError, match="Learned takes a torch module of the batch"):
        Learned(lambda x: x)
    natural, objective = {"w": NATURAL.clone()}, BatchObjective(smooth, (torch.ones(2, 1),))
    with pytest.raises(
        ValueError, match=r"one number per batch, or .*; got \(2, 1\). Sum or average"
    ):
        ScoreFunction(1, Learned(nn.Linear(1, 1)))(objective, natural)

    class Number(nn.Module):
        def forward(self, x):
            return 1.0

    with pytest.raises(ValueError, match=r"one number per batch, or .*; got float"):
        ScoreFunction(1, Learned(Number()))(objective, natural)


def test_it_prints_on_one_line():
    assert repr(ScoreFunction()) == "ScoreFunction(num_samples=4, baseline=LeaveOneOut())"
    assert repr(ScoreFunction(1, None)) == "ScoreFunction(num_samples=1, baseline=None)"
    assert repr(Learned(nn.Linear(1, 1))) == "Learned(Linear(...), decay=0.9)"
    text = repr(ScoreFunction(2, MovingAverage(0.99)))
    assert text == "ScoreFunction(num_samples=2, baseline=MovingAverage(decay=0.99))"
