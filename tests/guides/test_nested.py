"""The nested guide: sums of shared offsets, and their joint natural gradient."""

from __future__ import annotations

import math

import pyro
import pytest
import torch
from oracles import all_states
from pyro.infer import SVI
from torch import Tensor, nn

from bayesbin.core.nesting import SCOPES
from bayesbin.distributions import SignBernoulli
from bayesbin.estimators import Enumerate, PseudoReward
from bayesbin.guides import AutoNestedSignBernoulli, AutoSignBernoulli
from bayesbin.guides.nested import nested_natural_gradient
from bayesbin.infer import TraceBinary_ELBO, fit
from bayesbin.nn import BinaryConv2d, BinaryLinear, Classifier
from bayesbin.optim import DEFAULTS, BayesianLearningRule
from bayesbin.posterior import BinaryPosterior


def conv_model() -> Classifier:
    torch.manual_seed(0)
    layers = [BinaryConv2d(2, 3, 2), nn.Tanh(), nn.Flatten(), BinaryLinear(12, 3)]
    return Classifier(nn.Sequential(*layers), dataset_size=30)


def conv_batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(15, 2, 3, 3, generator=generator), torch.arange(15) % 3


def small_model() -> Classifier:
    """Eight weights, few enough to enumerate, in two layers."""
    layers = [BinaryLinear(3, 2, bias=False, scale=0.7), nn.Tanh(), BinaryLinear(2, 1, bias=False)]
    layers.append(nn.ConstantPad1d((1, 0), 0.0))  # the logit of class 1 beside a 0 for class 0
    return Classifier(nn.Sequential(*layers), dataset_size=20)


def small_batch() -> tuple[Tensor, Tensor]:
    x = torch.randn(20, 3, generator=torch.Generator().manual_seed(2))
    return x, (x[:, 0] - x[:, 1] > 0).long()


def plain_model(*shape: int):
    def model() -> None:
        natural = torch.zeros(shape)
        pyro.sample("w", SignBernoulli(natural=natural).to_event(len(shape)))

    return model


def shapes(guide: AutoNestedSignBernoulli) -> list[tuple[int, ...]]:
    return [tuple(p.shape) for p in guide.offsets()]


# What there is


@pytest.mark.parametrize(
    "shape, sharing, expected",
    [
        ((4, 2, 3, 3), SCOPES, [(1, 1, 1, 1), (4, 1, 1, 1), (4, 2, 1, 1), (4, 2, 3, 3)]),
        ((4, 2, 5), SCOPES, [(1, 1, 1), (4, 1, 1), (4, 2, 1), (4, 2, 5)]),
        ((4, 6), SCOPES, [(1, 1), (4, 1), (4, 6)]),
        ((4, 6), ("filter", "layer"), [(1, 1), (4, 1)]),
        ((4, 6), ("kernel", "weight"), [(4, 6)]),
        ((4, 2, 1, 1), SCOPES, [(1, 1, 1, 1), (4, 1, 1, 1), (4, 2, 1, 1)]),
        ((1, 6), SCOPES, [(1, 1), (1, 6)]),
        ((5,), SCOPES, [(1,), (5,)]),
        ((), SCOPES, [()]),
    ],
    ids=str,
)
def test_scopes_are_those_a_site_has_each_once(shape, sharing, expected):
    guide = AutoNestedSignBernoulli(plain_model(*shape), sharing)
    assert shapes(guide) == expected
    assert guide.natural_of("w").shape == shape


def test_lambda_is_the_explicit_sum():
    guide = AutoNestedSignBernoulli(conv_model(), init_scale=0.5)
    a, b, c, d = list(guide.offsets())[:4]
    natural = guide.posterior()["0.weight"].natural
    for o in range(3):
        for i in range(2):
            for k in range(2):
                for m in range(2):
                    explicit = a[0, 0, 0, 0] + b[o, 0, 0, 0] + c[o, i, 0, 0] + d[o, i, k, m]
                    torch.testing.assert_close(natural[o, i, k, m], explicit)


def test_no_parameter_is_a_natural_one():
    guide = AutoNestedSignBernoulli(conv_model())
    assert list(guide.natural_parameters()) == []
    offsets = {id(p) for p in guide.offsets()}
    assert offsets == {id(p) for p in guide.parameters()} and not list(guide.real_parameters())
    with pytest.raises(ValueError, match="guide of another parameterisation offers offsets"):
        BayesianLearningRule(guide.natural_parameters(), lr=0.1)


