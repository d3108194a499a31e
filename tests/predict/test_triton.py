"""The Triton kernels: the bits and the sums of the CPU; on a GPU where there is one, else interpreted."""

from __future__ import annotations

import importlib.util
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kernel_oracle import pack, relative_error, signs
from test_packed import NETWORKS, example, posterior_for
from torch import nn

from bayesbin import BinaryPosterior
from bayesbin.distributions import Support
from bayesbin.nn import Residual, mlp, recalibrate, to_binary_
from bayesbin.posterior import RealPosterior
from bayesbin.posterior.draws import Thresholds
from bayesbin.predict import PackedPredictive, backends, kernels, triton_backend
from bayesbin.predict.backends import chosen, why_no_triton

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
needs_gpu = pytest.mark.skipif(not ON_GPU, reason="no CUDA device")
with pytest.MonkeyPatch.context() as _patch:
    if not ON_GPU:  # kernels are made for the interpreter, or not, when they are imported
        _patch.setenv("TRITON_INTERPRET", "1")
    from bayesbin.predict import triton_signs
    from bayesbin.predict.triton_signs import SignDraws

INPUTS = [1, 3, 4, 5, 63, 64, 65, 100]
SIZES = [(1, 1), (7, 2), (17, 31), (33, 33)]  # units and rows


@pytest.fixture(autouse=True)
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    if not ON_GPU:
        monkeypatch.setenv("TRITON_INTERPRET", "1")


def drawn(units: int, inputs: int, draws: int = 3) -> tuple[SignDraws, np.ndarray]:
    """Signs to be drawn, and booleans (draws, N, K): what the rest of the package draws."""
    generator = np.random.default_rng(units * 1000 + inputs)
    mode = generator.random((units, inputs)) < 0.5
    flip = generator.integers(0, 2**15 + 1, (units, inputs)).astype(np.uint16)
    flip.flat[::5], flip.flat[1::5] = 0, 2**15  # never, and half of the time
    keys = generator.integers(0, 2**64, draws, dtype=np.uint64)
    keys[-1] = 2**64 - 1
    plus = np.stack([Thresholds(mode, flip).draw(int(key)) for key in keys])
    return SignDraws.drawn(pack(mode), flip, keys, DEVICE), plus


def words(tensor: torch.Tensor) -> np.ndarray:
    return tensor.cpu().numpy().view(np.uint64)


def inputs_for(draws: int, rows: int, inputs: int) -> np.ndarray:
    return np.random.default_rng(inputs).standard_normal((draws, rows, inputs)).astype(np.float32)


@pytest.mark.slow
@pytest.mark.parametrize("inputs", INPUTS)
@pytest.mark.parametrize("units", [1, 7, 17, 33])
def test_the_bits_are_those_of_the_cpu(units, inputs):
    distribution, plus = drawn(units, inputs)
    assert np.array_equal(words(triton_signs.draw_words(distribution)), [pack(one) for one in plus])
    for draw in range(3):
        found = triton_signs.dense(distribution.draws(draw, draw + 1)).cpu().numpy()
        assert np.array_equal(found, signs(plus[draw]))
    given = SignDraws.given(np.stack([pack(one) for one in plus]), inputs, DEVICE)
    assert np.array_equal(triton_signs.dense(given.draws(2, 3)).cpu().numpy(), signs(plus[2]))


@pytest.mark.skipif(not kernels.available(), reason=str(kernels.why_not()))
def test_the_bits_are_those_of_the_compiled_kernels():
    distribution, _ = drawn(17, 100)
    mode, flip = words(distribution.words)[0], distribution.thresholds
    assert flip is not None and distribution.keys is not None
    thresholds = np.ascontiguousarray(flip.cpu().numpy().view(np.uint16)[:, :100])
    expected = [
        kernels.draw_bits(mode, thresholds, int(key))
        for key in distribution.keys.cpu().numpy().view("<u8")
    ]
    assert np.array_equal(words(triton_signs.draw_words(distribution)), expected)


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
        triton_signs,
        "draw_words",
        lambda distribution: calls.append(distribution) or draw(distribution),
    )
    distribution, plus = drawn(33, 65)
    x = inputs_for(3, rows, 65)  # of each draw its own
    found = triton_signs.linear(torch.tensor(x, device=DEVICE), distribution).cpu().numpy()
    assert relative_error(found, x.astype(np.float64) @ signs(plus).transpose(0, 2, 1)) < 1e-6
    assert len(calls) == (rows > triton_signs.DRAW_ONCE_ABOVE)
    shared = SignDraws.given(pack(plus[1])[None], 65, DEVICE)
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
        assert relative_error(found[row] / scales[row], expected[row] / scales[row]) < (
            4e-4 if fast else 1e-6
        )


