"""Folding: fewer steps that compute the same, and decisions that are exact."""

from __future__ import annotations

import numpy as np
import pytest

from bayesbin.compile.folding import fold
from bayesbin.core.canonical import pack_words
from bayesbin.runtime import reference
from bayesbin.runtime.program import Constant, Program, Step, StoredSite, Value, signs_of

rng = np.random.default_rng(20)


def constant(*values, rows=None):
    data = np.asarray(values, dtype=np.float32)
    return Constant(data, None if rows is None else np.asarray(rows, dtype=np.int64))


def site(*shape, draws=1):
    bits = np.stack([pack_words(rng.random(shape) < 0.5) for _ in range(draws)])
    return StoredSite(shape, bits, None if draws == 1 else np.arange(draws, dtype=np.int64))


def program(steps, constants, sites, size=8, draws=1, outputs=None):
    inputs = {"x": Value((size,), "f4")}
    return Program(inputs, constants, sites, tuple(steps), outputs or steps[-1].outputs, draws)


def run(program, x):
    return reference.run(program, [x], range(program.num_draws))[0]


def kinds(program):
    return [step.kind for step in program.steps]


def normalised(**numbers):
    """x -> signs -> linear -> batch normalisation -> sign."""
    return [
        Step("sign", ("x",), ("s",)),
        Step("linear", ("s", "w"), ("sum",)),
        Step("batch_norm", ("sum", "mean", "var", "weight", "bias"), ("n",), "f4", {"axis": 0, "eps": 1e-5}),
        Step("sign", ("n",), ("y",)),
    ]  # fmt: skip


@pytest.mark.parametrize("direction", [1.0, -1.0])
def test_a_mean_at_an_attainable_sum_decides_for_plus_one(direction):
    w = site(6, 8)
    x = rng.standard_normal((500, 8)).astype(np.float32)
    sums = np.where(x >= 0, 1, -1) @ signs_of(w, 0, int).T
    mean = rng.choice([-2, 0, 2, 4], 6).astype(np.float32)
    var = rng.random(6).astype(np.float32) * 7 + 0.1
    weight = (direction * (rng.random(6) + 0.1)).astype(np.float32)
    constants = {"mean": constant(mean), "var": constant(var), "weight": constant(weight)}
    constants["bias"] = constant(np.zeros(6))
    folded = fold(program(normalised(), constants, {"w": w}))
    assert kinds(folded) == ["sign", "linear", "threshold"]
    right = np.where(sums >= mean if direction > 0 else sums <= mean, 1, -1)
    assert (sums == mean).mean() > 0.1
    np.testing.assert_array_equal(run(folded, x)[0], right)


def test_a_slope_of_zero_decides_by_the_shift():
    constants = {"mean": constant(np.zeros(4)), "var": constant(np.ones(4))}
    constants |= {"weight": constant([0.0, 0.0, 0.0, 1.0]), "bias": constant([1.0, -1.0, 0.0, 0.0])}
    folded = fold(program(normalised(), constants, {"w": site(4, 8)}))
    y = run(folded, rng.standard_normal((50, 8)).astype(np.float32))[0]
    np.testing.assert_array_equal(y[:, :3], np.broadcast_to([1, -1, 1], (50, 3)))
    assert len(np.unique(y[:, 3])) == 2


def test_maps_in_a_row_become_one_for_each_draw():
    steps = [
        Step("linear", ("x", "w", "b"), ("l",)),
        Step("mul", ("l", "scale"), ("m",)),
        Step("batch_norm", ("m", "mean", "var"), ("n",), "f4", {"axis": 0, "eps": 1e-3}),
        Step("div", ("n", "d"), ("q",)),
        Step("sub", ("one", "q"), ("r",)),
        Step("relu", ("r",), ("y",)),
    ]
    numbers = {name: rng.random((1, 5)).astype(np.float32) + 0.5 for name in ("b", "scale", "d")}
    per_draw = {name: rng.random((3, 5)).astype(np.float32) + 0.5 for name in ("mean", "var")}
    constants = {name: Constant(data) for name, data in numbers.items()}
    constants |= {name: Constant(data, np.arange(3)) for name, data in per_draw.items()}
    constants["one"] = constant(1.0)
    w = site(5, 8, draws=3)
    raw = program(steps, constants, {"w": w}, draws=3)
    folded = fold(raw)
    assert kinds(folded) == ["linear", "affine", "relu"]
    x = rng.standard_normal((20, 8)).astype(np.float32)
    for draw in range(3):
        sums = x.astype(float) @ signs_of(w, draw, float).T + numbers["b"][0]
        mean, var = (per_draw[name][draw].astype(float) for name in ("mean", "var"))
        n = (sums * numbers["scale"][0] - mean) / np.sqrt(var + 1e-3)
        right = np.maximum(1.0 - n / numbers["d"][0], 0.0)
        np.testing.assert_allclose(run(folded, x)[draw], right, rtol=2e-5, atol=2e-6)
    np.testing.assert_allclose(run(folded, x), run(raw, x), rtol=2e-5, atol=2e-6)


def test_a_value_that_is_used_twice_stays():
    steps = [
        Step("linear", ("x", "w"), ("l",)),
        Step("mul", ("l", "two"), ("m",)),
        Step("mul", ("m", "two"), ("n",)),
        Step("add", ("m", "n"), ("y",)),
    ]
    folded = fold(program(steps, {"two": constant(2.0)}, {"w": site(3, 8)}))
    x = rng.standard_normal((4, 8)).astype(np.float32)
    raw = program(steps, {"two": constant(2.0)}, {"w": folded.sites["w"]})
    np.testing.assert_array_equal(run(folded, x), run(raw, x))
    assert kinds(folded).count("affine") == 2


