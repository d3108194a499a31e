"""The Bayesian learning rule against its formula, its copies, its limits and its fixed point."""

# A gradient is None until there is one, which the assertion at hand would tell.
# pyright: reportOptionalMemberAccess=false, reportArgumentType=false

from __future__ import annotations

import copy
import io
import math
import pickle

import oracles
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI
from pyro.optim import PyroOptim
from torch import Tensor, nn

from bayesbin.core import fused, numerics
from bayesbin.distributions import SignBernoulli
from bayesbin.estimators import Enumerate, PseudoReward
from bayesbin.guides import AutoNestedSignBernoulli, AutoSignBernoulli
from bayesbin.infer import TraceBinary_ELBO
from bayesbin.nn import BinaryLinear, Classifier
from bayesbin.optim import BayesianLearningRule, make_optimizers
from bayesbin.optim.assembly import weight_groups
from bayesbin.posterior import BinaryPosterior


def parameter(*values: float, dtype: torch.dtype = torch.float64) -> nn.Parameter:
    return nn.Parameter(torch.tensor(values, dtype=dtype))


class Reference:
    """The rule as the formula has it, in float64."""

    def __init__(
        self, natural: Tensor, lr: float, momentum: float, bound: float = math.inf
    ) -> None:
        self.natural, self.lr, self.beta, self.bound = natural.double(), lr, momentum, bound
        self.average, self.t = torch.zeros_like(self.natural), 0

    def step(self, gradient: Tensor) -> None:
        self.t += 1
        natural_gradient = gradient.double() * torch.cosh(self.natural) ** 2
        self.average = self.beta * self.average + (1 - self.beta) * natural_gradient
        change = self.lr * self.average / (1 - self.beta**self.t)
        self.natural = (self.natural - change).clamp(-self.bound, self.bound)


def assert_close(got: Tensor, expected: Tensor, rtol: float = 1e-12) -> None:
    torch.testing.assert_close(got.detach(), expected, rtol=rtol, atol=1e-300)


# The formula


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9, 0.99])
def test_steps_are_exact_to_the_formula(momentum):
    natural = parameter(0.0, 0.5, -3.0, 8.5, -10.0)
    rule = BayesianLearningRule([natural], lr=0.03, momentum=momentum)
    reference = Reference(natural.detach().clone(), 0.03, momentum)
    for _ in range(12):
        natural.grad = torch.randn(5) / torch.cosh(natural.detach()) ** 2
        reference.step(natural.grad)
        rule.step()
        assert_close(natural, reference.natural)


def test_the_first_step_is_a_full_one_whatever_the_momentum():
    for momentum in (0.0, 0.9, 0.999):
        natural = parameter(0.3)
        natural.grad = torch.tensor([2.0])
        BayesianLearningRule([natural], lr=0.1, momentum=momentum).step()
        assert_close(natural, torch.tensor([0.3 - 0.2 * math.cosh(0.3) ** 2]))


def test_the_step_is_along_the_gradient_in_mu():
    # loss = E[f] + kl_weight KL: the step is -lr (grad_mu + kl_weight (lambda - lambda_p)).
    slope, prior, kl_weight = torch.tensor([1.5, -0.7, 0.2]), torch.tensor([0.5, 0.0, -2.0]), 0.3
    natural = parameter(0.4, -6.0, 12.0)
    before = natural.detach().clone()
    loss = (slope * numerics.mean(natural)).sum() + kl_weight * fused.kl_sum(natural, prior)
    loss.backward()
    BayesianLearningRule([natural], lr=0.05).step()
    assert_close(natural, before - 0.05 * (slope + kl_weight * (before - prior)))


def test_groups_have_settings_of_their_own():
    first, second, third = parameter(0.2, -1.0), parameter(0.7), parameter(2.0)
    rule = BayesianLearningRule(
        [
            {"params": [first], "lr": 0.1},
            {"params": [second], "momentum": 0.9},
            {"params": [third], "lr": 5.0, "bound": 1.5},
        ],
        lr=0.01,
    )
    references = [
        Reference(first.detach().clone(), 0.1, 0.0),
        Reference(second.detach().clone(), 0.01, 0.9),
        Reference(third.detach().clone(), 5.0, 0.0, 1.5),
    ]
    for _ in range(5):
        for one, reference in zip((first, second, third), references, strict=True):
            one.grad = torch.randn(one.shape)
            reference.step(one.grad)
        rule.step()
    for one, reference in zip((first, second, third), references, strict=True):
        assert_close(one, reference.natural)


