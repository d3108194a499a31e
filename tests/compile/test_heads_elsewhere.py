"""Averages over draws in ONNX, in C and by torch's operator, of every kind of head."""

from __future__ import annotations

import ctypes
import dataclasses
import shutil
import subprocess

import numpy as np
import pytest
import torch

from bayesbin.compile import c_heads, onnx_heads
from bayesbin.compile.c_source import c_files
from bayesbin.compile.device_model import DeviceModel
from bayesbin.compile.onnx_export import onnx_model
from bayesbin.compile.operator import module
from bayesbin.runtime.heads import HEADS
from bayesbin.runtime.predictor import Predictor
from bayesbin.runtime.program import Constant, Program, Step, Value

DRAWS = 3
X = np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32)
NUMBERS = [0.5, 1.0, 2.5]

# Shape of the outputs of a datum, and a head.
CASES = {
    "classes": ((4,), {"kind": "classes"}),
    "classes first": ((4, 2, 3), {"kind": "classes", "class_dim": 1}),
    "classes second": ((2, 4, 3), {"kind": "classes", "class_dim": 2}),
    "ordinal": ((1,), {"kind": "ordinal", "cutpoints": [[-1.0, 0.5, 0.75]]}),
    "ordinal by draw": ((2,), {"kind": "ordinal", "cutpoints": [[-1.0, k / 3] for k in range(3)]}),
    "two levels": ((1,), {"kind": "ordinal", "cutpoints": [[0.3]]}),
    "labels": ((2, 3), {"kind": "labels"}),
    "one label": ((1,), {"kind": "labels"}),
    "normal": ((1,), {"kind": "normal", "noise": NUMBERS}),
    "noise of targets": ((2,), {"kind": "normal", "noise": [[0.5, 2.0]]}),
    "heteroscedastic": ((2,), {"kind": "normal", "heteroscedastic": True}),
    "of two targets": ((4,), {"kind": "normal", "heteroscedastic": True}),
    "poisson": ((1,), {"kind": "poisson"}),
    "counts": ((2, 3), {"kind": "negative_binomial", "concentration": NUMBERS}),
    "counts of targets": ((2,), {"kind": "negative_binomial", "concentration": [[1.0, 3.0]]}),
    "outputs": ((2, 3), {"kind": "outputs"}),
}


def predictor(name: str) -> Predictor:
    """A network whose draws are linear maps to outputs of a shape."""
    shape, head = CASES[name]
    weight = (
        np.random.default_rng(1).normal(size=(DRAWS, int(np.prod(shape)), 3)).astype(np.float32)
    )
    steps = (
        Step("linear", ("x", "w"), ("flat",)),
        Step("reshape", ("flat",), ("y",), attributes={"shape": shape}),
    )
    constants = {"w": Constant(weight, np.arange(DRAWS))}
    program = Program({"x": Value((3,), "f4")}, constants, {}, steps, ("y",), DRAWS)
    return Predictor(program, head, backend="numpy")


def test_every_kind_has_a_case_and_is_written():
    assert {head["kind"] for _, head in CASES.values()} == set(HEADS)
    assert set(onnx_heads.HEADS) == set(c_heads.HEADS) == set(HEADS)


@pytest.mark.parametrize("name", CASES)
def test_onnx(name):
    onnx, ort = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    expected = predictor(name).predict(X)
    assert expected.num_samples == DRAWS
    model = onnx_model(onnx, predictor(name).model)
    session = ort.InferenceSession(model.SerializeToString())
    found = dict(
        zip([o.name for o in session.get_outputs()], session.run(None, {"x": X}), strict=True)
    )
    assert set(expected.quantities) - {"expected_entropy"} <= set(found)
    for quantity in set(found) - {"outputs"}:
        want = getattr(expected, quantity)
        assert found[quantity].shape == want.shape
        np.testing.assert_allclose(found[quantity], want, rtol=1e-5, atol=1e-6, err_msg=quantity)


CC = shutil.which("gcc") or shutil.which("cc")


@pytest.mark.skipif(CC is None, reason="there is no C compiler")
@pytest.mark.parametrize("name", CASES)
def test_c(name, tmp_path):
    expected = predictor(name).predict(X)
    names = [each for each in expected.quantities if each != "expected_entropy"]
    for file, text in c_files(predictor(name).model).items():
        (tmp_path / file).write_text(text)
    strict = "-std=c99 -Wall -Wextra -Werror -pedantic -ffp-contract=off -O1 -shared -fPIC".split()
    command = [str(CC), *strict, "model.c", "-o", "model.so", "-lm"]
    subprocess.run(command, cwd=tmp_path, check=True)
    library = ctypes.CDLL(str(tmp_path / "model.so"))
    for row in range(len(X)):
        arrays = [np.empty(getattr(expected, each).shape[1:]) for each in names]
        given = np.ascontiguousarray(X[row])
        pointers = [a.ctypes.data_as(ctypes.c_void_p) for a in (given, *arrays)]
        assert library.bayesbin_predict(*pointers) == 0
        for quantity, array in zip(names, arrays, strict=True):
            want = getattr(expected, quantity)[row]
            np.testing.assert_allclose(array, want, rtol=1e-11, atol=1e-13, err_msg=quantity)


@pytest.mark.parametrize("name", CASES)
def test_operator_and_device(name):
    predicting = predictor(name)
    expected = predicting.predict(X)
    found = module(predicting)(torch.from_numpy(X))
    if name == "outputs":
        assert np.array_equal(found[0].numpy(), predicting.outputs(X))
    else:
        fields = [each.name for each in dataclasses.fields(expected) if each.name != "num_samples"]
        for quantity, value in zip(fields, found, strict=True):
            assert np.array_equal(value.numpy(), getattr(expected, quantity)), quantity
    on_device = DeviceModel(predicting.model, "cpu").predict(X)
    assert type(on_device) is type(expected)
    for quantity in expected.quantities:
        np.testing.assert_allclose(
            getattr(on_device, quantity), getattr(expected, quantity), rtol=1e-5, atol=1e-6
        )
