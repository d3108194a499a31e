"""What becomes binary, what stays real and why, and how large the signs are."""

from __future__ import annotations

import copy
import math
import warnings

import numpy as np
import pytest
import torch
from module_table import TABLE, Bare, Tied
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune

from bayesbin.core import networks
from bayesbin.nn import (
    BinaryLinear,
    binarize_,
    binary_sites,
    conversion,
    latents,
    resnet20,
    to_binary_,
)
from bayesbin.nn.binarizers import SignSTE
from bayesbin.nn.scales import power_of_two

# Which weights


def test_the_default_takes_every_weight_that_needs_no_guess():
    for name in (
        "conv3d", "conv transpose 2d", "bilinear", "lstm, two layers", "gru cell", "attention",
        "attention, other keys", "transformer encoder, two layers", "subclass of conv2d",
        "subclass with torch's forward",
    ):  # fmt: skip
        net = to_binary_(TABLE[name].build())  # warnings are errors
        real = conversion(net).real
        left = [n for n in real if "bias" not in n and "norm" not in n]
        assert left == [], name


def test_the_table_tells_of_every_parameter():
    net = nn.ModuleDict(
        {
            "linear": nn.Linear(64, 32),
            "norm": nn.LayerNorm(4),
            "frozen": nn.Linear(3, 2).requires_grad_(False),
            "table": nn.Embedding(5, 2),
            "pruned": nn.Linear(3, 2, bias=False),
            "normal": parametrizations.weight_norm(nn.Linear(3, 2, bias=False)),
            "bare": Bare(),
        }
    )
    prune.random_unstructured(net["pruned"], "weight", amount=0.5)
    before = conversion(net)
    names = [name for name, _ in net.named_parameters()]
    assert list(before.real) == names and before.binary == ()
    to_binary_(net)
    after = conversion(net)
    assert after.binary == tuple(binary_sites(net)) == ("linear.weight", "bare.head.weight")
    assert set(after.real) == set(names) - set(after.binary)
    why = {row.name: row.why for row in after.rows}
    for name, words in {
        "linear.weight": "scale 0.125",
        "linear.bias": "a bias",
        "norm.weight": "a factor",
        "frozen.weight": "requires_grad is False",
        "table.weight": "a table to look up",
        "pruned.weight_orig": "pruned",
        "normal.parametrizations.weight.original1": "parametrization",
        "bare.W": "inputs=",
    }.items():
        assert words in why[name], name
    lines = str(after).splitlines()
    assert len(lines) == len(after.rows) + 1 and lines[0].split() == ["weight", "shape", "why"]
    (line,) = (line for line in lines if line.startswith("linear.weight "))
    assert line.split() == ["linear.weight", "32", "x", "64", "binary", "scale", "0.125"]
    assert conversion(nn.ReLU()).rows == ()


@pytest.mark.parametrize(
    ("layer", "named"),
    [
        (lambda: nn.Embedding(100, 8), "0.weight"),
        (
            lambda: parametrizations.weight_norm(nn.Linear(8, 8)),
            "0.parametrizations.weight.original1",
        ),
        (lambda: prune.l1_unstructured(nn.Linear(8, 8), "weight", 3), "0.weight_orig"),
        (lambda: Bare(), "0.W"),
    ],
)
def test_one_warning_where_much_stays_real(layer, named):
    net = nn.Sequential(layer(), nn.Linear(8, 4))
    with pytest.warns(UserWarning) as caught:
        to_binary_(net)
    assert len(caught) == 1 and f"{named} (" in str(caught[0].message)
    assert caught[0].filename == __file__
    large = nn.Sequential(layer(), nn.Linear(100, 100))
    to_binary_(large) if named != "0.weight" else None  # a small share is no matter
    asked = nn.Sequential(layer(), nn.Linear(8, 4))
    to_binary_(asked, lambda name, owner: name == "1.weight")  # nor what was asked for


