"""Programs in torch: every kind of step against the runtime's reference, gradients, blocks, errors."""

from __future__ import annotations

import copy
import dataclasses
import pickle

import numpy as np
import pytest
import torch
from program_cases import CASES, DRAWS, Case, program_of, site_of
from torch import nn

from bayesbin import BinaryPosterior
from bayesbin.compile import torch_backend, torch_kinds
from bayesbin.compile import torch_products as products
from bayesbin.compile.export import export_program
from bayesbin.compile.folding import fold
from bayesbin.compile.torch_backend import TorchProgram
from bayesbin.compile.torch_kinds import COMPUTE
from bayesbin.nn import Sign, binary_sites, to_binary_
from bayesbin.runtime import reference
from bayesbin.runtime.kinds import KINDS
from bayesbin.runtime.program import Constant, DrawnSite, Program, Step, Value

TOLERANCE = 1e-6  # of the largest output


def tensors(arrays: list[np.ndarray]) -> list[torch.Tensor]:
    return [torch.from_numpy(array) for array in arrays]


def assert_same(
    found: list[torch.Tensor],
    expected: list[np.ndarray],
    wide: float = 1e-12,
    narrow: float = TOLERANCE,
) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        numbers = one.detach().numpy()
        assert numbers.dtype == other.dtype and numbers.shape == other.shape
        if other.dtype.kind in "ib":
            assert np.array_equal(numbers, other)
            continue
        finite = np.isfinite(other)
        assert np.array_equal(numbers[~finite], other[~finite], equal_nan=True)
        largest = max(1e-3, float(np.abs(other[finite]).max(initial=0.0)))
        difference = np.abs(numbers[finite] - other[finite]).max(initial=0.0)
        assert difference <= (narrow if other.dtype == np.float32 else wide) * largest


def test_there_is_a_function_for_every_kind_and_a_case():
    assert set(COMPUTE) == set(KINDS) == {case.kind for case in CASES}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_every_kind_is_that_of_the_reference(case):
    program, arrays = program_of(case)
    found = TorchProgram(program).run(tensors(arrays), [2, 0])
    assert_same(found, reference.run(program, arrays, [2, 0]))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_every_kind_as_on_other_devices(case, monkeypatch):
    """There steps compute in the type of their outputs, and sums of signs are rounded."""
    monkeypatch.setattr(torch_kinds, "computes_in_float64", lambda device: False)
    program, arrays = program_of(case)
    found = TorchProgram(program).run(tensors(arrays), [2, 0])
    assert_same(found, reference.run(program, arrays, [2, 0]), narrow=2e-6)


def test_sums_of_signs_are_whole_numbers_on_other_devices(monkeypatch):
    """Where an algorithm misses them by a little, they are found again, and gradients pass."""
    monkeypatch.setattr(torch_kinds, "computes_in_float64", lambda device: False)
    monkeypatch.setitem(
        COMPUTE, "linear", lambda *a: products.linear(*a) + 0.01 * products.linear(*a)
    )
    generator = np.random.default_rng(0)
    steps = (Step("sign", ("x",), ("s",)), Step("linear", ("s", "w", "b"), ("y",)))
    constants = {"b": Constant(np.array([[0.25, 0.0]], np.float32))}
    sites = {"w": site_of(generator, (2, 9), drawn=True)}
    program = Program({"x": Value((9,), "f4")}, constants, sites, steps, ("y",), DRAWS)
    x = generator.uniform(-0.9, 0.9, (4, 9)).astype(np.float32)
    given = torch.from_numpy(x).requires_grad_()
    found = TorchProgram(program)(given)
    assert_same([found], reference.run(program, [x], range(DRAWS)))
    (torch.rand(found.shape) * found).sum().backward()
    assert given.grad is not None and given.grad.abs().min() > 0


DIFFERENTIABLE = [
    dataclasses.replace(case, dtype="f8")
    for case in CASES
    if case.dtype == "f4"
    and set(case.given) & {"x", "p"}
    and case.kind not in {"threshold", "sign", "floor", "round"}
    and case.attributes.get("value") != -1e300
]


@pytest.mark.parametrize("case", DIFFERENTIABLE, ids=lambda case: case.id)
def test_gradients_are_those_of_differences(case):
    program, arrays = program_of(case)
    module = TorchProgram(program)
    inputs = tensors(arrays)
    for x in inputs:
        x.requires_grad_(x.is_floating_point())
    assert torch.autograd.gradcheck(lambda *x: tuple(module.run(x, [0, 1])), inputs, fast_mode=True)