@pytest.mark.slow
@pytest.mark.parametrize("inputs", INPUTS)
@pytest.mark.parametrize(("units", "rows"), SIZES)
def test_sums_of_signs_are_exact(units, rows, inputs):
    distribution, plus = drawn(units, inputs)
    x = inputs_for(3, rows, inputs)
    x.flat[::7], x.flat[1::7] = 0.0, -0.0
    packed = triton_signs.pack_signs(torch.tensor(x, device=DEVICE))
    assert np.array_equal(words(packed), [pack(one) for one in x >= 0])
    found = triton_signs.linear_sign(packed, triton_signs.draw_words(distribution), inputs)
    assert found.dtype == torch.int32
    expected = signs(x >= 0) @ signs(plus).transpose(0, 2, 1)
    assert np.array_equal(found.cpu().numpy(), expected)
    one = triton_signs.linear_sign(packed[:1], triton_signs.draw_words(distribution), inputs)
    assert np.array_equal(one.cpu().numpy(), signs(x[:1] >= 0) @ signs(plus).transpose(0, 2, 1))


def residual() -> nn.Module:
    body = nn.Sequential(nn.Linear(9, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 9))
    inner = Residual(nn.Sequential(nn.Linear(9, 9), nn.Tanh()))
    return nn.Sequential(
        nn.Linear(9, 9), Residual(nn.Sequential(body, inner), nn.Linear(9, 9)), nn.Linear(9, 3)
    )


def both(*arguments: Any, **settings: Any) -> tuple[PackedPredictive, PackedPredictive]:
    """The predictor on Triton, and the one on the CPU that it is compared with."""
    triton = PackedPredictive(*arguments, **settings, backend="triton")
    return triton, PackedPredictive(*arguments, **settings)