def test_a_group_added_later_steps_and_is_checked():
    natural, later = parameter(0.2), parameter(0.4)
    rule = BayesianLearningRule([natural], lr=0.1, momentum=0.5)
    rule.add_param_group({"params": [later], "lr": 0.2})
    natural.grad, later.grad = torch.zeros(1), torch.ones(1)
    rule.step()
    assert_close(later, torch.tensor([0.4 - 0.2 * math.cosh(0.4) ** 2]))
    with pytest.raises(ValueError, match="momentum is in"):
        rule.add_param_group({"params": [parameter(0.0)], "momentum": 1.0})


def test_schedulers_change_the_step():
    natural = parameter(0.0)
    rule = BayesianLearningRule([natural], lr=1.0)
    schedule = torch.optim.lr_scheduler.ExponentialLR(rule, gamma=0.5)
    expected = 0.0
    for t in range(4):
        natural.grad = torch.tensor([0.01])
        expected -= 0.5**t * 0.01 * math.cosh(expected) ** 2
        rule.step()
        schedule.step()
    assert_close(natural, torch.tensor([expected]))


def test_a_closure_computes_the_gradients_and_its_loss_is_returned():
    natural = parameter(0.5)
    rule = BayesianLearningRule([natural], lr=0.1)

    def closure():
        rule.zero_grad()
        loss = (2.0 * numerics.mean(natural)).sum()
        loss.backward()
        return loss

    with torch.no_grad():
        loss = rule.step(closure)
    assert loss.item() == pytest.approx(2 * math.tanh(0.5))
    assert_close(natural, torch.tensor([0.3]))
    assert rule.step() is None


def test_no_gradient_is_no_step_and_a_zero_gradient_is_no_change():
    for momentum in (0.0, 0.9):
        idle, still, moved = parameter(0.5, -40.0), parameter(0.5, -40.0), parameter(0.5)
        rule = BayesianLearningRule([idle, still, moved], lr=0.1, momentum=momentum)
        still.grad, moved.grad = torch.zeros(2), torch.ones(1)
        rule.step()
        assert idle.tolist() == still.tolist() == [0.5, -40.0]
        assert moved.item() < 0.5
        assert idle not in rule.state
    empty = nn.Parameter(torch.empty(0))
    empty.grad = torch.empty(0)
    BayesianLearningRule([empty], lr=0.1).step()


def test_non_contiguous_parameters_and_gradients():
    for momentum in (0.0, 0.9):
        natural = nn.Parameter(torch.randn(4, 3).t())
        gradient = torch.randn(6, 4)[::2]
        natural.grad = gradient
        reference = Reference(natural.detach().clone(), 0.1, momentum)
        reference.step(gradient)
        BayesianLearningRule([natural], lr=0.1, momentum=momentum).step()
        assert_close(natural, reference.natural)


# Limits


SATURATED = (0.0, 3.0, -8.5, 8.5, -10.0, 10.0, 20.0, -40.0, 40.0)


def test_float32_steps_equal_float64_steps_at_saturated_parameters():
    # Through the package's own backward passes: 5 grad_mu towards the prior's sign and away from it.
    results = {}
    for dtype in (torch.float32, torch.float64):
        natural = parameter(*SATURATED, dtype=dtype)
        rule = BayesianLearningRule([natural], lr=0.5, momentum=0.9, bound=40.0)
        for _ in range(10):
            rule.zero_grad()
            loss = 5.0 * numerics.mean(natural).sum()
            loss = loss + fused.kl_sum(natural, torch.tensor(0.3, dtype=dtype))
            loss.backward()
            rule.step()
        assert bool(torch.isfinite(natural).all())
        results[dtype] = natural.detach().double()
    torch.testing.assert_close(results[torch.float32], results[torch.float64], rtol=1e-4, atol=1e-4)
    # They really have moved, all of them by about 10 * 0.5 * (5 + lambda) at first.
    assert bool(((results[torch.float64] - torch.tensor(SATURATED)).abs() > 1).all())