# Decisions


def one_step(
    kind: str, shape: tuple[int, ...], dtype: str = "f4", **constants: np.ndarray
) -> Program:
    inputs = {"x": Value(shape, dtype)}
    found = {name: Constant(array, rows_of(array)) for name, array in constants.items()}
    attributes = {"axis": len(shape) - 1} if kind == "threshold" else {}
    step = Step(kind, ("x", *constants), ("y",), "f4", attributes)
    return Program(inputs, found, {}, (step,), ("y",), DRAWS)


def rows_of(array: np.ndarray) -> np.ndarray | None:
    return np.arange(DRAWS) if len(array) == DRAWS else None


def test_a_sign_passes_the_gradient_of_the_package_s_sign():
    x = torch.tensor([[-2.0, -1.0, -0.3, -0.0, 0.0, 1.0, 1.5, torch.nan]])
    gradients = []
    for function in (Sign(), TorchProgram(one_step("sign", (8,), "f8"))):
        given = x.clone().requires_grad_()
        found = function(given).reshape(-1)
        (torch.arange(1.0, 8.0) * found[:7] + 0 * found[:7]).sum().backward()
        gradients.append(given.grad)
        assert found[:7].tolist() == [-1, -1, -1, 1, 1, 1, 1]
    assert found[-1] == -1  # of NaN, as everywhere in a program: what is made is a sign
    assert torch.equal(gradients[0][0, :7], gradients[1][0, :7])


def test_a_threshold_passes_the_gradient_where_it_is_near():
    at = np.array([[0.5, 3.0, -np.inf], [0.5, -3.0, np.inf], [0.0, 0.0, 0.0]])
    slope = np.array([[1.0, 1.0, 1.0], [-1.0, 1.0, -1.0], [1.0, -1.0, 1.0]])
    program = one_step("threshold", (3,), "f8", at=at, slope=slope)
    x = torch.tensor([[0.5, 2.5, 0.0], [-1.0, -2.0, 9.0]], requires_grad=True)
    found = TorchProgram(program)(x)
    expected = np.where(slope[:, None] * (x.detach().numpy() - at[:, None]) >= 0, 1, -1)
    assert np.array_equal(found.detach().numpy(), expected)
    weights = torch.randn(found.shape)
    (weights * found).sum().backward()
    inside = np.abs(x.detach().numpy() - at[:, None]) <= 1
    wanted = (weights.numpy() * inside * slope[:, None]).sum(0)
    assert x.grad is not None
    np.testing.assert_allclose(x.grad.numpy(), wanted, atol=1e-12)


def test_decisions_are_made_in_float64():
    """1 + 2^-30 is 1 in float32, and above it."""
    exact = np.array([[1.0, 1.0]])
    program = one_step("threshold", (2,), "f8", at=exact, slope=np.ones((1, 2)))
    x = np.array([[1 - 2.0**-30, 1 + 2.0**-30]])
    found = TorchProgram(program)(torch.from_numpy(x))
    assert found[0, 0].tolist() == [-1, 1]
    assert_same([found], reference.run(program, [x], range(DRAWS)))


def test_a_device_without_float64_is_refused_where_it_decides():
    device = torch.device("mps")
    for kind, dtype in (("sign", "f4"), ("relu", "f8")):
        step = Step(kind, ("x",), ("y",), dtype)
        program = Program({"x": Value((2,), "f4")}, {}, {}, (step,), ("y",))
        with pytest.raises(ValueError, match="computes in float64"):
            torch_backend._check_device(program, device)
        torch_backend._check_device(program, torch.device("cpu"))
    torch_backend._check_device(one_step("relu", (2,)), device)


# Networks