def test_maps_of_different_axes_are_not_one():
    steps = [
        Step("reshape", ("x",), ("i",), "f4", {"shape": (2, 4)}),
        Step("mul", ("i", "rows"), ("a",)),
        Step("mul", ("a", "columns"), ("b",)),
        Step("mul", ("b", "two"), ("y",)),
    ]
    constants = {"rows": constant([[2.0], [3.0]]), "columns": constant([1.0, 5.0, 7.0, 9.0])}
    constants["two"] = constant(2.0)
    folded = fold(program(steps, constants, {}))
    x = rng.standard_normal((4, 8)).astype(np.float32)
    expected = x.reshape(4, 2, 4) * np.array([[2.0], [3.0]]) * np.array([1.0, 5, 7, 9]) * 2.0
    np.testing.assert_allclose(run(folded, x)[0], expected, rtol=1e-6)
    assert kinds(folded) == ["reshape", "affine", "affine"]


def test_a_bias_keeps_its_axis_under_a_number_for_all_channels():
    steps = [
        Step("reshape", ("x",), ("r",), "f4", {"shape": (4, 2)}),
        Step("linear", ("r", "w", "b"), ("l",)),
        Step("mul", ("l", "two"), ("y",)),
    ]
    constants = {"b": constant([1.0, 2.0, 3.0]), "two": constant(2.0)}
    w = site(3, 2)
    folded = fold(program(steps, constants, {"w": w}))
    x = rng.standard_normal((5, 8)).astype(np.float32)
    expected = 2.0 * (x.reshape(5, 4, 2) @ signs_of(w, 0).T + [1.0, 2.0, 3.0])
    np.testing.assert_allclose(run(folded, x)[0], expected, rtol=1e-5, atol=1e-5)
    assert kinds(folded) == ["reshape", "linear", "affine"]


def test_what_no_datum_changes_is_computed_once():
    steps = [
        Step("exp", ("log_scale",), ("scale",)),
        Step("linear", ("x", "w"), ("l",)),
        Step("mul", ("l", "scale"), ("y",)),
    ]
    folded = fold(program(steps, {"log_scale": constant(0.3)}, {"w": site(3, 8)}))
    assert kinds(folded) == ["linear", "affine"]
    (slope,) = (c for name, c in folded.constants.items() if name.endswith("slope"))
    assert slope.data == np.float32(np.exp(np.float64(np.float32(0.3))))


@pytest.mark.parametrize("between", ["clamp", "tanh"])
def test_a_sign_looks_through_steps_that_keep_it(between):
    attributes = {"low": -1.0, "high": 1.0} if between == "clamp" else {}
    steps = normalised()[:3]
    steps += [Step(between, ("n",), ("c",), "f4", attributes), Step("sign", ("c",), ("y",))]
    constants = {name: constant(rng.random(4)) for name in ("mean", "var", "weight", "bias")}
    assert kinds(fold(program(steps, constants, {"w": site(4, 8)}))) == [
        "sign",
        "linear",
        "threshold",
    ]


def test_what_a_decision_hangs_on_is_float64_back_to_exact_values():
    steps = [
        Step("linear", ("x", "v"), ("first",)),  # real numbers: float64
        Step("relu", ("first",), ("r",)),
        Step("sign", ("r",), ("s",)),
        Step("linear", ("s", "w"), ("second",)),  # whole numbers: exact
        Step("add", ("second", "first"), ("t",)),  # float64 again
        Step("sign", ("t",), ("u",)),
        Step("linear", ("u", "w"), ("third",)),
        Step("tanh", ("third",), ("y",)),
    ]
    folded = fold(program(steps, {}, {"v": site(8, 8), "w": site(8, 8)}))
    types = {step.outputs[0]: step.dtype for step in folded.steps}
    assert types == {"first": "f8", "r": "f8", "s": "f4", "second": "f4", "t": "f8", "u": "f4",
                     "third": "f4", "y": "f4"}  # fmt: skip


def test_an_output_that_a_decision_hangs_on_keeps_its_type():
    steps = [
        Step("linear", ("x", "w"), ("y",)),
        Step("relu", ("y",), ("r",)),
        Step("sign", ("r",), ("s",)),
    ]
    folded = fold(program(steps, {}, {"w": site(4, 8)}, outputs=("y", "s")))
    assert [folded.values[name].dtype for name in folded.outputs] == ["f4", "f4"]
    assert folded.values["r"].dtype == "f8"
    x = rng.standard_normal((5, 8)).astype(np.float32)
    y, s = reference.run(folded, [x], [0])
    expected = x.astype(float) @ signs_of(folded.sites["w"], 0, float).T
    np.testing.assert_array_equal(y[0], expected.astype(np.float32))
    np.testing.assert_array_equal(s[0], 1.0)


def test_what_nothing_needs_is_dropped():
    steps = [
        Step("linear", ("x", "w"), ("y",)),
        Step("linear", ("x", "v"), ("unused",)),
    ]
    folded = fold(
        program(steps, {"c": constant(1.0)}, {"v": site(8, 8), "w": site(8, 8)}, outputs=("y",))
    )
    assert set(folded.sites) == {"w"} and not folded.constants and len(folded.steps) == 1
