"""Prediction in torch, draw after draw: exact decisions, and a network that stays what it was."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bayesbin import BinaryPosterior
from bayesbin.compile.export import export_program
from bayesbin.compile.folding import fold
from bayesbin.compile.streaming import ExactDecisions, outputs
from bayesbin.nn import BinaryLinear, Sign, binary_sites, to_binary_
from bayesbin.runtime import reference


def signs(*shape: int) -> torch.Tensor:
    return torch.randint(0, 2, shape) * 2.0 - 1.0


def draws_of(net: nn.Module, count: int) -> list:
    sites = binary_sites(net)
    return [
        ({name: signs(*site.shape) for name, site in sites.items()}, None) for _ in range(count)
    ]


# Exact decisions


def test_a_value_equal_to_the_mean_is_normalised_to_the_shift():
    """Faults B.2: sums of signs, and running means that are such sums; torch's own rounding moves some."""
    x = torch.arange(-40.0, 41.0, dtype=torch.float32)
    mean = torch.randint(-40, 41, (500,)).float()
    variance, weight = torch.rand(500).float() * 30 + 0.01, torch.randn(500).float()
    bias = torch.where(torch.rand(500) < 0.5, 0.0, torch.randn(500)).float()
    norm = nn.BatchNorm1d(500).float().eval()
    with torch.no_grad():
        for name, value in (("running_mean", mean), ("running_var", variance)):
            norm.get_buffer(name).copy_(value)
        norm.weight.copy_(weight)
        norm.bias.copy_(bias)
        rows = x[:, None].expand(-1, 500)
        plain = norm(rows)
        with ExactDecisions():
            exact = norm(rows)
    equal = rows == mean
    assert equal.sum() == 500
    assert torch.equal(exact[equal], bias[equal.nonzero()[:, 1]])
    centred = rows.double() - mean.double()
    expected = centred * (weight.double() / (variance.double() + 1e-5).sqrt()) + bias.double()
    assert torch.equal(exact, expected.float())
    assert not torch.equal(plain, exact)  # or the test shows nothing


@pytest.mark.parametrize("form", ["batch", "instance", "functions"])
def test_normalisation_in_every_form(form):
    x = torch.randn(5, 3, 4, 2).float()
    mean, variance = torch.randn(3).float(), torch.rand(3).float() + 0.1
    weight, bias = torch.randn(3).float(), torch.randn(3).float()
    shape = (1, 3, 1, 1)
    calls = {
        "batch": lambda: F.batch_norm(x, mean, variance, weight, bias, eps=0.1),
        "instance": lambda: F.instance_norm(
            x,
            running_var=variance,
            running_mean=mean,
            use_input_stats=False,
            weight=weight,
            bias=bias,
            eps=0.1,
        ),
        "functions": lambda: torch.batch_norm(
            x, weight, bias, mean, variance, False, 0.1, 0.1, False
        ),
    }
    with ExactDecisions():
        found = calls[form]()
    root = (variance.double() + 0.1).sqrt()
    slope = (weight.double() / root).reshape(shape)
    expected = (x.double() - mean.double().reshape(shape)) * slope + bias.double().reshape(shape)
    assert torch.equal(found, expected.float())
    torch.testing.assert_close(found, calls[form](), rtol=1e-4, atol=1e-5)


def test_normalisation_by_the_batch_is_torch_s():
    x, plain = torch.randn(5, 3).float(), nn.BatchNorm1d(3).float()
    exact = copy.deepcopy(plain)
    with ExactDecisions():
        found = exact(x)
    assert torch.equal(found, plain(x))
    assert torch.equal(exact.get_buffer("running_mean"), plain.get_buffer("running_mean"))


@pytest.mark.parametrize("function", ["linear", "matmul", "conv2d", "einsum", "addmm"])
def test_a_sum_of_scaled_signs_that_is_zero_is_zero(function):
    """Faults B.1: with a scale that is no power of two, half of the exact zeros were negative."""
    scale = torch.tensor(1 / 128**0.5).float()
    x, w = signs(60, 128).float(), signs(40, 128).float()
    whole = x.double() @ w.double().T
    weights = scale * w
    calls = {
        "linear": lambda: F.linear(x, weights),
        "matmul": lambda: x @ weights.T,
        "conv2d": lambda: F.conv2d(x[..., None, None], weights[..., None, None])[..., 0, 0],
        "einsum": lambda: torch.einsum("bk,nk->bn", x, weights),
        "addmm": lambda: torch.addmm(torch.zeros(40).float(), x, weights.T),
    }
    with ExactDecisions():
        found = calls[function]()
    assert found.dtype == torch.float32
    assert torch.equal(found, (whole * scale.double()).float())
    assert (whole == 0).any() and torch.equal(found == 0, whole == 0)


