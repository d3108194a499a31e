"""A program as rows of whole numbers, as csrc/program.h describes them; arrays go by their numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from bayesbin.predict.kernels import KINDS, address

if TYPE_CHECKING:
    from bayesbin.predict.kernel_program import Program
    from bayesbin.predict.torch_program import TorchProgram

FIELDS = 16  # numbers of a row
WEIGHTS, AFFINE, RELU, CLAMP, TANH, SIGN, MAX_POOL, AVG_POOL, FLATTEN, PUSH, SWAP, ADD = range(12)
SIMPLE = {"relu": RELU, "tanh": TANH, "sign": SIGN}
# Which numbers of a row are arrays: in C++ their addresses, here their numbers from 1 on; 0: none.
ARRAYS = {WEIGHTS: (10, 11, 12, 13), AFFINE: (1, 2), CLAMP: (1,)}


def rows_of(steps: Sequence[Sequence[int]]) -> np.ndarray:
    """Steps in rows, int64 (steps, 16), with zeros behind them."""
    rows = np.zeros((len(steps), FIELDS), dtype=np.int64)
    for row, step in zip(rows, steps, strict=True):
        row[: len(step)] = step
    return rows


def with_addresses(rows: np.ndarray, arrays: Sequence[np.ndarray]) -> np.ndarray:
    """The rows with the addresses of arrays in place of their numbers."""
    rows = rows.copy()
    for row in rows:
        for place in ARRAYS.get(int(row[0]), ()):
            row[place] = address(arrays[row[place] - 1]) if row[place] else 0
    return rows


def replay(rows: np.ndarray, arrays: Sequence[np.ndarray], program: Program | TorchProgram) -> None:
    """Add the steps in the rows to a program, which checks them.

    :raises ValueError: for rows of another width, an unknown step, or an array that is not there.
    """
    if rows.ndim != 2 or rows.shape[1] != FIELDS or rows.dtype != np.int64:
        raise ValueError(
            f"A program's rows are int64 (steps, {FIELDS}); got {rows.dtype} of shape {rows.shape}."
        )
    for row in rows.tolist():
        used = [row[place] for place in ARRAYS.get(row[0], ())]
        if any(not 0 <= number <= len(arrays) for number in used):
            raise ValueError(f"A program's rows name {len(arrays)} arrays; got the numbers {used}.")
        _replay_step(row, [arrays[number - 1] for number in used if number], program)


def _replay_step(
    row: Sequence[int], arrays: Sequence[np.ndarray], program: Program | TorchProgram
) -> None:
    size, stride, padding = ((row[i], row[i + 1]) for i in (4, 6, 8))
    op = row[0]
    if op == WEIGHTS and len(arrays) in (1, 3) and row[1] in KINDS.values():
        where = ((row[2], row[3], *size), stride, padding, list(KINDS)[row[1]])
        if len(arrays) == 3:
            program.drawn(arrays[0], arrays[1], arrays[2], *where)
        else:
            program.given(arrays[0], *where)
    elif op == AFFINE and len(arrays) == 2:
        program.affine(*arrays)
    elif op == CLAMP and len(arrays) == 1 and arrays[0].shape == (2,):
        program.activation("hardtanh", *arrays[0].tolist())
    elif op in SIMPLE.values():
        program.activation({number: name for name, number in SIMPLE.items()}[op])
    elif op in (MAX_POOL, AVG_POOL):
        program.pool("max" if op == MAX_POOL else "avg", size, stride, padding, bool(row[1]))
    elif op == FLATTEN:
        program.flatten()
    elif op in (PUSH, SWAP, ADD):
        {PUSH: program.push, SWAP: program.swap, ADD: program.add}[op]()
    else:
        raise ValueError(f"A row of the program is no step that there is: {list(row)}.")
