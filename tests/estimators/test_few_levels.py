"""Estimators of weights with a few levels, against sums over all their states."""

# A gradient is None until there is one, which the assertion at hand would tell.
# pyright: reportOptionalMemberAccess=false, reportArgumentType=false

from __future__ import annotations

import itertools

import pytest
import torch
from stats import assert_within_standard_errors, exceeds_standard_errors

from bayesbin.distributions import LowBitCategorical, equal_levels
from bayesbin.estimators import (
    Concrete,
    Enumerate,
    ExpectedWeight,
    LocalReparameterization,
    MovingAverage,
    ScoreFunction,
)

TERNARY = (-1.0, 0.0, 1.0)


class Mixed:
    """A site "a" of ternary weights, one "b" of two bits and one "c" of signs; f is curved in all."""

    shapes = {"a": (2, 1), "b": (1,), "c": (3,)}  # noqa: RUF012

    def __init__(self):
        generator = torch.Generator().manual_seed(5)
        draw = lambda *shape: torch.randn(*shape, generator=generator)
        self.logits = {"a": draw(2, 1, 3).requires_grad_(), "b": draw(1, 4).requires_grad_()}
        self.natural = (0.5 * draw(3)).requires_grad_()
        self.leaves = [self.logits["a"], self.logits["b"], self.natural]
        self.coefficients = draw(6)

    def entries(self):
        return {
            "a": LowBitCategorical(TERNARY, self.logits["a"]),
            "b": LowBitCategorical(equal_levels(2), self.logits["b"]),
            "c": self.natural,
        }

    def f(self, a, b, c):
        flat = torch.cat([a.flatten(), b.flatten(), c.flatten()])
        h = (self.coefficients * flat).sum()
        return torch.exp(0.6 * h) + torch.sin(2 * flat[0] * flat[2] + flat[3]) + flat[1] ** 2

    def objective(self, values):
        return torch.stack(
            [self.f(*draw) for draw in zip(*(values[n] for n in "abc"), strict=True)]
        )

    def exact(self):
        """E[f] by loops over levels, and its gradients."""
        supports = [TERNARY, TERNARY, equal_levels(2), (-1.0, 1.0), (-1.0, 1.0), (-1.0, 1.0)]
        masses = [
            *self.logits["a"].reshape(2, 3).softmax(-1),
            *self.logits["b"].softmax(-1),
            *torch.stack([torch.sigmoid(-2 * self.natural), torch.sigmoid(2 * self.natural)], -1),
        ]
        total = torch.zeros(())
        for state in itertools.product(*(range(len(s)) for s in supports)):
            w = torch.tensor([s[k] for s, k in zip(supports, state, strict=True)])
            mass = torch.stack([m[k] for m, k in zip(masses, state, strict=True)]).prod()
            total = total + mass * self.f(w[:2].reshape(2, 1), w[2:3], w[3:])
        return total.detach(), torch.autograd.grad(total, self.leaves)


def flat(tensors):
    return torch.cat([t.flatten() for t in tensors])


def test_enumerate_is_exact():
    target = Mixed()
    expected, slopes = target.exact()
    surrogate = Enumerate()(target.objective, target.entries())
    torch.testing.assert_close(surrogate.detach(), expected)
    torch.testing.assert_close(flat(torch.autograd.grad(surrogate, target.leaves)), flat(slopes))
    with pytest.raises(ValueError, match=r"at most 2\^4; the guide has 2\^8.2"):
        Enumerate(max_weights=4)(target.objective, target.entries())