def test_wishes_are_no_matter_for_warnings():
    frozen = nn.Sequential(nn.Linear(50, 50).requires_grad_(False), nn.Linear(50, 2))
    assert list(binary_sites(to_binary_(frozen))) == ["1.weight"]
    to_binary_(resnet20(width=2, real_ends=True))


def test_frozen_weights_stay_unless_named():
    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(3, 3).requires_grad_(False), nn.Linear(3, 3))

    for where in (None, nn.Linear, lambda name, owner: "weight" in name, [nn.Module]):
        assert list(binary_sites(to_binary_(build(), where))) == ["1.weight"]
    for where in ("0.weight", ["0.weight"], "0"):
        assert list(binary_sites(to_binary_(build(), where))) == ["0.weight"]
    with pytest.raises(ValueError, match=r"frozen, and converted only by name: 0\.weight"):
        to_binary_(build()[:1])
    net = build()
    before = net[0].weight.clone()
    to_binary_(net)
    assert torch.equal(net[0].weight, before) and not net[0].weight.requires_grad


@pytest.mark.parametrize(
    ("where", "sites"),
    [
        (nn.Linear, ["0.weight", "2.out_proj.weight", "4.0.weight"]),
        (nn.Conv1d, ["1.weight"]),
        ([nn.Conv1d, "0.weight"], ["0.weight", "1.weight"]),
        (("2", lambda name, owner: name == "4.0.weight"),
         ["2.in_proj_weight", "2.out_proj.weight", "4.0.weight"]),
        ({"0.weight"}, ["0.weight"]),
        (nn.Sequential, ["0.weight", "1.weight", "2.in_proj_weight", "2.out_proj.weight", "3.weight",
                         "4.0.weight"]),
        (nn.Embedding, ["3.weight"]),
        ("4", ["4.0.weight"]),
        (["0.bias"], ["0.bias"]),
        (lambda name, owner: isinstance(owner, nn.Conv1d) and name.endswith("weight"), ["1.weight"]),
    ],
)  # fmt: skip
def test_where_is_a_predicate_a_class_a_name_or_a_list(where, sites):
    net = nn.Sequential(
        nn.Linear(4, 4), nn.Conv1d(2, 2, 3), nn.MultiheadAttention(4, 2), nn.Embedding(3, 2),
        nn.Sequential(nn.Linear(2, 2)),
    )  # fmt: skip
    assert sorted(binary_sites(to_binary_(net, where))) == sites


def test_where_is_a_module():
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    assert list(binary_sites(to_binary_(net, net[1]))) == ["1.weight"]


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("0.weigth", r"none named '0\.weigth'.*Did you mean '0\.weight'\?"),
        (["0.weight", "nothing"], "none named 'nothing'"),
        (int, r"a subclass of torch\.nn\.Module in where=; got <class 'int'>"),
        (3, r"a predicate \(name, owner\) -> bool, a module class, a name, or a list.*got 3"),
        ([3], r"each part of where=.*got 3"),
        ([], "found no parameter to convert"),
        (nn.LSTM, "found no parameter to convert"),
    ],
)
def test_what_where_cannot_be(where, message):
    net = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(ValueError, match=message):
        to_binary_(net, where)
    assert not binary_sites(net)


def test_lazy_modules_are_refused_until_they_have_a_shape():
    net = nn.Sequential(nn.LazyLinear(4), nn.LazyBatchNorm1d(), nn.Linear(4, 2))
    assert "0.weight" in conversion(net).real
    with pytest.raises(
        ValueError, match=r"0\.weight of a LazyLinear has no shape yet; run the network"
    ):
        to_binary_(net)
    assert list(binary_sites(to_binary_(net, "2"))) == ["2.weight"]
    net(torch.randn(3, 5))
    assert list(binary_sites(to_binary_(net))) == ["0.weight", "2.weight"]
    net(torch.randn(3, 5))


