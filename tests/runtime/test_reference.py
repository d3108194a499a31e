"""Every kind of step of the numpy backend against torch, and against itself row by row."""

from __future__ import annotations

import numpy as np
import pytest
from step_cases import CASES, Case

from bayesbin.runtime.kinds import KINDS
from bayesbin.runtime.program import Program
from bayesbin.runtime.reference import COMPUTE, run

# Sums of real numbers under signs, and what computes in the type of the output, round more than once.
ROUNDED_ONCE = {"matmul", "attention", "embedding", "lstm", "gru", "rnn", "batch_norm"}
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
