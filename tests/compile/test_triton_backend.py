"""The Triton kernels: the bits and the sums of the CPU; on a GPU where there is one, else interpreted."""

from __future__ import annotations

import importlib.util
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from program_cases import DRAWS, Case, program_of, site_of

from bayesbin.compile import devices, torch_backend
from bayesbin.compile.devices import program_on, why_no_triton
from bayesbin.compile.torch_backend import TorchProgram
from bayesbin.core.canonical import draw_words, pack_words, unpack_words
from bayesbin.runtime import reference
from bayesbin.runtime.program import Constant, DrawnSite, Program, Step, Value

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
needs_gpu = pytest.mark.skipif(not ON_GPU, reason="no CUDA device")
with pytest.MonkeyPatch.context() as _patch:
    if not ON_GPU:  # kernels are made for the interpreter, or not, when they are imported
        _patch.setenv("TRITON_INTERPRET", "1")
    from bayesbin.compile import triton_signs
    from bayesbin.compile.triton_backend import TritonProgram
    from bayesbin.compile.triton_signs import SignDraws

INPUTS = [1, 3, 4, 5, 63, 64, 65, 100]
SIZES = [(1, 1), (7, 2), (17, 31), (33, 33)]  # units and rows


@pytest.fixture(autouse=True)
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    if not ON_GPU:
        monkeypatch.setenv("TRITON_INTERPRET", "1")


def drawn(units: int, inputs: int, draws: int = 3) -> tuple[SignDraws, np.ndarray]:
    """Signs to be drawn, and booleans (draws, N, K): what the rest of the package draws."""
    generator = np.random.default_rng(units * 1000 + inputs)
    mode = pack_words(generator.random((units, inputs)) < 0.5)
    flip = generator.integers(0, 2**15 + 1, (units, inputs)).astype(np.uint16)
    flip.flat[::5], flip.flat[1::5] = 0, 2**15  # never, and half of the time
    keys = generator.integers(0, 2**64, draws, dtype=np.uint64)
    keys[-1] = 2**64 - 1
    plus = np.stack(
        [unpack_words(draw_words(mode, flip, int(key)), (units, inputs)) for key in keys]
    )
    return SignDraws.drawn(mode, flip, keys, DEVICE), plus


def signs(plus: np.ndarray) -> np.ndarray:
    return np.where(plus, 1.0, -1.0)


def packed(plus: np.ndarray) -> np.ndarray:
    return np.stack([pack_words(one) for one in plus])


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.sqrt(((found - expected) ** 2).mean() / (expected**2).mean()))


def words(tensor: torch.Tensor) -> np.ndarray:
    return tensor.cpu().numpy().view(np.uint64)


def inputs_for(draws: int, rows: int, inputs: int) -> np.ndarray:
    return np.random.default_rng(inputs).standard_normal((draws, rows, inputs)).astype(np.float32)


# Kernels


@pytest.mark.slow
@pytest.mark.parametrize("inputs", INPUTS)
@pytest.mark.parametrize("units", [1, 7, 17, 33])
def test_the_bits_are_those_of_the_cpu(units, inputs):
    check_bits(units, inputs)


def test_the_bits_of_one_size_are_those_of_the_cpu():
    check_bits(17, 65)


def check_bits(units: int, inputs: int) -> None:
    distribution, plus = drawn(units, inputs)
    assert np.array_equal(words(triton_signs.draw_words(distribution)), packed(plus))
    for draw in range(3):
        found = triton_signs.dense(distribution.draws(draw, draw + 1)).cpu().numpy()
        assert np.array_equal(found, signs(plus[draw]))
    given = SignDraws.given(packed(plus), inputs, DEVICE)
    assert np.array_equal(triton_signs.dense(given.draws(2, 3)).cpu().numpy(), signs(plus[2]))


@pytest.mark.slow
@pytest.mark.parametrize("inputs", INPUTS)
@pytest.mark.parametrize(("units", "rows"), SIZES)
def test_sums_of_real_inputs(units, rows, inputs):
    distribution, plus = drawn(units, inputs)
    x = inputs_for(1, rows, inputs)
    expected = x.astype(np.float64) @ signs(plus).transpose(0, 2, 1)
    on_device = torch.tensor(x, device=DEVICE)
    exact = triton_signs.linear(on_device, distribution).cpu().numpy()
    # Without the last of the three parts of a number it would be 1e-5.
    assert exact.shape == (3, rows, units) and relative_error(exact, expected) < 1e-6
    fast = triton_signs.linear(on_device, distribution, fast=True).cpu().numpy()
    assert 1e-6 < relative_error(fast, expected) < 4e-4 or (units, rows) == (1, 1)