def make_complex(net: nn.Module) -> None:
    net[0].weight.data = torch.ones(2, 3, dtype=torch.complex64)


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda n: n[0].weight.data.fill_(math.nan), r"0\.weight contains NaN"),
        (lambda n: n[0].register_buffer("weight_prior", torch.ones(1)), "Rename that"),
        (
            lambda n: setattr(n[0].weight, "data", torch.ones(2, 3, dtype=torch.complex64)),
            r"0\.weight is of type torch\.complex64",
        ),
    ],
)
def test_what_has_no_signs_is_not_converted(break_it, message):
    net = nn.Sequential(nn.Linear(3, 2))
    break_it(net)
    with pytest.raises(ValueError, match=message):
        to_binary_(net)
    assert type(net[0]) is nn.Linear


def test_compiled_modules_are_refused():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net = torch.jit.script(nn.Sequential(nn.Linear(3, 2)))
    with pytest.raises(ValueError, match=r"compiled by torch\.jit|found no parameter"):
        to_binary_(net)


def test_a_tied_weight_is_one_site_with_one_scale():
    net = to_binary_(Tied())
    assert list(binary_sites(net)) == ["table.weight"]
    assert torch.equal(net.table.weight, net.out.weight)
    assert net.out.weight.abs().unique().tolist() == [power_of_two(8)]  # of the larger fan-in
    assert "tied between 2 modules" in str(conversion(net))
    by_other_name = to_binary_(Tied(), "out.weight", scale={"table.weight": 0.25})
    assert list(binary_sites(by_other_name)) == ["table.weight"]
    assert by_other_name.table.weight.abs().unique().tolist() == [0.25]
    with pytest.raises(
        ValueError, match="tied between modules whose outputs lie along different axes"
    ):
        square = nn.Sequential(nn.Embedding(4, 4), nn.Linear(4, 4, bias=False))
        square[1].weight = square[0].weight
        to_binary_(square, scale=torch.tensor([0.1, 0.2, 0.3, 0.4]))


# How large

UNITS = {
    "linear": (lambda: nn.Linear(64, 50, bias=False), (400, 64)),
    "conv1d": (lambda: nn.Conv1d(16, 8, 4, bias=False), (20, 16, 40)),
    "conv2d": (lambda: nn.Conv2d(16, 8, 2, bias=False), (20, 16, 9, 9)),
    "conv2d, grouped": (lambda: nn.Conv2d(64, 16, 2, groups=4, bias=False), (20, 64, 9, 9)),
    "conv3d": (lambda: nn.Conv3d(2, 8, (2, 2, 2), bias=False), (20, 2, 9, 9, 9)),
    "conv transpose 1d": (lambda: nn.ConvTranspose1d(16, 9, 4, bias=False), (20, 16, 60)),
    "conv transpose 1d, stride": (
        lambda: nn.ConvTranspose1d(32, 9, 4, stride=2, bias=False), (20, 32, 60)),
    "conv transpose 2d, grouped, stride": (
        lambda: nn.ConvTranspose2d(64, 8, 4, stride=2, groups=4, bias=False), (9, 64, 12, 12)),
    "conv transpose 3d": (lambda: nn.ConvTranspose3d(8, 8, 2, bias=False), (4, 8, 10, 10, 10)),
    "bilinear": (lambda: nn.Bilinear(8, 8, 40, bias=False), (600, 8)),
}  # fmt: skip


@pytest.mark.parametrize("name", UNITS)
def test_outputs_have_unit_variance(name):
    build, shape = UNITS[name]
    torch.manual_seed(3)
    edge = [slice(4, -4)] * (len(shape) - 2)  # of a transposed convolution: it has fewer inputs
    inside = edge if "transpose" in name else []
    squares = []
    for _ in range(12):
        layer = to_binary_(build(), scale="fan-in")
        inputs = [torch.randn(shape)] * (2 if name == "bilinear" else 1)
        if name == "bilinear":
            inputs[1] = torch.randn(shape)
        squares.append(layer(*inputs)[(slice(None), slice(None), *inside)].square().mean())
    variance = torch.stack(squares).mean()
    fan_in_is_power_of_four = name not in ("conv3d", "conv transpose 3d")
    if fan_in_is_power_of_four:
        assert abs(variance - 1.0) < 0.05
    else:
        assert 0.5 < variance < 2.0


