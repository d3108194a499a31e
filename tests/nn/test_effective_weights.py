"""A converted weight is the weight that the network uses, and a call of the network leaves nothing behind."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from collections import deque

import pytest
import torch
from module_table import TABLE, Case, Remembering
from pyro.nn import PyroModule
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize, prune

from bayesbin.core import networks
from bayesbin.estimators import LocalReparameterization, StraightThrough
from bayesbin.guides import AutoSignBernoulli
from bayesbin.infer import TraceBinary_ELBO
from bayesbin.nn import BinaryConv2d, BinaryLinear, Classifier, binary_sites, to_binary_

cases = pytest.mark.parametrize("case", TABLE.values(), ids=TABLE)


def converted(case: Case) -> nn.Module:
    torch.manual_seed(7)
    return to_binary_(case.build(), **case.options)


def real_twin(case: Case) -> nn.Module:
    """The network before its conversion, with the effective weights written into its parameters."""
    torch.manual_seed(7)
    net, twin = converted(case), None
    torch.manual_seed(7)
    twin = case.build()
    for name, site in binary_sites(net).items():
        path, _, leaf = name.rpartition(".")
        with torch.no_grad():
            twin.get_submodule(path)._parameters[leaf].copy_(site.scale * site.signs)
    return twin


@cases
def test_every_path_uses_scale_times_signs(case):
    net, twin = converted(case), real_twin(case)
    assert len(binary_sites(net)) > 0
    for name, site in binary_sites(net).items():
        path, _, leaf = name.rpartition(".")
        read = getattr(net.get_submodule(path), leaf)
        assert torch.equal(read, (site.scale * site.signs).expand(site.shape))
        assert bool((site.signs.abs() == 1).all())
    x = torch.randn(5, 4, 8)
    for training in (True, False):
        for grad in (True, False):  # without gradients in evaluation, torch's fast paths
            net.train(training), twin.train(training)
            with torch.set_grad_enabled(grad):
                torch.testing.assert_close(net(x), twin(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", ["fan-in", 0.3])
def test_layers_have_the_bits_of_their_effective_weight(dtype, scale):
    """Also where the scale is applied to the input; float16 would lose small inputs that way."""
    torch.manual_seed(0)
    for layer, size, function in (
        (nn.Linear(300, 7), (9, 300), F.linear),
        (PlainLinear(300, 7), (9, 300), F.linear),
        (nn.Conv1d(20, 7, 5), (9, 20, 11), F.conv1d),
        (nn.Conv2d(20, 7, 3), (2, 20, 5, 5), F.conv2d),
        (nn.Conv3d(4, 7, 3), (2, 4, 5, 5, 5), F.conv3d),
    ):
        to_binary_(layer.to(dtype), scale=scale)
        for size_of_inputs in (1.0, 1e-3):
            x = (size_of_inputs * torch.randn(size)).to(dtype)
            assert torch.equal(layer(x), function(x, layer.weight, layer.bias))


class PlainLinear(nn.Linear):
    pass


def test_autocast_to_a_narrow_type_keeps_small_inputs():
    layer = to_binary_(nn.Linear(1024, 8, bias=False).float())
    x = torch.full((3, 1024), 1e-6, dtype=torch.float32)
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype=dtype):
            assert torch.equal(layer(x), F.linear(x, layer.weight))


def snapshot(net: nn.Module) -> list:
    """Everything that a network holds: identities, and values of tensors."""
    return [
        (
            module,
            dict(vars(module)),
            {
                name: list(value)
                for name, value in vars(module).items()
                if type(value) in (list, deque)
            },
            {name: value for name, value in module._buffers.items()},
        )
        for module in net.modules()
    ]


def assert_untouched(before: list) -> None:
    for module, attributes, lists, buffers in before:
        assert vars(module).keys() == attributes.keys()
        for name, value in vars(module).items():
            pyro = name.startswith("_pyro")  # a PyroModule notes whose child it is
            assert pyro or value is attributes[name], f"{type(module).__name__}.{name}"
        for name, members in lists.items():
            now = list(getattr(module, name))
            assert len(now) == len(members) and all(map(lambda a, b: a is b, now, members)), name
        for name, value in module._buffers.items():
            if name != "running":  # state of a module of the tests' own
                assert value is buffers[name]
            assert value is None or not value.requires_grad


def train(net: nn.Module, estimator, steps: int = 2) -> AutoSignBernoulli:
    x, y = torch.randn(5, 4, 8), torch.tensor([0, 1, 2, 1, 0])
    model = Classifier(net, dataset_size=5)
    guide = AutoSignBernoulli(model)
    elbo = TraceBinary_ELBO(estimator)(model, guide)
    real = [p for p in net.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD([*guide.parameters(), *real], lr=1e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        elbo(x, y).backward()
        optimizer.step()
    return guide


@cases
def test_training_leaves_nothing_behind(case):
    net = converted(case)
    before = snapshot(net)
    signs = {name: site.signs.clone() for name, site in binary_sites(net).items()}
    guide = train(net, StraightThrough(num_samples=3))
    for parameter in guide.parameters():
        assert parameter.grad is not None and bool((parameter.grad != 0).any())
    assert_untouched(before)
    for name, site in binary_sites(net).items():
        assert torch.equal(site.signs, signs[name])
    # Nor do a call that fails and one without gradients.
    with pytest.raises((AttributeError, TypeError)):
        networks.call(net, {name: -value for name, value in signs.items()}, object())
    with torch.no_grad():
        networks.call(net, {name: -value for name, value in signs.items()}, torch.randn(5, 4, 8))
    assert_untouched(before)
    if isinstance(net, PyroModule):
        return  # Pyro runs a part of a model inside that model only
    train(net, StraightThrough())  # a second training begins as the first
    net.eval()
    x = torch.randn(5, 4, 8)
    with torch.no_grad():
        outputs = net(x)
    copies = [copy.deepcopy(net)]
    if case.pickles:
        file = io.BytesIO()
        torch.save(net, file)
        file.seek(0)
        copies += [pickle.loads(pickle.dumps(net)), torch.load(file, weights_only=False)]
    for other in copies:
        assert list(binary_sites(other)) == list(binary_sites(net))
        assert [type(m) for m in other.modules()] == [type(m) for m in net.modules()]
        with torch.no_grad():
            assert torch.equal(other(x), outputs)
        for site in binary_sites(other).values():  # a copy owns what it holds
            site.signs.neg_()
    with torch.no_grad():
        assert torch.equal(net(x), outputs)


@cases
def test_a_drawn_network_is_the_call_with_its_signs(case):
    net = converted(case).eval()
    posterior = AutoSignBernoulli(Classifier(net, dataset_size=5)).posterior()
    x = torch.randn(5, 4, 8)
    drawn = posterior.sample_network(net, 0)
    assert torch.equal(drawn(x), networks.call(net, posterior.signs(0), x))
    for name, site in binary_sites(drawn).items():
        assert torch.equal(site.signs, posterior.signs(0)[name])
        path, _, leaf = name.rpartition(".")
        effective = getattr(drawn.get_submodule(path), leaf)
        assert torch.equal(effective, (site.scale * site.signs).expand(site.shape))


def test_a_pruned_weight_reads_as_the_one_in_use():
    net = converted(TABLE["pruned"]).eval()
    posterior = AutoSignBernoulli(Classifier(net, dataset_size=5)).posterior()
    for network in (net, posterior.sample_network(net, 3)):
        layer = network[2]
        assert torch.equal(layer.weight, layer.weight_orig * layer.weight_mask)
        before = layer.weight
        network(torch.randn(5, 4, 8))
        assert torch.equal(before, layer.weight)
        assert float((before == 0).double().mean()) == 0.5


def test_what_a_module_remembers_of_a_call_is_put_back():
    net = to_binary_(Remembering())
    last, pair = torch.ones(1), (torch.ones(2), 3)
    net.last, net.pair, net.seen = last, pair, [last]
    signs = {name: -site.signs for name, site in binary_sites(net).items()}
    networks.call(net, signs, torch.randn(5, 4, 8))
    assert net.last is last and net.pair is pair and not hasattr(net, "used")
    assert len(net.seen) == 1 and net.seen[0] is last
    assert net.by_name == {"nested": []} and not net.recent
    assert not net.running.requires_grad and bool(net.running.any())  # state stays, without a graph
    net(torch.randn(5, 4, 8))  # as it is without the package
    assert net.last is not last


def test_vmap_leaves_nothing_behind():
    net = to_binary_(Remembering()).eval()
    before = snapshot(net)
    signs = {n: torch.stack([s.signs, -s.signs]) for n, s in binary_sites(net).items()}
    x = torch.randn(5, 4, 8)
    together = torch.vmap(lambda values: networks.call(net, values, x))(signs)
    assert_untouched(before)
    for index in range(2):
        one = networks.call(net, {name: value[index] for name, value in signs.items()}, x)
        torch.testing.assert_close(together[index], one)


def test_running_statistics_change_as_they_should():
    net = converted(TABLE["linear, batch norm"])
    train(net, StraightThrough(), steps=1)
    assert int(net[2].num_batches_tracked) == 1 and bool(net[2].running_mean.any())


LINEAR_IN_THE_WEIGHT = [
    name
    for name in TABLE
    if name.startswith(
        (
            "linear",
            "conv",
            "bilinear",
            "attention",
            "transf",
            "a scale",
            "subclass of",
            "subclass with t",
        )
    )
]


@pytest.mark.parametrize("name", LINEAR_IN_THE_WEIGHT)
def test_local_reparameterization_follows_the_effective_weight(name):
    """With decided weights it is the network at their mode, scaled in the same way."""
    case = TABLE[name]
    net = converted(case).eval()
    x = torch.randn(5, 4, 8)
    signs = {name: site.signs for name, site in binary_sites(net).items()}
    natural = {name: (40.0 * value).requires_grad_() for name, value in signs.items()}

    def objective(values):
        draws = zip(*values.values(), strict=True)
        return torch.stack(
            [networks.call(net, dict(zip(values, draw, strict=True)), x).sum() for draw in draws]
        )

    before = snapshot(net)
    estimate = LocalReparameterization()(objective, natural)
    torch.testing.assert_close(estimate, net(x).sum(), rtol=1e-6, atol=1e-6)
    estimate.backward()
    assert_untouched(before)
    # The variance of undecided weights: of one output, the sum of squared scaled inputs.
    layer = to_binary_(nn.Linear(8, 6), scale=torch.linspace(0.1, 0.7, 6))
    zeros = {"weight": torch.zeros(6, 8)}
    one = torch.randn(1, 8).expand(20_000, 8)
    drawn = []

    def record(values):
        drawn.append(networks.call(layer, {"weight": values["weight"][0]}, one))
        return drawn[-1].sum()[None]

    LocalReparameterization()(record, zeros)
    expected = layer.scale.flatten() * one[0].norm()
    torch.testing.assert_close(drawn[0].std(0), expected, rtol=0.03, atol=0.0)


@pytest.mark.parametrize("name", ["lstm, two layers", "gru cell", "embedding, padding"])
def test_local_reparameterization_refuses_by_name_what_it_cannot_carry(name):
    net = converted(TABLE[name])
    before = snapshot(net)
    with pytest.raises(TypeError, match=r"cannot carry the weight '.*' through"):
        train(net, LocalReparameterization())
    assert_untouched(before)


# What is done to a converted module from outside


def test_signs_are_assigned_as_signs_and_nothing_else():
    layer = to_binary_(nn.Linear(4, 3))
    signs = -binary_sites(layer)["weight"].signs
    layer.weight = signs
    assert torch.equal(layer.weight, 0.5 * signs)
    layer.weight = nn.Parameter(-signs)
    assert "weight" not in dict(layer.named_parameters())
    for value in (layer.weight, torch.randn(3, 4), torch.ones(4, 3), 1.0, None):
        with pytest.raises(ValueError, match=r"expected signs of shape \(3, 4\) for 'weight'"):
            layer.weight = value
    with pytest.raises(AttributeError, match="cannot be deleted"):
        del layer.weight
    with pytest.raises((AttributeError, ValueError), match="binary"):
        parametrize.register_parametrization(layer, "weight", nn.Identity())
    layer.weight.zero_()  # what is read is a new tensor
    assert torch.equal(layer.weight.abs(), torch.full((3, 4), 0.5))


def test_conversion_goes_on_where_it_stopped():
    """Weight, then bias; the class stays that of the layer, and one more tensor is binary."""
    layer = to_binary_(nn.Linear(4, 3), "weight")
    to_binary_(layer, "bias")
    assert isinstance(layer, BinaryLinear) and list(binary_sites(layer)) == ["weight", "bias"]
    other = to_binary_(to_binary_(nn.Linear(4, 3), "bias"), "weight")
    assert isinstance(other, BinaryLinear) and set(binary_sites(other)) == {"weight", "bias"}
    assert layer.bias.abs().unique().tolist() == [1.0]
    again = pickle.loads(pickle.dumps(other))
    assert type(again) is type(other) and torch.equal(again.bias, other.bias)


def test_classes_of_converted_modules():
    net = to_binary_(
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.LSTM(3, 4), nn.Conv3d(1, 1, 1), PlainLinear(2, 2))
    )
    assert type(net[0]) is BinaryConv2d and isinstance(net[1], nn.LSTM)
    assert [type(layer).__name__ for layer in net[1:]] == [
        "BinaryLSTM",
        "BinaryConv3d",
        "BinaryPlainLinear",
    ]
    assert "weight_ih_l0_scale=0.5, weight_hh_l0_scale=0.5" in repr(net[1])
    assert type(to_binary_(nn.LSTM(2, 2))) is type(net[1])  # one class for all


class Built(BinaryLinear):
    """A class of a user's own, of a layer of ours."""

    def __init__(self, size: int) -> None:
        super().__init__(size, size, scale=0.125)