@pytest.mark.parametrize(
    "dtype, limit", [(torch.float32, 40.0), (torch.bfloat16, 40.0), (torch.float64, 300.0)], ids=str
)
def test_the_automatic_bound_of_each_dtype(dtype, limit):
    natural = parameter(1.0, -1.0, dtype=dtype)
    natural.grad = torch.tensor([-1e5, 1e5], dtype=dtype)
    rule = BayesianLearningRule([natural], lr=1.0)
    rule.step()
    assert natural.tolist() == [limit, -limit]
    # And the next natural gradient is finite there.
    fused.kl_sum(natural, torch.zeros((), dtype=dtype)).backward()
    natural.grad[:] = torch.autograd.grad(numerics.mean(natural).sum(), natural)[0]
    rule.step()
    expected = torch.tensor([limit - 1.0, -limit], dtype=dtype)
    torch.testing.assert_close(natural.detach(), expected, rtol=0.02, atol=0)


def test_bounds():
    for bound, expected in ((2.0, 2.0), (7, 7.0), (None, 100.5)):
        natural = parameter(0.5)
        natural.grad = torch.tensor([-100.0]) / math.cosh(0.5) ** 2
        BayesianLearningRule([natural], lr=1.0, bound=bound).step()
        assert natural.item() == pytest.approx(expected)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_parameter_that_starts_outside_the_bound_is_brought_to_it(momentum):
    # At 100 the float32 gradient has underflowed to 0 while 1/F is infinite.
    natural = parameter(100.0, -100.0, 0.5, dtype=torch.float32)
    rule = BayesianLearningRule([natural], lr=0.1, momentum=momentum)
    fused.kl_sum(natural, torch.zeros((), dtype=torch.float32)).backward()
    rule.step()
    assert natural.tolist() == pytest.approx([40.0, -40.0, 0.45])


# The preconditioner


def test_a_preconditioner_replaces_the_division_by_fisher():
    first, second, idle = parameter(0.2, 0.3), parameter(-8.0), parameter(1.0)
    first.grad, second.grad = torch.tensor([1.0, 2.0]), torch.tensor([3.0])
    asked = []

    def preconditioner(gradients):
        asked.append(gradients)
        return [None if g is None else 10.0 * g for g in gradients]

    rule = BayesianLearningRule(
        [{"params": [first]}, {"params": [second, idle], "lr": 0.2}],
        lr=0.1,
        preconditioner=preconditioner,
    )
    rule.step()
    assert [None if g is None else g.tolist() for g in asked[0]] == [[1.0, 2.0], [3.0], None]
    assert_close(first, torch.tensor([-0.8, -1.7]))
    assert_close(second, torch.tensor([-14.0]))
    assert idle.item() == 1.0
    assert not any("precond" in key for key in [*rule.state_dict(), *rule.param_groups[0]])


def test_a_preconditioner_answers_for_every_parameter():
    natural = parameter(0.2)
    natural.grad = torch.ones(1)
    rule = BayesianLearningRule([natural], lr=0.1, preconditioner=lambda gradients: [])
    with pytest.raises(ValueError, match=r"returned 0 gradients for 1 parameters.*in order"):
        rule.step()


def halve(gradients):
    return [0.5 * g for g in gradients]


# normalize=True


def test_normalized_steps_are_exact_to_the_formula():
    """One number per tensor: the running root mean square of its natural gradient."""
    beta, decay, lr = 0.9, 0.99, 0.03
    natural, other = parameter(0.2, -0.7, 1.5), parameter(0.4)
    rule = BayesianLearningRule([natural, other], lr=lr, momentum=beta, normalize=True)
    expected = natural.detach().clone()
    average, mean_square = torch.zeros(3), 0.0
    for t in range(1, 8):
        gradient = torch.tensor([0.3, -2.0, 0.1]) * t
        natural.grad, other.grad = gradient.clone(), torch.tensor([1e6])
        rule.step()
        natural_gradient = gradient * torch.cosh(expected) ** 2
        mean_square = decay * mean_square + (1 - decay) * natural_gradient.square().mean()
        size = (mean_square / (1 - decay**t)).sqrt()
        average = beta * average + (1 - beta) * natural_gradient / size
        expected = expected - lr * average / (1 - beta**t)
        assert_close(natural, expected)