@pytest.mark.parametrize(
    ("build", "leaf", "fan_in"),
    [
        (lambda: nn.LSTM(16, 64, proj_size=4), "weight_ih_l0", 16),
        (lambda: nn.LSTM(16, 64, proj_size=4), "weight_hh_l0", 4),
        (lambda: nn.LSTM(16, 64, proj_size=4), "weight_hr_l0", 64),
        (lambda: nn.GRU(16, 64, bidirectional=True), "weight_hh_l0_reverse", 64),
        (lambda: nn.GRUCell(16, 64), "weight_ih", 16),
        (lambda: nn.MultiheadAttention(64, 4), "in_proj_weight", 64),
        (lambda: nn.MultiheadAttention(64, 4, kdim=16), "k_proj_weight", 16),
    ],
)
def test_pre_activations_of_other_modules_have_unit_variance(build, leaf, fan_in):
    torch.manual_seed(1)
    weight = getattr(to_binary_(build()), leaf)
    x = torch.randn(500, fan_in)
    assert abs(F.linear(x, weight).var() - 1.0) < 0.05


@pytest.mark.parametrize("table", [nn.Embedding(50, 16), nn.EmbeddingBag(50, 16)])
def test_an_embedding_has_fan_in_1(table):
    to_binary_(table, "weight")
    assert table(torch.arange(50)[:, None]).abs().unique().tolist() == [1.0]