def test_other_types_stay_as_they_are():
    a = torch.randn(3, 3)
    with ExactDecisions():
        assert torch.equal(a @ a, a.clone().matmul(a.clone())) and (a @ a).dtype == torch.float64
        whole = torch.arange(9).reshape(3, 3)
        assert torch.equal(whole @ whole, torch.mm(whole, whole))
        half = a.to(torch.bfloat16)
        assert torch.equal(half @ half, (half.double() @ half.double()).to(torch.bfloat16))
        into = torch.empty(3, 3).float()
        torch.mm(a.float(), a.float(), out=into)
    torch.testing.assert_close(into, a.float() @ a.float())


def test_sign_networks_decide_as_integers_do():
    net = to_binary_(
        nn.Sequential(Sign(), nn.Linear(100, 64, bias=False), Sign(), nn.Linear(64, 3, bias=False))
    ).float()
    x, (draw,) = torch.randn(50, 100).float(), draws_of(net, 1)
    (found,) = outputs(net, [draw], [(x,)])
    first, second = draw[0].values()
    hidden = np.where(np.where(x.numpy() >= 0, 1, -1) @ first.numpy().T >= 0, 1, -1)
    expected = hidden @ second.numpy().T
    ratio = found[0].double().numpy()[expected != 0] / expected[expected != 0]
    assert np.ptp(ratio) == 0 and (found[0].numpy()[expected == 0] == 0).all()
    for row in range(5):  # alone as among others
        (alone,) = outputs(net, [draw], [(x[row : row + 1],)])
        assert torch.equal(alone[0], found[0][row : row + 1])


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_streaming_decides_as_the_compiled_program(scale, bias):
    """Running means at sums that occur, and sums that are 0, with a scale that is no power of two."""
    norm = nn.BatchNorm1d(40).eval()
    layers = [nn.Linear(30, 40, bias=bias), norm, Sign(), nn.Linear(40, 20, bias=False), Sign()]
    net = nn.Sequential(Sign(), *layers, nn.Linear(20, 3))
    net = to_binary_(net, **({} if scale is None else {"scale": scale})).float().eval()
    x = torch.randn(30, 30).float()
    posterior = BinaryPosterior(
        {name: torch.randn(site.shape) for name, site in binary_sites(net).items()}
    )
    draw = posterior.signs(0, seed=4)
    with torch.no_grad(), ExactDecisions():
        linear = posterior.sample_network(net, 0, 4).get_submodule("1")
        sums = linear(torch.where(x >= 0, 1.0, -1.0).float())
        norm.get_buffer("running_mean").copy_(sums[torch.arange(40) % 30, torch.arange(40)])
        norm.get_buffer("running_var").copy_(sums.var(0))
        norm.weight.copy_(torch.randn(40))
    compiled = fold(export_program(net, (x,), posterior, 1, 4))
    (expected,) = reference.run(compiled, [x.numpy()], [0])
    ((found,),) = outputs(net, [(draw, None)], [(x,)])
    assert np.abs(found.numpy() - expected[0]).max() < 1e-6 * np.abs(expected).max()


# Streaming


def test_each_draw_is_the_network_with_its_signs_and_statistics():
    net = to_binary_(nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 2)))
    x = torch.randn(7, 4)
    draws = [
        (values, {"1.running_mean": torch.randn(5), "1.running_var": torch.rand(5)})
        for values, _ in draws_of(net, 3)
    ]
    before = copy.deepcopy(net.state_dict())
    found = list(outputs(net, iter(draws), [(x[:3],), (x[3:],)]))
    assert len(found) == 3 and net.training
    assert all(torch.equal(net.state_dict()[name], value) for name, value in before.items())
    for (values, state), (one,) in zip(draws, found, strict=True):
        twin = copy.deepcopy(net).eval()
        twin.load_state_dict({**before, **values, **state})
        torch.testing.assert_close(one, twin(x))
        assert not one.requires_grad


