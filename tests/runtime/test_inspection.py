"""What a file and a program say of themselves."""

from __future__ import annotations

import json

import numpy as np
import pytest
from model_examples import DRAWS, perceptron, raw_inputs, varied

from bayesbin.runtime import inspect
from bayesbin.runtime.kinds import KINDS
from bayesbin.runtime.native_backend import available
from bayesbin.runtime.predictor import Predictor
from bayesbin.runtime.program import Program, Step, Value

CLASSES = {"kind": "classes"}


def test_what_a_file_says(tmp_path):
    predictor = Predictor(
        varied(), CLASSES, labels=["a", "b", "c"], preprocessing=raw_inputs(), backend="numpy",
        provenance={"data set": "toy"},
    )  # fmt: skip
    path = predictor.save(tmp_path / "model.bbn", "posterior")
    found = inspect(path, profile=3)
    assert found.bytes == path.stat().st_size and found.contents == "posterior"
    assert found.labels == ("a", "b", "c") and found.num_samples == DRAWS
    assert found.inputs == {"x": (2, 6, 6), "t": (4,)} and found.outputs == {"y": (3,)}
    assert found.preprocessing == ("div",) and found.provenance == {"data set": "toy"}
    assert found.weights == 12 + 81 + 27
    assert found.bits_per_weight == pytest.approx(8 * found.bytes / 120)
    kinds = [row.kind for row in found.summary.steps]
    assert kinds == [step.kind for step in predictor.program.steps]
    assert all((row.microseconds or 0.0) > 0.0 for row in found.summary.steps)
    json_of = json.loads(json.dumps(found.to_dict()))
    assert json_of["digest"] == found.digest and json_of["steps"][1]["name"] == "conv"
    assert json_of["profiled_inputs"] == 3
    for word in ("listed", "toy", found.digest, "us/draw, 3 inputs", "a, b, c", "a posterior"):
        assert word in str(found)
    assert inspect(path).summary.batch is None and "us/draw" not in str(inspect(path))
    with pytest.raises(ValueError, match="profile to be a whole number of at least 1"):
        inspect(path, profile=0)
    draws = inspect(predictor.save(path))
    assert "bits per weight and draw" in str(draws)
    assert draws.bits_per_weight == pytest.approx(8 * draws.bytes / 120 / DRAWS)


def test_a_row_says_what_a_step_takes():
    predictor = Predictor(perceptron(), CLASSES, backend="numpy")
    first, affine, relu, last = predictor.summary().steps
    assert (first.name, first.kind, first.shape) == ("0.weight", "linear", (9,))
    assert first.weights == 99 and first.operations == 99
    assert first.bits == 17 * 99 + 64 * DRAWS
    assert (affine.name, affine.weights, affine.bits) == ("b", 0, 0)
    assert relu.microseconds is None and last.operations == 27
    assert predictor.summary().weights == predictor.program.num_weights
    assert predictor.summary().operations == predictor.program.work
    assert {row.backend for row in predictor.summary().steps} == {"numpy"}
    stored = Predictor(perceptron(site="stored"), CLASSES, backend="numpy").summary()
    assert stored.steps[0].bits == 99 * DRAWS


@pytest.mark.skipif(not available(), reason="the kernels were not built")
def test_a_row_says_who_runs_a_step():
    rows = Predictor(varied(), CLASSES, backend="native").summary().steps
    backends = {row.kind: row.backend for row in rows}
    assert backends["conv"] == backends["sign"] == "native" and backends["gru"] == "numpy"


def test_every_kind_can_be_measured_alone():
    """Also steps of numbers that no datum enters."""
    steps = (
        Step("neg", ("w",), ("u",)),
        Step("linear", ("x", "u"), ("y",)),
    )
    from model_examples import constant

    program = Program({"x": Value((2,), "f4")}, {"w": constant(np.eye(2))}, {}, steps, ("y",), 3)
    rows = Predictor(program, {"kind": "outputs"}, backend="numpy").summary(2).steps
    assert all((row.microseconds or 0.0) > 0.0 for row in rows)
    assert set(KINDS) >= {row.kind for row in rows}