def test_a_subclass_of_a_binary_layer():
    layer = Built(4)
    assert layer.weight.abs().unique().tolist() == [0.125]
    assert type(pickle.loads(pickle.dumps(layer))) is Built
    with pytest.raises(ValueError, match="weight is binary already"):
        to_binary_(layer, "weight")


def test_moves_change_signs_priors_and_scales_together():
    net = to_binary_(nn.Linear(4, 3), scale=torch.tensor([0.1, 0.2, 0.3]), prior=0.3).float()
    assert {t.dtype for t in net.state_dict().values()} == {torch.float32}
    meta = copy.deepcopy(net).to("meta")
    assert meta(torch.ones(2, 4, device="meta")).shape == (2, 3)
    assert {t.device.type for t in meta.state_dict().values()} == {"meta"}


@pytest.mark.parametrize("name", ["tied embedding", "tied linear layers"])
def test_tied_weights_stay_tied(name):
    case = TABLE[name]
    net = converted(case)
    first, second = (net.table, net.out) if name == "tied embedding" else (net[2], net[4])
    tied = [n for n in binary_sites(net) if n in ("table.weight", "2.weight")]
    assert len(tied) == 1 and not {"out.weight", "4.weight"} & set(binary_sites(net))

    def assert_tied(a: nn.Module, b: nn.Module) -> None:
        assert a._buffers["weight"] is b._buffers["weight"]
        assert torch.equal(a.weight, b.weight)

    def pair(network: nn.Module) -> tuple[nn.Module, nn.Module]:
        return (
            (network.table, network.out) if name == "tied embedding" else (network[2], network[4])
        )

    assert_tied(first, second)
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net)), copy.deepcopy(net).float()):
        assert_tied(*pair(other))
    part = copy.deepcopy(net)
    pair(part)[1].float()  # torch moves a tied parameter with either module, too
    assert_tied(*pair(part))
    opposite = {tied[0]: -binary_sites(net)[tied[0]].signs}
    assert_tied(*pair(networks.copy_with(net, opposite)))
    loaded = copy.deepcopy(net)
    for assign in (False, True):
        loaded.load_state_dict(networks.copy_with(net, opposite).state_dict(), assign=assign)
        assert_tied(*pair(loaded))
        assert torch.equal(binary_sites(loaded)[tied[0]].signs, opposite[tied[0]])
    second.weight = opposite[tied[0]]
    assert_tied(first, second)