@pytest.mark.parametrize("scale", ["fan-in", 0.3, torch.linspace(0.1, 0.4, 4)])
@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
def test_padding_rows_stay_zero(kind, scale):
    table = to_binary_(kind(6, 4, padding_idx=2), "weight", scale=scale)
    assert not table.weight[2].any() and bool((table.weight[[0, 1, 3, 4, 5]] != 0).all())
    site = binary_sites(table)["weight"]
    assert torch.equal(table.weight, site.scale * site.signs)
    state = {"weight": torch.randn(6, 4)}
    with pytest.warns(UserWarning, match="real weights"):
        table.load_state_dict(state)
    assert not table.weight[2].any()
    flipped = networks.copy_with(table, {"weight": -site.signs})
    assert not flipped.weight[2].any() and bool(flipped.weight[0].all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_exact_zeros_stay_zero(dtype):
    """Alternating signs against constant inputs, in every place and every batch."""
    sizes = [*range(1, 70), 96, 127, 128, 129, 500, 784, 1023, 1024, 2048, 3071, 4095, 5000]
    for n in sizes:
        layer = to_binary_(nn.Linear(n, 2, bias=False)).to(dtype)
        signs = torch.ones(2, n, dtype=dtype)
        signs[:, 1::2] = -1.0
        binary_sites(layer)["weight"].signs.copy_(signs)
        x = torch.ones(3, n, dtype=dtype)
        x[:, n - n % 2 :] = 0.0
        assert not layer(x).any(), n
        assert not F.linear(x, layer.weight).any() and not (x @ layer.weight.T).any()
    # A scale that rounds would not do: the old 1 / sqrt(fan-in).
    worse = to_binary_(nn.Linear(127, 2, bias=False).float(), scale=1.0 / math.sqrt(127))
    assert power_of_two(127) != worse.scale


def test_the_nearest_power_of_two():
    for n in range(1, 5001):
        found = power_of_two(n)
        assert math.frexp(found)[0] == 0.5
        assert abs(math.log2(found) + 0.5 * math.log2(n)) <= 0.5
    assert [power_of_two(4**k) for k in range(6)] == [2.0**-k for k in range(6)]
    assert power_of_two(0.25) == 2.0


# A scale that is given


@pytest.mark.parametrize("as_what", [torch.as_tensor, np.asarray, list])
@pytest.mark.parametrize(
    ("build", "outputs", "axis"),
    [
        (lambda: nn.Linear(3, 4), 4, 0),
        (lambda: nn.Conv2d(2, 4, 3, groups=2), 4, 0),
        (lambda: nn.ConvTranspose1d(3, 4, 2), 4, 1),
        (lambda: nn.Bilinear(2, 3, 4), 4, 0),
        (lambda: nn.LSTM(3, 2), 8, 0),
        (lambda: nn.Embedding(3, 4), 4, 1),
    ],
)
def test_a_scale_per_output(build, outputs, axis, as_what):
    values = [0.1 * (i + 1) for i in range(outputs)]
    layer = to_binary_(build(), nn.Module, scale=as_what(values))
    for site in binary_sites(layer).values():
        weight = getattr(layer, site.name)
        for output, value in enumerate(values):
            assert bool((weight.select(axis, output).abs() == value).all())
    assert any(key.endswith("_scale") for key in layer.state_dict())


def test_a_scale_per_output_of_a_grouped_transposed_convolution():
    layer = nn.ConvTranspose1d(4, 6, 2, groups=2, bias=False)
    to_binary_(layer, scale=torch.arange(1.0, 7.0))
    with torch.no_grad():
        binary_sites(layer)["weight"].signs.fill_(1.0)
    outputs = layer(torch.ones(1, 4, 1))[0, :, 0]
    assert outputs.tolist() == [2.0, 4.0, 6.0, 8.0, 10.0, 12.0]  # two inputs each


@pytest.mark.parametrize(
    "scale", [np.float64(0.3), torch.tensor(0.3), np.float32(0.5), 1, lambda name, w: 0.3,
              {"0.weight": 0.3}]
)  # fmt: skip
def test_a_scale_is_a_number_of_any_kind(scale):
    layer = to_binary_(nn.Sequential(nn.Linear(3, 2)), scale=scale)[0]
    assert isinstance(layer.scale, float) and not layer.state_dict().keys() - {
        "weight", "weight_prior", "bias"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("scale", "message"),
    [
        (torch.ones(3), r"a tensor of shape \(2,\), one for each output; got shape \(3,\)"),
        (torch.ones(2, 2), r"a tensor of shape \(2,\), one for each output; got shape \(2, 2\)"),
        (torch.tensor([1.0, 0.0]), "to be positive and finite"),
        (torch.tensor([1.0, math.nan]), "to be positive and finite"),
        (torch.tensor([1.0, 2.0], requires_grad=True), r"pass|Pass scale\.detach\(\)"),
        (0.0, "or a tensor of one for each output; got 0.0"),
        (-1, "got -1"),
        (True, "got True"),
        (math.inf, "got inf"),
        (None, "got None"),
        ("fan_in", "got 'fan_in'"),
        (["a", "b"], "or a tensor of one for each output"),
        ({"1.weight": 0.3}, r"The scale has no entry for 0\.weight"),
    ],
)
def test_a_scale_that_does_not_fit(scale, message):
    net = nn.Sequential(nn.Linear(3, 2))
    with pytest.raises(ValueError, match=message):
        to_binary_(net, scale=scale)
    assert type(net[0]) is nn.Linear


# Parameters of modules of the user's own


class Product(nn.Module):
    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.W = nn.Parameter(torch.randn(*shape))


def test_which_axis_is_summed_over_is_asked_where_it_matters():
    for shape, first, second in (((1000, 1), 1000, 1), ((1, 1000), 1, 1000), ((30, 20), 30, 20)):
        with pytest.raises(ValueError) as error:
            to_binary_(Product(*shape), "W")
        for words in (
            f"{{'W': 0}} for x @ W (fan-in {first})",
            f"{{'W': 1}} for F.linear(x, W) or W @ x (fan-in {second})",
        ):
            assert words in str(error.value)
        for axis, fan_in in ((0, first), (1, second), (-1, second)):
            net = to_binary_(Product(*shape), "W", inputs={"W": axis})
            assert net.W.abs().unique().tolist() == [power_of_two(fan_in)]
    assert to_binary_(Product(16, 16), "W").W.abs().unique().tolist() == [0.25]
    with pytest.raises(
        ValueError, match=r"inputs=\{'W': \(\)\} if it multiplies element by element"
    ):
        to_binary_(Product(9), "W")
    with pytest.raises(
        ValueError, match=r"an axis among 0 \(fan-in 2\), 1 \(fan-in 3\), 2 \(fan-in 4\)"
    ):
        to_binary_(Product(2, 3, 4), "W")
    assert to_binary_(Product(9), "W", inputs={"W": ()}).W.abs().unique().tolist() == [1.0]
    net = to_binary_(Product(2, 8, 8), "W", inputs={"W": (1, 2)})
    assert net.W.abs().unique().tolist() == [0.125]
    assert to_binary_(Product(30, 20), "W", scale=0.5).W.abs().unique().tolist() == [0.5]
    net = to_binary_(Product(30, 2), "W", scale=torch.tensor([1.0, 2.0]), inputs={"W": 0})
    assert net.W[:, 1].abs().unique().tolist() == [2.0]


def test_unit_variance_of_a_bare_parameter():
    torch.manual_seed(0)
    for shape, axis in (((1024, 3), 0), ((3, 1024), 1)):
        net = to_binary_(Product(*shape), "W", inputs={"W": axis})
        x = torch.randn(4000, 1024)
        outputs = x @ net.W if axis == 0 else F.linear(x, net.W)
        assert abs(outputs.var() - 1.0) < 0.05


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"W": 2}, r"to be an axis, or a tuple of axes, of its shape \(3, 2\); got 2"),
        ({"W": 0.5}, "to be an axis"),
        ({"W": "0"}, "to be an axis"),
        ({"V": 0}, r"inputs= names 'V', which to_binary_ does not convert here; it converts W"),
        ([0], "to be a mapping from names to axes"),
    ],
)
def test_axes_that_do_not_fit(inputs, message):
    with pytest.raises(ValueError, match=message):
        to_binary_(Product(3, 2), "W", inputs=inputs)