def test_draws_are_made_when_they_are_asked_for():
    net, made = BinaryLinear(3, 2), []

    def draws():
        for index in range(5):
            made.append(index)
            yield {"weight": signs(2, 3)}, None

    stream = outputs(net, draws(), [(torch.ones(1, 3),)])
    assert not made
    next(stream)
    next(stream)
    assert made == [0, 1]


class Noisy(nn.Module):
    """A network with a memory, a hook's worth of side effects, and noise even in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = BinaryLinear(3, 2)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
        self.calls += 1
        return {"sum": self.layer(x + y), "noise": torch.randn(len(x)) + F.dropout(y, 0.5).sum(-1)}


def test_the_network_and_random_numbers_are_left_as_they_are():
    net, x = Noisy(), torch.ones(4, 3)
    net.register_forward_hook(lambda module, args, found: {**found, "sum": found["sum"] + 1})
    draws = [({"layer.weight": signs(2, 3)}, None) for _ in range(2)]
    before = torch.random.get_rng_state()
    found = list(outputs(net, draws, [(x, x)]))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert net.calls == 0 and net.training
    assert len(found[0]) == 2 and not torch.equal(found[0][1], found[1][1])  # a draw's own noise
    torch.rand(3)
    for one, other in zip(found, outputs(net, draws, [(x, x)]), strict=True):
        assert all(map(torch.equal, one, other))
    assert not torch.equal(next(outputs(net, draws, [(x, x)], seed=1))[1], found[0][1])
    plain = BinaryLinear(3, 2)
    plain.load_state_dict({**net.layer.state_dict(), "weight": draws[0][0]["layer.weight"]})
    torch.testing.assert_close(found[0][0], plain(2 * x) + 1)  # hooks are part of the network


class Float32(nn.Module):
    """Does not run in float64: its memory is of float32, whatever comes."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = BinaryLinear(3, 2)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    calls: torch.Tensor

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.calls += 1
        memory, places = torch.zeros(len(x), 2, dtype=torch.float32), torch.zeros(len(x), 1).long()
        return memory.scatter(1, places, self.layer(x)), self.calls.expand(len(x)) + 0


def test_a_network_that_insists_on_float32_runs_in_it():
    net, x = Float32().float(), torch.randn(5, 3).float()
    draws = [({"layer.weight": signs(2, 3)}, None) for _ in range(2)]
    with pytest.raises(RuntimeError):
        copy.deepcopy(net).double()(x.double())
    stream = outputs(net, draws, [(x,)])
    for place, ((values, _), (found, calls)) in enumerate(zip(draws, stream, strict=True)):
        twin = copy.deepcopy(net)
        twin.load_state_dict({**net.state_dict(), **values})
        with ExactDecisions():
            assert torch.equal(found, twin(x)[0]) and found.dtype == torch.float32
        assert (calls == place + 1).all()  # the trial of float64 has left nothing behind


def test_outputs_have_the_types_that_the_network_gives_them():
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = BinaryLinear(3, 2)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            y = self.layer(x)
            return y, y.double().log_softmax(-1), y.argmax(-1), y.bfloat16(), y > 0

    draws = [({"layer.weight": signs(2, 3)}, None)]
    (found,) = outputs(Mixed().float(), draws, [(torch.randn(4, 3).float(),)])
    types = [torch.float32, torch.float64, torch.int64, torch.bfloat16, torch.bool]
    assert [each.dtype for each in found] == types


def test_what_does_not_fit_is_refused():
    class Returns(nn.Module):
        def __init__(self, what: object) -> None:
            super().__init__()
            self.what = what

        def forward(self, x: torch.Tensor) -> object:
            return self.what

    x = torch.ones(2, 3)
    with pytest.raises(ValueError, match="at least one batch"):
        outputs(BinaryLinear(3, 2), [], [])
    for wrong in (torch.zeros(3, 2), torch.zeros(())):
        with pytest.raises(ValueError, match="a row for each of 2 inputs"):
            next(outputs(Returns(wrong), [({}, None)], [(x,)]))
    for wrong in (None, [], (1.0,)):
        with pytest.raises(ValueError, match="expected the network to return a tensor"):
            next(outputs(Returns(wrong), [({}, None)], [(x,)]))