def network(draws: int = DRAWS) -> tuple[Program, np.ndarray]:
    """Two inputs' worth of steps: shared and drawn, a value used twice, two outputs of two types."""
    generator = np.random.default_rng(7)
    sites = {
        "w1": site_of(generator, (6, 2, 3, 3), drawn=True, number=1),
        "w2": site_of(generator, (5, 6 * 16), drawn=False, number=2),
        "w3": site_of(generator, (3, 5), drawn=True, number=3),
    }
    normal = generator.standard_normal
    constants = {
        "b1": Constant(normal((1, 6)).astype(np.float32)),
        "a": Constant(normal((2, 5)).astype(np.float32), np.array([0, 1, 0])),
        "b": Constant(normal((1, 5)).astype(np.float32)),
        "t": Constant(np.round(normal((DRAWS, 5))), np.arange(DRAWS)),
        "d": Constant(np.ones((1, 5))),
        "few": Constant(np.array([[0, 1, 2]], np.uint8), None, (-0.5, 0.0, 2.0)),
    }
    conv = {"stride": (2, 2), "padding": ((1, 1), (1, 1)), "dilation": (1, 1), "groups": 1}
    steps = (
        Step("relu", ("x",), ("r",)),
        Step("conv", ("r", "w1", "b1"), ("c",), "f4", conv),
        Step("reshape", ("c",), ("f",), "f4", {"shape": (96,)}),
        Step("linear", ("f", "w2"), ("h",)),
        Step("affine", ("h", "a", "b"), ("n",), "f4", {"axis": 0}),
        Step("threshold", ("h", "t", "d"), ("s",), "f4", {"axis": 0}),
        Step("linear", ("s", "w3", "few"), ("y",)),
        Step("softmax", ("n",), ("z",), "f8", {"axis": 0}),
    )
    inputs = {"x": Value((2, 8, 8), "f4")}
    program = Program(inputs, constants, sites, steps, ("y", "z", "few"), DRAWS)
    return program, normal((5, 2, 8, 8)).astype(np.float32)


def test_a_network_is_that_of_the_reference():
    program, x = network()
    found = TorchProgram(program).run([torch.from_numpy(x)], range(DRAWS))
    assert_same(found, reference.run(program, [x], range(DRAWS)), TOLERANCE)
    assert not torch.equal(found[0][0], found[0][1])


def test_memory_s_bound_changes_nothing(monkeypatch):
    program, x = network()
    whole = TorchProgram(program).run([torch.from_numpy(x)], range(DRAWS))
    for numbers in (1, 96 * 2, 128 * 5 * 2):  # one datum and draw at a time, two data, two draws
        monkeypatch.setattr(torch_backend, "NUMBERS", numbers)
        parts = TorchProgram(program).run([torch.from_numpy(x)], range(DRAWS))
        assert_same(parts, [one.numpy() for one in whole], TOLERANCE)


def test_any_draws_and_any_batch():
    program, x = network()
    module, given = TorchProgram(program), torch.from_numpy(x)
    whole = module.run([given], range(DRAWS))
    for one, other in zip(module.run([given], [2, 2, 0]), whole, strict=True):
        torch.testing.assert_close(one, other[[2, 2, 0]], rtol=1e-6, atol=1e-6)
    for one, other in zip(module.run([given[3:4]], [1]), whole, strict=True):
        torch.testing.assert_close(one, other[1:2, 3:4], rtol=1e-6, atol=1e-6)
    assert [tuple(one.shape) for one in module(given[:0])] == [(3, 0, 3), (3, 0, 5), (3, 0, 3)]


def test_what_all_draws_share_is_computed_once(monkeypatch):
    program, x = network()
    calls = []
    compute = torch_backend.compute
    monkeypatch.setattr(torch_backend, "NUMBERS", 128 * 5)  # a draw at a time
    monkeypatch.setattr(
        torch_backend,
        "compute",
        lambda step, *rest: calls.append(step.kind) or compute(step, *rest),
    )
    TorchProgram(program).run([torch.from_numpy(x)], range(DRAWS))
    assert calls.count("relu") == 1 and calls.count("conv") == DRAWS


def test_signs_are_kept_within_a_bound(monkeypatch):
    program, x = network()
    calls = []
    words = DrawnSite.words
    monkeypatch.setattr(DrawnSite, "words", lambda *a: calls.append(a[1]) or words(*a))
    module, given = TorchProgram(program), [torch.from_numpy(x)]
    first = module.run(given, range(DRAWS))
    assert len(calls) == 2 * DRAWS
    assert all(map(torch.equal, module.run(given, range(DRAWS)), first)) and len(calls) == 2 * DRAWS
    # A copy draws anew, and so does a program whose bound holds less than one network.
    assert all(map(torch.equal, copy.deepcopy(module).run(given, range(DRAWS)), first))
    assert all(map(torch.equal, pickle.loads(pickle.dumps(module)).run(given, range(DRAWS)), first))
    assert len(calls) == 6 * DRAWS
    monkeypatch.setattr(torch_backend, "CACHED", 10)
    module = TorchProgram(program)
    for _ in range(2):
        assert all(map(torch.equal, module.run(given, range(DRAWS)), first))
    assert len(calls) == 10 * DRAWS and module._signs._held <= 10


