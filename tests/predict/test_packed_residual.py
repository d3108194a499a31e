"""Residual blocks in the kernels: the streaming predictor's answers, on every isa."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bayesbin import BinaryPosterior
from bayesbin.nn import Residual, Scale, Sign, binary_sites, recalibrate, to_binary_
from bayesbin.predict import PackedPredictive, draw_outputs, kernels
from bayesbin.predict.folding import fold
from bayesbin.predict.kernel_program import Program
from bayesbin.predict.packed_layers import PackedNetwork
from bayesbin.predict.program import steps_of
from bayesbin.predict.program_rows import ADD, FLATTEN, PUSH, SWAP, rows_of

needs_kernels = pytest.mark.skipif(not kernels.available(), reason=str(kernels.why_not()))
IMAGE = (2, 8, 8)
DRAWS, SEED = 5, 3


def conv(inputs: int, outputs: int, stride: int = 1) -> list[nn.Module]:
    layer = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
    return [layer, nn.BatchNorm2d(outputs)]


def of_relus(shortcut: bool) -> nn.Module:
    """Activations after the sum (He et al. 2016); one block inside another."""
    inner = Residual(nn.Sequential(*conv(6, 6), nn.ReLU(), *conv(6, 6)))
    first = Residual(nn.Sequential(*conv(6, 6), nn.ReLU(), inner))
    body = nn.Sequential(*conv(6, 7, 2), nn.ReLU(), *conv(7, 7))
    around = nn.Sequential(nn.Conv2d(6, 7, 1, stride=2), nn.BatchNorm2d(7))
    second = Residual(body, around) if shortcut else nn.Sequential(body)
    head = [nn.AvgPool2d(2), nn.Flatten(), Residual(nn.Linear(28, 28)), nn.ReLU(), nn.Linear(28, 3)]
    return nn.Sequential(
        *conv(2, 6), nn.ReLU(), first, nn.ReLU(), second, nn.ReLU(), *head, Scale()
    )


def of_signs(shortcut: bool) -> nn.Module:
    """Signs in the bodies, real sums between them (Liu et al. 2018); a shortcut of signs."""
    first = Residual(nn.Sequential(Sign(), *conv(6, 6)))
    around = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(6, 7, 1), nn.BatchNorm2d(7))
    block = [Residual(nn.Sequential(*conv(6, 7, 2)), around)] if shortcut else conv(6, 7, 2)
    head = [nn.Flatten(), Residual(nn.Linear(112, 112)), Sign(), nn.Linear(112, 3), Scale()]
    return nn.Sequential(*conv(2, 6), first, Sign(), *block, *head)


NETWORKS = {
    f"{name}{', shortcut' if shortcut else ''}": (build, shortcut)
    for name, build in (("relu", of_relus), ("sign", of_signs))
    for shortcut in (False, True)
}


def example(name: str) -> tuple[nn.Module, BinaryPosterior, Tensor]:
    build, shortcut = NETWORKS[name]
    net = to_binary_(build(shortcut)).float()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.running_mean, module.running_var, module.weight, module.bias):
                assert tensor is not None
                nn.init.uniform_(tensor, 0.3, 1.5)
            module.weight.data[0] = -0.7
    sites = {site: torch.randn(found.shape) for site, found in binary_sites(net).items()}
    return net, BinaryPosterior(sites), torch.randn(19, *IMAGE).float()


@needs_kernels
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("with_statistics", [False, True], ids=["running", "per draw"])
def test_the_answers_are_those_of_the_streaming_predictor(name, with_statistics):
    net, posterior, x = example(name)
    statistics = None
    if with_statistics:
        statistics = recalibrate(net, posterior, torch.cat([x, 2 * x + 0.1]), DRAWS, SEED)
    expected = torch.stack(list(draw_outputs(net, posterior, x, DRAWS, SEED, statistics)))
    exact = PackedPredictive(net, posterior, DRAWS, SEED, statistics=statistics, backend="cpu")
    torch.testing.assert_close(exact.outputs(x), expected, rtol=2e-5, atol=2e-5)
    fast = PackedPredictive(
        net, posterior, DRAWS, SEED, statistics=statistics, backend="cpu", precision="fast"
    ).outputs(x)
    if name.startswith("sign"):
        assert torch.equal(fast, exact.outputs(x))  # what may reach a sign is exact
    else:
        difference = (fast - expected).abs().max()
        assert 0.0 < difference < 1e-3 * expected.abs().max()
    # The sum matters: without one of the blocks it is another network.
    block = next(module for module in net.modules() if isinstance(module, Residual))
    block.forward = block.body.forward  # pyright: ignore
    without = torch.stack(list(draw_outputs(net, posterior, x, DRAWS, SEED, statistics)))
    assert (without - expected).abs().max() > 1e-2


def test_what_is_put_aside_keeps_its_kind():
    """Signs on the stack are signs again for the shortcut; a sum is of no signs."""

    def kinds(net: nn.Module, fast: bool = True) -> list[str]:
        posterior = BinaryPosterior({s: torch.zeros(v.shape) for s, v in binary_sites(net).items()})
        operations = fold(net, steps_of(net), [0], 0, None)
        return [kind for kind in PackedNetwork(operations, posterior, [0], 0, fast).kinds if kind]

    def linear() -> nn.Linear:
        return nn.Linear(4, 4)

    def net(*layers: nn.Module) -> nn.Module:
        return to_binary_(nn.Sequential(*layers))

    both = Residual(linear(), linear())
    assert kinds(net(Sign(), both, linear())) == ["sign", "sign", "fast"]
    both = Residual(nn.Sequential(linear(), nn.ReLU(), linear()), nn.Sequential(linear()))
    # A swap behind a layer: it is not asked what becomes of the values.
    assert kinds(net(both, nn.ReLU(), linear())) == ["fast", "real", "fast", "fast"]
    plain = Residual(nn.Sequential(linear(), nn.ReLU(), linear()))
    assert kinds(net(linear(), nn.ReLU(), plain, nn.ReLU(), linear())) == ["fast"] * 4
    signs = Residual(nn.Sequential(linear(), nn.ReLU(), linear()))
    assert kinds(net(linear(), signs, Sign(), linear())) == ["real", "fast", "real", "sign"]
    assert kinds(net(linear(), nn.ReLU(), linear()), fast=False) == ["real", "real"]


@needs_kernels
@pytest.mark.parametrize("fast", [False, True], ids=["exact", "fast"])
@pytest.mark.parametrize("name", NETWORKS)
def test_isas_threads_and_batches_change_nothing(name, fast):
    net, posterior, x = example(name)
    draws: list[int | None] = list(range(DRAWS))
    operations = fold(net, steps_of(net), draws, SEED, None)
    program = PackedNetwork(operations, posterior, draws, SEED, fast).program(IMAGE, 0, DRAWS)
    values = x.flatten(1).numpy()

    def outputs(rows: np.ndarray, isa: str | None = None, threads: int = 1) -> np.ndarray:
        found = program.run_regression(rows, isa=isa, threads=threads, outputs=True).outputs
        assert found is not None
        return found

    expected = outputs(values)
    for isa in kernels.isas():
        for threads in (1, 3):
            assert np.array_equal(outputs(values, isa, threads), expected)
    for rows in (1, 9):
        assert np.array_equal(outputs(values[-rows:].copy()), expected[:, -rows:])


# Errors


def test_sums_that_do_not_fit_are_refused():
    program = Program((3, 4, 4), 1)
    with pytest.raises(ValueError, match="The stack is empty"):
        program.add()
    with pytest.raises(ValueError, match="The stack is empty"):
        program.swap()
    program.push()
    program.flatten()
    with pytest.raises(ValueError, match=r"one shape; got \(48, 1, 1\) and \(3, 4, 4\)"):
        program.add()
    program = Program((3, 4, 4), 1)
    program.push()
    program.flatten()
    program.swap()
    assert program.shape == (3, 4, 4)
    program.flatten()
    program.add()
    assert program.shape == (48, 1, 1)


@needs_kernels
@pytest.mark.parametrize(
    "steps, message",
    [
        ([[ADD]], "takes values from an empty stack"),
        ([[SWAP]], "takes values from an empty stack"),
        ([[PUSH], [ADD], [ADD]], "takes values from an empty stack"),
        (
            [[PUSH], [FLATTEN], [ADD]],
            r"adds values of the shape \(3, 4, 4\) to values of the shape \(48, 1, 1\)",
        ),
        ([[PUSH], [PUSH], [ADD]], "leaves 1 values on the stack"),
    ],
)
def test_the_kernels_refuse_them_too(steps, message):
    """Of rows from elsewhere: the program's own methods would not make them."""
    rows = rows_of(steps)
    x, sums = np.zeros((1, 48), np.float32), np.zeros((4, 48))
    with pytest.raises(ValueError, match=message):
        kernels.loaded().fused(
            "", kernels.address(rows), len(rows), (3, 4, 4), kernels.address(x), 1, 1, 0,
            *map(kernels.address, sums), 0, 1,
        )  # fmt: skip


@needs_kernels
def test_a_block_that_does_not_fit_its_inputs_is_refused_in_a_sentence():
    net = to_binary_(nn.Sequential(Residual(nn.Conv2d(2, 2, 3)), nn.Flatten(), nn.Linear(128, 3)))
    posterior = BinaryPosterior({s: torch.zeros(v.shape) for s, v in binary_sites(net).items()})
    packed = PackedPredictive(net.float(), posterior, 2, backend="cpu")
    with pytest.raises(ValueError, match=r"one shape; got \(2, 6, 6\) and \(2, 8, 8\)"):
        packed.predict(torch.zeros(1, *IMAGE).float())
