"""Networks as steps, and what lies between two layers as one line: the same function, written out."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bayesbin import BinaryPosterior
from bayesbin.nn import (
    Residual,
    Scale,
    Sign,
    StateBatchNorm,
    binary_sites,
    conv_net,
    mlp,
    recalibrate,
    to_binary_,
    to_state_batch_norm_,
)
from bayesbin.predict.folding import Folded, fold
from bayesbin.predict.packing import num_words, pack, unpack
from bayesbin.predict.program import (
    Activation,
    Add,
    Affine,
    Flatten,
    Pool,
    Push,
    Swap,
    Weighted,
    steps_of,
)


def run(operations, signs: dict[str, Tensor], place: int, x: Tensor) -> Tensor:
    """The operations in torch, in float64."""
    stack: list[Tensor] = []
    for operation in operations:
        if isinstance(operation, Weighted):
            w = signs[operation.site].double()
            if operation.stride is None:
                x = F.linear(x, w)
            else:
                x = F.conv2d(x, w, stride=operation.stride, padding=operation.padding or 0)
        elif isinstance(operation, Folded):
            slope, shift = (
                torch.tensor(a[min(place, len(a) - 1)]).double()
                for a in (operation.slope, operation.shift)
            )
            shape = (1, -1, *(1,) * (x.dim() - 2))
            x = slope.view(shape) * x + shift.view(shape)
        elif isinstance(operation, Activation):
            functions = {"relu": F.relu, "tanh": torch.tanh, "sign": Sign()}
            x = (
                x.clamp(operation.low, operation.high)
                if operation.kind == "hardtanh"
                else functions[operation.kind](x)
            )
        elif isinstance(operation, Pool):
            pool = F.max_pool2d if operation.kind == "max" else F.avg_pool2d
            x = pool(x, operation.size, operation.stride, operation.padding)
        elif isinstance(operation, Push):
            stack.append(x)
        elif isinstance(operation, Swap):
            x, stack[-1] = stack[-1], x
        elif isinstance(operation, Add):
            x = x + stack.pop()
        else:
            assert isinstance(operation, Flatten)
            x = x.flatten(1)
    assert not stack
    return x


def convolutional() -> nn.Module:
    layers = [
        nn.Conv2d(2, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), nn.Hardtanh(-0.5, 2.0),
        nn.AvgPool2d(2, stride=1, padding=1), nn.Sequential(nn.Conv2d(4, 3, 3, padding="same"), nn.ReLU6()),
        nn.MaxPool2d((2, 1)), nn.Flatten(), nn.Dropout(), nn.Identity(), nn.LazyLinear(5), Scale(0.3),
    ]  # fmt: skip
    net = nn.Sequential(*layers)
    net(torch.zeros(1, 2, 9, 9))
    return net


def residual() -> nn.Module:
    inner = Residual(nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)))
    body = nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), inner, nn.Tanh()
    )
    shortcut = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3), Residual(body, shortcut),
        nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), Residual(nn.Linear(36, 36), nn.Identity()),
        nn.Linear(36, 3),
    )  # fmt: skip


def reused() -> nn.Module:
    layer, norm, relu = nn.Linear(6, 6), nn.BatchNorm1d(6), nn.ReLU()
    return nn.Sequential(layer, norm, relu, layer, norm, relu, nn.Linear(6, 3))


NETWORKS = {
    "mlp": (lambda: mlp(6, [8, 7], 3), (6,)),
    "tanh, no normalisation": (lambda: mlp(6, [8], 3, activation="tanh", normalize=False), (6,)),
    "signs": (lambda: mlp(6, [8, 7], 3, activation="sign"), (6,)),
    "state norm": (lambda: to_state_batch_norm_(mlp(6, [8], 3)), (6,)),
    "convolutional": (convolutional, (2, 9, 9)),
    "of the literature": (lambda: conv_net((1, 12, 12), (4,), (6,), 3), (1, 12, 12)),
    "residual": (residual, (2, 6, 6)),
    "residual, state norm": (lambda: to_state_batch_norm_(residual()), (2, 6, 6)),
    "layers used twice": (reused, (6,)),
    "one layer": (lambda: nn.Linear(4, 2), (4,)),
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("with_statistics", [False, True], ids=["running", "per draw"])
def test_the_steps_are_the_network(name, with_statistics):
    build, shape = NETWORKS[name]
    net = to_binary_(build())
    for module in net.modules():  # normalisation that has something to do
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d, StateBatchNorm)):
            for tensor in (module.running_mean, module.running_var, module.weight, module.bias):
                assert tensor is not None
                nn.init.uniform_(tensor, 0.3, 1.5)
            assert module.weight is not None
            module.weight.data[0], module.weight.data[1] = -0.7, 0.0
    posterior = BinaryPosterior(
        {site: torch.randn(found.shape) for site, found in binary_sites(net).items()}
    )
    x = torch.randn(20, *shape)
    statistics = (
        recalibrate(net, posterior, torch.randn(64, *shape), 3, seed=5) if with_statistics else None
    )
    operations = fold(net, steps_of(net), [None, 0, 1, 2], 5, statistics)
    for place, index in enumerate([None, 0, 1, 2]):
        if index is None:
            expected = posterior.mode_network(net, statistics)(x)
        else:
            expected = posterior.sample_network(net, index, 5, statistics)(x)
        found = run(operations, posterior.signs(index, seed=5), place, x)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)  # lines are float32
    changes = [len(op.slope) for op in operations if isinstance(op, Folded)]
    has_norm = any("Norm" in type(module).__name__ for module in net.modules())
    assert (4 in changes) == (with_statistics and has_norm)
    assert not any(isinstance(a, Folded) and isinstance(b, Folded)
                   for a, b in itertools.pairwise(operations))  # fmt: skip


def test_a_residual_block_is_a_detour_over_the_stack():
    net = to_binary_(residual())
    steps = [step for step in steps_of(net) if not isinstance(step, Affine)]
    sites = [step.site if isinstance(step, Weighted) else type(step).__name__ for step in steps]
    assert sites == [
        "0.weight", "Push", "2.body.0.weight", "Push", "2.body.2.body.0.weight", "Add", "Activation",
        "Swap", "Pool", "2.shortcut.1.weight", "Add", "Activation", "Flatten", "Push", "6.body.weight",
        "Swap", "Add", "7.weight",
    ]  # fmt: skip
    norms = [step.norm for step in steps_of(net) if isinstance(step, Affine) and step.norm]
    assert norms == ["1", "2.body.1", "2.body.2.body.1", "2.shortcut.2", "3"]
    # A sum stands between the lines of a body and those that follow it.
    operations = fold(net, steps_of(net), [None], 0, None)
    places = [place for place, op in enumerate(operations) if isinstance(op, Add)]
    assert isinstance(operations[places[1] - 1], Folded) and isinstance(
        operations[places[1] + 1], Folded
    )


@pytest.mark.parametrize(
    "module, message",
    [
        (nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 2)), r"'1' is GELU.*no step"),
        (nn.Sequential(nn.Conv2d(2, 4, 3, groups=2)), "groups, dilation or padding"),
        (nn.Sequential(nn.Conv2d(2, 4, 3, dilation=2)), "groups, dilation or padding"),
        (nn.Sequential(nn.Conv2d(2, 4, 2, padding="same")), "even kernel"),
        (nn.Sequential(nn.Linear(3, 2), nn.MaxPool2d(2, ceil_mode=True)), "options beyond"),
        (
            nn.Sequential(nn.Linear(3, 2), nn.AvgPool2d(2, padding=1, count_include_pad=False)),
            "options",
        ),
        (
            nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2, track_running_stats=False)),
            "by the batch",
        ),
        (nn.Sequential(nn.Linear(3, 2), nn.Flatten(0)), "flattens other dimensions"),
        (
            nn.Sequential(Residual(nn.Sequential(nn.Linear(2, 2), nn.GELU()))),
            r"'0\.body\.1' is GELU",
        ),
        (nn.Bilinear(2, 2, 2), "The network is Bilinear"),
    ],
    ids=str,
)
def test_what_no_step_stands_for_is_named_with_the_way_out(module, message):
    if not isinstance(module, nn.Bilinear):
        to_binary_(module)
    with pytest.raises(ValueError, match=message) as caught:
        steps_of(module)
    assert "use bayesbin.predict.predict" in str(caught.value)


# Packing


@pytest.mark.parametrize(
    "shape", [(3, 5), (2, 64), (2, 65), (4, 2, 3, 3), (1, 1), (5,), (0, 3), (3, 0)], ids=str
)
def test_packing_keeps_every_sign_and_ignores_the_padding(shape):
    plus = np.random.default_rng(0).random(shape) < 0.5
    words = pack(plus)
    inputs = int(np.prod(shape[1:]))
    assert words.dtype == np.uint64 and words.shape == (shape[0], num_words(inputs))
    for n in range(shape[0]):
        row = plus.reshape(shape[0], inputs)[n]
        assert [int(w) for w in words[n]] == [
            sum(int(bit) << k for k, bit in enumerate(row[64 * w : 64 * (w + 1)]))
            for w in range(num_words(inputs))
        ]
    assert (unpack(words, shape) == plus).all()
    poisoned = words.copy()
    if inputs % 64:
        poisoned[:, -1] |= np.uint64(((1 << 64) - 1) ^ ((1 << inputs % 64) - 1))
    assert (unpack(poisoned, shape) == plus).all()
    with pytest.raises(ValueError, match="Expected words of shape"):
        unpack(words.astype(np.int64), shape)
