"""Networks of examples/networks as ONNX graphs and as C source: what the numpy backend computes.

Every twentieth network is tested each time, all of them by ``make test-slow``.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys

import numpy as np
import pytest
from scripts import EXAMPLES

sys.path.insert(0, str(EXAMPLES / "networks"))

from prepared import NUM_DRAWS, catalogue, prepare

from bayesbin.compile.c_source import c_files
from bayesbin.compile.export import export_program
from bayesbin.compile.folding import fold
from bayesbin.compile.onnx_export import onnx_model
from bayesbin.compile.refusal import NotCompiled
from bayesbin.runtime import reference
from bayesbin.runtime.model import Model

CC = shutil.which("gcc") or shutil.which("cc")
NETWORKS = catalogue()
RUNNING = [name for name, network in NETWORKS.items() if network.expected == "runs"]


def made(name: str):
    """A program, inputs for it, and its outputs for all draws."""
    prepared = prepare(NETWORKS[name])
    try:
        raw = export_program(prepared.net, prepared.inputs, prepared.posterior, NUM_DRAWS)
    except NotCompiled as error:
        pytest.skip(f"not a program: {error}")
    program = fold(raw)
    values = program.inputs.values()
    x = [np.asarray(t).astype(v.dtype) for t, v in zip(prepared.inputs, values, strict=True)]
    return program, x, reference.run(program, x, range(NUM_DRAWS))


def check(found, expected, rounding: float) -> None:
    assert found.dtype == expected.dtype and found.shape == expected.shape
    if expected.dtype.kind != "f":
        np.testing.assert_array_equal(found, expected)
        return
    largest = np.abs(expected[np.isfinite(expected)]).max(initial=1.0)
    np.testing.assert_allclose(found, expected, rtol=0, atol=rounding * largest)


@pytest.mark.parametrize(
    "name",
    [n if i % 20 == 0 else pytest.param(n, marks=pytest.mark.slow) for i, n in enumerate(RUNNING)],
)
def test_a_network_is_the_same_in_onnx_and_in_c(name, tmp_path):
    program, x, expected = made(name)
    model = Model(program, {"kind": "outputs"})
    in_onnx(model, x, expected)
    if CC is not None:
        in_c(model, x, expected, tmp_path)


def in_onnx(model, x, expected) -> None:
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(
        onnx_model(onnx, model).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    given = dict(zip([each.name for each in session.get_inputs()], x, strict=True))
    for have, want in zip(session.run(None, given), expected, strict=False):
        check(have, want, 1e-5 if want.dtype == np.float32 else 1e-12)


def in_c(model, x, expected, folder) -> None:
    for name, text in c_files(model).items():
        (folder / name).write_text(text)
    strict = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic", "-O2", "-ffp-contract=off"]
    command = [str(CC), *strict, "-shared", "-fPIC", "model.c", "-o", "model.so", "-lm"]
    subprocess.run(command, cwd=folder, check=True)
    library = ctypes.CDLL(str(folder / "model.so"))
    found = [np.empty_like(each) for each in expected]
    for row in range(len(x[0])):
        given = [np.ascontiguousarray(array[row]) for array in x]
        for draw in range(NUM_DRAWS):
            outs = [np.empty(each.shape[2:], each.dtype) for each in expected]
            arrays = [ctypes.c_void_p(array.ctypes.data) for array in (*given, *outs)]
            assert library.bayesbin_outputs(draw, *arrays) == 0
            for into, array in zip(found, outs, strict=True):
                into[draw, row] = array
    for have, want in zip(found, expected, strict=True):
        check(have, want, 1e-6 if want.dtype == np.float32 else 1e-12)
