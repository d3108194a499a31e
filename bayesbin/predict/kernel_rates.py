"""How fast the kernels draw and add on this machine, and what a layer may then be expected to take."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from bayesbin.predict.kernel_program import Program
from bayesbin.predict.kernels import available, tier
from bayesbin.predict.packing import num_words

_UNITS = _INPUTS = 512
_DRAWS = 4
_FEW, _MANY = 8, 128  # rows: 8 are the fewest that the kernels add up at once
_LANES = 8


class Rates(NamedTuple):
    """Nanoseconds on one thread: per weight drawn, and per weight times row of 8 or more rows."""

    drawn: float
    added: float


def microseconds_of(kind: str, drawn: int, sums: int, batch: int) -> float | None:
    """What one draw of a layer is expected to take on one thread; None where there are no kernels.

    :param drawn: weights to draw. :param sums: weights times output pixels.
    """
    if not available():
        return None
    rates = _rates(kind, tier())
    rows = -(-batch // _LANES) * _LANES
    return 1e-3 * (rates.drawn * drawn + rates.added * sums * rows)


def rates(kind: str) -> Rates:
    """Rates of a kind of sums ("real", "fast" or "sign"), measured once per process in some 50 ms.

    A linear layer of 512 units and inputs is timed with 8 and with 128 rows: the difference is the
    adding, what is left the drawing. Convolutions and other sizes differ somewhat.

    :raises ValueError: for an unknown kind. :raises RuntimeError: where there are no kernels.
    """
    return _rates(kind, tier())


def median_seconds(run: Callable[[], object], turns: int = 5) -> float:
    """The median time of some runs."""
    seconds = []
    for _ in range(turns):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return sorted(seconds)[turns // 2]


@lru_cache
def _rates(kind: str, _tier: str) -> Rates:
    few, many = (1e9 * _seconds(kind, rows) / _DRAWS for rows in (_FEW, _MANY))
    added = max(many - few, 0.0) / (_MANY - _FEW) / (_UNITS * _INPUTS)
    return Rates(max(few / (_UNITS * _INPUTS) - added * _FEW, 0.0), added)


def _seconds(kind: str, rows: int) -> float:
    noise = np.random.default_rng(0)
    thresholds = noise.integers(0, 32768, (_UNITS, _INPUTS), dtype=np.uint16)
    mode = np.zeros((_UNITS, num_words(_INPUTS)), dtype=np.uint64)
    keys = np.arange(_DRAWS, dtype=np.uint64)
    program = Program((_INPUTS, 1, 1), _DRAWS)
    program.drawn(mode, thresholds, keys, (_UNITS, _INPUTS), (1, 1), (0, 0), kind)
    x = np.sign(noise.standard_normal((rows, _INPUTS))).astype(np.float32)
    return median_seconds(lambda: program.run_regression(x))