def test_without_the_weight_scope_the_posterior_is_compact():
    model = Classifier(BinaryLinear(100, 20), dataset_size=10)
    compact = AutoNestedSignBernoulli(model, ("layer", "filter"))
    assert sum(p.numel() for p in compact.offsets()) == 21
    assert compact.posterior().num_weights == 2000
    # A random start is as wide without the weight scope as with it.
    wide = AutoNestedSignBernoulli(model, ("filter",), init_scale=0.5)
    assert 0.25 < wide.posterior()["weight"].natural.std() < 0.8


def test_a_given_start_is_projected_on_the_scopes():
    start = BinaryPosterior({"w": torch.tensor([[1.0, 3.0], [-2.0, 0.0]])})
    compact = AutoNestedSignBernoulli(plain_model(2, 2), ("layer", "filter"), init=start)
    assert compact.posterior()["w"].natural.tolist() == [[2.0, 2.0], [-1.0, -1.0]]
    assert [p.flatten().tolist() for p in compact.offsets()] == [[0.5], [1.5, -1.5]]


@pytest.mark.parametrize(
    "sharing", [(), ("filters",), ("layer", "layer"), "layer", ("weight", "unit")], ids=str
)
def test_scopes_that_do_not_exist_are_refused(sharing):
    with pytest.raises(ValueError, match="sharing is some of layer, filter, kernel, weight"):
        AutoNestedSignBernoulli(plain_model(2, 2), sharing)


def test_other_arguments_that_do_not_fit():
    with pytest.raises(
        ValueError, match=r"site 'w' of shape \(2, 3\) no parameter; add \"weight\""
    ):
        AutoNestedSignBernoulli(plain_model(2, 3), ("kernel",))
    with pytest.raises(ValueError, match="damping is positive"):
        AutoNestedSignBernoulli(plain_model(2, 3), damping=0.0)


# Gradients


def exact_loss(model: Classifier, guide: AutoNestedSignBernoulli | AutoSignBernoulli) -> Tensor:
    return TraceBinary_ELBO(Enumerate())(model, guide)(*small_batch())


def test_gradients_meet_finite_differences_of_the_exact_elbo():
    model = small_model()
    guide = AutoNestedSignBernoulli(model, init_scale=0.4)
    exact_loss(model, guide).backward()
    for parameter in guide.offsets():
        assert parameter.grad is not None
        for index in range(parameter.numel()):
            ends = []
            for step in (1e-5, -1e-5):
                with torch.no_grad():
                    kept = parameter.detach().clone()
                    parameter.view(-1)[index] += step
                    ends.append(exact_loss(model, guide))
                    parameter.copy_(kept)
            slope = (ends[0] - ends[1]) / 2e-5
            torch.testing.assert_close(parameter.grad.view(-1)[index], slope, rtol=1e-6, atol=1e-8)


# The natural gradient


def dense_solution(
    gradient: Tensor, fisher: Tensor, sharing: list[tuple[int, ...]], damping: float
) -> list[Tensor]:
    """(J'FJ + damping diag(J'FJ))^-1 J'g with J written out."""
    memberships = []
    for shape in sharing:
        indices = torch.arange(math.prod(shape)).reshape(shape).expand(fisher.shape).flatten()
        memberships.append(nn.functional.one_hot(indices, math.prod(shape)).double())
    J = torch.cat(memberships, 1)
    information = J.T @ torch.diag(fisher.flatten()) @ J
    damped = information + damping * torch.diag(information.diagonal())
    solution = torch.linalg.solve(damped, J.T @ gradient.flatten())
    parts = solution.split([math.prod(shape) for shape in sharing])
    return [part.reshape(shape) for part, shape in zip(parts, sharing, strict=True)]


