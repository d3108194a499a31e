"""How fast the kernels draw and add on this machine, and what a layer may then be expected to take."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from bayesbin.predict.kernel_program import Program
from bayesbin.predict.kernels import available, draw_bits, isa
from bayesbin.predict.packing import num_words, pack

_UNITS = _INPUTS = 512
_ROWS = 128
_LANES = 8  # the fewest rows that the kernels add up at once


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
    rates = _rates(kind, isa())
    rows = -(-batch // _LANES) * _LANES
    return 1e-3 * (rates.drawn * drawn + rates.added * sums * rows)


def rates(kind: str) -> Rates:
    """Rates of a kind of sums ("real", "fast" or "sign"), measured once per process in some 50 ms.

    The bits of a linear layer of 512 units and inputs are drawn, and given ones applied to 128 rows.
    Convolutions and other sizes differ somewhat.

    :raises ValueError: for an unknown kind. :raises RuntimeError: where there are no kernels.
    """
    return _rates(kind, isa())


def median_seconds(run: Callable[[], object], turns: int = 5) -> float:
    """The median time of some runs."""
    return sorted(_seconds(run, turns))[turns // 2]


@lru_cache
def _rates(kind: str, _isa: str) -> Rates:
    noise = np.random.default_rng(0)
    thresholds = noise.integers(0, 32768, (_UNITS, _INPUTS), dtype=np.uint16)
    mode = np.zeros((_UNITS, num_words(_INPUTS)), dtype=np.uint64)
    bits = pack(noise.random((_UNITS, _INPUTS)) < 0.5)
    x = np.sign(noise.standard_normal((_ROWS, _INPUTS))).astype(np.float32)
    program = Program((_INPUTS, 1, 1), 1)
    program.given(bits[None], (_UNITS, _INPUTS), (1, 1), (0, 0), kind)
    # What disturbs a run makes it longer: the shortest of some is the machine's own.
    drawing = min(_seconds(lambda: draw_bits(mode, thresholds, 0), 15))
    adding = min(_seconds(lambda: program.run_regression(x), 15))
    weights = _UNITS * _INPUTS
    return Rates(1e9 * drawing / weights, 1e9 * adding / weights / _ROWS)


def _seconds(run: Callable[[], object], turns: int) -> list[float]:
    found = []
    for _ in range(turns):
        start = time.perf_counter()
        run()
        found.append(time.perf_counter() - start)
    return found