def assert_same(found: Any, expected: Any, *quantities: str) -> None:
    for quantity in quantities or ("probs", "expected_entropy", "mutual_information", "probs_std"):
        one, other = (getattr(result, quantity).double() for result in (found, expected))
        torch.testing.assert_close(one, other, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(
    ("name", "with_statistics"),
    [
        *((name, False) for name in NETWORKS),
        ("relu", True),
        ("convolutional", True),
        ("residual", True),
    ],
)
def test_networks_answer_as_on_the_cpu(name, with_statistics, monkeypatch):
    monkeypatch.setitem(NETWORKS, "residual", (residual, (9,)))
    net, posterior, x = example(name)
    statistics = (
        recalibrate(net, posterior, torch.cat([x, 2 * x]), 3, 3) if with_statistics else None
    )
    triton, cpu = both(net, posterior, 3, 3, statistics=statistics)
    assert triton.backend == "triton" and "triton" in repr(triton)
    torch.testing.assert_close(triton.outputs(x[:4]), cpu.outputs(x[:4]), rtol=2e-5, atol=2e-5)
    assert_same(triton.predict(x[:4]), cpu.predict(x[:4]))


def test_fast_is_close_and_what_feeds_a_sign_stays_exact():
    net, posterior, x = example("relu")
    fast, exact = both(net, posterior, 5, precision="fast")[0], both(net, posterior, 5)[1]
    difference = (fast.predict(x).probs - exact.predict(x).probs).abs().max()
    assert 1e-6 < difference < 1e-3
    net, posterior, x = example("sign")
    fast, exact = both(net, posterior, 2, precision="fast")[0], both(net, posterior, 2)[1]
    assert_same(fast.predict(x[:3]), exact.predict(x[:3]))


def test_answers_do_not_depend_on_the_parts_of_a_run(monkeypatch):
    net, posterior, x = example("relu")
    x = x[:6]
    triton, _ = both(net, posterior, 3, 1)
    whole, outputs = triton.predict(x), triton.outputs(x)
    again = triton.predict(x)
    assert torch.equal(whole.log_probs, again.log_probs)
    monkeypatch.setattr(triton_backend, "_NUMBERS", 70 * 4 * 2)  # four rows, two draws
    assert_same(triton.predict(x), whole)
    torch.testing.assert_close(triton.outputs(x), outputs, rtol=1e-5, atol=1e-6)
    assert triton.predict(x[:0]).probs.shape == (0, 3)


def test_the_mode_and_a_joint_posterior(monkeypatch):
    net, posterior, x = example("relu")
    triton, cpu = both(net, posterior, 0)
    assert_same(triton.predict(x[:2]), cpu.predict(x[:2]))
    (site, distribution), *rest = posterior.items()
    units = distribution.natural.shape[0]
    effect = RealPosterior(torch.zeros(units, 1), torch.full((units, 1), 1.5), Support("real"))
    joint = BinaryPosterior(
        {site: distribution.natural, **{s: q.natural for s, q in rest}},
        {"a": effect},
        {site: ["a"]},
    )
    monkeypatch.setattr("bayesbin.predict.packed.DRAWS_AT_ONCE", 2)
    triton, cpu = both(net, joint, 3, 2)
    assert_same(triton.predict(x[:2]), cpu.predict(x[:2]))
    torch.testing.assert_close(triton.outputs(x[:2]), cpu.outputs(x[:2]), rtol=2e-5, atol=2e-5)


def test_regression(monkeypatch):
    net = to_binary_(mlp(5, [40], 1, activation="tanh", normalize=False)).float()
    triton, cpu = both(net, posterior_for(net), 7, 1, noise=0.5)
    x = torch.randn(6, 5).float()
    expected = cpu.predict(x)
    assert_same(triton.predict(x), expected, "mean", "aleatoric", "epistemic")
    monkeypatch.setattr(triton_backend, "_NUMBERS", 40 * 6 * 3)  # three draws at a time
    assert_same(triton.predict(x), expected, "mean", "aleatoric", "epistemic")


def test_moving_gives_another_predictor():
    net, posterior, x = example("relu")
    triton, cpu = both(net, posterior, 2)
    moved = triton.to(DEVICE)
    assert moved is not triton and moved.backend == "triton"
    assert torch.equal(moved.predict(x[:2]).log_probs, triton.predict(x[:2]).log_probs)
    stays = cpu.to("cpu")
    assert torch.equal(stays.predict(x).log_probs, cpu.predict(x).log_probs)
    streaming = PackedPredictive(net, posterior, 2, backend="torch").to("cpu")
    assert_same(streaming.predict(x), cpu.predict(x))
    with pytest.raises(ValueError, match="weights for 37 channels, but gets 30"):
        triton.predict(x[:, :30])


def test_what_is_not_there_is_said(monkeypatch):
    net, posterior, _ = example("relu")
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    with monkeypatch.context() as patch:
        patch.setattr(importlib.util, "find_spec", lambda name: None)
        with pytest.raises(RuntimeError, match="Triton is not installed"):
            PackedPredictive(net, posterior, backend="triton")
    import triton

    with monkeypatch.context() as patch:
        patch.setattr(triton, "__version__", "3.1.0")
        with pytest.raises(RuntimeError, match=r"Triton is 3\.1\.0, and 3\.5 or newer is needed"):
            PackedPredictive(net, posterior, backend="triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        with pytest.raises(RuntimeError, match="torch finds no GPU"):
            PackedPredictive(net, posterior, backend="triton")
        with pytest.raises(RuntimeError, match="torch finds no GPU"):
            PackedPredictive(net, posterior).to("cuda")
        assert "need a GPU, and torch finds none" in str(why_no_triton(cpu))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    assert chosen("auto", gpu) == chosen("triton", gpu) == "triton"
    assert chosen("torch", gpu) == "torch"
    with pytest.raises(ValueError, match=r'backend="cpu" has no kernels for cuda'):
        chosen("cpu", gpu)
    with pytest.raises(RuntimeError, match="run on a GPU, not on cpu"):
        chosen("triton", cpu)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 5))
    monkeypatch.setattr(torch.version, "hip", None)
    assert chosen("auto", gpu) == "torch"
    with pytest.raises(RuntimeError, match=r"capability 8\.0 or more, and this one has 7\.5"):
        chosen("triton", gpu)
    assert chosen("auto", torch.device("meta")) == "torch"
    assert backends.triton_device() == gpu


def test_triton_is_imported_only_when_needed():
    program = "import sys, bayesbin.predict.packed; print('triton' in sys.modules)"
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout
    assert output.split() == [b"False"]


COMPILE = """
import triton, triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from bayesbin.predict import triton_kernels as kernels

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
    net, posterior, x = example("relu")
    packed = PackedPredictive(net, posterior, 5)
    moved = packed.to("cuda")
    assert moved.backend == "triton" and "cuda" in repr(moved)
    expected = packed.predict(x)
    assert_same(moved.predict(x.cuda()), expected)
    streaming = PackedPredictive(net, posterior, 5, backend="torch").to("cuda")
    found = streaming.predict(x)
    assert found.probs.device.type == "cpu"
    assert_same(found, expected)


@needs_gpu
@pytest.mark.gpu
def test_memory_on_a_gpu_does_not_grow_with_the_draws(monkeypatch):
    monkeypatch.setattr(triton_backend, "_NUMBERS", 1 << 20)
    net = to_binary_(mlp(784, [2048] * 2, 10)).float()
    posterior, x = posterior_for(net), torch.randn(1000, 784).float()
    peaks = []
    for draws in (8, 64):
        packed = PackedPredictive(net, posterior, draws).to("cuda")
        packed.predict(x)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        packed.predict(x)
        peaks.append(torch.cuda.max_memory_allocated() - before)
    assert peaks[1] < 1.1 * peaks[0]