@pytest.mark.parametrize("factor", [1e-6, 1e6])
def test_normalized_steps_do_not_depend_on_the_scale_of_the_loss(factor):
    results = []
    for scale in (1.0, factor):
        natural = parameter(0.2, -0.7, 1.5)
        rule = BayesianLearningRule([natural], lr=0.03, momentum=0.9, normalize=True)
        for _ in range(5):
            natural.grad = scale * torch.tensor([0.3, -2.0, 0.1])
            rule.step()
        results.append(natural.detach().clone())
    assert_close(results[1], results[0], rtol=1e-9)


def test_a_group_that_is_normalized_together_shares_one_size():
    first, second = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(2))
    third = nn.Parameter(torch.zeros(4))
    rule = BayesianLearningRule(
        [{"params": [first, second]}, {"params": [third]}],
        lr=0.1,
        normalize="group",
        preconditioner=lambda gradients: gradients,
    )
    first.grad, second.grad = torch.tensor([1.0, -2.0, 2.0]), torch.tensor([0.0, 4.0])
    third.grad = torch.full((4,), 7.0)
    rule.step()
    size = (3.0 + 8.0) ** 0.5  # mean squares add up
    torch.testing.assert_close(first.detach(), -0.1 * first.grad / size)
    torch.testing.assert_close(second.detach(), -0.1 * second.grad / size)
    torch.testing.assert_close(third.detach(), torch.full((4,), -0.1))
    # A tensor without a gradient neither steps nor counts.
    before = first.detach().clone()
    first.grad, second.grad, third.grad = None, torch.tensor([3.0, 3.0]), None
    rule.step()
    assert torch.equal(first, before)
    with pytest.raises(ValueError, match='normalize is False, True or "group"'):
        BayesianLearningRule([first], 0.1, normalize="site")


def test_normalized_offsets_step_as_mean_field_does():
    """Nested with the weight level: the step in lambda, normalised by site, is mean-field's."""
    model = Classifier(BinaryLinear(6, 4, bias=False), dataset_size=20)
    nested = AutoNestedSignBernoulli(model, init_scale=0.5, damping=1e-9)
    mean_field = AutoSignBernoulli(model, init=nested.posterior())
    x, y = torch.randn(20, 6), torch.arange(20) % 4
    before = nested.posterior()["weight"].natural
    for guide in (nested, mean_field):
        torch.manual_seed(0)
        (rule,) = make_optimizers(weight_groups(guide), lr=0.05)
        TraceBinary_ELBO(PseudoReward())(model, guide)(x, y).backward()
        rule.step()
    step, expected = (
        guide.posterior()["weight"].natural - before for guide in (nested, mean_field)
    )
    # The direction is the same; the size, a sum over levels, leaves out the products between them.
    ratio = (step / expected).mean().item()
    torch.testing.assert_close(step, ratio * expected, rtol=1e-5, atol=1e-7)
    assert 0.9 < ratio < 1.1
    # A number for each tensor would turn the direction: the layer's noise would count as much as all.
    twin = AutoNestedSignBernoulli(model, init=BinaryPosterior({"weight": before}), damping=1e-9)
    torch.manual_seed(0)
    TraceBinary_ELBO(PseudoReward())(model, twin)(x, y).backward()
    BayesianLearningRule(
        twin.offsets(), 0.05, 0.9, normalize=True, preconditioner=twin.natural_gradient
    ).step()
    turned = twin.posterior()["weight"].natural - before
    assert torch.cosine_similarity(turned.flatten(), expected.flatten(), dim=0) < 0.95


def test_normalized_steps_stand_still_without_a_gradient():
    natural = parameter(0.2, -0.7)
    rule = BayesianLearningRule([natural], lr=0.03, normalize=True)
    natural.grad = torch.zeros(2)
    rule.step()
    assert natural.tolist() == [0.2, -0.7]


def test_copies_step_as_the_original_does():
    for preconditioner in (None, halve):
        natural = parameter(0.3, -2.0)
        rule = BayesianLearningRule([natural], lr=0.1, momentum=0.9, preconditioner=preconditioner)
        natural.grad = torch.ones(2)
        rule.step()
        copies = [copy.deepcopy(rule), pickle.loads(pickle.dumps(rule))]
        rule.step()
        for copied in copies:
            (own,) = copied.param_groups[0]["params"]
            assert own is not natural
            own.grad = torch.ones(2)
            copied.step()
            assert torch.equal(own, natural)