@pytest.mark.parametrize("damping", [1.0, 0.1, 1e-3])
@pytest.mark.parametrize(
    "kept", [(0, 1, 2, 3), (0, 3), (1, 2, 3), (2, 3), (3,), (0, 1, 2), (0, 2), (1,)]
)
def test_the_solution_across_scopes_is_that_of_the_dense_system(kept, damping):
    full = (3, 2, 2, 2)
    sharing = [[(1, 1, 1, 1), (3, 1, 1, 1), (3, 2, 1, 1), full][i] for i in kept]
    fisher, gradient = torch.rand(full) + 0.05, torch.randn(full)
    if kept[-1] < 3:  # weights that share their finest offset share lambda, and so the information
        fisher = (
            fisher[:, :, :1, :1].expand(full)
            if kept[-1] == 2
            else fisher[:, :1, :1, :1].expand(full)
        )
    expected = dense_solution(gradient, fisher, sharing, damping)
    finest = sharing[-1]
    got = nested_natural_gradient(
        gradient.sum_to_size(finest), fisher.sum_to_size(finest), sharing, damping
    )
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


def test_with_the_weight_scope_the_step_in_lambda_is_mean_fields():
    model = conv_model()
    nested = AutoNestedSignBernoulli(model, init_scale=0.6, damping=1e-6)
    mean_field = AutoSignBernoulli(model, init=nested.posterior())
    losses = []
    for guide in (nested, mean_field):
        torch.manual_seed(3)
        loss = TraceBinary_ELBO(PseudoReward())(model, guide)(*conv_batch())
        loss.backward()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(losses[1])
    before = {name: distribution.natural for name, distribution in nested.posterior().items()}
    BayesianLearningRule(nested.offsets(), lr=0.01, preconditioner=nested.natural_gradient).step()
    BayesianLearningRule(mean_field.natural_parameters(), lr=0.01).step()
    for name, distribution in nested.posterior().items():
        step, expected = (
            distribution.natural - before[name],
            mean_field.posterior()[name].natural - before[name],
        )
        torch.testing.assert_close(
            step, expected, rtol=1e-4, atol=1e-6 * expected.abs().max().item()
        )


def test_the_weight_scope_alone_is_mean_field_step_for_step():
    model = small_model()
    mean_field = AutoSignBernoulli(model, init_scale=0.3)
    nested = AutoNestedSignBernoulli(model, ("weight",), init=mean_field.posterior())
    rules = (
        BayesianLearningRule(nested.offsets(), 0.01, 0.9, preconditioner=nested.natural_gradient),
        BayesianLearningRule(mean_field.natural_parameters(), 0.01, 0.9),
    )
    for _ in range(20):
        for guide, rule in zip((nested, mean_field), rules, strict=True):
            rule.zero_grad()
            exact_loss(model, guide).backward()
            rule.step()
        for one, other in zip(nested.offsets(), mean_field.natural_parameters(), strict=True):
            torch.testing.assert_close(one.detach(), other.detach(), rtol=1e-10, atol=1e-12)


SMALL = {"0.weight": (2, 3), "2.weight": (1, 2)}


def exact_losses(make_optimizer, seed: int) -> list[float]:
    """Sixty steps of the exact loss of eight weights without a weight scope; the labels are the sign of
    the sum of the inputs, which shared offsets can express."""
    x = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    y = torch.where(x.sum(1) > 0, 1.0, -1.0)
    states = all_states(8)
    hidden = torch.tanh(0.7 * torch.einsum("soi,bi->sbo", states[:, :6].view(-1, 2, 3), x))
    logits = torch.einsum("sbo,so->sb", hidden, states[:, 6:])
    nll = -nn.functional.logsigmoid(y * logits).sum(1)

    def model() -> None:
        for name, shape in SMALL.items():
            pyro.sample(name, SignBernoulli(natural=torch.zeros(shape)).to_event(2))

    torch.manual_seed(seed)
    guide = AutoNestedSignBernoulli(model, ("layer", "filter"))
    optimizer = make_optimizer(guide)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        natural = torch.cat([guide.natural_of(name).flatten() for name in SMALL])
        kl = torch.distributions.kl_divergence(
            SignBernoulli(natural=natural), SignBernoulli(natural=torch.zeros(8))
        ).sum()
        log_q = nn.functional.logsigmoid(2.0 * natural * states).sum(1)
        loss = (log_q.exp() * nll).sum() + kl
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
    return losses


