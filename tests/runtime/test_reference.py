"""Every kind of step of the numpy backend against torch, and against itself row by row."""

from __future__ import annotations

import numpy as np
import pytest
from step_cases import CASES, Case

from bayesbin.runtime.kinds import KINDS
from bayesbin.runtime.program import Constant, Program, Step, Value
from bayesbin.runtime.reference import COMPUTE, run

# Kinds that compute in the type of their outputs; all others compute in float64 and round once.
OWN = {
    "affine", "relu", "clamp", "tanh", "leaky_relu", "prelu", "add", "sub", "mul", "avg_pool",
}  # fmt: skip
EACH = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def outputs(program: Program, arrays: list[np.ndarray]) -> list[np.ndarray]:
    return [found[0] for found in run(program, arrays, [0])]


def check_against_torch(case: Case, dtype: str) -> None:
    arrays = case.arrays(5)
    tolerance = 1e-12 if dtype == "f8" else 3e-6
    found = outputs(case.program(dtype), arrays)
    expected = case.expected(arrays)
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == (case.dtype or dtype)
        # What depends on constants alone is not repeated for the rows by torch.
        theirs = np.broadcast_to(theirs, ours.shape)
        size = max(1.0, float(np.max(np.abs(theirs[np.isfinite(theirs)]), initial=0.0)))
        np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance * size)


def check_rows_alone(case: Case) -> None:
    arrays = case.arrays(9)
    program = case.program("f4")
    whole = outputs(program, arrays)
    for rows in (*(slice(row, row + 1) for row in range(9)), slice(2, 5), slice(None, None, 2)):
        for some, every in zip(outputs(program, [x[rows] for x in arrays]), whole, strict=True):
            assert np.array_equal(some, every[rows], equal_nan=some.dtype.kind == "f")


def test_every_kind_has_a_computation_and_cases():
    assert set(COMPUTE) == set(KINDS) == {case.kind for case in CASES}


@EACH
def test_float64_as_torch(case: Case):
    check_against_torch(case, "f8")


@EACH
def test_float32_near_torch(case: Case):
    check_against_torch(case, "f4")


@EACH
def test_a_row_does_not_depend_on_its_batch(case: Case):
    check_rows_alone(case)


def _signed(case: Case) -> bool:
    """Whether sums are in panels, in the type of the output."""
    return case.kind in ("linear", "conv") and case.inputs[1].place == "site"


@pytest.mark.parametrize(
    "case",
    [case for case in CASES if case.kind not in OWN and not _signed(case) and case.dtype is None],
    ids=lambda case: case.name,
)
def test_float32_is_float64_rounded_once(case: Case):
    arrays = case.arrays(4)
    for narrow, wide in zip(
        outputs(case.program("f4"), arrays), outputs(case.program("f8"), arrays), strict=True
    ):
        assert np.array_equal(narrow, wide.astype(np.float32), equal_nan=True)


FIRST = {case.kind: case for case in reversed(CASES) if case.dtype is None}
FIRST |= {case.kind: case for case in CASES if case.kind not in FIRST}


def _sabotaged(kind: str, change):
    right = COMPUTE[kind]
    return lambda step, arrays: [change(each) for each in right(step, arrays)]


def _off(found: np.ndarray) -> np.ndarray:
    """By ten times the tolerance of float64; booleans turned around."""
    return ~found if found.dtype == bool else found * (1 + 1e-11) + 1e-11


def _mixed(found: np.ndarray) -> np.ndarray:
    """With a trace of the rest of the batch."""
    if found.dtype == bool:
        return found ^ found.any(axis=0)
    return found + np.float32(1e-5) * found.mean(axis=0, dtype=np.float64).astype(np.float32)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_wrong_computation_is_found(kind: str, monkeypatch: pytest.MonkeyPatch):
    case = FIRST[kind]
    monkeypatch.setitem(COMPUTE, kind, _sabotaged(kind, _off))
    with pytest.raises(AssertionError):
        check_against_torch(case, "f8")


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_computation_that_mixes_rows_is_found(kind: str, monkeypatch: pytest.MonkeyPatch):
    case = FIRST[kind]
    monkeypatch.setitem(COMPUTE, kind, _sabotaged(kind, _mixed))
    with pytest.raises(AssertionError):
        check_rows_alone(case)


@EACH
def test_the_order_in_memory_does_not_matter(case: Case):
    arrays = case.arrays(6)
    whole = outputs(case.program("f4"), arrays)
    reversed_views = [
        np.ascontiguousarray(x[..., ::-1])[..., ::-1] if x.ndim > 1 else x for x in arrays
    ]
    for laid_out in ([np.asfortranarray(x) for x in arrays], reversed_views):
        for some, every in zip(outputs(case.program("f4"), laid_out), whole, strict=True):
            assert np.array_equal(some, every, equal_nan=some.dtype.kind == "f")


SPECIAL = np.array(
    [np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, -1e-45, 3e38, -3e38, 1.0], dtype=np.float32
)
KEEP_NAN = {
    case.kind for case in CASES
    if len(case.inputs) == 1 and case.inputs[0].shape == (3, 50)
} - {"sign", "threshold"}  # fmt: skip


@pytest.mark.parametrize("kind", sorted(KEEP_NAN))
def test_special_numbers_as_torch(kind: str):
    """NaN stays, infinities and signs of zero go where torch has them; no warning is raised."""
    for case in (case for case in CASES if case.kind == kind and case.inputs[0].shape == ()):
        ours = outputs(case.program("f8"), [SPECIAL])[0]
        theirs = case.expected([SPECIAL])[0]
        np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-300)
        assert np.isnan(ours[0])


def test_decisions_of_numbers_that_are_not_finite():
    x = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0], dtype=np.float32)
    numbers = {
        name: Constant(np.array([value]))
        for name, value in (
            ("up", np.inf),
            ("down", -np.inf),
            ("one", 1.0),
            ("none", 0.0),
            ("minus", -2.0),
        )
    }
    pairs = [("down", "one"), ("up", "one"), ("none", "minus"), ("one", "none")]
    steps = [Step("sign", ("x",), ("sign",))] + [
        Step("threshold", ("x", at, slope), (f"{at} {slope}",), attributes={"axis": 0})
        for at, slope in pairs
    ]
    names = tuple(step.outputs[0] for step in steps)
    program = Program({"x": Value((), "f4")}, numbers, {}, tuple(steps), names)
    assert [found.astype(int).tolist() for found in outputs(program, [x])] == [
        [-1, 1, -1, 1, 1],
        [-1, 1, 1, 1, 1],  # a threshold of -inf: always, but for NaN
        [-1, 1, -1, -1, -1],
        [-1, -1, 1, 1, 1],  # a negative slope: x <= 0
        [-1, 1, 1, 1, 1],  # no slope: 0 >= 0
    ]