# Files


@cases
@pytest.mark.parametrize("assign", [False, True])
def test_signs_are_loaded_silently(case, assign):
    net, other = converted(case), converted(case)
    flipped = {name: -site.signs for name, site in binary_sites(net).items()}
    networks.write_(net, flipped)
    other.load_state_dict(net.state_dict(), assign=assign)
    for name, site in binary_sites(other).items():
        assert torch.equal(site.signs, flipped[name])
    x = torch.randn(5, 4, 8)
    assert torch.equal(net.eval()(x), other.eval()(x))


@cases
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("assign", [False, True])
def test_a_checkpoint_of_real_weights_gives_its_signs_with_one_warning(case, strict, assign):
    torch.manual_seed(3)
    net, checkpoint = converted(case), case.build().state_dict()
    priors = {name: site.prior for name, site in binary_sites(net).items()}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        net.load_state_dict(
            {k: v.clone() for k, v in checkpoint.items()}, strict=strict, assign=assign
        )
    assert [str(w.message).startswith("The state dict holds real weights") for w in caught] == [
        True
    ]
    for name, site in binary_sites(net).items():
        assert torch.equal(site.signs, torch.where(checkpoint[name] >= 0, 1.0, -1.0))
        assert torch.equal(site.prior, priors[name])


def test_signs_of_a_checkpoint_are_those_of_its_own_precision():
    layer = to_binary_(nn.Linear(2, 1).float())
    tiny = {
        "weight": torch.tensor([[-1e-300, 1e-300]], dtype=torch.float64),
        "bias": torch.zeros(1),
    }
    with pytest.warns(UserWarning, match="'weight' first"):
        layer.load_state_dict(tiny)
    assert binary_sites(layer)["weight"].signs.tolist() == [[-1.0, 1.0]]


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.tensor([[0.5, float("nan")]]), "weight contains NaN"),
        (torch.tensor([[1, 0]]), "weight holds whole numbers"),
        (torch.tensor([[True, False]]), "weight holds whole numbers"),
        (torch.tensor([[1j, -1.0]]), "weight is complex"),
        (torch.ones(2, 1), "size mismatch"),
        ([[1.0, -1.0]], "expected torch.Tensor"),
    ],
)
def test_what_has_no_signs_is_not_loaded(value, message, assign):
    net = to_binary_(nn.Sequential(nn.Linear(2, 1)))
    before = binary_sites(net)["0.weight"].signs.clone()
    state = dict(net.state_dict()) | {"0.weight": value}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(RuntimeError, match=message):
            net.load_state_dict(state, strict=False, assign=assign)
    assert torch.equal(binary_sites(net)["0.weight"].signs, before)