def test_the_program_is_not_changed_by_its_module():
    program, _ = network()
    before = {name: constant.data.copy() for name, constant in program.constants.items()}
    module = TorchProgram(program)
    for buffer in module.buffers():
        buffer.zero_()
    assert all(np.array_equal(program.constants[name].data, data) for name, data in before.items())
    assert not module.state_dict()


def test_settings_of_the_process_change_no_number():
    program, x = network()
    module, given = TorchProgram(program), [torch.from_numpy(x)]
    expected = module.run(given, range(DRAWS))
    torch.set_default_dtype(torch.float16)
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = module.run(given, range(DRAWS))
    finally:
        torch.set_float32_matmul_precision("highest")
    assert all(map(torch.equal, found, expected))


def test_inputs_of_other_types_are_converted_and_stay_as_they_are():
    program, x = network()
    module = TorchProgram(program)
    expected = module(torch.from_numpy(x))
    for given in (torch.from_numpy(x).double(), torch.from_numpy(x).transpose(1, 3).contiguous()):
        given = given if given.dtype == torch.float64 else given.transpose(1, 3)
        assert all(map(torch.equal, module(given), expected))
    step = Step("relu", ("x",), ("y",))
    identity = TorchProgram(Program({"x": Value((2,), "f4")}, {}, {}, (step,), ("x", "y")))
    given = torch.ones(3, 2, dtype=torch.float32)
    found, _ = identity(given)
    found.zero_()
    assert torch.equal(given, torch.ones(3, 2, dtype=torch.float32))


def test_what_does_not_fit_is_refused():
    program, x = network()
    module, given = TorchProgram(program), torch.from_numpy(x)
    for wrong in (given[:, :1], given[0], given.flatten(1)):
        with pytest.raises(ValueError, match=r"expected 'x' of shape \('B', 2, 8, 8\)"):
            module(wrong)
    with pytest.raises(ValueError, match="expected 1 inputs, got 2"):
        module(given, given)
    for draws in ([], [3], [-1]):
        with pytest.raises(ValueError, match=r"expected draws of 0\.\.2"):
            module.run([given], draws)
    with pytest.raises(ValueError, match="Convert inputs, not the module"):
        copy.deepcopy(module).double()(given)
    with pytest.raises(ValueError, match="on cpu, where the program is, got meta"):
        module(given.to("meta"))
    embedding, arrays = program_of(Case("embedding", [(4,), (3, 5)], "is"))
    with pytest.raises(ValueError, match=r"expected 'v0' of torch\.int64, got torch\.float64"):
        TorchProgram(embedding)(torch.from_numpy(arrays[0]).double())
    with pytest.raises(ValueError, match=r"tokens of 0\.\.2, got some of 0\.\.7"):
        TorchProgram(embedding)(torch.tensor([[0, 1, 2, 7]]))


# Networks of torch


def test_gradients_are_those_of_the_network_that_was_exported():
    """Scale, bias and normalisation become part of a threshold, whose gradient is the sign's nevertheless."""
    norm = nn.BatchNorm1d(9)
    layers = [nn.Linear(6, 9), norm, Sign(), nn.Linear(9, 8), Sign(), nn.Linear(8, 2)]
    net = to_binary_(nn.Sequential(*layers)).eval()
    with torch.no_grad():
        for tensor in (*norm.parameters(), *norm.buffers()):
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape) + 0.1)
        norm.weight[::2] *= -1
    naturals = {name: torch.randn(site.shape) for name, site in binary_sites(net).items()}
    posterior = BinaryPosterior(naturals)
    x, weights = torch.randn(20, 6), torch.randn(20, 2)
    program = fold(export_program(net, (x,), posterior, 2, 3))
    assert [step.kind for step in program.steps].count("threshold") == 2
    for draw in range(2):
        found, expected = x.clone().requires_grad_(), x.clone().requires_grad_()
        (weights * TorchProgram(program).run([found], [draw])[0]).sum().backward()
        (weights * posterior.sample_network(net, draw, 3)(expected)).sum().backward()
        assert found.grad is not None and expected.grad is not None
        assert expected.grad.abs().max() > 0.1
        # Slopes are kept in float32.
        torch.testing.assert_close(found.grad, expected.grad, rtol=1e-5, atol=1e-6)
