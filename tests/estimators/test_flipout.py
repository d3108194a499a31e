"""Flipout: each datum's outputs have the exact mean and covariance, between units and between positions."""

# A gradient is None until there is one, which the assertion at hand would tell.
# pyright: reportOptionalMemberAccess=false, reportArgumentType=false, reportOptionalOperand=false
# pyright: reportCallIssue=false, reportAttributeAccessIssue=false

from __future__ import annotations

import numpy as np
import oracles
import pyro
import pyro.distributions as dist
import pytest
import torch
from stats import assert_within_standard_errors, exceeds_standard_errors
from torch import Tensor, nn
from torch.nn import functional as F

from bayesbin.core import fused
from bayesbin.core.networks import call
from bayesbin.distributions import LowBitCategorical, SignBernoulli
from bayesbin.estimators import Flipout, FlipoutWhereShared, LocalReparameterization
from bayesbin.estimators.base import BatchObjective
from bayesbin.estimators.weight_draws import WeightDraw
from bayesbin.estimators.weight_moments import WeightMoments
from bayesbin.guides import AutoSignBernoulli
from bayesbin.infer import TraceBinary_ELBO, fit
from bayesbin.nn import Classifier, binary_sites, to_binary_

DATA = 3


def drawn(natural: Tensor, flips: bool | None = True, sizes=(DATA,)) -> WeightMoments:
    return WeightMoments.of(
        WeightDraw("w", *fused.moments(natural), "Flipout", flips, lambda: set(sizes))
    )


def plain_columns(use, natural: Tensor) -> Tensor:
    """The change of the output by one standard deviation of each weight, by arithmetic on plain tensors."""
    zero = use(torch.zeros_like(natural))
    deviation = 1 / torch.cosh(natural).flatten()
    units = torch.diag(deviation).reshape(-1, *natural.shape)
    return torch.stack([use(unit) - zero for unit in units])


def flipped_columns(use, natural: Tensor, sizes=(DATA,)) -> tuple[Tensor, Tensor]:
    """The mean of Flipout's output, and its change by one deviation of each weight, for the same signs."""
    outputs = []
    deviation = 1 / torch.cosh(natural).flatten()
    for unit in torch.cat([torch.zeros(1, natural.numel()), torch.diag(deviation)]):
        torch.manual_seed(7)
        weight = drawn(natural, True, sizes)
        weight.draw._noise = unit.reshape(natural.shape)
        outputs.append(use(weight))
    return outputs[0], torch.stack([output - outputs[0] for output in outputs[1:]])


def covariance(columns: Tensor, datum: int, axis: int | None) -> Tensor:
    """The covariance of all outputs of one datum, from the columns of independent weights."""
    own = columns if axis is None else columns.select(axis + 1, datum)
    own = own.reshape(len(own), -1)
    return own.T @ own


def agree(use, natural: Tensor, axis: int | None, sizes=(DATA,)) -> bool:
    mean, columns = flipped_columns(use, natural, sizes)
    exact = plain_columns(use, natural)
    torch.testing.assert_close(mean, use(torch.tanh(natural)), rtol=1e-10, atol=1e-12)
    return all(
        torch.allclose(covariance(columns, b, axis), covariance(exact, b, axis), atol=1e-12)
        for b in range(1 if axis is None else DATA)
    )


B1 = torch.tensor([0.3, -0.7, 0.1, 0.5], dtype=torch.float64)