@pytest.mark.parametrize(
    "estimator",
    [
        ScoreFunction(16),
        pytest.param(ScoreFunction(8, baseline=None), marks=pytest.mark.slow),
        ScoreFunction(4, MovingAverage()),
    ],
    ids=repr,
)
def test_the_score_function_is_unbiased(estimator):
    target = Mixed()
    expected, slopes = target.exact()
    values, gradients = [], []
    for _ in range(600):
        surrogate = estimator(target.objective, target.entries())
        values.append(surrogate.detach())
        gradients.append(flat(torch.autograd.grad(surrogate, target.leaves)))
    assert_within_standard_errors(torch.stack(values), expected)
    assert_within_standard_errors(torch.stack(gradients), flat(slopes))
    assert exceeds_standard_errors(torch.stack(gradients), 0.5 * flat(slopes))
    assert exceeds_standard_errors(torch.stack(gradients), -flat(slopes))


def test_the_bias_of_concrete_vanishes_with_its_temperature():
    # A function without a closed form of its gradient through relaxed weights: one ternary weight.
    logits = torch.tensor([[0.2, -0.3, 0.4]], requires_grad=True)
    f = lambda w: torch.exp(0.9 * w).sum()
    distribution = LowBitCategorical(TERNARY, logits)
    exact = torch.autograd.grad(
        (distribution.probs * torch.exp(0.9 * distribution.level_values)).sum(), logits
    )[0]
    copies = 4000
    far, near = [], []
    for temperature, kept in ((1.0, far), (0.05, near)):
        many = logits.detach().repeat(copies, 1).requires_grad_()
        objective = lambda values: torch.stack([f(w) for w in values["w"]])
        surrogate = Concrete(temperature)(objective, {"w": LowBitCategorical(TERNARY, many)})
        kept.append(torch.autograd.grad(surrogate, many)[0])
    assert exceeds_standard_errors(far[0], exact[0])
    # What is left at 0.05 is below the noise of the draws.
    assert_within_standard_errors(near[0], exact[0])


def test_local_reparameterization_has_the_exact_mean_and_variance_of_the_levels():
    logits = torch.randn(5, 40, 3, requires_grad=True)
    distribution = LowBitCategorical(TERNARY, logits)
    x = torch.randn(1, 40).expand(4000, 40)
    found = []

    def objective(values):
        (weight,) = values["w"]
        found.append(torch.nn.functional.linear(x, weight))
        return found[-1].square().mean()[None]

    surrogate = LocalReparameterization()(objective, {"w": distribution})
    mean, variance = x[0] @ distribution.mean.T, x[0].square() @ distribution.variance.T
    assert_within_standard_errors(found[0].detach(), mean.detach())
    centred = (found[0] - mean).detach().square()
    assert_within_standard_errors(centred, variance.detach())
    signs = (
        x[0].square() @ (1 - distribution.mean.square()).T
    )  # the variance of signs with these means
    assert exceeds_standard_errors(centred, signs.detach())
    (slope,) = torch.autograd.grad(surrogate, logits)
    expected = torch.autograd.grad((mean.square() + variance).mean(), logits)[0]
    torch.testing.assert_close(slope, expected, atol=0.1 * expected.abs().max().item(), rtol=0)


def test_expected_weight_is_the_sharpened_mean():
    logits, natural = torch.randn(4, 3, requires_grad=True), torch.randn(4, requires_grad=True)
    seen = {}

    def objective(values):
        seen.update({name: draws[0] for name, draws in values.items()})
        return (values["a"][0] * values["c"][0]).sum()[None]

    entries = {"a": LowBitCategorical(TERNARY, logits), "c": natural}
    surrogate = ExpectedWeight(2.5)(objective, entries)
    share = (2.5 * logits).softmax(-1)
    torch.testing.assert_close(seen["a"], share @ torch.tensor(TERNARY))
    torch.testing.assert_close(seen["c"], torch.tanh(2.5 * natural))
    twin = ((share @ torch.tensor(TERNARY)) * torch.tanh(2.5 * natural)).sum()
    got = torch.autograd.grad(surrogate, (logits, natural))
    torch.testing.assert_close(flat(got), flat(torch.autograd.grad(twin, (logits, natural))))
    with pytest.raises(ValueError, match="sharpness to be a number above 0"):
        ExpectedWeight(0.0)