def test_signs_in_another_type_are_signs():
    net = to_binary_(nn.Linear(2, 1))
    for assign in (False, True):
        state = dict(net.state_dict()) | {"weight": torch.tensor([[1, -1]], dtype=torch.int8)}
        net.load_state_dict(state, assign=assign)
        assert binary_sites(net)["weight"].signs.tolist() == [[1.0, -1.0]]
        assert net.weight.dtype == torch.get_default_dtype()


def test_keys_that_a_hook_renames_are_checked_too():
    net = to_binary_(nn.Linear(2, 1))

    def rename(module, state, prefix, *rest):
        if "old" in state:
            state["weight"] = state.pop("old")

    net.register_load_state_dict_pre_hook(rename)
    with pytest.warns(UserWarning, match="real weights"):
        net.load_state_dict({"old": torch.tensor([[0.3, -2.0]])}, strict=False)
    assert binary_sites(net)["weight"].signs.tolist() == [[1.0, -1.0]]


def test_a_missing_prior_is_told_where_signs_are_loaded():
    net = to_binary_(nn.Linear(2, 1))
    state = dict(net.state_dict())
    del state["weight_prior"]
    with pytest.raises(RuntimeError, match=r'Missing key.*"weight_prior"'):
        net.load_state_dict(state)


def test_pruning_after_conversion_is_told():
    layer = to_binary_(nn.Linear(4, 3))
    with pytest.raises((KeyError, ValueError, AttributeError, TypeError)):
        prune.random_unstructured(layer, "weight", amount=0.5)
