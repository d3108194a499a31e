"""Networks as programs: what a program computes is what torch computes, draw by draw."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from export_cases import DRAWS, compared, kinds, posterior_of, refusal
from torch import nn
from torch.nn import functional as F

from bayesbin.compile.export import export_program
from bayesbin.distributions import LowBitCategorical, Support
from bayesbin.ensemble import Ensemble
from bayesbin.nn import Sign, StateBatchNorm, to_binary_
from bayesbin.posterior import BinaryPosterior, LowBitPosterior, RealPosterior
from bayesbin.runtime import reference
from bayesbin.runtime.program import DrawnSite, StoredSite


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_perceptron_is_products_with_signs_and_affine_maps(dtype):
    net = to_binary_(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)))
    program = compared(net, torch.randn(4, 6), dtype=dtype)
    assert kinds(program) == ["linear", "affine", "relu", "linear", "affine"]
    assert [step.inputs[1] for step in program.steps if step.kind == "linear"] == [
        "0.weight",
        "2.weight",
    ]
    assert all(isinstance(site, DrawnSite) for site in program.sites.values())


@pytest.mark.parametrize("scale", [0.3, torch.tensor([[0.2], [0.3], [0.7], [0.25]])])
def test_any_scale_of_the_signs_comes_after_the_product(scale):
    net = to_binary_(nn.Sequential(nn.Linear(6, 4)), scale=scale)
    program = compared(net, torch.randn(3, 6))
    assert kinds(program) == ["linear", "affine"] and program.steps[0].inputs[1] == "0.weight"


def test_convolutions_with_batch_norm_and_a_skip_connection():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 3, padding=1, bias=False)
            self.norm = nn.BatchNorm2d(4)

        def forward(self, x):
            return F.relu(x + self.norm(self.conv(x)))

    net = nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2), Block(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 3)
    )
    net[1].norm.running_mean.normal_()
    net[1].norm.running_var.uniform_(0.5, 2.0)
    program = compared(to_binary_(net), torch.randn(3, 1, 9, 9))
    norm = next(step for step in program.steps if step.kind == "batch_norm")
    assert norm.inputs[1:] == (
        "1.norm.running_mean",
        "1.norm.running_var",
        "1.norm.weight",
        "1.norm.bias",
    )


def test_statistics_are_those_of_each_draw():
    net = to_binary_(nn.Sequential(nn.Linear(6, 8), StateBatchNorm(8), nn.Linear(8, 3)))
    net.double().eval()
    posterior = posterior_of(net)
    ensemble = Ensemble(net, posterior, DRAWS, seed=3).calibrate(torch.randn(32, 6).double())
    assert ensemble.statistics is not None
    states = [ensemble.statistics.values[draw] for draw in range(DRAWS)]
    statistics = {
        name: torch.stack([state[name] for state in states]).numpy() for name in states[0]
    }
    program = compared(net, torch.randn(5, 6), posterior=posterior, statistics=statistics)
    assert program.constants["1.running_mean"].data.shape == (DRAWS, 8)


def test_the_sign_is_one_step():
    net = to_binary_(nn.Sequential(nn.Linear(6, 8), Sign(), nn.Linear(8, 3)))
    program = compared(net, torch.randn(4, 6))
    assert kinds(program) == ["linear", "affine", "sign", "linear", "affine"]
    (sign,) = (step for step in program.steps if step.kind == "sign")
    assert program.values[sign.outputs[0]].signs


def test_a_tied_weight_is_one_site_seen_from_both_sides():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(6, 4)

        def forward(self, x):
            return F.linear(torch.tanh(self.first(x)), self.first.weight.t())

    program = compared(to_binary_(Tied()), torch.randn(3, 6))
    assert list(program.sites) == ["first.weight"]


def test_the_mode_is_one_stored_row():
    net = to_binary_(nn.Sequential(nn.Linear(6, 4))).double().eval()
    posterior = posterior_of(net)
    program = export_program(net, (torch.randn(3, 6),), posterior, 0)
    site = program.sites["0.weight"]
    assert isinstance(site, StoredSite) and program.num_draws == 1
    x = torch.randn(2, 6)
    with torch.no_grad():
        wanted = posterior.mode_network(net)(x)
    assert np.allclose(reference.run(program, [x.numpy()], [0])[0][0], wanted.numpy())


def test_random_effects_are_stored_draw_by_draw():
    net = to_binary_(nn.Sequential(nn.Linear(6, 4))).double()
    effect = RealPosterior(torch.randn(4, 1), torch.rand(4, 1) + 0.5, Support("real"))
    posterior = BinaryPosterior({"0.weight": torch.randn(4, 6)}, {"e": effect}, {"0.weight": ["e"]})
    program = compared(net, torch.randn(3, 6), posterior=posterior)
    assert isinstance(program.sites["0.weight"], StoredSite)


def test_weights_of_a_few_levels_are_numbers_of_levels():
    net = to_binary_(nn.Sequential(nn.Linear(6, 4)))
    posterior = LowBitPosterior(
        {"0.weight": LowBitCategorical((-1.0, 0.0, 1.0), torch.randn(4, 6, 3))}
    )
    program = compared(net, torch.randn(3, 6), posterior=posterior)
    assert program.constants["0.weight"].data.dtype == np.uint8


def test_decided_weights_are_stored_once():
    net = to_binary_(nn.Sequential(nn.Linear(6, 4)))
    program = compared(net, torch.randn(3, 6), posterior=posterior_of(net, scale=1e4))
    assert program.sites["0.weight"].rows is None


def test_outputs_go_by_the_keys_of_a_dictionary():
    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.policy = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, board, extra):
            h = torch.relu(self.body(board)) + extra
            return {"policy": self.policy(h), "none": None, "value": h.sum(1)}

    program = compared(to_binary_(Heads()), torch.randn(4, 6), torch.randn(4, 8))
    assert program.outputs == ("policy", "value") and list(program.inputs) == ["board", "extra"]


def test_statistics_outside_a_layer_are_those_of_each_draw():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.norm = nn.Linear(6, 4), nn.BatchNorm1d(4)

        def forward(self, x):
            return (self.layer(x) - self.norm.running_mean) / (self.norm.running_var + 1).sqrt()

    net = to_binary_(Own()).double().eval()
    posterior = posterior_of(net)
    table = {f"norm.running_{name}": torch.rand(DRAWS, 4).numpy() for name in ("mean", "var")}
    x = torch.randn(3, 6)
    program = export_program(net, (x,), posterior, DRAWS, 3, statistics=table)
    (found,) = reference.run(program, [x.numpy()], range(DRAWS))
    for draw in range(DRAWS):
        worker = posterior.sample_network(net, draw, 3)
        for name, numbers in table.items():
            worker.get_buffer(name).copy_(torch.from_numpy(numbers[draw]))
        assert np.allclose(found[draw], worker(x).detach().numpy(), atol=1e-12)


def test_known_weights_that_are_signs_are_a_site():
    net = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))
    net[0].weight = nn.Parameter(torch.randn(6, 4).T.sign() * torch.rand(4, 1))
    program = compared(to_binary_(net, where="2.weight"), torch.randn(5, 6))
    assert set(program.sites) == {"0.weight signs", "2.weight"}
    assert program.sites["0.weight signs"].rows is None


@pytest.mark.parametrize(
    ("sites", "said"),
    [
        ({"0.weight": (4, 6)}, "'2.weight'"),
        ({"0.weight": (4, 6), "2.weight": (2, 4), "3.weight": (2, 4)}, "'3.weight'"),
        ({"0.weight": (4, 6), "2.weight": (4, 2)}, r"\(2, 4\)"),
    ],
)
def test_a_posterior_of_another_network_is_refused_by_name(sites, said):
    net = to_binary_(nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2)))
    posterior = BinaryPosterior({name: torch.zeros(shape) for name, shape in sites.items()})
    with pytest.raises(ValueError, match=said):
        export_program(net, (torch.randn(3, 6),), posterior, DRAWS)


def test_the_refusal_says_operator_line_and_remedy():
    class Sorted(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 4)

        def forward(self, x):
            return self.layer(x).sort(dim=1).values

    said = refusal(Sorted(), torch.randn(3, 6))
    assert "aten.sort" in said and "test_export.py" in said and "in torch" in said


@pytest.mark.parametrize(
    "mix",
    [
        lambda x: x - x.mean(0),
        lambda x: x.softmax(0),
        lambda x: x @ x.t() @ x,
        lambda x: x / x.shape[0],
        lambda x: x[:1] + x,
        lambda x: x.flip(0),
        lambda x: x / x.abs().max(),
        lambda x: torch.cat([x, x], 0),
        lambda x: x.t().reshape(x.shape),
        lambda x: x / len(x),
        lambda x: x + torch.arange(x.shape[0])[:, None],
        lambda x: x.cumsum(0),
        lambda x: F.batch_norm(x, None, None, training=True),
        lambda x: torch.einsum("bi,ci->bc", x, x),
        lambda x: F.scaled_dot_product_attention(x, x, x),
        lambda x: x.sum(),
        lambda x: x.norm() * x,
    ],
)
def test_what_mixes_the_rows_of_a_batch_is_refused(mix):
    class Mixing(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 4)

        def forward(self, x):
            return mix(self.layer(x))

    assert "row" in refusal(Mixing(), torch.randn(3, 6))