# Shape of the weight, of the input, the axis of data in the output, and the use.
USES = {
    "linear": ((4, 5), (3, 5), 0, lambda x, w: F.linear(x, w)),
    "linear, bias": ((4, 5), (3, 5), 0, lambda x, w: F.linear(x, w, B1)),
    "sequence": ((4, 5), (3, 6, 5), 0, lambda x, w: F.linear(x, w, B1)),
    "sequence, time first": ((4, 5), (6, 3, 5), 1, lambda x, w: F.linear(x, w)),
    "sequence of as many places as data": ((4, 5), (3, 3, 5), 0, lambda x, w: F.linear(x, w)),
    "the same, time first": ((4, 5), (3, 3, 5), 1, lambda x, w: F.linear(x, w)),
    "places in rows": ((4, 5), (6, 5), None, lambda x, w: F.linear(x, w)),
    "image of features": ((4, 5), (3, 2, 4, 5), 0, lambda x, w: F.linear(x, w)),
    "no datum": ((4, 5), (5,), None, lambda x, w: F.linear(x, w)),
    "vector": ((5,), (3, 2, 5), 0, lambda x, w: F.linear(x, w)),
    "conv1d": ((4, 2, 3), (3, 2, 7), 0, lambda x, w: F.conv1d(x, w, B1, padding=1)),
    "conv2d": ((4, 2, 2, 3), (3, 2, 4, 5), 0, lambda x, w: F.conv2d(x, w)),
    "conv2d, dilated and strided": (
        (4, 2, 2, 2), (3, 2, 6, 5), 0, lambda x, w: F.conv2d(x, w, None, (2, 1), (1, 0), 2),
    ),
    "conv2d, grouped": ((4, 2, 2, 2), (3, 4, 4, 4), 0, lambda x, w: F.conv2d(x, w, groups=2)),
    "conv2d, depthwise": (
        (4, 1, 3, 3), (3, 4, 4, 5), 0, lambda x, w: torch.conv2d(x, w, B1, (1, 1), (1, 1), (1, 1), 4),
    ),
    "conv3d": ((2, 2, 2, 2, 2), (3, 2, 3, 3, 3), 0, lambda x, w: F.conv3d(x, w)),
    "conv2d, one image": ((4, 2, 2, 3), (2, 4, 5), None, lambda x, w: F.conv2d(x, w)),
    "conv2d, frames in the batch": ((4, 2, 2, 3), (6, 2, 3, 4), None, lambda x, w: F.conv2d(x, w)),
    "transposed 1d": ((2, 4, 3), (3, 2, 5), 0, lambda x, w: F.conv_transpose1d(x, w, B1, stride=2)),
    "transposed 2d, grouped": (
        (4, 2, 2, 2), (3, 4, 3, 3), 0, lambda x, w: F.conv_transpose2d(x, w, None, 2, 0, 1, groups=2),
    ),
    "transposed 3d": ((2, 2, 2, 2, 1), (3, 2, 2, 2, 2), 0, lambda x, w: F.conv_transpose3d(x, w)),
    "x @ W": ((5, 4), (3, 6, 5), 0, lambda x, w: x @ w),
    "W @ x": ((4, 5), (5, 3), 1, lambda x, w: w @ x),
    "W @ x, batches": ((4, 5), (3, 5, 6), 0, lambda x, w: w @ x),
    "x @ w": ((5,), (3, 6, 5), 0, lambda x, w: x @ w),
    "w @ x": ((5,), (5, 3), 0, lambda x, w: w @ x),
    "mv": ((4, 5), (5,), None, lambda x, w: torch.mv(w, x)),
    "a matrix for each head": ((2, 5, 4), (3, 2, 6, 5), 0, lambda x, w: x @ w),
    "heads times a vector": ((2, 4, 5), (5,), None, lambda x, w: w @ x),
    "bilinear": ((4, 3, 5), (3, 6, 5), 0, lambda x, w: F.bilinear(x[..., :3], x, w, B1)),
    "scaled by unit": ((4, 5), (3, 6, 5), 0, lambda x, w: F.linear(x, 0.5 * w * B1[:, None] / 3)),
    "permuted": ((5, 1, 4), (3, 6, 5), 0, lambda x, w: F.linear(x, -w.permute(2, 1, 0).squeeze(1))),
    "reshaped": ((20,), (3, 6, 5), 0, lambda x, w: F.linear(x, w.reshape(4, 5))),
    "kernel as a matrix": ((4, 5, 1), (3, 6, 5), 0, lambda x, w: F.linear(x, w.flatten(1))),
    # A weight that is used several times is one weight: the covariance of its uses is kept as well.
    "twice": ((5, 5), (3, 5), 0, lambda x, w: torch.cat([F.linear(x, w), F.linear(x.sin(), w)], 1)),
    "tied and transposed": (
        (4, 5), (3, 6, 5), 0,
        lambda x, w: torch.cat([F.linear(x, w), F.linear(x[..., :4].sin(), w.t())], -1),
    ),
    "scaled twice": ((4, 5), (3, 5), 0, lambda x, w: torch.cat([x @ w.t(), x @ (w.T * 3.0)], 1)),
    "convolutions of two kinds": (
        (4, 2, 1, 3), (3, 2, 1, 5), 0,
        lambda x, w: torch.cat(
            [F.conv2d(x, w).flatten(1), F.conv1d(x.squeeze(2), w.squeeze(2), padding=1).flatten(1)], 1
        ),
    ),
    "rows in three parts": (
        (6, 5), (3, 6, 5), 0,
        lambda x, w: torch.cat([F.linear(x.sin() ** (i + 1), part) for i, part in enumerate(w.chunk(3))], -1),
    ),
    "rows and columns": (
        (6, 5), (3, 5), 0,
        lambda x, w: torch.cat([x @ w[np.int64(2)], F.linear(x[:, :3], w[3:, 2:]).sum(1)]).reshape(2, 3).T,
    ),
    "the whole, then a part": (
        (6, 5), (3, 5), 0, lambda x, w: torch.cat([F.linear(x, w), F.linear(x.sin(), w[2:4])], 1),
    ),
    "embedding": ((7, 4), None, 0, lambda x, w: F.embedding(torch.arange(12).reshape(3, 4) % 7, w)),
    "embedding, tied": (
        (7, 4), (3, 2, 4), 0,
        lambda x, w: torch.cat([F.embedding(torch.arange(6).reshape(3, 2) % 5, w), F.linear(x, w)], -1),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", USES)
def test_the_outputs_of_a_datum_have_the_exact_mean_and_covariance(name):
    weight_shape, input_shape, axis, use = USES[name]
    natural = torch.randn(weight_shape)
    x = None if input_shape is None else torch.randn(input_shape)
    assert agree(lambda w: use(x, w), natural, axis)


# Which of the axes counts data cannot be known, or there is one datum: no signs, the same noise for all.
SHARED = (
    "as many",
    "the same",
    "places in",
    "no datum",
    "one image",
    "frames",
    "mv",
    "heads times",
    "embed",
)
SIGNED = [name for name in USES if not any(part in name for part in SHARED)]


@pytest.mark.parametrize("name", SIGNED)
def test_data_have_signs_of_their_own(name):
    """Data that are alike have different perturbations: some outputs change their sign."""
    weight_shape, input_shape, axis, use = USES[name]
    natural = torch.randn(weight_shape)
    place = next(i for i, size in enumerate(input_shape) if size == DATA)
    x = torch.randn(input_shape).select(place, 0).unsqueeze(place).expand(input_shape)
    _, columns = flipped_columns(lambda w: use(x, w), natural)
    first, second = columns.select(axis + 1, 0), columns.select(axis + 1, 1)
    torch.testing.assert_close(first.abs(), second.abs(), rtol=1e-9, atol=1e-12)
    assert bool((first != second).any())


def test_the_test_of_the_covariance_can_fail():
    """Signs per place, as of an input whose places are taken for data, lose the covariance between places."""
    natural, x = torch.randn(4, 5), torch.randn(6, 3, 5)
    assert agree(lambda w: F.linear(x, w), natural, 1)
    assert not agree(lambda w: F.linear(x, w), natural, 1, sizes=(6,))
    # Without any knowledge the first axis is taken for that of data.
    assert not agree(lambda w: F.linear(x, w), natural, 1, sizes=())
    assert agree(lambda w: F.linear(x.transpose(0, 1), w), natural, 0, sizes=())


def test_data_are_uncorrelated():
    natural, x = torch.randn(4, 5), torch.randn(3, 6, 5)
    products = []
    for _ in range(500):
        changed = F.linear(x, drawn(natural)) - F.linear(x, torch.tanh(natural))
        products.append(changed[0, :, None] * changed[1, None])
    assert_within_standard_errors(torch.stack(products), 0.0)


def weights_of_data(weight: WeightMoments) -> Tensor:
    """The weight that each datum had, (data, ...), from the noise and the signs of a draw."""
    draw = weight.draw
    flips = torch.ones(DATA, draw.mean.numel())
    for known in draw._signs:
        places = draw._places(known.view)
        for signs, axis in zip(known.signs, known.axes, strict=True):
            shape = [len(signs), *[1] * places.dim()]
            shape[axis + 1] = signs.shape[1]
            flips[:, places.flatten()] *= signs.reshape(shape).expand(-1, *places.shape).flatten(1)
    flips = flips.reshape(DATA, *draw.mean.shape)
    return draw.mean + flips * draw.noise()


MODULES = {
    "attention": lambda: nn.MultiheadAttention(8, 2, batch_first=True),
    "attention, other sizes": lambda: nn.MultiheadAttention(8, 2, kdim=8, vdim=8, batch_first=True),
    "encoder layer": lambda: nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True),
    "encoder layer, norm first": lambda: nn.TransformerEncoderLayer(
        8, 2, 16, dropout=0.0, batch_first=True, norm_first=True
    ),
    "convolutions": lambda: nn.Sequential(
        nn.Conv1d(4, 6, 3, groups=2), nn.Tanh(), nn.ConvTranspose1d(6, 3, 2), nn.Flatten(), nn.Linear(21, 2)
    ),
    "a layer twice": lambda: Twice(),
    "steps by hand": lambda: Steps(),
}  # fmt: skip


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(torch.tanh(self.layer(x)))


class Steps(nn.Module):
    """A recurrent network, step by step."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again = nn.Linear(8, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), 6)
        for t in range(x.shape[1]):
            h = torch.tanh(self.first(x[:, t]) + self.again(h))
        return h


def forward(net: nn.Module, values, x: Tensor) -> Tensor:
    attends = isinstance(net, nn.MultiheadAttention)
    module = Attended(net) if attends else net
    named = {f"net.{name}": value for name, value in values.items()} if attends else values
    return call(module, named, x)


class Attended(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x, x.sin(), x, need_weights=False)[0]


@pytest.mark.parametrize("name", MODULES)
def test_each_datum_sees_one_weight_in_all_of_a_network(name):
    net = to_binary_(MODULES[name]())
    x = torch.randn(DATA, 4, 8)
    weights = {
        name: WeightMoments.of(
            WeightDraw(
                name, *fused.moments(torch.randn(site.shape)), "Flipout", True, lambda: {DATA}
            )
        )
        for name, site in binary_sites(net).items()
    }
    got = forward(net, weights, x)
    of_data = {name: weights_of_data(weight) for name, weight in weights.items()}
    for b in range(DATA):
        own = {name: weight[b] for name, weight in of_data.items()}
        torch.testing.assert_close(got[b : b + 1], forward(net, own, x[b : b + 1]))
    for name, weight in weights.items():  # and not the same as the next datum's
        assert bool((of_data[name][0] != of_data[name][1]).any()), name
        deviation = (of_data[name][0] - weight.mean_) / weight.variance_.sqrt()
        assert bool((deviation.abs() < 6).all()) and bool((deviation != 0).all())


@pytest.mark.parametrize("axis_first", [True, False], ids=["batch first", "time first"])
def test_attention_knows_its_axis_of_data(axis_first):
    """As many places as data: in attention the axis is known, whatever the layout."""
    net = to_binary_(nn.MultiheadAttention(8, 2, batch_first=axis_first))
    x = torch.randn(DATA, DATA, 8)
    weights = {
        name: WeightMoments.of(
            WeightDraw(
                name, *fused.moments(torch.randn(site.shape)), "Flipout", True, lambda: {DATA}
            )
        )
        for name, site in binary_sites(net).items()
    }
    forward(net, weights, x)
    for weight in weights.values():
        assert len(weight.draw._signs[0].signs[0]) == DATA


QUADRATIC = {
    "convolution": ((2, 1, 3), (3, 1, 6), lambda x, w: F.conv1d(x, w).sum(-1)),
    "linear over places": ((2, 4), (3, 5, 4), lambda x, w: F.linear(x, w).sum(1)),
    "transposed convolution": ((1, 2, 3), (3, 1, 4), lambda x, w: F.conv_transpose1d(x, w).sum(-1)),
    "used twice": ((2, 2), (3, 2), lambda x, w: F.linear(F.linear(x, w) * 0 + x, w) + F.linear(x.cos(), w)),
}  # fmt: skip


@pytest.mark.parametrize("name", QUADRATIC)
def test_the_gradient_of_a_quadratic_function_is_exact(name):
    """It depends on the mean and covariance of the outputs of a datum, and on nothing else."""
    shape, inputs, use = QUADRATIC[name]
    natural = {"w": (0.5 * torch.randn(shape)).requires_grad_()}
    x = torch.randn(inputs)

    def f(w: Tensor) -> Tensor:
        return use(x, w).square().mean()

    exact = oracles.gradient(lambda w: f(w.reshape(shape)), natural["w"].detach()).reshape(shape)

    def slopes(estimator, count: int = 400) -> Tensor:
        objective = BatchObjective(lambda values: torch.stack([f(w) for w in values["w"]]), (x,))
        surrogates = [estimator(objective, natural) for _ in range(count)]
        return torch.stack([torch.autograd.grad(each, natural["w"])[0] for each in surrogates])

    assert_within_standard_errors(slopes(Flipout(pathwise=True)), exact)
    if name != "used twice":  # which local reparameterization refuses; elsewhere it is biased
        assert exceeds_standard_errors(slopes(LocalReparameterization()), exact)


@pytest.mark.parametrize("name", ["one position", "equal positions", "different positions"])
def test_the_gradient_through_the_variance_of_outputs(name):
    """Exact for one position and for equal ones; else terms of pairs of positions are left out."""
    natural = {"w": (0.5 * torch.randn(2, 4)).requires_grad_()}
    places = 1 if name == "one position" else 5
    x = torch.randn(DATA, places, 4)
    if name == "equal positions":
        x = x[:, :1].expand_as(x)

    def f(w: Tensor) -> Tensor:
        return F.linear(x, w).sum(1).square().mean()

    exact = oracles.gradient(lambda w: f(w.reshape(2, 4)), natural["w"].detach()).reshape(2, 4)
    objective = BatchObjective(lambda values: torch.stack([f(w) for w in values["w"]]), (x,))
    for estimator in (Flipout(), FlipoutWhereShared()):
        slopes = [
            torch.autograd.grad(estimator(objective, natural), natural["w"])[0] for _ in range(400)
        ]
        biased = exceeds_standard_errors(torch.stack(slopes), exact)
        assert biased == (name == "different positions")


ROWS = {
    "convolution, fan-in 18": ((8, 2, 3, 3), (16, 2, 8, 8), lambda x, w: F.conv2d(x, w).flatten(2)),
    "convolution, fan-in 72": ((8, 8, 3, 3), (16, 8, 6, 6), lambda x, w: F.conv2d(x, w).flatten(2)),
    "linear over 20 positions": ((8, 32), (16, 20, 32), lambda x, w: F.linear(x, w).transpose(1, 2)),
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_the_expected_nll_is_that_of_hard_draws(name):
    """Of a layer with positions, a ReLU and a mean over positions; local reparameterization misses it."""
    shape, inputs, use = ROWS[name]
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(inputs, generator=generator)
    x = (x + x.flatten(2).mean(-1).reshape(*inputs[:2], *[1] * (len(inputs) - 2))).relu()
    if len(inputs) == 3:  # places of a sequence have something in common
        x = (x + torch.randn(inputs[0], 1, inputs[2], generator=generator)).relu()
    natural = {"w": 0.3 * torch.randn(shape, generator=generator)}
    head = torch.randn(5, 8, generator=generator)
    y = torch.arange(inputs[0]) % 5

    def nll(w: Tensor) -> Tensor:
        hidden = (use(x, w) / shape[1:].numel() ** 0.5).relu().mean(-1)
        return F.cross_entropy(2.0 * hidden @ head.T, y)

    shape = torch.Size(shape)
    probs = torch.sigmoid(2 * natural["w"])
    hard = torch.stack([nll(2 * torch.bernoulli(probs) - 1) for _ in range(3000)])
    objective = BatchObjective(lambda values: torch.stack([nll(w) for w in values["w"]]), (x, y))
    scores = []
    for estimator in (Flipout(), LocalReparameterization()):
        drawn_nll = torch.stack([estimator(objective, natural) for _ in range(1500)])
        error = (hard.var() / len(hard) + drawn_nll.var() / len(drawn_nll)).sqrt()
        scores.append(float((drawn_nll.mean() - hard.mean()) / error))
    assert abs(scores[0]) < 3 and abs(scores[1]) > 6, scores


# The choice, weight by weight


def test_the_choice_is_made_where_a_weight_is_used():
    net = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.Tanh(), nn.Flatten(2), nn.Linear(16, 4), nn.Flatten(), nn.Linear(12, 5)
    )  # fmt: skip
    model = Classifier(to_binary_(net), dataset_size=20)
    guide, estimator = AutoSignBernoulli(model), FlipoutWhereShared()
    x, y = torch.randn(DATA, 1, 6, 6), torch.tensor([0, 1, 2])
    TraceBinary_ELBO(estimator)(model, guide)(x, y).backward()
    assert estimator.choices == {
        "0.weight": "Flipout", "3.weight": "Flipout",
        "5.weight": "local reparameterization",
    }  # fmt: skip


def test_a_perceptron_gets_the_draws_of_local_reparameterization():
    net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    model = Classifier(to_binary_(net), dataset_size=20)
    guide = AutoSignBernoulli(model)
    x, y = torch.randn(DATA, 6), torch.tensor([0, 1, 2])
    losses = []
    for estimator in (FlipoutWhereShared(2), LocalReparameterization(2)):
        torch.manual_seed(3)
        guide.zero_grad()
        loss = TraceBinary_ELBO(estimator)(model, guide)(x, y)
        loss.backward()
        losses.append((loss.item(), [p.grad.clone() for p in guide.natural_parameters()]))
    assert losses[0][0] == losses[1][0]
    assert all(torch.equal(a, b) for a, b in zip(losses[0][1], losses[1][1], strict=True))


def test_a_weight_that_turns_out_to_be_used_again_is_drawn_anew():
    """The first evaluation leaves no trace: random numbers and statistics are those of a second one alone."""

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.steps, self.norm = Steps(), nn.BatchNorm1d(6)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.steps(x.flatten(2)))

    torch.manual_seed(0)
    model = Classifier(to_binary_(Both()), dataset_size=20)
    guide, estimator = AutoSignBernoulli(model), FlipoutWhereShared()
    x, y = torch.randn(DATA, 4, 8), torch.tensor([0, 1, 2])
    state = {name: buffer.clone() for name, buffer in model.named_buffers()}
    results = []
    for _ in range(2):
        model.load_state_dict(state, strict=False)
        torch.manual_seed(5)
        loss = TraceBinary_ELBO(estimator)(model, guide)(x, y)
        results.append((loss.item(), model.net.norm.running_mean.clone(), torch.rand(1)))
        assert set(estimator.choices.values()) == {"Flipout"}
    assert results[0][0] == results[1][0]
    assert torch.equal(results[0][1], results[1][1]) and torch.equal(results[0][2], results[1][2])
    with pytest.raises(RuntimeError, match="used twice"):
        TraceBinary_ELBO(LocalReparameterization())(model, guide)(x, y)


def test_what_was_found_of_one_model_is_not_kept_for_the_next():
    estimator, natural = FlipoutWhereShared(), {"w": torch.zeros(4, 4, requires_grad=True)}
    x = torch.randn(DATA, 4)
    uses = {
        "twice": lambda w: F.linear(F.linear(x, w).tanh(), w).sum(),
        "once": lambda w: F.linear(x, w).sum(),
    }
    found = []
    for name in ("twice", "once", "once", "twice"):
        estimator(
            lambda values, use=uses[name]: torch.stack([use(w) for w in values["w"]]), natural
        )
        found.append(estimator.choices["w"])
    assert found == ["Flipout", "Flipout", "local reparameterization", "Flipout"]


# What it takes, and what it refuses


def test_levels_and_hand_written_models():
    levels = LowBitCategorical(torch.tensor([-1.0, 0.0, 1.0]), torch.randn(4, 3, 3))
    mean, variance = levels.moments()
    x = torch.randn(1, 3)
    outputs = []

    def objective(values):
        outputs.append(F.linear(x, values["w"][0]))
        return outputs[-1].sum()[None]

    for _ in range(1000):
        Flipout()(objective, {"w": levels})
    draws = torch.stack(outputs)[:, 0].detach()
    assert_within_standard_errors(draws, F.linear(x, mean)[0].detach())
    exact = F.linear(x.square(), variance)[0].detach()
    assert_within_standard_errors((draws - F.linear(x, mean)[0].detach()).square(), exact)

    def model(x, y):
        w = pyro.sample("w", SignBernoulli(natural=torch.zeros(5)).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x @ w, 1.0), obs=y)

    data = torch.randn(20, 5), torch.randn(20)
    guide = AutoSignBernoulli(model, args=data)
    (lam,) = guide.natural_parameters()
    loss = TraceBinary_ELBO(Flipout())(model, guide)
    slopes = torch.stack([torch.autograd.grad(loss(*data), lam)[0] for _ in range(300)])
    start = lam.detach()
    log_likelihood = lambda w: dist.Normal(data[0] @ w, 1.0).log_prob(data[1]).sum()
    exact = -oracles.gradient(log_likelihood, start) + start / torch.cosh(start) ** 2
    assert_within_standard_errors(slopes, exact)


def test_a_subsample_counts_data():
    """x[indices] has as many rows as the plate's subsample: its rows are data, not positions."""
    x, y = torch.randn(20, 5), torch.randn(20)

    def model(x, y):
        w = pyro.sample("w", SignBernoulli(natural=torch.zeros(5)).to_event(1))
        with pyro.plate("data", len(x), subsample_size=7) as indices:
            pyro.sample("y", dist.Normal(x[indices] @ w, 1.0), obs=y[indices])

    guide, estimator = AutoSignBernoulli(model, args=(x, y)), FlipoutWhereShared()
    TraceBinary_ELBO(estimator)(model, guide)(x, y)
    assert estimator.choices == {"w": "local reparameterization"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_sums_are_in_the_type_of_the_input(dtype):
    natural = torch.randn(8, 2, 3).to(dtype).requires_grad_()
    output = F.conv1d(torch.randn(DATA, 2, 6).to(dtype), drawn(natural))
    assert output.dtype == dtype
    output.square().sum().backward()
    assert natural.grad.dtype == dtype and bool(natural.grad.isfinite().all())
    if dtype == torch.float32:
        with torch.autocast("cpu", torch.bfloat16):
            assert (
                F.linear(torch.randn(DATA, 4, 3).float(), drawn(torch.randn(5, 3).float())).dtype
                == torch.bfloat16
            )


def test_decided_weights_have_no_noise_and_dead_inputs_no_nan():
    natural = torch.tensor([[40.0, -40.0, 100.0]], requires_grad=True)
    output = F.linear(torch.tensor([[1.0, 2.0, 3.0]]), drawn(natural))
    assert output.item() == pytest.approx(2.0, abs=1e-6)
    output.sum().backward()
    assert bool(natural.grad.isfinite().all())
    empty = F.linear(torch.empty(0, 3), drawn(natural))
    assert empty.shape == (0, 1)


REFUSED = {
    "other rows": (r"first in part and then as a whole",
                   lambda w, x: (F.linear(x, w[:2]), F.linear(x, w))),
    "other shape": (r"shapes whose inputs and outputs do not correspond",
                    lambda w, x: (F.linear(x, w), F.linear(x.new_ones(DATA, 2), w.reshape(8, 2)))),
    "other data": (r"for 3 data and for 1", lambda w, x: (F.linear(x, w), F.linear(x[0], w))),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_second_use_that_would_be_wrong_is_refused(name):
    message, use = REFUSED[name]
    with pytest.raises(RuntimeError, match=rf"'w' is used twice.*{message}.*StraightThrough"):
        use(drawn(torch.zeros(4, 4)), torch.randn(DATA, 4))


def test_what_cannot_be_followed_is_refused_by_name():
    for name, use in {
        "relu": torch.relu,
        "embedding": lambda w: F.embedding(torch.tensor([0]), w, max_norm=1.0),
    }.items():
        with pytest.raises(
            TypeError, match=f"Flipout cannot carry the weight 'w' through '{name}'"
        ):
            use(drawn(torch.zeros(4, 3)))
    with pytest.raises(ValueError, match="num_samples"):
        Flipout(0)
    assert repr(Flipout(2)) == "Flipout(num_samples=2)"
    assert repr(FlipoutWhereShared()) == "FlipoutWhereShared(num_samples=1)"


def test_fit_says_which_weight_got_which():
    net = nn.Sequential(nn.Conv1d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2))
    model = Classifier(to_binary_(net), dataset_size=6)
    batches = [(torch.randn(6, 1, 6), torch.tensor([0, 1, 0, 1, 1, 0]))]
    result = fit(model, AutoSignBernoulli(model), batches, epochs=1, progress=False)
    assert result.choices == {"0.weight": "Flipout", "3.weight": "local reparameterization"}
    assert '"choices": {"0.weight": "Flipout"' in result.to_json()


def test_attention_and_embeddings_train_by_default():
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(11, 8)
            self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
            self.head = nn.Linear(8, 2)

        def forward(self, tokens: Tensor) -> Tensor:
            return self.head(self.layer(self.embed(tokens)).mean(1))

    weights = ["embed.weight", "layer.self_attn.in_proj_weight", "layer.self_attn.out_proj.weight"]
    weights += ["layer.linear1.weight", "layer.linear2.weight", "head.weight"]
    net = to_binary_(Reader(), where=weights)
    model = Classifier(net, dataset_size=6)
    batches = [(torch.randint(0, 11, (6, 5)), torch.tensor([0, 1, 0, 1, 1, 0]))]
    result = fit(model, AutoSignBernoulli(model), batches, epochs=2, progress=False)
    drawn_once = {name for name, way in result.choices.items() if way != "Flipout"}
    assert drawn_once == {"head.weight"} and len(result.choices) == 6
