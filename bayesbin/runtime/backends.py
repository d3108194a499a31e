"""The backends that a predictor runs programs on: the compiled kernels where they are, or numpy."""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from bayesbin.core.checks import one_of
from bayesbin.runtime import reference
from bayesbin.runtime.program import Program

BACKENDS = ("auto", "native", "numpy")
_MEMORY = 1 << 26  # bytes that the values of a block of rows may take, about
_MOST_ROWS = 1 << 14
_warned = False


class Runner:
    """Runs a program in blocks of rows and chunks of draws that fit the memory.

    :param backend: "native" or "numpy", see :func:`chosen_backend`. :param precision: "exact" or "fast".
    :ivar rows: how many rows to run at once. :ivar draws: how many draws.
    """

    def __init__(
        self, program: Program, backend: str, threads: int = 1, precision: str = "exact"
    ) -> None:
        self.program, self.threads, self.precision = program, threads, precision
        self.native: Any = None
        if backend == "native":
            self.native = _native_backend().NativeProgram(program, precision)
        draws = program.num_draws
        # Of one row: the values of one draw on their way, and the outputs of a chunk of draws, which the
        # head converts to float64 and copies a few times.
        outputs = 64 * sum(program.values[name].size for name in program.outputs)
        values = 8 * program.peak
        self.draws = max(1, min(draws, (_MEMORY - values) // outputs))
        self.rows = max(1, min(_MOST_ROWS, _MEMORY // (values + self.draws * outputs)))

    def run(self, rows: Sequence[np.ndarray], draws: Sequence[int]) -> list[np.ndarray]:
        """Of each output (len(draws), B, ...)."""
        if self.native is not None:
            return self.native.run(rows, draws, threads=self.threads)
        return reference.run(self.program, rows, draws, precision=self.precision)

    def chunks(self, rows: Sequence[np.ndarray]) -> Iterator[list[np.ndarray]]:
        """The outputs of all draws, some draws after another."""
        for first in range(0, self.program.num_draws, self.draws):
            yield self.run(rows, range(first, min(first + self.draws, self.program.num_draws)))


def chosen_backend(backend: str, stacklevel: int = 3) -> str:
    """ "native" or "numpy", for one of ``BACKENDS``.

    :param stacklevel: of the warning, once in a process, that "auto" has to do without the kernels.
    :raises RuntimeError: for kernels that were asked for and are not there.
    """
    global _warned
    if one_of("backend", backend, BACKENDS) == "numpy":
        return backend
    why_not = _native_backend().why_not()
    if why_not is None:
        return "native"
    if backend == "native":
        raise RuntimeError(f"expected compiled kernels for backend='native'. {why_not}")
    if not _warned:
        _warned = True
        warnings.warn(
            "The compiled kernels are not there, so numpy predicts: the same numbers, more slowly. "
            f"{why_not}",
            UserWarning,
            stacklevel=stacklevel,
        )
    return "numpy"


def processors() -> int:
    """How many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _native_backend() -> ModuleType:
    # Where it is used: it loads the kernels, which numpy alone does without.
    return importlib.import_module("bayesbin.runtime.native_backend")