def test_without_the_weight_scope_natural_steps_are_fewer_than_adams():
    def natural(guide):
        gradient = guide.natural_gradient
        return BayesianLearningRule(guide.offsets(), lr=10 / 20, preconditioner=gradient)

    makers = {"natural": natural} | {
        f"Adam {lr}": lambda guide, lr=lr: torch.optim.Adam(guide.offsets(), lr)
        for lr in (0.1, 0.2, 0.3, 0.5)
    }
    runs = {name: [exact_losses(make, seed) for seed in range(5)] for name, make in makers.items()}
    optimum = min(min(losses) for starts in runs.values() for losses in starts)

    def steps(losses: list[float]) -> int:
        """Steps after which the loss stays within 1 % of its fall to the optimum."""
        enough = optimum + 0.01 * (losses[0] - optimum)
        return max((i + 1 for i, value in enumerate(losses) if value > enough), default=0)

    counts = {name: sorted(map(steps, starts)) for name, starts in runs.items()}
    ours = counts.pop("natural")
    # docs/guide/nested.md has these numbers.
    assert (min(ours), max(ours)) == (6, 8), ours
    medians = {name: adam[2] for name, adam in counts.items()}
    assert min(medians.values()) == medians["Adam 0.3"] == 11, counts
    assert all(sum(adam) > 1.5 * sum(ours) for adam in counts.values()), counts


def test_the_diagonal_of_each_scope_is_a_step_no_longer_than_the_joint_one():
    model = conv_model()
    joint = AutoNestedSignBernoulli(model, init_scale=0.6)
    diagonal = AutoNestedSignBernoulli(model, init=joint.posterior(), fisher="diagonal")
    torch.manual_seed(0)
    TraceBinary_ELBO(PseudoReward())(model, diagonal)(*conv_batch()).backward()
    gradients = [p.grad for p in diagonal.offsets()]
    found = diagonal.natural_gradient(gradients)
    # By its definition, scope by scope.
    place = 0
    for name in ("0.weight", "3.weight"):
        information = diagonal.posterior()[name].variance
        own = diagonal.offsets_by_site()[name]
        for offset in own:
            fisher = information.sum_to_size(offset.shape)
            expected = gradients[place] / (fisher * len(own) * (1.0 + diagonal.damping))
            torch.testing.assert_close(found[place], expected)
            place += 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_saturated_weights_leave_the_natural_gradient_finite(dtype):
    start = torch.tensor([[40.0, -40.0, 0.3], [40.0, 40.0, 40.0]], dtype=dtype)
    guide = AutoNestedSignBernoulli(plain_model(2, 3), init=BinaryPosterior({"w": start})).to(dtype)
    natural = guide.natural_of("w")
    (torch.tanh(natural.clamp(-5, 5)).sum() + 1e-30 * natural.sum()).backward()
    found = guide.natural_gradient([p.grad for p in guide.offsets()])
    assert all(x is not None and x.dtype == dtype and bool(torch.isfinite(x).all()) for x in found)


def test_gradients_come_in_the_order_of_the_offsets():
    guide = AutoNestedSignBernoulli(conv_model())
    count = len(list(guide.offsets()))
    assert guide.natural_gradient([None] * count) == [None] * count
    with pytest.raises(ValueError, match=rf"gradients of all {count} offsets"):
        guide.natural_gradient([None] * (count - 1))


# In use


def test_fit_trains_offsets_by_their_natural_gradient():
    model = conv_model()
    guide = AutoNestedSignBernoulli(model, ("layer", "filter", "kernel"))
    before = [p.detach().clone() for p in guide.offsets()]
    result = fit(model, guide, [conv_batch()], epochs=3, estimator=PseudoReward(), progress=False)
    assert all(not torch.equal(p, q) for p, q in zip(before, guide.offsets(), strict=True))
    # Two optimizers: the rule for the offsets, Adam for the biases.
    assert len(result.history[0]["lr"]) == 2 and result.history[0]["lr"][0] == DEFAULTS["lr"]


@pytest.mark.parametrize("local", [False, True], ids=["global", "local"])
def test_svi_trains_the_offsets(local):
    with pyro.settings.context(module_local_params=local):
        model = small_model()
        guide = AutoNestedSignBernoulli(model)
        before = [p.detach().clone() for p in guide.offsets()]
        svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), TraceBinary_ELBO(PseudoReward()))
        for _ in range(2):
            svi.step(*small_batch())
        assert all(not torch.equal(p, q) for p, q in zip(before, guide.offsets(), strict=True))