@pytest.mark.parametrize("rows", [triton_signs.DRAW_ONCE_ABOVE, triton_signs.DRAW_ONCE_ABOVE + 1])
def test_many_rows_draw_once_and_change_nothing(rows, monkeypatch):
    calls = []
    draw = triton_signs.draw_words
    monkeypatch.setattr(
        triton_signs, "draw_words", lambda given: calls.append(given) or draw(given)
    )
    distribution, plus = drawn(33, 65)
    x = inputs_for(3, rows, 65)  # of each draw its own
    found = triton_signs.linear(torch.tensor(x, device=DEVICE), distribution).cpu().numpy()
    assert relative_error(found, x.astype(np.float64) @ signs(plus).transpose(0, 2, 1)) < 1e-6
    assert len(calls) == (rows > triton_signs.DRAW_ONCE_ABOVE)
    shared = SignDraws.given(packed(plus[1:2]), 65, DEVICE)
    found = triton_signs.linear(torch.tensor(x, device=DEVICE), shared).cpu().numpy()
    assert relative_error(found, x.astype(np.float64) @ signs(plus[1]).T) < 1e-6


@pytest.mark.parametrize("fast", [False, True])
def test_rows_of_all_scales(fast):
    distribution, plus = drawn(7, 20, draws=1)
    scales = np.array([0.0, 1e-30, 1.0, 1e30, 3e37], np.float32)[:, None]
    x = inputs_for(1, 5, 20) * scales
    x[0, 2, 0] = 1e4  # one large number among small ones: float16 alone would not hold all of them
    found = triton_signs.linear(torch.tensor(x, device=DEVICE), distribution, fast).cpu().numpy()[0]
    expected = x[0].astype(np.float64) @ signs(plus[0]).T
    assert np.array_equal(found[0], np.zeros(7))
    for row in range(1, 5):
        error = relative_error(found[row] / scales[row], expected[row] / scales[row])
        assert error < (4e-4 if fast else 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("inputs", INPUTS)
@pytest.mark.parametrize(("units", "rows"), SIZES)
def test_sums_of_signs_are_exact(units, rows, inputs):
    distribution, plus = drawn(units, inputs)
    x = inputs_for(3, rows, inputs)
    x.flat[::7], x.flat[1::7] = 0.0, -0.0
    bits = triton_signs.pack_signs(torch.tensor(x, device=DEVICE))
    assert np.array_equal(words(bits), packed(x >= 0))
    found = triton_signs.linear_sign(bits, triton_signs.draw_words(distribution), inputs)
    assert found.dtype == torch.int32
    expected = signs(x >= 0) @ signs(plus).transpose(0, 2, 1)
    assert np.array_equal(found.cpu().numpy(), expected)
    one = triton_signs.linear_sign(bits[:1], triton_signs.draw_words(distribution), inputs)
    assert np.array_equal(one.cpu().numpy(), signs(x[:1] >= 0) @ signs(plus).transpose(0, 2, 1))


# Programs


def assert_same(program: Program, arrays: list[np.ndarray], draws: list[int], tolerance=1e-6):
    module = TritonProgram(program).to(DEVICE)
    found = module.run([torch.tensor(array, device=DEVICE) for array in arrays], draws)
    expected = reference.run(program, arrays, draws)
    for one, other in zip(found, expected, strict=True):
        numbers = one.cpu().numpy()
        assert numbers.dtype == other.dtype and numbers.shape == other.shape
        largest = max(1e-3, float(np.abs(other).max(initial=0.0)))
        assert np.abs(numbers - other).max(initial=0.0) <= tolerance * largest


CONV = {"stride": (1,), "padding": ((1, 0),), "dilation": (1,), "groups": 1}
STEPS = [
    *(Case("linear", [(3, 70), (5, 70), (5,)], f"x{weights}d") for weights in "st"),
    Case("linear", [(70,), (5, 70)], "xs"),
    Case("linear", [(70,), (5, 70), (5,)], "xsc", dtype="f8"),
    Case("conv", [(2, 9), (3, 2, 3), (3,)], "xsc", CONV),
    Case("conv_transpose", [(2, 9), (2, 3, 3)], "xt", {
        "stride": (1,), "padding": (0,), "output_padding": (0,), "dilation": (1,), "groups": 1}),
    Case("embedding", [(4,), (3, 5)], "is"),
    Case("mul", [(3, 5), (3, 5)], "xs"),
]  # fmt: skip


@pytest.mark.parametrize("case", STEPS, ids=lambda case: case.id)
def test_steps_with_signs_are_those_of_the_reference(case):
    program, arrays = program_of(case)
    assert_same(program, arrays, [2, 0, 1])


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_signs_times_signs_are_exact(dtype):
    generator = np.random.default_rng(3)
    bias = Constant(generator.standard_normal((1, 6)).astype("<" + dtype))
    sites = {"w": site_of(generator, (6, 100), drawn=True)}
    steps = (Step("sign", ("x",), ("s",)), Step("linear", ("s", "w", "b"), ("y",), dtype))
    program = Program({"x": Value((100,), "f4")}, {"b": bias}, sites, steps, ("y",), DRAWS)
    x = generator.integers(-1, 2, (9, 100)).astype(np.float32)
    assert_same(program, [x], [0, 1, 2], tolerance=0.0)


def network(rows: list[int] | None = None) -> tuple[Program, np.ndarray]:
    """Linear, affine, relu, linear, threshold, linear: real inputs and signs, shared and drawn."""
    generator = np.random.default_rng(5)
    shapes = {"w1": (20, 33), "w2": (70, 20), "w3": (3, 70)}
    sites = {name: site_of(generator, s, True, i) for i, (name, s) in enumerate(shapes.items())}
    if rows is not None:
        first = sites["w1"]
        assert isinstance(first, DrawnSite)
        other = site_of(generator, (20, 33), True)
        assert isinstance(other, DrawnSite)
        two = np.concatenate([first.mode, other.mode]), np.concatenate([first.flip, other.flip])
        sites["w1"] = DrawnSite((20, 33), *two, first.keys, np.array(rows))
    constants = {
        "a": Constant(generator.standard_normal((2, 20)).astype(np.float32), np.array([1, 0, 1])),
        "b": Constant(generator.standard_normal((1, 20)).astype(np.float32)),
        "t": Constant(generator.standard_normal((1, 70))),
        "d": Constant(np.ones((1, 70))),
    }
    steps = (
        Step("linear", ("x", "w1"), ("h",)),
        Step("affine", ("h", "a", "b"), ("n",), attributes={"axis": 0}),
        Step("relu", ("n",), ("r",)),
        Step("linear", ("r", "w2"), ("g",), "f8"),
        Step("threshold", ("g", "t", "d"), ("s",), attributes={"axis": 0}),
        Step("linear", ("s", "w3"), ("y",)),
    )
    program = Program({"x": Value((33,), "f4")}, constants, sites, steps, ("y", "g"), DRAWS)
    return program, generator.standard_normal((4, 33)).astype(np.float32)


@pytest.mark.parametrize("rows", [None, [0, 1, 0], [1, 1, 1]])
def test_networks_are_those_of_the_reference(rows):
    program, x = network(rows)
    assert_same(program, [x], [0, 1, 2])
    assert_same(program, [x[:1]], [2, 1])


def test_answers_do_not_depend_on_the_parts_of_a_run(monkeypatch):
    program, x = network()
    module, given = TritonProgram(program).to(DEVICE), torch.tensor(x, device=DEVICE)
    whole = module.run([given], range(DRAWS))
    assert all(map(torch.equal, module.run([given], range(DRAWS)), whole))
    monkeypatch.setattr(torch_backend, "NUMBERS", 70 * 2)  # two rows, a draw
    for one, other in zip(module.run([given], range(DRAWS)), whole, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    assert module(given[:0])[0].shape == (DRAWS, 0, 3)


def test_fast_is_close_and_what_feeds_a_sign_stays_exact():
    program, arrays = program_of(Case("linear", [(70,), (5, 70)], "xs"))
    x = [torch.tensor(array, device=DEVICE) for array in arrays]
    exact = TritonProgram(program).to(DEVICE).run(x, range(DRAWS))[0]
    fast = TritonProgram(program, "fast").to(DEVICE).run(x, range(DRAWS))[0]
    assert 1e-6 < float((fast - exact).abs().max() / exact.abs().max()) < 1e-3
    program, arrays = program_of(Case("linear", [(70,), (5, 70)], "xs", dtype="f8"))
    x = [torch.tensor(array, device=DEVICE) for array in arrays]
    exact = TorchProgram(program).to(DEVICE).run(x, range(DRAWS))[0]
    fast = TritonProgram(program, "fast").to(DEVICE).run(x, range(DRAWS))[0]
    assert torch.allclose(fast, exact, rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match="expected precision to be one of exact, fast"):
        TritonProgram(program, "faster")


def test_nothing_is_differentiated_and_no_number_leaves_numpy(monkeypatch):
    program, x = network()
    monkeypatch.setattr(DrawnSite, "words", lambda *_: pytest.fail("signs were drawn on the CPU"))
    module = TritonProgram(program).to(DEVICE)
    found = module(torch.tensor(x, device=DEVICE, requires_grad=True))
    assert not found[0].requires_grad


# What is there


def test_triton_is_chosen_by_name():
    program, _ = network()
    assert type(program_on(program, DEVICE, "triton")) is TritonProgram
    assert type(program_on(program, DEVICE, "torch")) is TorchProgram
    assert type(program_on(program, "cpu")) is TorchProgram


def test_what_is_not_there_is_said(monkeypatch):
    program, _ = network()
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    with monkeypatch.context() as patch:
        patch.setattr(importlib.util, "find_spec", lambda name: None)
        with pytest.raises(RuntimeError, match="Triton is not installed"):
            program_on(program, cpu, "triton")
    import triton

    with monkeypatch.context() as patch:
        patch.setattr(triton, "__version__", "3.1.0")
        with pytest.raises(RuntimeError, match=r"Triton is 3\.1\.0, and 3\.5 or newer is needed"):
            program_on(program, cpu, "triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        with pytest.raises(RuntimeError, match="need a GPU, and torch finds none"):
            program_on(program, cpu, "triton")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    assert why_no_triton(gpu) is None and devices.triton_device() == gpu
    with pytest.raises(RuntimeError, match="run on a GPU, not on cpu"):
        program_on(program, cpu, "triton")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 5))
    monkeypatch.setattr(torch.version, "hip", None)
    assert "capability 8.0 or more, and this one has 7.5" in str(why_no_triton(gpu))


def test_triton_is_imported_only_when_needed():
    program = "import sys, bayesbin.compile.operator; print('triton' in sys.modules)"
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout
    assert output.split() == [b"False"]


COMPILE = """
import triton, triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from bayesbin.compile import triton_kernels as kernels

POINTERS = {"x": "*fp32", "scale": "*fp32", "inverse": "*fp32", "words": "*i32", "keys": "*i64",
            "thresholds": "*i64", "out": "*fp32"}

def ptx(kernel, capability, num_warps=4, x="*fp32", out="*fp32", **constants):
    types = POINTERS | {"x": x, "out": out}
    types = {n: "constexpr" if n in constants else types.get(n, "i32") for n in kernel.arg_names}
    target = GPUTarget("cuda", capability, 32)
    source = ASTSource(kernel, types, constants)
    return triton.compile(source, target=target, options={"num_warps": num_warps}).asm["ptx"]

exact = dict(inputs=784, FAST=False, NUMBER=tl.bfloat16, BLOCK_N=64, BLOCK_Q=16, DRAWN=True)
assert ptx(kernels.linear_kernel, 80, BLOCK_M=16, **exact).count("mma.sync") >= 3
assert "wgmma" in ptx(kernels.linear_kernel, 90, BLOCK_M=64, **exact)
fast = exact | dict(FAST=True, NUMBER=tl.float16, BLOCK_N=128, DRAWN=False)
assert "f16" in ptx(kernels.linear_kernel, 80, 8, BLOCK_M=64, **fast)
one = dict(inputs=1, rows=1, units=1, blocks=1)  # Triton makes a constant of a 1
ptx(kernels.linear_kernel, 80, BLOCK_M=16, **(exact | one))
assert "popc.b32" in ptx(kernels.xnor_kernel, 80, x="*i32", out="*i32", width=4, BLOCK_N=64, BLOCK_M=64)
ptx(kernels.draw_kernel, 80, out="*i32", BLOCK_N=32, BLOCK_W=4)
ptx(kernels.pack_kernel, 80, out="*i32", BLOCK_M=16, BLOCK_W=4)
ptx(kernels.dense_kernel, 80, DRAWN=True, BLOCK_N=32, BLOCK_Q=16)
"""


@pytest.mark.slow
def test_the_kernels_compile_for_gpus_that_are_not_here(tmp_path):
    """What the interpreter takes, the compiler may not; it needs no GPU to say so."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    script = tmp_path / "compile_kernels.py"  # Triton reads the source of a kernel from its file
    script.write_text(COMPILE)
    result = subprocess.run(
        [sys.executable, str(script)],
        env=environment
        | {"TRITON_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr


BENCHMARK = str(Path(__file__).parents[2] / "examples" / "benchmarks" / "gpu.py")


@pytest.mark.skipif(ON_GPU, reason="there is a CUDA device")
def test_the_benchmark_says_that_it_needs_a_gpu(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [BENCHMARK, "--smoke"])
    with pytest.raises(SystemExit, match="This benchmark needs a GPU, and torch finds none here"):
        runpy.run_path(BENCHMARK, run_name="__main__")
    assert not list(tmp_path.iterdir())


def test_the_benchmark_reports_shares_of_the_peaks(tmp_path, monkeypatch, capsys):
    seconds = {"naive torch, float32": [2.0], "packed, exact": [1.0], "packed, fast": [0.5]}
    block = {"network": "relu", "batch": 10, "draws": 4, "seconds": seconds}
    weights = 784 * 8 + 2 * 64 + 80
    peaks = {"operations": 2 * weights * 10 * 4 * 2.0, "bytes": weights * 4 * 17 / 8 * 10.0}
    (tmp_path / "gpu.json").write_text(json.dumps({"width": 8, "peaks": peaks, "blocks": [block]}))
    monkeypatch.setattr(sys, "argv", [BENCHMARK, "--report", str(tmp_path / "gpu.json")])
    runpy.run_path(BENCHMARK, run_name="__main__")
    rows = capsys.readouterr().out.splitlines()[2:]
    assert rows[0].split("|")[3:6] == [" 2e+03 ", " 2 ", " 4 "]
    assert rows[1].split("|")[6:8] == [" 50.0% ", " 10.0% "]


@needs_gpu
@pytest.mark.gpu
def test_the_benchmark_runs(tmp_path, monkeypatch, capsys):
    out = tmp_path / "gpu.json"
    monkeypatch.setattr(sys, "argv", [BENCHMARK, "--smoke", "--out", str(out)])
    torch.set_default_dtype(torch.float32)
    runpy.run_path(BENCHMARK, run_name="__main__")
    for block in json.loads(out.read_text())["blocks"]:
        assert block["greatest_difference_of_probs"]["packed, fast"] < 1e-2


@needs_gpu
@pytest.mark.gpu
def test_on_a_gpu_auto_is_triton_and_torch_answers_the_same():
    program, x = network()
    assert type(program_on(program, "cuda")) is TritonProgram
    module, given = TorchProgram(program).to("cuda"), torch.tensor(x, device="cuda")
    expected = reference.run(program, [x], range(DRAWS))
    for found in (module(given), program_on(program, "cuda")(given)):
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one.cpu().numpy(), other, rtol=1e-5, atol=1e-5)


@needs_gpu
@pytest.mark.gpu
def test_memory_on_a_gpu_does_not_grow_with_the_draws(monkeypatch):
    monkeypatch.setattr(torch_backend, "NUMBERS", 1 << 18)
    generator = np.random.default_rng(0)
    shapes = {"w1": (2048, 784), "w2": (10, 2048)}
    sites = {name: site_of(generator, s, True, i) for i, (name, s) in enumerate(shapes.items())}
    steps = (
        Step("linear", ("x", "w1"), ("h",)),
        Step("relu", ("h",), ("r",)),
        Step("linear", ("r", "w2"), ("y",)),
    )
    inputs = {"x": Value((784,), "f4")}
    program, x = Program(inputs, {}, sites, steps, ("y",), DRAWS), torch.randn(1000, 784)
    peaks = []
    for draws in (8, 64):
        module = TritonProgram(program.select([d % DRAWS for d in range(draws)])).to("cuda")
        given = x.float().cuda()
        module(given)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        found = module(given)
        assert isinstance(found, torch.Tensor)
        peaks.append(torch.cuda.max_memory_allocated() - before - 2 * found.nbytes)
    assert peaks[1] < 1.1 * peaks[0]