# State


def training(dtype: torch.dtype = torch.float32, normalize: bool = False):
    natural = [parameter(0.3, -2.0, 9.0, dtype=dtype), parameter(0.1, dtype=dtype)]
    rule = BayesianLearningRule(
        [{"params": natural[:1]}, {"params": natural[1:], "momentum": 0.5, "bound": None}],
        lr=0.1,
        momentum=0.9,
        normalize=normalize,
    )
    schedule = torch.optim.lr_scheduler.StepLR(rule, step_size=3, gamma=0.7)
    return natural, rule, schedule


def run(natural, rule, schedule, steps: range) -> None:
    for t in steps:
        generator = torch.Generator().manual_seed(t)
        for one in natural:
            noise = torch.randn(one.shape, generator=generator, dtype=one.dtype)
            one.grad = noise * numerics.variance(one.detach())
        rule.step()
        schedule.step()


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_state_survives_a_file_bit_for_bit(dtype, normalize):
    whole = training(dtype, normalize)
    run(*whole, range(10))
    first = training(dtype, normalize)
    run(*first, range(5))
    file = io.BytesIO()
    state = {
        "natural": [one.detach() for one in first[0]],
        "rule": first[1].state_dict(),
        "schedule": first[2].state_dict(),
    }
    torch.save(state, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    second = training(dtype, normalize)
    with torch.no_grad():
        for one, value in zip(second[0], loaded["natural"], strict=True):
            one.copy_(value)
    second[1].load_state_dict(loaded["rule"])
    second[2].load_state_dict(loaded["schedule"])
    run(*second, range(5, 10))
    for one, other in zip(whole[0], second[0], strict=True):
        assert torch.equal(one, other)
    assert second[1].param_groups[1]["bound"] is None
    for state in second[1].state.values():
        assert state["step"].item() == 10 and state["momentum_buffer"].dtype == dtype


def test_loading_keeps_the_preconditioner():
    natural = parameter(0.3)
    rule = BayesianLearningRule([natural], lr=0.1, preconditioner=halve)
    rule.load_state_dict(rule.state_dict())
    natural.grad = torch.ones(1)
    rule.step()
    assert_close(natural, torch.tensor([0.25]))


# Errors


@pytest.mark.parametrize(
    "options, message",
    [
        ({"lr": -0.1}, "lr is a number of at least 0, such as 0.05 / dataset_size; got -0.1"),
        ({"lr": math.nan}, "lr is a number"),
        ({"lr": torch.tensor(0.1)}, "lr is a number"),
        ({"lr": 0.1, "momentum": 1.0}, r"momentum is in \[0, 1\); got 1.0"),
        ({"lr": 0.1, "momentum": -0.1}, r"momentum is in \[0, 1\); got -0.1"),
        ({"lr": 0.1, "bound": 0.0}, 'bound is a positive number, "auto" or None'),
        ({"lr": 0.1, "bound": -5}, 'bound is a positive number, "auto" or None'),
        ({"lr": 0.1, "bound": "off"}, "bound is a positive number.*got 'off'"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        BayesianLearningRule([parameter(0.0)], **options)


def test_parameters_are_needed_and_of_a_known_dtype():
    with pytest.raises(ValueError, match=r"got no parameters.*guide\.natural_parameters\(\)"):
        BayesianLearningRule(iter(()), lr=0.1)
    with pytest.raises(ValueError, match=r"float32, float64 or bfloat16; got torch\.float16"):
        BayesianLearningRule([parameter(0.0, dtype=torch.float16)], lr=0.1)


# The fixed point


X = torch.tensor(
    [[0.9, -0.4, 0.2, 0.7, -0.3, 0.5], [-0.6, 0.8, 0.5, -0.2, 0.9, 0.1], [0.3, 0.3, -0.8, 0.6, 0.4, -0.7]],
    dtype=torch.float64,
)  # fmt: skip
Y = torch.tensor([0.9, -0.5, 0.3], dtype=torch.float64)
PRIOR = torch.tensor([0.2, -0.3, 0.0, 0.5, -0.1, 0.4], dtype=torch.float64)


def log_likelihood(w: Tensor) -> Tensor:
    return dist.Normal(torch.tanh(0.8 * (X @ w)), 0.5).log_prob(Y).sum()


def model():
    w = pyro.sample("w", SignBernoulli(natural=PRIOR).to_event(1))
    with pyro.plate("data", 3):
        pyro.sample("y", dist.Normal(torch.tanh(0.8 * (X @ w)), 0.5), obs=Y)


@pytest.fixture(scope="module")
def optimum() -> Tensor:
    """lambda = lambda_p + grad_mu E_q[log p(y|w)], which is lambda_p - grad_mu E_q[L]."""
    return oracles.mean_field_optimum(log_likelihood, PRIOR, start=PRIOR)


@pytest.mark.parametrize("momentum", [0.0, 0.3])
def test_with_enumeration_it_converges_to_the_mean_field_optimum(momentum, optimum):
    guide = AutoSignBernoulli(model, init_scale=0.1)
    loss = TraceBinary_ELBO(Enumerate())(model, guide)
    rule = BayesianLearningRule(guide.natural_parameters(), lr=0.8, momentum=momentum)
    for _ in range(50):
        rule.zero_grad()
        loss().backward()
        rule.step()
    (natural,) = guide.natural_parameters()
    torch.testing.assert_close(natural.detach(), optimum, rtol=1e-6, atol=1e-6)
    # The optimum is a real one: neither the prior nor symmetric, and below the log evidence.
    assert (optimum - PRIOR).abs().max() > 0.3
    elbo = oracles.expectation(log_likelihood, optimum) - oracles.kl(optimum, PRIOR)
    assert loss().item() == pytest.approx(-elbo, abs=1e-8)
    assert elbo < oracles.log_evidence(log_likelihood, PRIOR)


def test_with_learning_rate_one_a_step_is_the_fixed_point_map():
    guide = AutoSignBernoulli(model, init_scale=0.5)
    (natural,) = guide.natural_parameters()
    before = natural.detach().clone()
    rule = BayesianLearningRule([natural], lr=1.0)
    TraceBinary_ELBO(Enumerate())(model, guide)().backward()
    rule.step()
    values = oracles.table(log_likelihood, 6)
    torch.testing.assert_close(natural.detach(), PRIOR + oracles.gradient_in_mean(values, before))


def test_in_pyros_svi(optimum):
    guide = AutoSignBernoulli(model, init_scale=0.1)
    rule = PyroOptim(BayesianLearningRule, {"lr": 0.4, "momentum": 0.5})
    svi = SVI(model, guide, rule, TraceBinary_ELBO(Enumerate()))
    for _ in range(40):
        svi.step()
    (natural,) = guide.natural_parameters()
    torch.testing.assert_close(natural.detach(), optimum, rtol=1e-4, atol=1e-4)


def test_beside_adam_in_one_training_run():
    def mixed():
        w = pyro.sample("w", SignBernoulli(natural=PRIOR).to_event(1))
        noise = pyro.sample("noise", dist.LogNormal(0.0, 0.5))
        with pyro.plate("data", 3):
            pyro.sample("y", dist.Normal(X @ w, noise), obs=Y)

    guide = AutoSignBernoulli(mixed, init_scale=0.0)
    loss = TraceBinary_ELBO(Enumerate())(mixed, guide)
    rule = BayesianLearningRule(guide.natural_parameters(), lr=0.1)
    adam = torch.optim.Adam(guide.real_parameters(), lr=0.02)
    before = [one.detach().clone() for one in guide.parameters()]
    losses = []
    for _ in range(25):
        rule.zero_grad()
        adam.zero_grad()
        value = loss()
        value.backward()
        rule.step()
        adam.step()
        losses.append(value.item())
    assert sum(losses[-5:]) < sum(losses[:5])
    assert all(not torch.equal(a, b) for a, b in zip(before, guide.parameters(), strict=True))


# Latents per datum


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("lazy", [True, False])
def test_a_row_makes_the_steps_that_it_would_make_alone(momentum, lazy):
    """Rows that are in no batch have gradient 0 there; a rule that is not lazy moves them by momentum."""
    start = torch.linspace(-1.0, 1.0, 4, dtype=torch.float64)
    natural = nn.Parameter(start.clone())
    rule = BayesianLearningRule([natural], lr=0.2, momentum=momentum, lazy=lazy)
    alone = [Reference(value, 0.2, momentum) for value in start]
    generator = torch.Generator().manual_seed(0)
    for _ in range(30):
        rows = torch.randperm(4, generator=generator)[:2]
        natural.grad = torch.zeros_like(natural)
        natural.grad[rows] = (natural - 0.5).detach()[rows] / torch.cosh(
            natural.detach()[rows]
        ) ** 2
        for row in rows:
            alone[row].step((alone[row].natural - 0.5) / torch.cosh(alone[row].natural) ** 2)
        rule.step()
    expected = torch.stack([each.natural for each in alone])
    equal = torch.allclose(natural.detach(), expected, rtol=1e-10)
    assert equal == (lazy or not momentum)


def test_the_size_of_gradients_is_that_of_the_rows_in_the_batch():
    few, all_rows = parameter(0.3, 0.3, 0.3, 0.3), parameter(0.3)
    rules = [
        BayesianLearningRule([p], 0.1, 0.9, normalize=True, lazy=True) for p in (few, all_rows)
    ]
    for _ in range(3):
        few.grad, all_rows.grad = torch.tensor([0.0, 0.7, 0.0, 0.0]), torch.tensor([0.7])
        for rule in rules:
            rule.step()
    assert_close(few[1:2], all_rows.detach())
    assert_close(few[[0, 2, 3]], torch.full((3,), 0.3))
    few.grad = torch.zeros(4)
    before = copy.deepcopy(rules[0].state_dict())
    rules[0].step()  # a batch without any row of it
    assert str(rules[0].state_dict()) == str(before)


def test_training_on_minibatches_ends_where_training_on_all_rows_does():
    """Signs of each datum and a global one by the default optimizers, against the mean-field optimum."""
    y = torch.tensor([0.9, -0.4, 0.2, -1.3])

    def model(rows):
        w = pyro.sample("w", SignBernoulli(natural=torch.tensor(0.3)))
        with pyro.plate("data", 4, subsample=rows):
            z = pyro.sample("z", SignBernoulli(natural=0.4 * w + 0.2))
            pyro.sample("y", dist.Normal(z + 0.5 * w, 1.0), obs=y[rows])

    def log_joint(state):
        w, z = state[0], state[1:]
        prior = -torch.log1p(torch.exp(-2.0 * (0.4 * w + 0.2) * z)).sum()
        return prior - 0.5 * ((y - z - 0.5 * w) ** 2).sum()

    uniform = torch.tensor([0.3, 0.0, 0.0, 0.0, 0.0])
    optimum = oracles.mean_field_optimum(log_joint, uniform, start=torch.zeros(5))
    everything = torch.arange(4)
    guide = AutoSignBernoulli(model, args=(everything,), init_scale=0.5)
    groups = list(guide.training_groups())
    assert [group.lazy for group in groups if group.rule == "natural-gradient"] == [False, True]
    natural = [guide.natural_of(name) for name in ("w", "z")]
    rules = [
        BayesianLearningRule([natural[0]], 0.1, 0.5),
        BayesianLearningRule([natural[1]], 0.25, 0.5, lazy=True),
    ]
    elbo = TraceBinary_ELBO(Enumerate())(model, guide)
    for step in range(400):
        rows = torch.tensor([step % 4, (step + 1 + step // 4 % 3) % 4])
        guide.zero_grad()
        elbo(rows).backward()
        for rule in rules:
            for group in rule.param_groups:  # steps that shrink, for the noise of the global sign
                group["lr"] = (0.1 if rule is rules[0] else 0.25) / (1.0 + 0.05 * step)
            rule.step()
    found = torch.cat([p.detach().flatten() for p in natural])
    torch.testing.assert_close(found, optimum, atol=0.02, rtol=0.0)
    with torch.no_grad():
        for p, value in zip(natural, optimum.split([1, 4]), strict=True):
            p.copy_(value.reshape(p.shape))
    guide.zero_grad()
    elbo(everything).backward()
    assert max(p.grad.abs().max().item() for p in natural) < 1e-9
    guide.zero_grad()  # and a row's own gradient vanishes there in each minibatch
    elbo(everything[1:3]).backward()
    assert natural[1].grad.abs().max() < 1e-9 < natural[0].grad.abs()