def test_the_axis_of_a_known_module_can_be_given_too():
    class Transposed(nn.Linear):
        def forward(self, input):
            return input @ self.weight

    net = to_binary_(nn.Sequential(Transposed(4, 64)), inputs={"0.weight": 0})
    assert net[0].weight.abs().unique().tolist() == [0.125]


# Latents by the same mechanism


@pytest.mark.parametrize(
    "name",
    [
        n
        for n, c in TABLE.items()
        if c.pickles and n not in ("pruned", "spectral norm, by a hook", "remembers its calls")
    ],
)
def test_binarized_networks_are_the_converted_ones(name):
    case = TABLE[name]
    torch.manual_seed(5)
    net = to_binary_(case.build(), **case.options)
    torch.manual_seed(5)
    other = binarize_(case.build(), SignSTE(), **case.options)
    assert list(latents(other)) == list(binary_sites(net))
    assert latents(other).keys() <= dict(other.named_parameters()).keys()
    assert not binary_sites(other)
    x = torch.randn(5, 4, 8)
    for training in (True, False):
        net.train(training), other.train(training)
        for grad in (True, False):
            with torch.set_grad_enabled(grad):
                torch.testing.assert_close(other(x), net(x), rtol=1e-10, atol=1e-10)
    other(x).sum().backward()
    for name, latent in latents(other).items():
        assert (latent.grad is not None and "weight_ih" not in name) or bool(latent.grad.any())
    assert list(latents(copy.deepcopy(other))) == list(latents(other))
    with pytest.raises(ValueError, match="found no parameter to convert"):
        binarize_(nn.Sequential(binarize_(nn.Linear(2, 2), SignSTE())), SignSTE())


def test_a_layer_of_ours_and_a_converted_one_are_the_same():
    torch.manual_seed(2)
    built = BinaryLinear(5, 3)
    torch.manual_seed(2)
    made = to_binary_(nn.Linear(5, 3))
    assert type(made) is BinaryLinear and repr(made) == repr(built)
    assert all(
        torch.equal(a, b)
        for a, b in zip(*(each.state_dict().values() for each in (built, made)), strict=True)
    )
